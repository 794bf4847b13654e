"""Pictures that tile: rolling is circular padding, shifts of the state are shifts of the answer, and nothing stays."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional

from unproject.core.sampling import Prediction
from unproject.core.sampling.tileable import Tileable, circular_padding, decode_tileable, seam_energy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rolled(layer: nn.Conv2d, x: torch.Tensor, shift: tuple[int, int], pad: int = 4) -> torch.Tensor:
    """The published layer: shift, pad around, convolve, crop, shift back by the ratio of the sizes."""
    moved = functional.pad(torch.roll(x, shift, (2, 3)), (pad,) * 4, mode="circular")
    y = layer(moved)
    stride = layer.stride[0]
    cut = pad // stride
    y = y[..., cut : y.shape[2] - cut, cut : y.shape[3] - cut]
    return torch.roll(y, tuple(-s // stride for s in shift), (2, 3))


@pytest.mark.parametrize("shift", [(0, 0), (2, 6), (14, 4), (254, 128)])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5)])
def test_rolling_a_convolution_is_padding_it_around(shift: tuple[int, int], stride: int, kernel: int) -> None:
    layer = nn.Conv2d(3, 5, kernel, stride, kernel // 2).requires_grad_(False)
    x = torch.randn(2, 3, 16, 24, generator=seeded())
    with circular_padding(layer):
        around = layer(x)
    torch.testing.assert_close(rolled(layer, x, shift), around, rtol=0, atol=1e-6)
    assert not torch.allclose(layer(x), around)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()


@torch.no_grad()
def test_a_network_that_wraps_answers_shifted_states_with_shifted_answers(unet) -> None:
    x, text = torch.randn(1, 4, 8, 12, generator=seeded()), torch.randn(1, 3, 16, generator=seeded(1))
    shift = (2, 6)  # multiples of 2^levels

    def ask(x: torch.Tensor) -> torch.Tensor:
        return unet(x, torch.tensor([300.0]), text, return_dict=False)[0]

    with circular_padding(unet):
        moved = ask(torch.roll(x, shift, (2, 3)))
        torch.testing.assert_close(moved, torch.roll(ask(x), shift, (2, 3)), rtol=0, atol=1e-5)
    plain = ask(torch.roll(x, shift, (2, 3)))
    assert float((plain - torch.roll(ask(x), shift, (2, 3))).abs().max()) > 1e-3


def test_padding_is_as_before_also_after_a_failure(unet) -> None:
    before = [m.padding_mode for m in unet.modules() if isinstance(m, nn.Conv2d)]
    with pytest.raises(RuntimeError, match="stop"), circular_padding(unet):
        wrapped = [m.padding_mode for m in unet.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert set(wrapped) == {"circular"}
        raise RuntimeError("stop")
    assert [m.padding_mode for m in unet.modules() if isinstance(m, nn.Conv2d)] == before


@pytest.mark.parametrize(("steps", "plain"), [(1, 0), (3, 0), (4, 1), (50, 12)])
def test_the_first_quarter_keeps_its_own_padding(steps: int, plain: int) -> None:
    layer, seen = nn.Conv2d(1, 1, 3, padding=1), []

    def denoise(x, level):
        seen.append(layer.padding_mode)
        return Prediction(x, level, x, "sample")

    asked = Tileable.for_steps(denoise, layer, steps)
    from unproject.core.sampling import Level

    level = Level(0.6, 0.8, 0.0, 10.0, 10.0, 10.0)
    for _ in range(steps):
        asked(torch.zeros(1, 1, 4, 4), level)
    assert seen == ["zeros"] * plain + ["circular"] * (steps - plain)


class Blurring:
    """Decodes by a factor of two and a wide blur with edges of its own."""

    def decode(self, latents: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        large = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return functional.avg_pool2d(large, 5, 1, 2, count_include_pad=True)


def test_decoding_sees_what_lies_around() -> None:
    """Shifting the latents shifts the picture, though the decoder pads with zeros."""
    z = torch.randn(2, 3, 16, 24, generator=seeded())
    found = decode_tileable(Blurring(), z)
    assert found.shape == (2, 3, 32, 48)
    moved = decode_tileable(Blurring(), torch.roll(z, (3, -5), (2, 3)))
    torch.testing.assert_close(moved, torch.roll(found, (6, -10), (2, 3)))
    assert not torch.allclose(Blurring().decode(z)[..., :2, :], found[..., :2, :])


def test_seam_energy_is_one_for_what_tiles_and_more_for_what_does_not() -> None:
    noise = torch.rand(1, 1, 64, 64, generator=seeded())
    assert float(seam_energy(noise)) == pytest.approx(1.0, abs=0.15)
    x = torch.arange(64.0)
    wave = torch.sin(2 * torch.pi * 3 * (x + 0.2) / 64).expand(1, 1, 64, 64)
    assert float(seam_energy(wave)) < 1.6
    ramp = (x / 64).expand(1, 1, 64, 64)
    assert float(seam_energy(ramp)) == pytest.approx((63 + 1) / 2)  # 63 steps across one axis, nothing along the other
    assert float(seam_energy(torch.full((1, 3, 8, 8), 0.4))) == 1.0
