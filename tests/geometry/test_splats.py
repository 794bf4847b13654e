"""The rasteriser of splats against its slow twin, finite differences, closed forms and invariances."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from unproject.geometry.cameras import Camera
from unproject.geometry.splats import GaussianCloud, raster, rasterization, rasterization_reference
from unproject.geometry.splats.harmonics import C0
from unproject.geometry.splats.plan import Plan
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

ARRAYS = ("means", "quats", "scales", "opacities", "colors")


def scene(count: int, dtype: torch.dtype = torch.float64, seed: int = 0, size: float = 0.04) -> dict[str, Tensor]:
    """Gaussians of all shapes around the origin, with harmonics of degree 3."""
    rng = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    values = {
        "means": 0.4 * normal(count, 3) + torch.tensor([0.05, -0.1, 0.07]),
        "quats": normal(count, 4),
        "scales": size * torch.exp(0.6 * normal(count, 3)),
        "opacities": 0.97 * torch.rand(count, generator=rng, dtype=torch.float64) + 0.03,
        "colors": 0.4 * normal(count, 16, 3),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def cloud_of(arrays: dict[str, Tensor]) -> GaussianCloud:
    return GaussianCloud.from_values(*(arrays[n].detach() for n in ("means", "scales", "quats", "opacities", "colors")))


def views(width: int, height: int, dtype: torch.dtype = torch.float64, count: int = 2) -> dict[str, Any]:
    camera = Camera.orbit([25.0, 190.0][:count], [20.0, -35.0][:count], 3.0, 34.0, width, height)
    K = camera.K.to(dtype) * torch.tensor([[1.0], [1.1], [1.0]], dtype=dtype)
    return {"viewmats": camera.w2c.to(dtype).requires_grad_(), "Ks": K, "width": width, "height": height}


def drawn(rasterize: Any, arrays: dict[str, Any], **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """All maps, and the gradients of a random projection of them to everything."""
    renders, alphas, meta = rasterize(**arrays, **settings)
    maps = [renders, alphas, *([meta["normals"]] if "normals" in meta else [])]
    loss = sum((m * torch.randn(m.shape, generator=generator(7), dtype=m.dtype)).sum() for m in maps)
    leaves = [v for v in {**arrays, **settings}.values() if isinstance(v, Tensor) and v.requires_grad]
    return maps, list(torch.autograd.grad(loss, leaves))


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"render_mode": "RGB"},
    "all channels": {"render_mode": "RGB+ED", "normals": True},
    "antialiased": {"render_mode": "RGB+D", "rasterize_mode": "antialiased", "eps2d": 0.7},
    "depth": {"render_mode": "ED"},
    "clipped": {"near_plane": 2.7, "far_plane": 3.3, "radius_clip": 5.0},
    "ortho": {"camera_model": "ortho", "normals": True, "render_mode": "RGB+D"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_values_and_gradients_are_those_of_the_twin(name: str) -> None:
    settings = {**SETTINGS[name], "sh_degree": 3}
    arrays = {**scene(150), **views(50, 37)}
    if name == "ortho":
        arrays["Ks"] = arrays["Ks"] * torch.tensor([[0.3], [0.3], [1.0]]) + torch.tensor(
            [[0, 0, 17.0], [0, 0, 13], [0] * 3]
        )
    if name != "depth":
        settings["backgrounds"] = torch.rand(2, 3, generator=generator(3), dtype=torch.float64).requires_grad_()
    (maps, gradients), (wanted, slopes) = (
        drawn(f, arrays, **settings)
        if name != "depth"
        else drawn(f, {**arrays, "colors": arrays["colors"].detach()}, **settings)
        for f in (rasterization, rasterization_reference)
    )
    assert 0.03 < float(wanted[1].detach().mean()) < 0.9
    for found, expected in zip(maps, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    for found, expected in zip(gradients, slopes, strict=True):
        assert float((found - expected).abs().max()) < 1e-8 * float(expected.abs().max())


def test_single_precision_is_close_too() -> None:
    arrays = {**scene(150, torch.float32), **views(50, 37, torch.float32)}
    settings = {"sh_degree": 3, "render_mode": "RGB+D", "normals": True}
    (maps, gradients), (wanted, slopes) = (
        drawn(f, arrays, **settings) for f in (rasterization, rasterization_reference)
    )
    for found, expected in zip(maps, wanted, strict=True):
        assert float(((found - expected).abs() > 1e-5).float().mean()) < 1e-3  # alphas at 1/255 may flip
    for found, expected in zip(gradients, slopes, strict=True):
        assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_gradients_are_those_of_finite_differences(mode: str) -> None:
    arrays, view = scene(5, seed=2, size=0.15), views(7, 5, count=1)
    values = [v.detach().requires_grad_() for v in (*arrays.values(), view["viewmats"])]

    def pictures(*changed: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip((*ARRAYS, "viewmats"), changed, strict=True))
        image, alpha, meta = rasterization(
            **{**view, **named}, sh_degree=3, render_mode="RGB+D", rasterize_mode=mode, normals=True
        )
        return image, alpha, meta["normals"]

    assert torch.autograd.gradcheck(pictures, values, eps=1e-7, atol=1e-5, rtol=1e-4)


def one(opacity: float = 0.8, z: float = 2.0, **changes: Tensor) -> dict[str, Any]:
    """A round Gaussian of one pixel's size in front of the middle of pixel (3, 2) of a camera that looks along z."""
    K = torch.tensor([[[20.0, 0, 4.0], [0, 20.0, 3.0], [0, 0, 1]]], dtype=torch.float64)
    values = {
        "means": torch.tensor([[-0.5 / 20 * z, -0.5 / 20 * z, z]], dtype=torch.float64),
        "quats": torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64),
        "scales": torch.full((1, 3), 0.1, dtype=torch.float64),
        "opacities": torch.tensor([opacity], dtype=torch.float64),
        "colors": torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64),
        "viewmats": torch.eye(4, dtype=torch.float64)[None],
        "Ks": K,
    }
    return {**values, **changes, "width": 9, "height": 7}


