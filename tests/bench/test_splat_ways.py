"""Other ways to draw splats: each is the slow twin where it should be, with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from unproject.bench.splat_ways import in_slabs, over_boxes
from unproject.bench.splats import looking, splats
from unproject.geometry.splats import rasterization_reference

VIEW = {**looking(24), "width": 30}  # not square, the centre off its middle


def drawn(draw: Callable[..., Any], count: int, size: float) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture with its alpha, and the gradients of a sum whose weights differ from place to place."""
    scene = splats(count, size, 3)
    image, alpha, _ = draw(**scene, **VIEW)
    picture = torch.cat([image, alpha], dim=-1)
    weights = torch.linspace(-1, 2, picture.numel()).view_as(picture)
    (picture * weights).sum().backward()
    return picture.detach(), {name: value.grad for name, value in scene.items()}


@pytest.mark.parametrize(("count", "size"), [(40, 0.05), (300, 0.12)])
def test_boxes_in_turn_are_every_gaussian_at_every_pixel(count: int, size: float) -> None:
    wanted, slopes = drawn(rasterization_reference, count, size)
    found, pulls = drawn(over_boxes, count, size)
    assert float(wanted[..., 3].max()) > (0.999 if count == 300 else 0.5)  # many pixels come to their end
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for name, slope in slopes.items():
        torch.testing.assert_close(pulls[name], slope, rtol=2e-3, atol=2e-3 * float(slope.abs().max()), msg=name)


def test_slabs_of_one_gaussian_are_in_order() -> None:
    wanted, slopes = drawn(rasterization_reference, 40, 0.05)
    found, pulls = drawn(partial(in_slabs, slab=1), 40, 0.05)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=3e-4)  # they do not end at 1e-4 of the light
    for name, slope in slopes.items():
        torch.testing.assert_close(pulls[name], slope, rtol=1e-2, atol=1e-2 * float(slope.abs().max()), msg=name)


def test_in_one_slab_alpha_is_kept_and_colours_mix_by_it() -> None:
    """Two Gaussians at one place: alpha 1 - (1 - a)(1 - b), colour their mean by a and b, whichever is in front."""
    scene = {name: value.detach() for name, value in splats(2, 0.3, 5).items()}
    scene["means"] = torch.tensor([[0.02, 0.0, 0.0], [-0.02, 0.0, 0.0]])
    scene["scales"] = torch.full((2, 3), 0.2)
    scene["opacities"], colors = torch.tensor([0.6, 0.3]), torch.zeros(2, 16, 3)
    colors[0, 0], colors[1, 0] = 1.2, -0.7
    found, alpha, _ = in_slabs(**{**scene, "colors": colors}, **VIEW)
    alone = [in_slabs(**{n: v[i : i + 1] for n, v in {**scene, "colors": colors}.items()}, **VIEW) for i in range(2)]
    (first, a, _), (second, b, _) = alone
    torch.testing.assert_close(alpha, 1 - (1 - a) * (1 - b))
    torch.testing.assert_close(found, alpha * (first + second) / (a + b).clamp_min(1e-8), rtol=1e-4, atol=1e-5)
