"""Light from all around: directions, solid angles, Radiance files, and surfaces under it against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.environment import Environment, read_hdr, write_hdr
from unproject.geometry.lit import lit_views, reflected, seen_of
from unproject.geometry.meshes import Mesh
from unproject.tasks.material_files import sphere
from unproject.utils.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_directions_and_angles_cover_the_sphere() -> None:
    light = Environment(torch.ones(12, 20, 3, dtype=torch.float64))
    assert float(light.solid_angles.sum()) == pytest.approx(4 * math.pi)
    found = light.directions.reshape(12, 20, 3)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(12, 20, dtype=torch.float64))
    assert float(found[0, 0, 2]) > 0.9  # row 0 looks up
    middle = found[6, 9:11].mean(0)
    assert float(middle[0]) > 0.9  # the middle column to the front
    assert abs(float(middle[1])) < 1e-6
    assert float(found[6, 14, 1]) < -0.9  # further right: to the right of who looks there
    mean = (light.directions * light.solid_angles[:, None]).sum(0)
    torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_resizing_keeps_the_power_and_turning_the_light() -> None:
    light = Environment(torch.rand(16, 32, 3, generator=seeded()).double())
    power = (light.radiance.reshape(-1, 3) * light.solid_angles[:, None]).sum(0)
    small = light.resized(4, 8)
    torch.testing.assert_close((small.radiance.reshape(-1, 3) * small.solid_angles[:, None]).sum(0), power)
    one = torch.zeros(6, 12, 3)
    one[3, 6] = 1.0
    turned = Environment(one).turned(90)
    before = Environment(one).directions[one[..., 0].reshape(-1) > 0][0]
    after = turned.directions[turned.radiance[..., 0].reshape(-1) > 0.99][0]
    torch.testing.assert_close(after, torch.stack([-before[1], before[0], before[2]]), rtol=0, atol=1e-5)
    part = Environment(one).turned(10)
    assert float(part.radiance.sum()) == pytest.approx(3.0, rel=1e-5)


def test_radiance_files_give_back_three_digits(tmp_path) -> None:
    values = np.exp(np.random.default_rng(0).normal(0, 4, (9, 17, 3))).astype(np.float32)
    values[2, 3] = 0
    back = read_hdr(write_hdr(values))
    highest = values.max(-1)
    np.testing.assert_allclose(back.max(-1), highest, rtol=0.006)
    assert (np.abs(back - values) <= 0.0079 * highest[..., None]).all()
    path = Environment(torch.from_numpy(values)).save(tmp_path / "a.hdr")
    np.testing.assert_array_equal(Environment.load(path).radiance.numpy(), back)


def packed(rows: np.ndarray) -> bytes:
    """RGBE (H, W, 4) bytes in runs: equal neighbours as runs, the rest as they are."""
    out = bytearray()
    for row in rows:
        width = len(row)
        out += bytes((2, 2, width >> 8, width & 255))
        for channel in row.T:
            at = 0
            while at < width:
                run = 1
                while at + run < width and run < 127 and channel[at + run] == channel[at]:
                    run += 1
                if run > 2:
                    out += bytes((128 + run, channel[at]))
                else:
                    run = min(2, width - at)
                    out += bytes((run, *channel[at : at + run]))
                at += run
    return bytes(out)


def test_runs_are_unpacked_and_broken_files_refused() -> None:
    flat = write_hdr(np.repeat(np.random.default_rng(1).random((5, 6, 3)), 4, axis=1))
    head, pixels = flat[: -5 * 24 * 4], np.frombuffer(flat[-5 * 24 * 4 :], np.uint8).reshape(5, 24, 4)
    runs = head + packed(pixels)
    assert len(runs) < len(flat)
    np.testing.assert_array_equal(read_hdr(runs), read_hdr(flat))
    brighter = runs.replace(b"FORMAT", b"EXPOSURE=2.0\nFORMAT")
    np.testing.assert_allclose(read_hdr(brighter), read_hdr(flat) / 2)
    cases = {
        b"P6\n": "no Radiance picture",
        runs[:-3]: "broken or not whole",
        flat[:-9]: "ends before",
        flat.replace(b"-Y 5 +X 24", b"+Y 5 +X 24"): "are not -Y HEIGHT",
        flat.replace(b"-Y 5 +X 24", b"-Y 99999 +X 99999"): "px, more than",
        flat.replace(b"rgbe", b"xyze"): "XYZ",
        flat.replace(b"FORMAT", b"EXPOSURE=e\nFORMAT"): "is no number",
        flat.replace(b"FORMAT", b"EXPOSURE=-1\nFORMAT"): "must lie between",
        runs[: len(head)] + b"\x02\x02\x00\x19" + runs[len(head) + 4 :]: "does not begin",
    }
    for data, message in cases.items():
        with pytest.raises(InputError, match=message):
            read_hdr(data)


def points(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=seeded()).double(), dim=1)
    view = torch.nn.functional.normalize(normal + 0.5 * torch.randn(count, 3, generator=seeded(1)).double(), dim=1)
    return normal, view


def test_a_white_matte_surface_under_an_even_sky_sends_back_what_comes() -> None:
    light = Environment(torch.ones(32, 64, 3, dtype=torch.float64))
    normal, view = points()
    one, none = torch.ones(6, 1).double(), torch.zeros(6, 1).double()
    albedo = torch.tensor([[0.2, 0.5, 1.0]]).double().expand(6, 3)
    matte = reflected(albedo, one, none, normal, view, light)
    black = reflected(0 * albedo, one, none, normal, view, light)
    torch.testing.assert_close(matte - black, albedo, rtol=5e-3, atol=0)
    assert float(black.max()) < 0.08  # 4 % at normal incidence, more at grazing
    mirror = reflected(albedo * 0 + 1, 0.5 * one, one, normal, view, light)
    assert (mirror <= 1.02).all()  # no more than what comes
    assert (mirror > 0.8).all()


def test_one_direction_is_the_microfacet_formula_and_swaps() -> None:
    radiance = torch.zeros(16, 32, 3, dtype=torch.float64)
    radiance[5, 20] = torch.tensor([1.0, 2.0, 3.0])
    light = Environment(radiance)
    towards, angle = light.directions[5 * 32 + 20], light.solid_angles[5 * 32 + 20]
    normal = torch.nn.functional.normalize(towards + torch.tensor([0.1, 0.5, 0.3]).double(), dim=0)
    view = torch.nn.functional.normalize(normal + torch.tensor([0.4, -0.2, 0.1]).double(), dim=0)
    r, m, c = 0.6, 0.3, torch.tensor([0.8, 0.4, 0.1]).double()
    half = torch.nn.functional.normalize(towards + view, dim=0)
    nl, nv, nh, vh = (float(a @ b) for a, b in ((normal, towards), (normal, view), (normal, half), (view, half)))
    a2 = r**4
    d = a2 / (math.pi * (nh**2 * (a2 - 1) + 1) ** 2)
    v = 0.5 / (nl * math.sqrt(nv**2 * (1 - a2) + a2) + nv * math.sqrt(nl**2 * (1 - a2) + a2))
    f0 = 0.04 * (1 - m) + c * m
    brdf = c * (1 - m) / math.pi + d * v * (f0 + (1 - f0) * (1 - vh) ** 5)
    found = reflected(
        c[None], torch.tensor([[r]]).double(), torch.tensor([[m]]).double(), normal[None], view[None], light
    )
    torch.testing.assert_close(found[0], brdf * nl * angle * torch.tensor([1.0, 2.0, 3.0]).double(), rtol=1e-6, atol=0)


def test_gradients_are_those_of_differences() -> None:
    light = torch.rand(4, 6, 3, generator=seeded(3)).double() + 0.1
    normal, view = points(2)
    albedo = torch.rand(2, 3, generator=seeded(4)).double() * 0.8 + 0.1
    rough, metal = torch.tensor([[0.7], [0.9]]).double(), torch.tensor([[0.2], [0.6]]).double()

    def shade(albedo, rough, metal, light):
        return reflected(albedo, rough, metal, normal, view, Environment(light))

    given = [one.requires_grad_(True) for one in (albedo, rough, metal, light)]
    assert torch.autograd.gradcheck(shade, given)


def ball() -> Mesh:
    grey = np.full((8, 8), 0.5, np.float32)
    up = np.tile(np.array([0, 0, 1], np.float32), (8, 8, 1))
    return sphere({"albedo": np.repeat(grey[..., None], 3, -1), "normal": up, "height": grey,
                   "roughness": grey + 0.5, "metallic": 0 * grey}, 24)  # fmt: skip


def test_a_ball_under_light_from_above_is_bright_on_top() -> None:
    radiance = torch.zeros(8, 16, 3)
    radiance[0] = 5.0
    cameras = Camera.orbit(torch.tensor([20.0, 200.0]), torch.tensor([0.0, 10.0]), 2.0, 40.0, 24)
    seen = seen_of(ball(), cameras)
    assert (seen.normal * seen.view).sum(1).min() >= 0
    rgb, alpha = lit_views(ball(), cameras, Environment(radiance))
    assert rgb.shape == (2, 24, 24, 3)
    inside = alpha[..., 0] > 0
    assert 0.2 < inside.float().mean() < 0.7
    assert not rgb[~inside].any()
    top, bottom = rgb[0, 6:10, 10:14].mean(), rgb[0, 14:18, 10:14].mean()
    assert top > 2 * bottom
    part, where = seen.views(torch.tensor([1]))
    torch.testing.assert_close(part.normal, seen.normal[where])
    assert torch.equal(part.mask[0], seen.mask[1])
