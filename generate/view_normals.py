"""Normal maps of one object from all around, drawn by a prior of several views (Direct2.5, Lu et al. 2024).

The run begins at the noised picture of a ball, x_T = alpha_T z_ball + sigma_T n, which puts the object into the middle
and gives it a size. Normals are those of one fixed frame in all views.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import trimesh
from torch import Tensor

from ..core.distillation.score import DivergedError
from ..core.priors import Prior
from ..core.sampling.caches import caching
from ..core.sampling.denoiser import Control
from ..core.sampling.drawing import drawing
from ..core.sampling.init import ImageInit, Init
from ..core.sampling.plan import SamplingPlan
from ..geometry.cameras import Camera, to_mvdream
from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..utils.errors import InputError
from ..utils.seeds import sample_noise

BLOB_FRAME = 1.5  # length that fills a picture in the units of `blob`: a cube of 1 holds the object
GREY = 0.5  # what a normal of length 0 looks like


@dataclass(frozen=True)
class NormalCode:
    """How world normals n and coverage become a picture: channel k is (n[order[k]] + 1) / 2, over a grey level."""

    order: tuple[int, int, int] = (0, 1, 2)
    background: float = GREY
    apart: float = 0.0  # a pixel shows the object where a channel is further from the background; 0: see below
    outline: tuple[float, float] = (0.25, 0.75)  # lengths of the normal between which coverage rises from 0 to 1

    def __post_init__(self) -> None:
        if sorted(self.order) != [0, 1, 2] or not 0 <= self.outline[0] < self.outline[1]:
            raise InputError(f"order={self.order} has to hold 0, 1 and 2, and outline={self.outline} to rise")
        if self.background != GREY and not self.apart:
            raise InputError(f"background={self.background} is no normal of length 0: say how far apart the object is")

    def encode(self, normals: Tensor, alpha: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of world normals (B, H, W, 3) and coverage (B, H, W, 1)."""
        shown = 0.5 * normals[..., list(self.order)] + 0.5
        return (alpha * shown + (1 - alpha) * self.background).permute(0, 3, 1, 2)

    def decode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(unit world normals (B, H, W, 3), coverage (B, H, W) in [0, 1]) of pictures (B, 3, H, W) in [0, 1]."""
        colours = pictures.permute(0, 2, 3, 1).float()
        told = 2 * colours - 1
        normals = torch.nn.functional.normalize(told[..., [self.order.index(axis) for axis in range(3)]], dim=-1)
        if self.apart:
            return normals, ((colours - self.background).abs() > self.apart).any(-1).float()
        low, high = self.outline
        return normals, ((told.norm(dim=-1) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Ring:
    """Cameras all around at one height that look at the origin; the first sees the front."""

    fov_deg: float = 33.0
    distance: float = 3.52  # metres: the unit ball just fills a picture
    elevation_deg: float = 0.0

    def camera(self, views: int, size: int, elevation_deg: float | None = None) -> Camera:
        """`views` of them, size x size px, at another height where one is given."""
        elevation = self.elevation_deg if elevation_deg is None else elevation_deg
        return Camera.orbit([360.0 * i / views for i in range(views)], elevation, self.distance, self.fov_deg, size)

    @property
    def reach(self) -> float:
        """Metres from the origin to the upper border of a picture."""
        return float(self.distance * torch.tan(torch.deg2rad(torch.tensor(0.5 * self.fov_deg))))


@dataclass(frozen=True)
class NormalsDraw:
    """How they are drawn."""

    words: str = "normal map"  # at the end of the prompt
    code: NormalCode = field(default_factory=NormalCode)
    ring: Ring = field(default_factory=Ring)
    blob: float = 0.8  # diameter of the ball it begins with, in cubes around the object; 0: plain noise
    plan: SamplingPlan = field(default_factory=SamplingPlan)  # what is open is what suits the prior


def check_taught(prior: Prior, words: str, who: str, what: str, otherwise: str) -> None:
    """Raises InputError, in the name of `who`, for priors of single images, and for those that have never seen `words`,
    which call for `what`, a kind of maps; `otherwise` is the way out without one."""
    if not prior.multiview:
        raise InputError(f"{who}: the prior {prior.name!r} draws single images; it needs one of several views")
    if unknown := prior.unknown_words(words):
        raise InputError(
            f"{who}: the prior {prior.name!r} knows no {what}: it has never seen {unknown[0][0]!r}; it needs one "
            f"that was taught maps (`unproject train multiview`, docs/training.md), or {otherwise}"
        )


def check_draws_normals(prior: Prior, words: str) -> None:
    """Raises InputError for priors of single images, and for those that have never seen the words of normal maps."""
    check_taught(prior, words, "direct25", "normal maps", "use --method optimise")


def worded(prior: Prior, prompt: str, words: str) -> str:
    """The prompt with words at its end, which the text encoder has to see: the prompt's own last words make room."""
    kept = prompt.split(" ")
    while len(kept) > 1 and prior.truncated(f"{' '.join(kept)}, {words}"):
        kept.pop()
    return f"{' '.join(kept).rstrip(',')}, {words}" if words else prompt