def test_one_gaussian_has_a_closed_form() -> None:
    image, alpha, meta = rasterization(
        **one(), render_mode="RGB+ED", normals=True, backgrounds=torch.ones(1, 3).double()
    )
    assert float(alpha[0, 2, 3, 0]) == pytest.approx(0.8)
    variance = 1.0 + (20 * 0.5 / 20 / 2 * 0.1) ** 2 + 0.3  # f / z scale = 1 pixel, the slant of the ray, eps2d
    slant = variance - 1.3
    det = variance**2 - slant**2
    assert float(alpha[0, 2, 4, 0]) == pytest.approx(0.8 * math.exp(-0.5 * variance / det))
    assert image[0, 2, 3, :3].tolist() == pytest.approx([0.8 * c + 0.2 for c in (0.2, 0.5, 0.9)])
    assert float(image[0, 2, 3, 3]) == pytest.approx(2.0) and float(image[0, 0, 8, 3]) == 0.0
    assert meta["means2d"][0, 0].tolist() == pytest.approx([3.5, 2.5])
    flat = one(scales=torch.tensor([[0.1, 0.1, 0.001]], dtype=torch.float64))
    normal = rasterization(**flat, normals=True)[2]["normals"][0, 2, 3]
    assert normal.tolist() == pytest.approx([0, 0, -0.8])


def test_antialiasing_keeps_the_light_of_small_gaussians() -> None:
    """A Gaussian much smaller than a pixel: its sum over pixels is that of its own area, not of the blurred one."""
    small = one(scales=torch.full((1, 3), 0.01, dtype=torch.float64), opacity=0.99)
    kept = rasterization(**small, rasterize_mode="antialiased")[1]
    blurred = rasterization(**small)[1]
    var = (20 / 2 * 0.01) ** 2
    assert float(kept[0, 2, 3, 0] / blurred[0, 2, 3, 0]) == pytest.approx(var / (var + 0.3), rel=2e-3)


