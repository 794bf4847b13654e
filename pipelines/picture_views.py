"""What draws views around the object of a picture: a prior that is told the picture, or one of several views.

A prior of several views that see each other is told words and cameras, not pictures. So the picture is one of its
views: at every level its x0 is known (`KnownRows`), and what the others see of it in their attention is that picture
under as much noise as they have. Nothing is trained. It has to be told what is shown and from which side; a reader
(`toybox.reading`) tells both for the embedded prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.priors import Condition, Prior
from ..core.priors.video import FramesPrior
from ..core.sampling import ClassifierFree, Denoiser, Guidance, Sampler
from ..core.sampling.grids import Spacing
from ..core.sampling.guidance import FrameGuidance, KnownRows
from ..core.sampling.solvers import make_solver
from ..geometry.cameras import Camera, to_mvdream
from ..utils.errors import InputError
from ..utils.seeds import sample_noise
from .prompts import check_guidance, check_prompt, warn_about, warn_about_px

BACKBONES = "mvdream"  # priors of several views that know words which the toybox's does not


@dataclass(frozen=True)
class ViewSettings:
    """What decides the views beside the picture and the prior."""

    seed: int
    frames: int
    steps: int
    guidance: tuple[float, float]  # at the picture, and on the other side
    elevation_deg: float
    azimuth_deg: float  # from which the picture looks; 0 is the front
    prompt: str  # "" for priors that are told none
    size: int  # px of a side
    fill: float  # the object's larger side, of the view's
    background: float  # sRGB grey
    cond_aug: float


Reader = Callable[[Tensor], tuple[str, float]]  # (prompt, azimuth in degrees) of a picture (3, H, W)


class Read(NamedTuple):
    """What a picture shows, and from which side."""

    prompt: str
    azimuth_deg: float


class Drawer(Protocol):
    """Draws views of one picture."""

    frames: int
    scales: tuple[float, float]  # of guidance: at the picture, and on the other side
    cond_aug: float
    background: float
    picture_frame: int
    asks_words: bool  # whether it cannot do without being told what the picture shows

    @property
    def prior(self) -> Prior:
        """What draws."""
        ...

    def read(self, picture: Tensor, prompt: str | None, azimuth_deg: float | None) -> Read:
        """What is told of a picture (3, H, W), found where it is None. Raises InputError for what can't be told."""
        ...

    def azimuths(self, settings: ViewSettings) -> list[float]:
        """Degrees of the cameras of the views."""
        ...

    def asked(
        self, picture: Tensor, settings: ViewSettings, rng: torch.Generator
    ) -> tuple[Condition, Guidance, Spacing]:
        """(condition, guidance, spacing of the levels) of a picture (1, 3, H, W)."""
        ...


class OrbitDrawer:
    """A prior that is told a picture: toybox-orbit, SV3D."""

    background, asks_words = 0.5, False

    def __init__(self, prior: FramesPrior) -> None:
        """Raises InputError for a prior of films."""
        if not prior.orbits:
            raise InputError(
                f"the prior {prior.name!r} draws films, whose cameras nobody knows, not orbits; use SV3D's weights"
            )
        self.prior, self.frames, self.scales, self.cond_aug = prior, prior.frames, prior.scales, prior.cond_aug
        self.picture_frame = prior.picture_frame

    def read(self, picture: Tensor, prompt: str | None, azimuth_deg: float | None) -> Read:
        """See Drawer."""
        if prompt is not None or azimuth_deg is not None:
            raise InputError(
                f"prompt and azimuth are for priors of several views; {self.prior.name} is told the picture alone, and "
                "its azimuths count from there"
            )
        return Read("", 0.0)

    def azimuths(self, settings: ViewSettings) -> list[float]:
        """See Drawer."""
        return self.prior.azimuths(settings.frames)

    def asked(
        self, picture: Tensor, settings: ViewSettings, rng: torch.Generator
    ) -> tuple[Condition, Guidance, Spacing]:
        """See Drawer."""
        condition = self.prior.encode_picture(picture, rng, settings.frames, settings.elevation_deg, settings.cond_aug)
        return condition, frame_guidance(self.prior, settings.guidance, settings.frames), "karras"


