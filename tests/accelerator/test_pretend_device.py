"""The pretend device itself: it computes what the CPU computes and refuses what an accelerator refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def pretend(pretend_device: Any) -> Iterator[Any]:
    with pretend_device.Pretend(double=False) as made:
        yield made


@pytest.fixture
def place(pretend_device: Any) -> torch.device:
    pretend_device._register()
    return pretend_device.DEVICE


def test_values_and_gradients_are_those_of_the_cpu(pretend: Any, place: torch.device) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 9, 3))
    x = torch.arange(50.0).sin().reshape(1, 2, 5, 5)
    net(x).square().sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.to(place)
    loss = net(x.to(place)).square().sum()
    loss.backward()
    assert loss.device == place and all(p.device == place for p in net.parameters())
    for parameter, gradient in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient)
    net.to(torch.float16).to(torch.float32)
    assert net(x.to(place)).cpu().dtype == torch.float32
    views = torch.arange(6.0, device=place).reshape(2, 3)
    views[:, 1] = 0
    views.mul_(2)
    assert views.tolist() == [[0, 0, 4], [6, 0, 10]]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda d: torch.ones(2, device=d) + torch.ones(2), "tensors of shape .*on the CPU and others"),
        (lambda d: torch.cat([torch.ones(2, device=d), torch.ones(2)]), "on the CPU and others"),
        (lambda d: torch.ones(2, 2) @ torch.ones(2, 2, device=d), "on the CPU and others"),
        (lambda d: torch.ones(3)[torch.tensor([0, 1], device=d)], "on the CPU and others"),
        (lambda d: torch.randn(2, device=d, generator=torch.Generator()), "got a generator of the CPU"),
        (lambda d: torch.ones(2, device=d).normal_(generator=torch.Generator()), "got a generator of the CPU"),
        (lambda d: torch.ones(2, device=d, dtype=torch.float64), "no float64"),
        (lambda d: torch.ones(2, device=d).double(), "no float64"),
        (lambda d: torch.ones(2, device=d).numpy(), "numpy"),
    ],
)
def test_what_an_accelerator_refuses(pretend: Any, place: torch.device, work: Any, message: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=message):
        work(place)


def test_what_an_accelerator_allows(pretend: Any, place: torch.device) -> None:
    x = torch.ones(3, device=place)
    assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2]
    assert x[torch.tensor([0, 2])].shape == (2,) and x[[0, 1]].shape == (2,)
    assert torch.where(x > 0, x, torch.tensor(0.0)).device == place
    assert torch.tensor([1.0, 2.0], device=place).device == x.new_tensor([1]).device == place


def test_waits_are_counted_where_they_happen(pretend: Any, place: torch.device) -> None:
    x = torch.arange(4.0, device=place)
    with pretend.counted() as waits:
        y = (x * 2).relu() + x.mean()
        x.to(torch.float16)
    assert not waits
    works = [
        lambda: float(y.sum()),
        lambda: y.cpu(),
        lambda: y.tolist(),
        lambda: y[y > 1],
        lambda: y.nonzero(),
        lambda: torch.equal(x, y),
        lambda: bool((y > 1).any()),
    ]
    for work in works:
        with pretend.counted() as waits:
            work()
        assert sum(waits.values()) == 1 and next(iter(waits)).startswith("tests/accelerator/test_pretend_device.py")
    before = sum(pretend.uploads.values())
    torch.ones(2).to(place)
    assert sum(pretend.uploads.values()) == before + 1


def test_outside_it_a_tensor_is_of_no_use(pretend_device: Any) -> None:
    with pretend_device.Pretend():
        x = torch.ones(2, device=pretend_device.DEVICE)
    with pytest.raises(RuntimeError, match="used outside of it"):
        x + 1
    assert torch.tensor([1]).device.type == "cpu"
