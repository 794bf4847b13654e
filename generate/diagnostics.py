"""What the prior saw and answered during an optimisation: strips of pictures, targets by view, gradient norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut
from ..core.priors import Prior
from ..geometry.cameras import Camera
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.pictures import grid, save_image
from .views import view_classes

ViewOf = Callable[[Tensor], Sequence[str]]  # images (B, 3, H, W) in [0, 1] to the view that each shows
RECORD = "diagnostics.json"


@dataclass
class Diagnostics:
    """Writes `folder`/step-N.png and diagnostics.json while an optimisation runs.

    A strip has a column for each view and four rows: render, noised render, target and |render - target|, all as the
    prior's decoder shows them. diagnostics.json holds level and gradient norm of every look, and with `view_of` how
    often the target of a camera of one view class shows another: a target that shows fronts from everywhere makes an
    object with several faces (StableDreamer, Guo et al. 2023).
    """

    folder: Path
    strips: int = 10  # over the run
    view_of: ViewOf | None = None
    looks: list[dict[str, float]] = field(default_factory=list)
    targets: dict[str, Counter[str]] = field(default_factory=dict)  # by the camera's view

    def __post_init__(self) -> None:
        if self.strips < 0:
            raise InputError(f"diagnostics: strips={self.strips} must be at least 0")

    def watching(self, prior: Prior, steps: int) -> Callable[[int, Tensor, Camera, GuidanceOut], None]:
        """What an optimisation of so many steps calls at every look."""
        shown = {round(i * (steps - 1) / max(self.strips - 1, 1)) for i in range(self.strips)}

        def watch(step: int, images: Tensor, camera: Camera, out: GuidanceOut) -> None:
            self.looks.append({"step": step, **{name: float(value) for name, value in out.log.items()}})
            if step in shown or self.view_of is not None:
                target = decoded(prior, out.x0_hat)
                self._count(camera, target)
                if step in shown:
                    self._strip(step, prior, images, target, out)
            if step in shown or step == steps - 1:
                self.write()

        return watch

    def _count(self, camera: Camera, target: Tensor) -> None:
        if self.view_of is not None:
            for seen, shows in zip(view_classes(camera), self.view_of(target), strict=True):
                self.targets.setdefault(seen, Counter())[shows] += 1

    def _strip(self, step: int, prior: Prior, images: Tensor, target: Tensor, out: GuidanceOut) -> None:
        size = target.shape[-2:]
        render = torch.nn.functional.interpolate(images.cpu().float(), size, mode="bilinear", antialias=True)
        noised = target if out.noised is None else decoded(prior, out.noised)
        rows = [*render, *noised, *target, *(render - target).abs()]
        tiles = [np.ascontiguousarray(row.permute(1, 2, 0).clamp(0, 1).numpy()) for row in rows]
        save_image(self.folder / f"step-{step:05d}.png", grid(tiles, len(images)))

    def summary(self) -> dict[str, Any]:
        """Plain values."""
        norms = np.asarray([look["grad"] for look in self.looks] or [0.0])
        spread = float(norms.std() / norms.mean()) if norms.mean() > 0 else 0.0
        return {
            "gradient_norm": {"mean": float(norms.mean()), "coefficient_of_variation": spread},
            "targets_by_view": {seen: dict(counts) for seen, counts in sorted(self.targets.items())},
            "looks": self.looks,
        }

    def write(self) -> Path:
        """Writes diagnostics.json."""
        return Path(write_json(self.folder / RECORD, self.summary()))


@torch.no_grad()
def decoded(prior: Prior, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] on the CPU; what is not finite is black."""
    return prior.decode(torch.nan_to_num(latents)).cpu().float().clamp(0, 1)
