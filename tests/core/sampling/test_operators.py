"""Degradations: exact adjoints, the library's own resizing, pseudo-inverses, limits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unproject.core.sampling.operators import Identity, Inpainting, Separable, gaussian_blur, super_resolution
from unproject.utils.errors import InputError

MASK = torch.rand(8, 12, generator=torch.Generator().manual_seed(5)) > 0.3
OPERATORS = {
    "identity": Identity(),
    "inpainting": Inpainting(MASK),
    "super-resolution": super_resolution(4, 8, 12),
    "blur": gaussian_blur(1.3, 8, 12),
}


def images(rows: int = 3) -> torch.Tensor:
    return torch.rand(rows, 3, 8, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint(name):
    operator, x = OPERATORS[name], images()
    y = operator.forward(x)
    other = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close((y * other).sum(), (x * operator.adjoint(other)).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_linear_and_row_by_row(name):
    operator, x = OPERATORS[name], images()
    y = operator.forward(x)
    torch.testing.assert_close(operator.forward(2 * x - x.flip(0)), 2 * y - y.flip(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.forward(x[1:2])[0], y[1], rtol=1e-12, atol=1e-12)
    assert operator.forward(x.float()).dtype == torch.float32


def test_super_resolution_is_the_librarys_reduction_and_keeps_constants():
    x = images()
    theirs = F.interpolate(x, (2, 3), mode="bicubic", antialias=True)
    torch.testing.assert_close(super_resolution(4, 8, 12).forward(x), theirs, rtol=1e-10, atol=1e-10)
    one = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(super_resolution(2, 8, 12).forward(one), one[..., :4, :6])
    assert torch.equal(super_resolution(1, 8, 12).forward(x), x)


def test_pseudo_inverse_reproduces_the_measurement():
    for operator in (super_resolution(2, 8, 12), Inpainting(MASK), Identity()):
        y = operator.forward(images())
        torch.testing.assert_close(operator.forward(operator.pseudo_inverse(y)), y, rtol=1e-9, atol=1e-9)


def test_blur_limits_and_bounded_noise_gain():
    x = images()
    assert torch.equal(gaussian_blur(0.0, 8, 12).forward(x), x)
    one = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(gaussian_blur(2.0, 8, 12).forward(one), one)
    noise = torch.randn(50, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(gaussian_blur(1.3, 8, 12).pseudo_inverse(noise).std()) < 12


def test_inpainting_counts_what_is_known_and_fills_with_the_mean():
    operator, x = Inpainting(MASK), images()
    y = operator.forward(x)
    assert operator.count(y).tolist() == [3.0 * int(MASK.sum())] * 3
    filled = operator.pseudo_inverse(y)
    torch.testing.assert_close(filled[0, 0][~MASK], x[0, 0][MASK].mean().expand(int((~MASK).sum())))
    own = Inpainting(torch.stack([MASK, ~MASK, MASK])[:, None])
    assert own.count(y)[1] == 3 * int((~MASK).sum())


def test_bad_input_is_named():
    with pytest.raises(InputError, match="factor=3"):
        super_resolution(3, 8, 12)
    with pytest.raises(InputError, match="std_px=-1"):
        gaussian_blur(-1, 8, 8)
    with pytest.raises(InputError, match="known has shape"):
        Inpainting(torch.ones(2, 3, 4))
    with pytest.raises(InputError, match="made for"):
        Separable(torch.eye(4), torch.eye(4)).forward(images())
