"""How alike pictures are: against scikit-image, by closed forms, and with gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from unproject.geometry.similarity import psnr, ssim
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


def pictures(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator(3)
    a = torch.rand(*shape, generator=rng)
    return a, (a + 0.2 * torch.randn(*shape, generator=rng)).clamp(0, 1)


def test_it_is_the_one_of_the_paper() -> None:
    """scikit-image with the paper's window, which it cuts off where windows leave the picture."""
    a, b = pictures(2, 23, 31, 3)
    found = ssim(a, b)
    for index in range(2):
        wanted = structural_similarity(
            a[index].numpy().astype(float), b[index].numpy().astype(float), channel_axis=-1, data_range=1.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
        )[1]  # fmt: skip
        assert float(found[index]) == pytest.approx(float(np.mean(wanted[5:-5, 5:-5])), abs=2e-5)
    torch.testing.assert_close(ssim(b, a), found)
    torch.testing.assert_close(ssim(a, a), torch.ones(2))


def test_flat_pictures_differ_by_their_means() -> None:
    a, b = torch.full((1, 12, 12, 3), 0.2), torch.full((1, 12, 12, 3), 0.6)
    assert float(ssim(a, b)) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-4)
    assert float(psnr(a, b)) == pytest.approx(-10 * np.log10(0.16), rel=1e-5)
    assert psnr(torch.cat([a, a]), torch.cat([b, a])).shape == (2,)


def test_gradients_are_those_of_finite_differences() -> None:
    a, b = (p.double() for p in pictures(1, 12, 13, 1))
    torch.autograd.gradcheck(lambda x: ssim(x, b), (a.requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize(("shape", "told"), [((1, 10, 30, 3), "30 x 10 px"), ((12, 12, 3), "one shape")])
def test_what_has_no_window_is_refused(shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ssim(torch.zeros(shape), torch.zeros(shape))
