"""Counting living tensors: by hand, and what recomputing in parts saves."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from unproject.utils.live_bytes import LiveBytes
from unproject.utils.recompute import in_parts
from unproject.utils.seeds import generator

KB = 250 * 4  # bytes of 250 numbers


def test_by_hand():
    x = torch.zeros(250)
    with LiveBytes() as live:
        a = x + 1
        b = a[:10] * 2  # a view is no new storage
        assert live.now == KB + 40
        c = a + x
        del a
        assert live.now == KB + 40
        x.add_(1)
    assert (live.now, live.peak) == (KB + 40, 2 * KB + 40)
    del b, c
    assert live.now == 0


def test_what_autograd_keeps_and_frees():
    x = torch.ones(250, requires_grad=True)
    with LiveBytes() as live:
        y = (2 * x).sin().cos().sum()  # 2 x and its sine are kept
        assert live.now == 2 * KB + 4
        y.backward()
    assert live.now == KB + 4  # the gradient and y


def test_tensors_without_values_count_as_others():
    with FakeTensorMode(), LiveBytes() as live:
        x = torch.empty(10**6, 10**6)
        assert live.now == 4 * 10**12
        del x
    assert (live.now, live.peak) == (0, 4 * 10**12)


def slow(weight: torch.Tensor):
    """Twenty layers of one row at a time."""

    def function(rows: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            rows = torch.tanh(rows @ weight)
        return rows

    return function


@pytest.mark.parametrize("at_once", [1, 3, 8, None])
def test_parts_have_the_same_gradients(at_once):
    weight = (0.3 * torch.randn(6, 6, generator=generator(0), dtype=torch.float64)).requires_grad_()
    rows = torch.randn(8, 6, generator=generator(1), dtype=torch.float64).requires_grad_()
    pull = torch.randn(8, 6, generator=generator(2), dtype=torch.float64)
    expected = torch.autograd.grad((slow(weight)(rows) * pull).sum(), (weight, rows))
    out = in_parts(slow(weight), at_once, rows)
    torch.testing.assert_close(out, slow(weight)(rows))
    torch.testing.assert_close(torch.autograd.grad((out * pull).sum(), (weight, rows)), expected)


def test_parts_never_meet():
    weight = (0.05 * torch.randn(50, 50, generator=generator(0))).requires_grad_()
    rows = torch.randn(800, 50, generator=generator(1)).requires_grad_()
    peaks = {}
    for at_once in (None, 200, 100):
        with LiveBytes() as live:
            in_parts(slow(weight), at_once, rows).sum().backward()
        peaks[at_once] = live.peak
        rows.grad = weight.grad = None
    assert peaks[200] < 0.45 * peaks[None]
    assert peaks[100] < 0.65 * peaks[200]
