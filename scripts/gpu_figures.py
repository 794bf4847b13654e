"""Checks of `gpu_check` that measure: networks in the published sizes beside the stock pipelines, in one process."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..bench.backbone_verbs import CELLS
from ..core.distillation.score import ScoreConfig
from ..core.priors.build import from_pipeline
from ..core.priors.diffusers import DiffusersPrior
from ..generate.guides import make_guide
from ..geometry.cameras import Camera
from ..pipelines import TextToImage
from ..utils.seeds import generator
from .gpu_parity import CLOSE, Row, Where, apart
from .random_backbones import FULL, TINY

HALVES = (torch.float16, torch.bfloat16)
STEPS, GUIDANCE = 10, 3.0
SLOWER, LARGER = 1.15, 1.10  # than stock: more is a fault
SDS_LIMIT_GB = 24.0
GB = 1e9


def full_size(where: Where) -> Iterator[Row]:
    """Drawings of Stable Diffusion 1.5 and SDXL: the same latents as stock, in its time and memory."""
    for family in FULL:
        pipe = (TINY if where.tiny else FULL)[family]()
        pipe.set_progress_bar_config(disable=True)
        for dtype in HALVES:
            pipe.to(where.device, dtype)
            yield {"what": f"{family} in {str(dtype).removeprefix('torch.')}", **_beside_stock(pipe, dtype, where)}
        del pipe
        _emptied(where)


def _beside_stock(pipe: Any, dtype: torch.dtype, where: Where) -> Row:
    """The stock pipeline first: a prior may put the codec in another precision."""
    channels, side = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    px, steps = side * pipe.vae_scale_factor, 2 if where.tiny else STEPS
    x = torch.randn(1, channels, side, side, generator=generator(0)).to(where.device)
    draw: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "height": px, "width": px}

    def stock(kind: str) -> Any:
        return pipe("a red chair", latents=x.to(dtype), output_type=kind, **draw).images

    wanted = stock("latent")
    stock_s, stock_peak = _best(lambda: stock("pt"), where)
    ours = TextToImage(from_pipeline(pipe), "native")

    def own(kind: str) -> Any:
        return ours("a red chair", latents=x, output_type=kind, solver="ddim", return_dict=False, **draw)[0]

    off = apart(own("latent"), wanted)
    ours_s, ours_peak = _best(lambda: own("pt"), where)
    slower = ours_s / stock_s
    larger = ours_peak / stock_peak if ours_peak and stock_peak else 1.0
    return {
        "passed": off < CLOSE[dtype] and (where.tiny or (slower < SLOWER and larger < LARGER)),
        "apart": off,
        "ours_s": round(ours_s, 3),
        "stock_s": round(stock_s, 3),
        "times_as_long": round(slower, 3),
        "ours_gb": _gb(ours_peak),
        "stock_gb": _gb(stock_peak),
    }


def _best(work: Callable[[], object], where: Where) -> tuple[float, float | None]:
    """(seconds of the faster of two runs, largest bytes at once)."""
    runs = [measured(work, where) for _ in range(2)]
    return min(seconds for seconds, _ in runs), runs[1][1]


def score_distillation(where: Where) -> Iterator[Row]:
    """Two looks of Stable Diffusion 1.5 at four views of its own size, in half precision."""
    pipe = (TINY if where.tiny else FULL)["sd15"]().to(where.device, torch.float16)
    prior = from_pipeline(pipe)
    seconds, peak = measured(lambda: _looks(prior, 2), where)
    gb = _gb(peak)
    yield {
        "what": f"sd15 in float16, 4 views of {prior.image_size} px",
        "passed": gb is None or gb < SDS_LIMIT_GB,
        "s_a_step": round(seconds / 2, 3),
        "peak_gb": gb,
    }
    _emptied(where)


def _looks(prior: DiffusersPrior, count: int) -> Tensor:
    side = prior.image_size if prior.image_size > CELLS * prior.vae_factor else CELLS * prior.vae_factor
    camera = Camera.orbit([0.0, 90.0, 180.0, 270.0], 15.0, 3.0, 34.0, side).to(prior.device)
    guide = make_guide(ScoreConfig(guidance=50.0), prior, "a red chair")
    images = torch.rand(4, 3, side, side, generator=generator(0)).to(prior.device).requires_grad_()
    for step in range(count):
        guide(images, camera, 0.5, generator(step)).loss.backward()
    assert images.grad is not None
    return images.grad


def measured(work: Callable[[], object], where: Where) -> tuple[float, float | None]:
    """(seconds, largest bytes at once; None where the device does not tell) of some work."""
    on_cuda = where.device.type == "cuda"
    _emptied(where)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(where.device)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()
    where.wait()
    seconds = time.perf_counter() - began
    return seconds, float(torch.cuda.max_memory_allocated(where.device)) if on_cuda else None


def _emptied(where: Where) -> None:
    gc.collect()
    where.wait()
    if where.device.type == "cuda":
        torch.cuda.empty_cache()


def _gb(peak: float | None) -> float | None:
    return None if peak is None else round(peak / GB, 2)
