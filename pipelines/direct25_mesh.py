"""Text to mesh by Direct2.5: normal maps from all around are drawn, fused to a solid, and the solid is painted."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.score import DivergedError
from ..core.priors import Prior, StableDiffusionPrior, load_prior, multi_view_sibling
from ..core.priors.direct25 import DISTANCE, find_networks, load_direct25
from ..core.sampling.plan import SamplingPlan
from ..generate.fuse import FuseConfig, fuse_normals
from ..generate.view_normals import NormalCode, NormalsDraw, Ring, agreement, check_draws_normals, draw_normals
from ..generate.view_paint import PaintConfig, Painted, Painter
from ..generate.view_texture import ABOUT, TRAIN, NormalTexture
from ..geometry.cameras import Camera
from ..geometry.meshes import Mesh
from ..geometry.unwrap import unwrap
from ..utils.errors import InputError
from ..utils.files import beside_weights, check_named
from ..utils.pictures import grid, save_image
from ..utils.progress import under_way
from ..utils.seeds import generator as seeded
from .base import PriorPipeline, placed
from .map_student import USUAL, map_student
from .prompts import check_guidance, check_prompt, warn_about, warn_about_negatives
from .sampling_parts import whole_number
from .text_to_mesh import MadeMesh
from .text_to_shape import REAL_BACKBONES, TEXTURE, chosen_seed

FUSE = FuseConfig(hull=48, steps=80, creases=0.3, faces=8000)  # of drawn views of 64 px, which are not smooth
DRAWN = NormalsDraw(plan=SamplingPlan(guidance=2.0))  # of maps; pictures want more
PUBLISHED_RING = Ring(60.0, DISTANCE)
NEGATIVE = (
    "ugly, dark, bad anatomy, blurry, cartoon, pixelated obscure, unnatural colors, poor lighting, dull, unclear, "
    "cropped, lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)
StepEnd = Callable[[Any, int, dict[str, float], dict[str, Any]], None]


@dataclass(frozen=True)
class Direct25Config:
    """How a mesh is made."""

    normals: NormalsDraw = DRAWN
    mesh: FuseConfig = FUSE
    paint: PaintConfig = field(default_factory=PaintConfig)


PUBLISHED = Direct25Config(  # axes: z, y and x of an object whose front looks along x, on black
    NormalsDraw(code=NormalCode((2, 1, 0), 0.0, apart=0.05), ring=PUBLISHED_RING),
    FuseConfig(faces=10_000),
    PaintConfig("3d asset", NEGATIVE, code=NormalCode((2, 1, 0)), ring=PUBLISHED_RING, background=0.5, texture=1024),
)


@dataclass
class Direct25Output(MadeMesh):
    """A mesh fused of normal maps."""

    normals: Tensor  # (B, H, W, 3) unit, world axes, as drawn
    masks: Tensor  # (B, H, W) coverage in [0, 1]
    cameras: Camera  # of both
    views: Tensor  # (B', H, W, 3) sRGB that the texture was baked from
    view_cameras: Camera
    agreement: dict[str, float]  # of the mesh with the maps: "angle_deg", "iou"
    student: str = ""  # who drew the maps in the prior's place

    @property
    def notes(self) -> dict[str, Any]:
        """See MadeMesh.notes."""
        return {"student": self.student} if self.student else {}

    @property
    def radius(self) -> float:
        """See MadeMesh.radius."""
        return self.config.normals.ring.reach


class Direct25TextToMesh(PriorPipeline):
    """Textured meshes from prompts by normal maps (Lu et al. 2024).

    >>> pipe = Direct25TextToMesh.from_pretrained("toybox", "runs/direct25-texture/export")
    >>> pipe("a red chair", seed=0).mesh.save("chair.glb")
    """

    step_memory_gb: float = 0.0  # nothing is optimised through a network

    def __init__(
        self,
        prior: Prior,
        config: Direct25Config = Direct25Config(),
        texture: NormalTexture | None = None,
        painter: Prior | None = None,
        student: Prior | None = None,
    ) -> None:
        """`texture`: what reads normals, on this prior; or `painter`, another prior that does. Neither: the prior
        redraws renders of the bare mesh. `student`: draws the maps in the prior's place, as it recommends, unless a
        call names steps or guidance. Raises InputError for priors that draw no normal maps of several views."""
        super().__init__(prior)
        check_draws_normals(prior, config.normals.words)
        self.config, self.texture, self.student = config, texture, student
        self.painter = texture.asked if texture is not None else painter

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        weights: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        student: str | Path | None = USUAL,
        **options: Any,
    ) -> Direct25TextToMesh:
        """Loads a prior of several views (or the multi-view sibling of a 2-D one) and what paints.

        weights: export/ of a direct25-texture training, or a folder with the two published networks (with sd21-base);
        None: those that come with the prior, where there are such. student: a distilled one that draws the maps; "auto"
        is the one that comes with the prior, where there is one; None: the prior draws. Raises InputError for priors
        without normal maps, and for a student that does not fit (`map_student`).
        """
        check_named(name, "prior", "give the name or folder of one, such as 'toybox'")
        found = find_weights(name, weights)
        if found is not None and find_networks(found):
            base = load_prior(name, device, dtype, **options)
            if not isinstance(base, StableDiffusionPrior):
                raise InputError(f"the networks in {found} are of SD 2.1; give --prior sd21-base, not {base.name}")
            drawer, painter = load_direct25(found, base)
            return cls(drawer, PUBLISHED, painter=painter)
        first = torch.float32 if found is not None and dtype == torch.bfloat16 else dtype  # rounds what is compared
        prior = load_prior(multi_view_sibling(str(name)) or name, device, first, **options)
        check_draws_normals(prior, Direct25Config().normals.words)
        texture = None if found is None else NormalTexture.load(found, prior)
        made = cls(prior, texture=texture, student=map_student(name, prior, student))
        return made if first == dtype else made.to(dtype)

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        faces: int | None = None,
        texture: int | None = None,
        second_ring: float | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
    ) -> Direct25Output:
        """Makes one mesh.

        Args:
            prompt: what to make.
            negative_prompt: what the colours keep away from; normal maps are drawn without.
            seed: of everything random; None: 0.
            generator: the seed is drawn from it (and reported) instead.
            num_inference_steps: of both drawings; None: the prior's own, or its student's.
            guidance_scale: of both; None: that of the settings for maps, the prior's own for colours. With either, the
                prior draws the maps and not its student.
            faces: triangles at most.
            texture: texels along an edge of the texture.
            second_ring: degrees above the object of a second ring of views, whose unseen parts are painted too.
            out: folder for pictures of what was drawn, normals.png and views.png.
            resume: of other methods; a call is made in one go.
            callback_on_step_end: called with (pipe, step, {"loss": ...}, {"mesh": ...}) after every step of the fusion.

        Raises DivergedError where a view shows nothing, or no solid looks like the views.
        """
        check_prompt(prompt)
        config = self._adjusted(num_inference_steps, guidance_scale, faces, second_ring, texture)
        drawer, config = self._drawer(config, num_inference_steps is not None or guidance_scale is not None)
        warn_about(self.prior, prompt, REAL_BACKBONES)
        warn_about_negatives(self.prior, negative_prompt, REAL_BACKBONES)
        started, seed = datetime.now(timezone.utc), chosen_seed(seed, generator)
        rng, spent, clock = seeded(seed), self._nfe(), _Clock()
        with under_way("normal maps"):
            normals, masks, cameras = draw_normals(drawer, prompt, config.normals, rng)
        clock.stage("normals")
        history: list[dict[str, float]] = []

        def on_step(step: int, mesh: Mesh, loss: float) -> None:
            history.append({"loss": loss})
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, history[-1], {"mesh": mesh})

        try:
            with under_way("fusion"):
                fused = fuse_normals(normals, masks, cameras, config.mesh, on_step)
        except InputError as error:  # no common volume, or one too thin for a solid
            raise DivergedError(f"direct25: no solid looks like the drawn maps ({error}); try another seed") from error
        clock.stage("fusion")
        with under_way("texture"):
            painted = self._paint(unwrap(fused, config.paint.texture), prompt, negative_prompt, config.paint, rng)
        clock.stage("texture")
        if out is not None:
            save_sheets(Path(out), normals, masks, painted.views)
        return Direct25Output(
            mesh=painted.mesh,
            report=painted.mesh.check(),
            prompt=prompt,
            negative_prompt=negative_prompt,
            prior=self.prior.name,
            seed=seed,
            nfe=self._nfe() - spent,
            started=started,
            seconds=clock.seconds,
            history=history,
            config=config,
            normals=normals,
            masks=masks,
            cameras=cameras,
            views=painted.views,
            view_cameras=painted.cameras,
            agreement=agreement(painted.mesh, normals, masks, cameras),
            student="" if drawer is self.prior else drawer.name,
        )

    def to(self, *where: torch.device | str | int | torch.dtype | None, **named: Any) -> Direct25TextToMesh:
        """See PriorPipeline.to; an adapter stays in float32."""
        self.prior.to(*placed(*where, **named))
        if self.texture is not None:
            self.texture.to(*placed(*where, **named))
        elif self.painter is not None:
            self.painter.to(*placed(*where, **named))
        if self.student is not None:
            self.student.to(*placed(*where, **named))
        return self

    def _drawer(self, config: Direct25Config, told: bool) -> tuple[Prior, Direct25Config]:
        """Who draws the maps, and the settings of that; `told`: a call says how."""
        if self.student is None or told:
            return self.prior, config
        plan = SamplingPlan.of(self.student.recommended)
        return self.student, replace(config, normals=replace(config.normals, plan=plan))

    def _paint(
        self, mesh: Mesh, prompt: str, negative: str | None, config: PaintConfig, rng: torch.Generator
    ) -> Painted:
        if self.painter is None:
            warnings.warn(
                f"the prior {self.prior.name!r} has no network that reads normals: its views are redrawn over renders "
                f"of the bare mesh, which fit it less well. Train one with `{TRAIN}` and give --direct25 its export/",
                stacklevel=3,
            )
        paint = Painter(self.painter or self.prior, self.painter is not None, config)
        return paint(mesh, prompt, rng, negative)

    def _nfe(self) -> int:
        return self.prior.nfe + sum(one.nfe for one in (self.painter, self.student) if one is not None)

    def _adjusted(
        self,
        steps: int | None,
        guidance: float | None,
        faces: int | None,
        second: float | None,
        texture: int | None = None,
    ) -> Direct25Config:
        """The settings with what a call changes."""
        config = self.config
        if steps is not None:
            whole_number("num_inference_steps", steps)
        if guidance is not None:
            check_guidance(self.prior, guidance)
        plans = [part.plan.changed(steps=steps, guidance=guidance) for part in (config.normals, config.paint)]
        if second is not None and not (isinstance(second, (int, float)) and math.isfinite(second)):
            raise InputError(f"second_ring={second!r} has to be a number of degrees")
        if faces is not None:
            whole_number("faces", faces, 4)
            config = replace(config, mesh=replace(config.mesh, faces=faces))
        if texture is not None:
            whole_number("texture", texture, *TEXTURE)
            config = replace(config, paint=replace(config.paint, texture=texture))
        paint = replace(config.paint, plan=plans[1], second_deg=config.paint.second_deg if second is None else second)
        return replace(config, normals=replace(config.normals, plan=plans[0]), paint=paint)


class _Clock:
    """Seconds of stages."""

    def __init__(self) -> None:
        self.began, self.seconds = time.perf_counter(), dict[str, float]()

    def stage(self, name: str) -> None:
        """The time since the last stage ended belongs to this one."""
        now = time.perf_counter()
        self.seconds[name], self.began = now - self.began, now


def find_weights(name: str | Path, weights: str | Path | None) -> Path | None:
    """The folder of weights that paint, for a prior: what is given, or NAME-direct25 beside the prior; None without.
    Raises InputError for a folder that holds no such."""
    if weights is None:
        path = beside_weights(name, "direct25")
        return path if (path / ABOUT).is_file() else None
    path = Path(weights)
    if not path.is_dir():
        raise InputError(f"direct25 weights {path} do not exist; give the export/ of a direct25-texture training")
    if not (path / ABOUT).is_file() and not find_networks(path):
        raise InputError(
            f"{path} holds neither {ABOUT} of a direct25-texture training nor the published mvnormal and mvrgb folders"
        )
    return path


def save_sheets(folder: Path, normals: Tensor, masks: Tensor, views: Tensor) -> list[Path]:
    """normals.png and views.png, a row a ring."""
    shown = masks[..., None] * (0.5 * normals + 0.5) + (1 - masks[..., None])
    rows = {"normals.png": shown, "views.png": views.cpu()}
    return [
        save_image(folder / name, grid([np.asarray(one) for one in pictures], columns=len(normals)))
        for name, pictures in rows.items()
    ]
