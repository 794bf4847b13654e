"""Checks of `gpu_check` that compare with the CPU, run the verbs, or run the tests: what has to be right."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bench.backbone_verbs import CELLS
from ..bench.backbones import MULTI_VIEW, NAMES, random_prior
from ..core.distillation.score import ScoreConfig
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling.denoiser import Denoiser
from ..generate.guides import make_guide
from ..geometry.cameras import Camera
from ..geometry.representation import CHANNELS
from ..geometry.shapes import ShapeConfig, make_shape
from ..geometry.splats.raster import rasterization
from ..pipelines import ImageToDepth, TextToImage, TextToMesh
from ..pipelines.text_to_mesh import load_recipe
from ..utils.configs import load_config, to_dict
from ..utils.ramps import Moment
from ..utils.seeds import generator

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
CLOSE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # mean error relative to the mean size
SHAPES: dict[str, dict[str, Any]] = {
    **{f"volume of a {kind}": {"volume": {"field": {"kind": kind}}} for kind in ("grid", "hash", "triplane")},
    "triangles": {"kind": "triangles"},
    "Gaussians": {"kind": "gaussians", "gaussians": {"count": 500}},
}


@dataclass(frozen=True)
class Where:
    """The device that is looked at, and whether with tiny networks only."""

    device: torch.device
    tiny: bool

    @property
    def name(self) -> str:
        """What the device calls itself."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def has_gsplat(self) -> bool:
        """Whether splats can be drawn here: on CUDA by gsplat."""
        if self.device.type != "cuda":
            return True
        try:
            import gsplat  # noqa: F401 (asked whether it is there)
        except ImportError:
            return False
        return True


def apart(found: Tensor, wanted: Tensor) -> float:
    """Mean absolute difference in units of the mean absolute value."""
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    return float((found - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-12))


@torch.no_grad()
def families(where: Where) -> Iterator[Row]:
    """Text, network, codec and a drawing of every family, in every precision, beside float32 on the CPU."""
    with _exact_products():
        for family in (*NAMES, MULTI_VIEW):
            wanted = _answers(random_prior(family, "cpu", torch.float32))
            for dtype, limit in CLOSE.items():
                found = _answers(random_prior(family, where.device, dtype))
                off = {name: apart(found[name], value) for name, value in wanted.items()}
                worst = max(off, key=lambda name: off[name])
                told = {"worst": worst, "apart": off[worst], "limit": limit}
                yield {"what": f"{NAMES.get(family, family)} in {_short(dtype)}", "passed": off[worst] < limit, **told}


def _answers(prior: DiffusersPrior) -> dict[str, Tensor]:
    """What the parts of a prior say to the same input."""
    rng, rows = generator(0), prior.frames
    x = torch.randn(rows, prior.latent_shape[0], CELLS, CELLS, generator=rng)
    images = torch.rand(1, 3, *(CELLS * prior.vae_factor,) * 2, generator=rng)
    condition = prior.encode_text("a red chair")
    if prior.multiview:
        condition = condition.with_views(torch.randn(rows, 16, generator=rng), rows)
    size = CELLS * prior.vae_factor
    draw: dict[str, Any] = {"height": size, "width": size, "num_inference_steps": 3, "output_type": "latent"}
    if prior.multiview:
        draw["cameras"] = torch.randn(rows, 16, generator=generator(1))
    denoiser = Denoiser(prior, condition)
    level = denoiser.schedule.at_index(0.4 * denoiser.schedule.steps)
    return {
        "text": condition["cond"]["text"],
        "network": denoiser.ask(x.to(prior.device), level, ["cond"])["cond"].raw,
        "encoder": prior.encode(images.to(prior.device)),
        "decoder": prior.decode(x.to(prior.device), clamp=False),
        "drawing": TextToImage(prior)("a dog", seed=0, return_dict=False, **draw)[0],
    }


def generators(where: Where) -> Iterator[Row]:
    """Renders of every representation and the pull of score distillation, beside the CPU."""
    camera = Camera.orbit([10.0, 130.0], [20.0, -5.0], 3.0, 34.0, 16 if where.tiny else 64)
    behind = torch.tensor([0.2, 0.4, 0.9])
    for name, settings in SHAPES.items():
        if name == "Gaussians" and not where.has_gsplat():
            yield {"what": name, "passed": None, "told": "gsplat is not installed"}
            continue
        config = load_config(ShapeConfig, settings)
        seen = []
        for device in (torch.device("cpu"), where.device):
            shape = make_shape(config, generator(0)).to(device)
            shape.on_step(Moment(1, 2), generator(1))
            seen.append(shape.render(camera.to(device), CHANNELS, behind.to(device)))
        off = max(_differing(getattr(seen[1], channel), getattr(seen[0], channel)) for channel in CHANNELS)
        yield {"what": f"render: {name}", "passed": off < 0.01, "pixels_that_differ": off}
    for family in ("sd15", MULTI_VIEW):
        pulls = [_pull(random_prior(family, device, torch.float32)) for device in ("cpu", where.device)]
        off = apart(pulls[1], pulls[0])
        yield {"what": f"pull of {NAMES.get(family, family)}", "passed": off < 1e-2, "apart": off}


