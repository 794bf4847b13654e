"""Devices to run on: the pretend one always, CUDA where there is one; tiny pipelines of every family on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from unproject.core.priors import MultiViewPrior, Prior, StableDiffusionPrior, inflate
from unproject.core.priors.diffusers import FAMILIES
from unproject.scripts.random_backbones import TINY, WORDS


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, pretend_device: Any) -> Iterator[torch.device]:
    """Where a test runs."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield torch.device("cuda")
        return
    with pretend_device.Pretend(double=False):
        yield pretend_device.DEVICE


@pytest.fixture(scope="session")
def built() -> Callable[[str], Any]:
    """Tiny pipelines by family, each made once."""
    made: dict[str, Any] = {}

    def build(family: str) -> Any:
        if family not in made:
            made[family] = TINY[family]()
            made[family].set_progress_bar_config(disable=True)
        return copy.deepcopy(made[family])

    return build


@pytest.fixture
def prior_on(built: Callable[[str], Any]) -> Callable[..., Prior]:
    """Builds the prior of a family ("mv" is the multi-view one) on a device in a dtype."""

    def place(family: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Prior:
        pipe = built("sd15" if family == "mv" else family)
        if family == "mv":
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(1)
                views = inflate(pipe.unet)
            prior: Prior = MultiViewPrior(pipe, views, "tiny-mv", WORDS)
        else:
            prior = FAMILIES[type(pipe).__name__](pipe, f"tiny-{family}")
        if isinstance(prior, StableDiffusionPrior) and family != "mv":
            prior.recipe = "toybox"
        return prior.to(device, dtype)

    return place