@torch.no_grad()
def draw_views(
    prior: Prior,
    prompt: str,
    camera: Camera,
    plan: SamplingPlan,
    generator: torch.Generator,
    negative: str | None = None,
    init: Init | None = None,
    maps: Tensor | None = None,
    controls: tuple[Control, ...] = (),
) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] of one object from B cameras, which see each other.

    maps: latents (B, C, h, w) of maps of these views, for priors that read them. A cache of the plan holds features of
    all views of a run together.
    """
    condition = prior.encode_text([prompt], negative).with_views(to_mvdream(camera.c2w), camera.batch)
    if maps is not None:
        condition = condition.with_rows(concat=maps)
    made = drawing(plan.changed(init=init), prior, negative=negative)
    noise = sample_noise((camera.batch, *prior.latent_shape), generator, 1, prior.device)[0]
    start = made.started(noise)
    with caching(made.prior, made.plan.cache, steps=len(start.levels) - 1, solver=made.solver):
        latents = made.run(condition, start, generator, controls=controls)
    return prior.decode(latents).float()


def blob_pictures(camera: Camera, radius: float, code: NormalCode) -> Tensor:
    """Pictures (B, 3, H, W) of a ball at the origin."""
    ball = Mesh.from_trimesh(trimesh.creation.icosphere(4, radius)).with_smooth_normals()
    seen = RayMesh(ball).render(camera, ("normal",), supersample=2)
    return code.encode(seen.normal, seen.alpha)


@torch.no_grad()
def draw_normals(
    prior: Prior, prompt: str, config: NormalsDraw, generator: torch.Generator
) -> tuple[Tensor, Tensor, Camera]:
    """(unit world normals (B, H, W, 3), coverage (B, H, W), their cameras) of what a prompt says.

    Raises InputError as `check_draws_normals` does, DivergedError where a view shows nothing.
    """
    check_draws_normals(prior, config.words)
    camera = config.ring.camera(prior.frames, prior.image_size)
    init = None
    if config.blob:
        ball = blob_pictures(camera, config.blob / BLOB_FRAME * config.ring.reach, config.code)
        init = ImageInit(prior.encode(ball.to(prior.device)), 1.0)
    pictures = draw_views(prior, worded(prior, prompt, config.words), camera, config.plan, generator, init=init).cpu()
    normals, masks = config.code.decode(pictures)
    empty = (masks.amax((1, 2)) < 0.5).nonzero()[:, 0].tolist()
    if empty:
        raise DivergedError(f"direct25: the prior drew no object in view {empty[0]} of {len(masks)}; try another seed")
    return normals, masks, camera


def agreement(mesh: Mesh, normals: Tensor, masks: Tensor, camera: Camera) -> dict[str, float]:
    """How a mesh agrees with maps of it: the mean angle between normals where both show it, "angle_deg", and the
    intersection over union of the silhouettes, "iou"."""
    seen = RayMesh(mesh).render(camera, ("normal",))
    mine, other = seen.alpha[..., 0] > 0.5, masks > 0.5
    both, either = mine & other, mine | other
    cosine = (seen.normal * normals).sum(-1)[both].clamp(-1, 1)
    angle = float(torch.rad2deg(torch.acos(cosine)).mean()) if len(cosine) else 180.0
    return {"angle_deg": angle, "iou": float(both.sum() / either.sum().clamp_min(1))}