def _differing(found: Tensor, wanted: Tensor) -> float:
    """Share of the values that differ by more than 1e-3: silhouettes may fall to either side."""
    return float(((found.detach().cpu() - wanted.detach()).abs() > 1e-3).float().mean())


def _pull(prior: DiffusersPrior) -> Tensor:
    """The gradient that a prior gives to four views."""
    camera = Camera.orbit([0.0, 90.0, 180.0, 270.0], 15.0, 3.0, 34.0, 32)
    images = torch.rand(4, 3, 32, 32, generator=generator(3)).to(prior.device).requires_grad_()
    guide = make_guide(ScoreConfig(guidance=5.0), prior, "a red chair")
    guide(images, camera.to(prior.device), 0.5, generator(4)).loss.backward()
    assert images.grad is not None
    return images.grad


def splats(where: Where) -> Iterator[Row]:
    """Gaussians drawn on the device beside our own on the CPU, with gradients."""
    if not where.has_gsplat():
        yield {"what": "gsplat", "passed": None, "told": "gsplat is not installed: pip install 'unproject[gsplat]'"}
        return
    found, wanted = (_splatted(device) for device in (where.device, torch.device("cpu")))
    for name, value in wanted.items():
        scale = float(value.abs().max())
        off = float(((found[name].cpu() - value).abs() > 1e-2 * scale).float().mean())
        yield {"what": name, "passed": off < 1e-2, "values_that_differ": off}


def _splatted(device: torch.device) -> dict[str, Tensor]:
    rng, count = generator(0), 300
    means = (torch.rand(count, 3, generator=rng) - 0.5).to(device).requires_grad_()
    quats = torch.randn(count, 4, generator=rng).to(device).requires_grad_()
    scales = (0.02 + 0.06 * torch.rand(count, 3, generator=rng)).to(device).requires_grad_()
    opacities = (0.2 + 0.6 * torch.rand(count, generator=rng)).to(device).requires_grad_()
    colours = torch.rand(count, 3, generator=rng).to(device).requires_grad_()
    camera = Camera.orbit([10.0, 130.0], [20.0, -5.0], 2.5, 40.0, 48).to(device)
    image, alpha, _ = rasterization(
        means, quats, scales, opacities, colours, torch.linalg.inv(camera.c2w), camera.K, 48, 48
    )
    (image.square().sum() + alpha.sum()).backward()
    leaves = {"means": means, "quaternions": quats, "scales": scales, "opacities": opacities, "colours": colours}
    slopes = {f"gradient of {name}": leaf.grad.detach() for name, leaf in leaves.items() if leaf.grad is not None}
    return {"picture": image.detach(), "alpha": alpha.detach(), **slopes}


def verbs(where: Where) -> Iterator[Row]:
    """Text to image, text to mesh and depth on the embedded priors, as a user calls them."""
    steps: dict[str, Any] = {"num_inference_steps": 2} if where.tiny else {}
    drawn: list[Tensor] = []
    for device in (torch.device("cpu"), where.device):
        pipe = TextToImage.from_pretrained("toybox", device=device)
        drawn.append(pipe("a red chair", seed=0, output_type="pt", return_dict=False, **steps)[0])
    off = apart(drawn[1], drawn[0])
    yield {"what": "text-to-image, toybox", "passed": off < 1e-2, "apart": off}
    picture = drawn[0][0].permute(1, 2, 0).numpy()
    maps = [
        ImageToDepth.from_pretrained("toybox", device=device)(picture, ensemble_size=1 if where.tiny else 4).prediction
        for device in (torch.device("cpu"), where.device)
    ]
    far = float(np.abs(maps[1] - maps[0]).mean())
    yield {"what": "depth, toybox", "passed": far < 1e-2, "mean_difference": far}
    yield _mesh(where)


def _mesh(where: Where) -> Row:
    pipe = TextToMesh.from_pretrained("toybox", device=where.device)
    if where.tiny:
        changes = {"optimise.steps": 1, "optimise.fit.steps": 1, "optimise.fit.rays": 64, "optimise.sizes": [[0, 16]]}
        changes |= {"score.target_steps": 1, "mesh.resolution": 24, "mesh.faces": 200, "mesh.texture": 32}
        pipe.recipe = load_config(type(pipe.recipe), to_dict(load_recipe(None, pipe.prior)), **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pipe("a red chair", seed=0)
    figures = {"faces": made.report.faces, "seconds_of_optimisation": round(made.seconds["optimise"], 2)}
    return {"what": "text-to-mesh, toybox", "passed": made.report.faces > 3 and made.report.watertight, **figures}


def suite(where: Where, command: tuple[str, ...] = ()) -> Iterator[Row]:
    """The tests marked gpu, in a process of their own; tiny: none of them is a test of this check."""
    if where.tiny and not command:
        yield {"what": "tests marked gpu", "passed": None, "told": "left out with --tiny"}
        return
    words = command or (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests"),
    )
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error|skipped)", ended.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    passed = ended.returncode == 0 and counts.get("passed", 0) > 0
    told = ", ".join(failed[:8]) or ("" if passed else (ended.stdout + ended.stderr).strip()[-200:])
    figures = {f"tests_{name}": count for name, count in counts.items()}
    yield {"what": "tests marked gpu", "passed": passed, **figures, "told": told}


class _exact_products:  # noqa: N801 (used as a function)
    """Products in full float32 while it lasts: TF32 is no fault."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