def test_light_is_never_used_up() -> None:
    """alpha <= .999 each, and a pixel ends before the Gaussian that would leave 1e-4."""
    wall = one(1.0)
    assert float(rasterization(**wall)[1].max()) == pytest.approx(0.999)
    many = {name: torch.cat([wall[name]] * 4) for name in ARRAYS}
    many["colors"] = many["colors"] * torch.tensor([[1.0], [3.0], [7.0], [9.0]])
    many["opacities"] = torch.tensor([0.9, 0.9, 0.99, 0.5]).double()
    many["means"] = many["means"] * torch.tensor([[2.0], [1.0], [3.0], [4.0]])  # the second is the nearest
    for f in (rasterization, rasterization_reference):
        image, alpha, _ = f(**{**wall, **many})
        assert float(alpha[0, 2, 3, 0]) == pytest.approx(0.99)  # .1 .1 leaves .01; the third would leave 1e-4
        assert float(image[0, 2, 3, 0]) == pytest.approx(0.2 * (0.9 * 3 + 0.09 * 1))


def test_what_is_not_drawn_has_no_gradient() -> None:
    arrays = {**scene(6), **views(20, 20, count=1)}
    with torch.no_grad():
        arrays["means"][0] = torch.tensor([5.0, 1.0, 2.0])  # behind
        arrays["means"][1] = torch.tensor([0.0, 9.0, 0.0])  # beside
        arrays["opacities"][2] = 0.0039
        arrays["quats"][3] = 0.0
        arrays["means"][4, 0] = float("nan")
    image, _, meta = rasterization(**arrays, sh_degree=1)
    assert (meta["radii"] > 0).all(-1)[0].tolist() == [False] * 5 + [True]
    image.sum().backward()
    for name in ARRAYS:
        assert not arrays[name].grad[:5].any() and bool(torch.isfinite(arrays[name].grad).all())
    assert arrays["means"].grad[5].abs().min() > 0
    assert not arrays["colors"].grad[:, 4:].any()  # degrees that are not wanted


def test_no_gaussians_show_the_background() -> None:
    arrays = {name: value[:0].detach() for name, value in scene(1).items()}
    image, alpha, _ = rasterization(**arrays, **views(5, 4), sh_degree=0, backgrounds=torch.full((2, 3), 0.25).double())
    assert bool((image == 0.25).all()) and not alpha.any()


def test_order_and_threads_change_nothing() -> None:
    arrays, view = scene(9000, size=0.01), views(60, 40, count=1)
    plain = drawn(rasterization, {**arrays, **view}, sh_degree=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = drawn(rasterization, {**arrays, **view}, sh_degree=2)
    finally:
        torch.set_num_threads(threads)
    for found, expected in zip(several[0] + several[1][:-1], plain[0] + plain[1][:-1], strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(several[1][-1], plain[1][-1])  # the camera's sum over ranges
    order = torch.randperm(9000, generator=generator(5))
    mixed = {name: value.detach()[order].requires_grad_() for name, value in arrays.items()}
    maps, gradients = drawn(rasterization, {**mixed, **view}, sh_degree=2)
    torch.testing.assert_close(maps, plain[0])
    torch.testing.assert_close(gradients[0], plain[1][0][order])


def test_world_and_camera_may_move_together() -> None:
    """A similarity of everything, harmonics included, leaves the picture as it was."""
    arrays, view = {n: v.detach() for n, v in scene(60).items()}, views(40, 30, count=1)
    cloud = cloud_of(arrays)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(2), dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = 1.7 * turn, torch.tensor([0.3, -2.0, 1.1])
    moved = cloud.transformed(matrix)
    pose = torch.linalg.inv(view["viewmats"].detach())
    pose[:, :3, :3], pose[:, :3, 3] = turn @ pose[:, :3, :3], pose[:, :3, 3] @ (1.7 * turn).mT + matrix[:3, 3]
    pictures = []
    for c, viewmats in ((cloud, view["viewmats"]), (moved, torch.linalg.inv(pose))):
        values = (c.means, c.quaternions, c.scales, c.opacities, c.sh)
        arrays = dict(zip(ARRAYS, values, strict=True))
        pictures.append(rasterization(**arrays, **{**view, "viewmats": viewmats}, sh_degree=3)[0])
    torch.testing.assert_close(*pictures, rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="rotations only"):
        cloud.transformed(torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])))


def test_gradients_of_places_in_the_picture_can_be_kept() -> None:
    arrays = {**scene(20), **views(30, 20)}
    image, _, meta = rasterization(**arrays, sh_degree=0)
    meta["means2d"].retain_grad()
    image.square().sum().backward()
    assert meta["means2d"].grad.shape == (2, 20, 2) and bool(meta["means2d"].grad.any())