class JointDrawer:
    """A prior of several views: the picture is the first of them."""

    background, cond_aug, picture_frame = 0.85, 0.0, 0

    def __init__(self, prior: Prior, reader: Reader | None = None) -> None:
        """`reader`: of pictures of the embedded prior's world."""
        self.prior, self.frames, self.reader = prior, prior.frames, reader
        self.scales = (prior.recommended.guidance,) * 2
        if prior.recipe != "toybox":
            self.reader = None  # it knows that world alone
        self.asks_words = self.reader is None

    def read(self, picture: Tensor, prompt: str | None, azimuth_deg: float | None) -> Read:
        """See Drawer. Warns of words that the prior does not read; the reader looks at what it is asked alone."""
        if prompt is not None:
            check_prompt(prompt)
            warn_about(self.prior, prompt, BACKBONES)
        reader = self.reader
        if prompt is None and reader is None:
            raise InputError(
                f"{self.prior.name} is told words: say what the picture shows, as prompt or subject (--prompt "
                '"a red cup"), or give a reader'
            )
        asked = reader is not None and (prompt is None or azimuth_deg is None)
        found = Read(*reader(picture)) if reader is not None and asked else Read("", 0.0)
        return Read(
            found.prompt if prompt is None else prompt, found.azimuth_deg if azimuth_deg is None else azimuth_deg
        )

    def azimuths(self, settings: ViewSettings) -> list[float]:
        """See Drawer."""
        return [settings.azimuth_deg + 360.0 * k / settings.frames for k in range(settings.frames)]

    def asked(
        self, picture: Tensor, settings: ViewSettings, rng: torch.Generator
    ) -> tuple[Condition, Guidance, Spacing]:
        """See Drawer. Raises InputError for guidance that differs from view to view and for noise on the picture."""
        low, high = settings.guidance
        if low != high:
            raise InputError(
                f"{self.prior.name} has one scale of guidance for all views, not {low:g} at the picture and {high:g} "
                "on the other side; give max_guidance_scale alone"
            )
        if settings.cond_aug:
            raise InputError(
                f"{self.prior.name} sees the picture as it is; noise on it (noise_aug_strength, --cond-aug), here "
                f"{settings.cond_aug:g}, is for weights of orbits"
            )
        check_guidance(self.prior, high)
        warn_about_px(self.prior.name, self.prior.image_size, self.prior.known_px, settings.size, settings.size)
        camera = Camera.orbit(
            self.azimuths(settings), settings.elevation_deg, 1.0, 1.0, 8
        )  # the direction is what counts
        condition = self.prior.encode_text([settings.prompt]).with_views(to_mvdream(camera.c2w), settings.frames)
        known = self.prior.encode(picture)
        return condition, KnownRows(ClassifierFree(high), known, (0,)), "trailing"


def drawer_of(prior: Prior, way_out: str, reader: Reader | None = None) -> Drawer:
    """How a prior draws views of a picture; `reader` says what the embedded prior is shown. Raises InputError for one
    that draws single views of words."""
    if isinstance(prior, FramesPrior):
        return OrbitDrawer(prior)
    if prior.multiview:
        return JointDrawer(prior, reader)
    raise InputError(f"the prior {prior.name!r} draws no views of a picture; {way_out}")


def frame_guidance(prior: FramesPrior, scales: tuple[float, float], frames: int) -> FrameGuidance:
    """Guidance that grows away from the picture: by angle, or as SV3D does where the picture is the last frame."""
    if prior.picture_frame:
        return FrameGuidance.triangle(*scales, frames)
    return FrameGuidance.around(*scales, prior.azimuths(frames))


@torch.no_grad()
def drawn_views(
    drawer: Drawer, picture: Tensor, settings: ViewSettings, rng: torch.Generator, after: Callable[..., None]
) -> Tensor:
    """Views (F, 3, H, W) in [0, 1] of a picture (1, 3, H, W); `after` is called with every step."""
    prior = drawer.prior
    condition, guidance, spacing = drawer.asked(picture.to(prior.device), settings, rng)
    denoiser = Denoiser(prior, condition, guidance)
    side = settings.size // prior.vae_factor
    noise = sample_noise((settings.frames, prior.latent_shape[0], side, side), rng, 1, prior.device)
    levels = denoiser.schedule.grid(settings.steps, spacing)
    solver = make_solver("ddim", denoiser.schedule.flow, prior.prediction_type)
    return prior.decode(Sampler(solver).run(denoiser, noise[0], levels, callback=after)).cpu()
