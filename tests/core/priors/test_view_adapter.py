"""Maps of the same views as an input: nothing at first, memory that is shared, and channels in their places."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import MultiViewPrior, Rows, StableDiffusionPrior, inflate
from unproject.core.priors.view_adapter import ViewAdapter, shown_maps
from unproject.core.training.objectives.diffusion import DiffusionConfig, build_unet
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


@pytest.fixture(scope="module")
def prior() -> MultiViewPrior:
    pipe = tiny_sd()
    made = MultiViewPrior(pipe, inflate(pipe.unet), "tiny-mv")
    with torch.no_grad():
        made.views.camera_embedding[2].weight.normal_(generator=generator(3))
    return made


def rows(maps: bool) -> tuple[torch.Tensor, torch.Tensor, Rows]:
    rng = generator(1)
    x, text = torch.randn(4, 4, 8, 8, generator=rng), torch.randn(1, 5, 32, generator=rng).expand(4, -1, -1)
    told = Rows({"text": text, "cameras": torch.randn(4, 16, generator=rng)}, 4)
    return (
        x,
        torch.full((4,), 300.5),
        told.with_tensors(concat=torch.randn(4, 4, 8, 8, generator=rng)) if maps else told,
    )


@torch.no_grad()
def test_at_first_it_is_the_prior_bit_for_bit_whatever_the_maps(prior: MultiViewPrior) -> None:
    _, asked = shown_maps(prior, 2)
    plain = prior.predict(*rows(False))
    assert torch.equal(asked.predict(*rows(True)), plain) and torch.equal(asked.predict(*rows(False)), plain)
    assert asked.nfe == 8 and asked.name == prior.name and asked.views is not prior.views


@torch.no_grad()
def test_what_learns_is_the_adapter_on_the_memory_of_the_prior(prior: MultiViewPrior) -> None:
    adapter, asked = shown_maps(prior, 2)
    own = {id(p) for p in adapter.parameters()}
    shared = {id(p) for p in prior.views.parameters()}
    assert {id(p) for p in asked.views.parameters()} - shared == {id(adapter.entry.weight)} and not own & shared
    assert all(p.requires_grad for p in adapter.parameters())
    x, time, told = rows(True)
    before = prior.predict(x, time, rows(False)[2])
    for parameter in adapter.parameters():
        parameter.normal_(std=0.2, generator=generator(5))
    moved = asked.predict(x, time, told)
    assert torch.equal(prior.predict(x, time, rows(False)[2]), before) and not torch.allclose(moved, before)
    others = told.with_tensors(concat=told["concat"].flip(0))
    assert not torch.allclose(asked.predict(x, time, others), moved)


@torch.no_grad()
def test_the_first_convolution_reads_maps_before_the_state(prior: MultiViewPrior) -> None:
    adapter, asked = shown_maps(prior, 2)
    adapter.entry.weight.normal_(generator=generator(6))
    x, _, told = rows(True)
    first = prior.views.unet.conv_in
    wide = asked.views.unet.conv_in(torch.cat([told["concat"], x], 1))
    joined = torch.cat([adapter.entry.weight, first.weight], 1)
    expected = torch.nn.functional.conv2d(torch.cat([told["concat"], x], 1), joined, first.bias, padding=1)
    torch.testing.assert_close(wide, expected, rtol=1e-5, atol=1e-5)


def test_that_of_the_embedded_networks_takes_less_than_two_megabytes() -> None:
    """At the widest that is trained, in half precision."""
    with torch.device("meta"):
        unet = build_unet(DiffusionConfig(widths=(64, 128, 192), latent_channels=8))
        numbers = sum(p.numel() for p in ViewAdapter(unet, 8, 16).parameters())
    assert 0.5e6 < 2 * numbers < 2e6


def test_priors_of_single_images_and_ranks_below_one_are_refused(prior: MultiViewPrior) -> None:
    with pytest.raises(InputError, match="draws single images"):
        shown_maps(StableDiffusionPrior(tiny_sd(), "flat"), 2)
    with pytest.raises(InputError, match="rank=0"):
        shown_maps(prior, 0)
