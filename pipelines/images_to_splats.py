"""Posed pictures to splats: what `generate.splat_fit` fits, measured on pictures it has not seen, with files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..core.training.checkpoints import remove_checkpoints
from ..generate.finish import write_film
from ..generate.splat_fit import SplatFit, SplatFitConfig
from ..geometry.cameras import Camera
from ..geometry.meshes import Mesh
from ..geometry.posed import PosedImages, orbit_like
from ..geometry.posed_files import load_posed
from ..geometry.splats import GaussianCloud, save_splats
from ..geometry.splats.drawing import SplatView
from ..geometry.splats.surface import SurfaceConfig, surface_of
from ..geometry.turntable import film
from ..utils.configs import load_config, to_dict
from ..utils.pictures import grid, save_image
from ..utils.progress import Progress, under_way
from ..utils.runs import RunRecord
from .sampling_parts import whole_number
from .text_to_mesh import chosen_seed

StepEnd = Callable[["ImagesToSplats", int, dict[str, float], dict[str, Any]], None]
SHOWN = 6  # pictures on the sheet


@dataclass
class ImagesToSplatsOutput(BaseOutput):
    """Splats, and what made them."""

    splats: GaussianCloud
    pictures: PosedImages
    held_out: PosedImages  # not learnt from; those learnt from where none are held out
    metrics: dict[str, float]  # "psnr" in dB and "ssim", means over held-out pictures; "splats", their number
    per_picture: list[dict[str, Any]]  # "picture" (its name), "psnr", "ssim"
    cameras: Camera | None  # refined ones of the pictures that were learnt from; None: they are as given
    seed: int
    started: datetime
    seconds: dict[str, float]  # "fit" (before and after a resumption), "measure"
    history: list[dict[str, float]]  # logs of steps
    config: SplatFitConfig
    over: float  # grey behind pictures that are compared

    def mesh(self, config: SurfaceConfig | None = None, fuse_pictures: bool = False) -> Mesh:
        """A solid, coloured at its vertices; fuse_pictures: only depth that the pictures' cameras see is fused."""
        config, cameras = config or SurfaceConfig(), self.pictures.cameras if fuse_pictures else None
        return surface_of(self.splats, config, cameras)

    def sheet(self) -> np.ndarray:
        """Held-out pictures above what the splats show there."""
        rows = [round(i) for i in np.linspace(0, len(self.held_out) - 1, min(SHOWN, len(self.held_out)))]
        shown = self.held_out[rows]
        truth = list(shown.picture(range(len(rows)), self.over).numpy())
        return grid([*truth, *film(SplatView(self.splats), shown.cameras, self.over)], len(rows))

    def write_pictures(self, place: Callable[[str], Path], frames: int = 72) -> list[Path]:
        """sheet.png and, unless frames is 0, turntable.mp4 and .gif on a path like that of the cameras."""
        written = [save_image(place("sheet.png"), self.sheet())]
        if frames:
            cameras = orbit_like(self.pictures, frames)
            written += write_film(film(SplatView(self.splats), cameras, self.over), place)
        return written

    def save(self, folder: str | Path, name: str = "splats.ply", frames: int = 72) -> list[Path]:
        """Writes the splats, sheet.png, turntable.gif and .mp4 and run.json; returns their paths."""
        folder = Path(folder)
        record = RunRecord("fit", self.config, self.seed, sum(self.seconds.values()))
        record.started = self.started
        record.stages.update(self.seconds)
        record.notes.update(metrics=self.metrics, pictures=self.per_picture, history=self.history)
        with record.stage("write"):
            paths = [save_splats(self.splats, folder / name), *self.write_pictures(folder.joinpath, frames)]
        for path in paths:
            record.output(path)
        return [*paths, record.write(folder / "run.json")]


