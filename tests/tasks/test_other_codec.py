"""A head on another codec: the ends are regressions, what lies between stays, nothing is lost where codecs agree."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.core.priors import StableDiffusionPrior
from unproject.tasks.data import GeometryData
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.other_codec import Regression, _before_last, begun_with, on_codec, same_codec
from unproject.tasks.train import HeadObjective, LossConfig, tensors_of
from unproject.toybox.dataset import RenderedSet, RenderJob, render_set
from unproject.utils.errors import InputError

REGRESSOR = HeadConfig(processing_resolution=32, kind="sample", timestep=20)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> GeometryData:
    job = RenderJob("room", "val", 3, 32, geometry=True)
    return GeometryData([RenderedSet(render_set(job, tmp_path_factory.mktemp("rooms"), workers=1))])


def head_of(prior: StableDiffusionPrior, config: HeadConfig = REGRESSOR, seed: int = 3) -> GeometryHead:
    """A head none of whose layers is as in the prior."""
    head, rng = GeometryHead.from_prior(prior, config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.unet.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=rng))
    return head


def turned(prior: StableDiffusionPrior) -> tuple[StableDiffusionPrior, Tensor]:
    """The prior with a codec whose latents are those of the former turned in the space of channels, and the turn."""
    channels = prior.vae.config.latent_channels
    turn = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(5)))[0]
    other = copy.deepcopy(prior)
    with torch.no_grad():
        before, after = other.vae.quant_conv, other.vae.post_quant_conv
        before.weight[:channels] = torch.einsum("ab,bcij->acij", turn, before.weight[:channels])
        before.bias[:channels] = turn @ before.bias[:channels]
        after.weight.copy_(torch.einsum("abij,cb->acij", after.weight, turn))
    return other, turn


def batches(head: GeometryHead, rooms: GeometryData) -> list:
    return [tensors_of(head, rooms.batch(part, None)) for part in np.array_split(np.arange(len(rooms)), 2)]


def latent_error(head: GeometryHead, seen: list) -> float:
    """Mean squared error of the latents."""
    objective = HeadObjective(LossConfig(loss="regression"), head)
    return float(
        np.mean([float(objective._regression_loss(head.encode_image(x), t, v).loss.detach()) for x, t, v in seen])
    )


def test_a_regression_finds_the_layer() -> None:
    rng = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    found = Regression(3, 5)
    keep = torch.ones(4, 1, 9, 7, dtype=torch.bool)
    keep[:, :, 4:] = False
    for _ in range(3):
        x = torch.randn(4, 3, 9, 7, generator=rng)
        y = layer(x).detach()
        found.add(x, torch.where(keep, y, 99.0), keep)  # what is masked does not count
    weight, bias = found.layer()
    torch.testing.assert_close(weight, layer.weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bias, layer.bias, atol=1e-3, rtol=1e-3)


def test_on_a_turned_codec_the_first_layer_says_the_same_and_the_last_is_no_worse(tiny_prior, rooms) -> None:
    given = head_of(tiny_prior)
    other, turn = turned(tiny_prior)
    given._empty = given.empty_prompt() + 0.3  # a prompt that the other prior would not make
    seen = batches(given, rooms)
    head = on_codec(given, other, seen)
    images = seen[0][0]
    latents = torch.einsum("ab,nbij->naij", turn, given.encode_image(images))
    torch.testing.assert_close(head.encode_image(images), latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(_before_last(head, images), _before_last(given, images), atol=2e-2, rtol=2e-2)
    mine, theirs = (latent_error(one, seen) for one in (head, given))
    assert mine < theirs  # a regression to the truth, in its own pictures
    assert same_codec(tiny_prior, tiny_prior) and not same_codec(tiny_prior, other)


def test_a_head_goes_on_with_its_widths_on_its_codec(tiny_prior, rooms) -> None:
    given = head_of(tiny_prior)
    head = begun_with(given, tiny_prior, REGRESSOR, (), "there")  # no picture is asked for
    for name, value in head.unet.state_dict().items():
        assert torch.equal(value, given.unet.state_dict()[name])


def test_what_does_not_fit_is_refused(tiny_prior, rooms) -> None:
    other, _ = turned(tiny_prior)
    noisy = head_of(tiny_prior, HeadConfig(start="noise", steps=4, processing_resolution=32))
    lean = GeometryHead.from_prior(tiny_prior, HeadConfig(kind="sample", rank=2, processing_resolution=32))
    for head, why in ((noisy, "start from noise"), (lean, "adapters of one prior")):
        with pytest.raises(InputError, match=why):
            begun_with(head, other, head.config, batches(head, rooms), "there")
    with pytest.raises(InputError, match="start_from=there predicts depth, normals, not depth"):
        begun_with(head_of(tiny_prior), other, HeadConfig(targets=("depth",)), (), "there")
    with pytest.raises(InputError, match="no picture"):
        on_codec(head_of(tiny_prior), other, [])
