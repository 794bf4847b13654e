"""A step of the loop (branches, network, guidance, readings, update) is one graph: a compiler finds no break in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unproject.core.priors.build import from_pipeline
from unproject.core.sampling.denoiser import Denoiser
from unproject.core.sampling.guidance import guided
from unproject.core.sampling.levels import Level
from unproject.core.sampling.solvers.ddim import ddim_step
from unproject.scripts.random_backbones import TINY
from unproject.utils.seeds import generator


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing traced is left over."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loop(denoiser: Denoiser, levels: list[Level]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for level, after in pairwise(levels):
            x = ddim_step(denoiser(x, level), after)
        return x

    return run


def begun(family: str) -> tuple[Denoiser, Tensor]:
    prior = from_pipeline(TINY[family]())
    condition = prior.encode_text(["a red chair"], None if prior.guidance_embedded else "a dog")
    guidance, condition = guided(prior, condition, 4.0, 0.5)
    return Denoiser(prior, condition, guidance), torch.randn(1, prior.latent_shape[0], 8, 8, generator=generator(0))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
@torch.no_grad()
def test_a_step_is_one_graph(family: str) -> None:
    denoiser, x = begun(family)
    step = loop(denoiser, denoiser.schedule.grid(3)[:2])
    found = torch._dynamo.explain(step)(x)
    assert (found.graph_count, found.graph_break_count, found.break_reasons) == (1, 0, [])


@torch.no_grad()
def test_the_loop_is_one_graph() -> None:
    denoiser, x = begun("sd3")
    whole = loop(denoiser, denoiser.schedule.grid(2))
    graphs: list[Any] = []

    def traced(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.testing.assert_close(torch.compile(whole, backend=traced, fullgraph=True)(x), whole(x), rtol=0, atol=0)
    assert len(graphs) == 1