class ImagesToSplats:
    """Splats from pictures with known cameras.

    >>> made = ImagesToSplats("default")("capture/transforms.json", downscale=4)
    >>> made.metrics["psnr"], made.save("outputs/capture")
    """

    def __init__(self, recipe: SplatFitConfig | str | Path = "default", device: torch.device | str = "cpu") -> None:
        """`recipe`: a packaged name ("default", "mcmc"), a YAML file or a SplatFitConfig."""
        self.recipe, self.device = load_recipe(recipe), torch.device(device)

    def __call__(
        self,
        pictures: PosedImages | str | Path,
        *,
        downscale: int = 1,
        images: str | Path | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
        label: str = "fit",
    ) -> ImagesToSplatsOutput:
        """Fits splats to pictures.

        Args:
            pictures: PosedImages, a transforms.json, or a folder with one or with a COLMAP model.
            downscale: factor by which the sides of pictures on disk are divided.
            images: folder of the pictures, where it is not as the files say.
            seed: of everything random; None: 0.
            generator: the seed is drawn from it (and reported) instead.
            num_inference_steps: of the fit; the schedules of the recipe keep their shares.
            out: folder for checkpoints; with it Ctrl-C and SIGTERM finish the step, save it and raise Stopped, and the
                same call goes on from there.
            resume: continue from a checkpoint in `out`; False removes those that are there.
            callback_on_step_end: called with (pipe, step, log, {"fit": ...}).
            label: of the progress lines.
        """
        recipe = self.recipe
        if num_inference_steps is not None:
            whole_number("num_inference_steps", num_inference_steps)
            recipe = replace(recipe, steps=num_inference_steps)
        seed, started = chosen_seed(seed, generator), datetime.now(timezone.utc)
        if not isinstance(pictures, PosedImages):
            pictures = load_posed(pictures, downscale, images)
        work = SplatFit(pictures, recipe, seed, self.device)
        folder = None if out is None else Path(out)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                work.resume(folder)
            else:
                remove_checkpoints(folder)
        self._run(work, folder, label, callback_on_step_end)
        return self._output(work, seed, started)

    def _run(self, work: SplatFit, folder: Path | None, label: str, callback: StepEnd | None) -> None:
        with Progress(work.config.steps, label, done=work.step) as bar:

            def on_step(work: SplatFit, step: int, log: dict[str, float]) -> None:
                bar.advance(1, l1=f"{log['l1']:.4f}", splats=f"{log['splats']:.0f}")
                if callback is not None:
                    callback(self, step, log, {"fit": work})

            work.run(folder, on_step)

    def _output(self, work: SplatFit, seed: int, started: datetime) -> ImagesToSplatsOutput:
        began = time.perf_counter()
        judged = work.held if len(work.held) else work.learnt
        with under_way("measuring"):
            found = work.measured(judged, refined=not len(work.held))
        metrics = {name: round(float(np.mean([one[name] for one in found])), 4) for name in ("psnr", "ssim")}
        with torch.no_grad():
            cameras = None if work.pose_steps is None else work.cameras(list(range(len(work.learnt)))).to("cpu")
        return ImagesToSplatsOutput(
            splats=work.cloud,
            pictures=work.learnt,
            held_out=replace(judged, cameras=work.planes(judged.cameras)),
            metrics={**metrics, "splats": float(len(work.cloud))},
            per_picture=[{"picture": name, **one} for name, one in zip(names_of(judged), found, strict=True)],
            cameras=cameras,
            seed=seed,
            started=started,
            seconds={"fit": work.seconds, "measure": time.perf_counter() - began},
            history=work.history,
            config=work.config,
            over=work.judged_over,
        )


def names_of(pictures: PosedImages) -> tuple[str, ...]:
    """Of the files, else numbers."""
    return pictures.names or tuple(str(i) for i in range(len(pictures)))


def load_recipe(recipe: SplatFitConfig | str | Path, **changes: Any) -> SplatFitConfig:
    """A recipe by packaged name or file, with changes by dotted name. Raises InputError for unknown ones."""
    if isinstance(recipe, SplatFitConfig):
        return load_config(SplatFitConfig, to_dict(recipe), **changes) if changes else recipe
    known = isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml"))
    return load_config(SplatFitConfig, f"fit/{recipe}" if known else recipe, **changes)