def test_gsplat_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for gsplat that is our own rasteriser: channels, settings and order of the maps come back right."""

    def stand_in(packed: bool, **settings: Any) -> Any:
        assert not packed
        return rasterization(**settings)

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=stand_in))
    arrays = {**scene(40), **views(30, 20)}
    settings: dict[str, Any] = {"sh_degree": 2, "render_mode": "RGB+ED", "normals": True, "eps2d": 0.6}
    settings["backgrounds"] = torch.rand(2, 3, generator=generator(3), dtype=torch.float64)
    wanted, _ = drawn(rasterization, arrays, **settings)
    plan = Plan(arrays["width"], arrays["height"], **{k: v for k, v in settings.items() if k != "backgrounds"})
    tensors = {name: arrays[name] for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks")}
    centres = torch.linalg.inv(arrays["viewmats"])[:, :3, 3]
    image, alpha, meta = raster._gsplat(plan, tensors, arrays["colors"], centres, settings["backgrounds"])
    for found, expected in zip((image, alpha, meta["normals"]), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["plain", "all channels", "antialiased"])
def test_gsplat_draws_the_same(name: str) -> None:
    pytest.importorskip("gsplat")
    arrays = {**scene(300, torch.float32), **views(80, 60, torch.float32)}
    settings = {**SETTINGS[name], "sh_degree": 3}
    (maps, gradients), (wanted, slopes) = (
        drawn(
            rasterization,
            {k: v.detach().to(d).requires_grad_() if isinstance(v, Tensor) else v for k, v in arrays.items()},
            **settings,
        )
        for d in ("cuda", "cpu")
    )
    for found, expected in zip(maps, wanted, strict=True):
        assert float(((found.cpu() - expected).abs() > 1e-4).float().mean()) < 1e-3
    for found, expected in zip(gradients[:5], slopes[:5], strict=True):
        assert float((found.cpu() - expected).abs().max()) < 1e-2 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"render_mode": "RGBD"}, "render_mode='RGBD' is unknown; use one of RGB, D"),
        ({"camera_model": "fisheye"}, "camera_model='fisheye'"),
        ({"width": 0}, "width=0"),
        ({"near_plane": 3.0, "far_plane": 2.0}, "near_plane=3.0 must be below far_plane=2.0"),
        ({"opacities": torch.ones(2).double()}, r"opacities has shape \(2,\), expected \(1,\)"),
        ({"scales": torch.ones(1, 3)}, "scales must have the dtype"),
        ({"sh_degree": 2}, r"sh_degree=2 needs \(1, K, 3\)"),
        ({"backgrounds": torch.ones(3)}, r"backgrounds has shape \(3,\), expected \(1, 3\)"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    for f in (rasterization, rasterization_reference):
        with pytest.raises(InputError, match=message):
            f(**{**one(), **changes})


def test_clouds_are_checked() -> None:
    arrays = scene(4)
    cloud = cloud_of(arrays)
    torch.testing.assert_close(cloud.scales, arrays["scales"])
    torch.testing.assert_close(cloud.opacities, arrays["opacities"])
    assert cloud.degree == 3 and len(cloud[1:3]) == 2 and cloud.with_degree(1).sh.shape == (4, 4, 3)
    assert torch.equal(cloud.with_degree(1).with_degree(3).sh[:, :4], cloud.sh[:, :4])
    with pytest.raises(InputError, match="5 SH coefficients fit no degree"):
        GaussianCloud(cloud.means, cloud.log_scales, cloud.quaternions, cloud.logits, cloud.sh[:, :5])
    with pytest.raises(InputError, match=r"logits has shape \(4, 1\)"):
        GaussianCloud(cloud.means, cloud.log_scales, cloud.quaternions, cloud.logits[:, None], cloud.sh)
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]])
    from_points = GaussianCloud.from_points(line, torch.full((4, 3), 0.75))
    assert from_points.scales[0].tolist() == pytest.approx([math.sqrt((1 + 9 + 49) / 3)] * 3)
    assert from_points.colors[0].tolist() == pytest.approx([0.75] * 3)
    assert math.isclose(C0, 0.5 / math.sqrt(math.pi))
