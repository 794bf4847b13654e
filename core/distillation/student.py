"""What learns from a teacher: a prior whose network, or something in it, is trainable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...utils.configs import to_dict
from ...utils.errors import InputError
from ...utils.files import STUDENT, read_json, write_json
from ..priors.diffusers import DiffusersPrior
from ..priors.embedded import MultiViewPrior
from ..priors.rows import Condition
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Guidance, guided
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.prediction import Prediction
from ..training.export import folder_path
from .kinds import Full, Kind
from .teacher import Teacher, prior_hash


class Student:
    """A prior with a network of its own, of which learns what its kind says. The prior that is given stays as it is;
    text encoders and codec are shared with it and frozen."""

    def __init__(self, prior: DiffusersPrior, kind: Kind | None = None, seed: int = 0) -> None:
        """`kind`: None: everything learns; `seed` is that of weights that are new.

        Raises InputError where the kind does not suit the network, and for multi-view priors, whose network is more
        than the backbone that a student copies.
        """
        if isinstance(prior, MultiViewPrior):
            raise InputError(f"{prior.name} sees several views at once; make the student of its 2-D prior")
        self.kind, self.base = kind or Full(), prior_hash(prior)
        self.prior = self.kind.fitted(prior, seed)
        self.schedule = NoiseSchedule.from_config(self.prior.scheduler_config)

    @property
    def network(self) -> nn.Module:
        """What is asked; parameters that do not learn require no gradients."""
        return self.prior.network

    @property
    def recipe(self) -> dict[str, Any]:
        """What defines it beside its weights, as plain values."""
        return {"kind": self.kind.name, "settings": to_dict(self.kind) or {}}

    @property
    def trained_share(self) -> float:
        """Parameters that learn, of all of its network."""
        counts = {p: p.numel() for p in self.network.parameters()}
        return sum(n for p, n in counts.items() if p.requires_grad) / sum(counts.values())

    def trainable(self) -> dict[str, nn.Module]:
        """Modules for an objective and its player; they train what requires gradients."""
        return {"student": self.network}

    def denoiser(self, condition: Condition, guidance: Guidance | float | None = None) -> Denoiser:
        """It, told a condition; differentiable in weights and state."""
        return Denoiser(self.prior, condition, guidance)

    def ask(self, x: Tensor, level: Level, condition: Condition, scale: Tensor | None = None) -> Prediction:
        """Its one answer at x (B, C, h, w), told a guidance scale (B,) and a negative prompt where it reads such."""
        if scale is not None or self.prior.negative_embedded:
            _, condition = guided(self.prior, condition, 1.0 if scale is None else scale)
        return self.denoiser(condition)(x, level)

    def teacher(self, guidance: Guidance | float | None = None) -> Teacher:
        """The prior that it was made of, out of the same memory. Raises InputError for kinds that cannot be turned
        off."""
        with self.kind.off(self.network):
            return Teacher(self.prior, guidance, off=self.without_adapter)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the network answers as the prior's did."""
        with self.kind.off(self.network):
            yield

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Writes its weights as its kind does, and distill.json with what it is and what else there is `about` it."""
        with folder_path(folder) as temporary:
            self.kind.write(self.prior, temporary)
            write_json(temporary / STUDENT, {**self.recipe, "base": self.base, **(about or {})})
        return Path(folder)

    def load(self, folder: str | Path) -> None:
        """Takes the weights that `save` wrote. Raises InputError for a student of another prior or kind."""
        folder = Path(folder)
        about, mine = read_json(folder / STUDENT), {**self.recipe, "base": self.base}
        odd = [name for name, value in mine.items() if about.get(name) != value]
        if odd:
            raise InputError(f"{folder} holds another student ({', '.join(f'{n} {about.get(n)}' for n in odd)})")
        self.kind.read(self.prior, folder)
