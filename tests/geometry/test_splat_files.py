"""Files of splats: what is written comes back, real files are read, damaged and hostile ones end in InputError."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry.formats.gltf_data import split_chunks
from unproject.geometry.formats.ply_data import read_elements
from unproject.geometry.splats import GaussianCloud, load_splats, rasterization, save_splats
from unproject.geometry.splats.cloud import rotation_matrices
from unproject.geometry.splats.files import SUFFIXES, losses
from unproject.geometry.splats.gltf import gltf_axes
from unproject.geometry.splats.harmonics import basis, rotated
from unproject.geometry.splats.packing import z_order
from unproject.geometry.splats.ply import names_of
from unproject.utils.errors import InputError, MissingExtraError
from unproject.utils.seeds import generator

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
REAL = Path(os.environ.get("UNPROJECT_REAL") or BESIDE) / "gaussians"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the sample files are not there")


def has_zstandard() -> bool:
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def cloud(count: int = 300, degree: int = 3, mode: str = "default") -> GaussianCloud:
    rng = generator(1)
    means = torch.randn(count, 3, generator=rng) * torch.tensor([1.0, 2.0, 0.5]) + 0.3
    scales = torch.randn(count, 3, generator=rng) * 0.7 - 4
    turn = torch.randn(count, 4, generator=rng)
    sh = 0.5 * torch.randn(count, (degree + 1) ** 2, 3, generator=rng)
    return GaussianCloud(means, scales, turn, 2 * torch.randn(count, generator=rng), sh, mode)


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Between the rotations of quaternions (N, 4), radians."""
    relative = rotation_matrices(first).mT @ rotation_matrices(second)
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.acos(((trace - 1) / 2).clamp(-1, 1))


def picture(c: GaussianCloud) -> Tensor:
    """From a fixed direction, all harmonics used."""
    view = torch.eye(4)
    view[2, 3] = 6.0
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    arrays = (c.means, c.quaternions, c.scales, c.opacities, c.sh)
    return rasterization(*arrays, view[None], K[None], 64, 48, sh_degree=c.degree)[0]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["default", "mip"])
def test_the_ply_of_3dgs_is_exact(degree: int, mode: str, tmp_path: Path) -> None:
    made = cloud(7, degree, mode)
    back = load_splats(save_splats(made, tmp_path / "a.ply"))
    for name in ("means", "log_scales", "quaternions", "logits", "sh"):
        assert torch.equal(getattr(back, name), getattr(made, name)), name
    assert back.mode == mode
    assert (b"SplatRenderMode: mip" in (tmp_path / "a.ply").read_bytes()) == (mode == "mip")


def test_the_ply_has_the_properties_of_3dgs_in_order(tmp_path: Path) -> None:
    header = save_splats(cloud(2), tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode().split("\n")
    rest = [f"f_rest_{i}" for i in range(45)]
    wanted = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
    wanted += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert header[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 2"]
    assert header[3:-1] == [f"property float {name}" for name in wanted]
    _, elements = read_elements((tmp_path / "a.ply").read_bytes())
    made = cloud(2)
    assert elements["vertex"].columns["f_rest_16"].tolist() == made.sh[:, 2, 1].tolist()  # 15 c + k


def test_flat_gaussians_have_no_third_scale(tmp_path: Path) -> None:
    path = save_splats(cloud(5, 0, "2dgs"), tmp_path / "flat.ply")
    assert b"scale_2" not in path.read_bytes()
    back = load_splats(path)
    assert back.mode == "2dgs" and bool((back.scales[:, 2] < 1e-6).all())
    assert torch.equal(back.log_scales[:, :2], cloud(5, 0).log_scales[:, :2])


def test_packed_ply_is_as_near_as_its_bits(tmp_path: Path) -> None:
    made = cloud(600)
    back = load_splats(save_splats(made, tmp_path / "a.compressed.ply"))
    made = made[torch.from_numpy(z_order(made.means.numpy()))]
    for rows in (slice(0, 256), slice(256, 512), slice(512, 600)):
        for found, wanted in ((back.means, made.means), (back.log_scales, made.log_scales)):
            span = wanted[rows].amax(0) - wanted[rows].amin(0)
            error = (found[rows] - wanted[rows]).abs()
            assert bool((error <= 0.51 * span / torch.tensor([2047.0, 1023, 2047]) + 1e-6).all())
        span = made.colors[rows].amax(0) - made.colors[rows].amin(0)
        assert bool(((back.colors[rows] - made.colors[rows]).abs() <= 0.51 * span / 255 + 1e-6).all())
    assert float((back.opacities - made.opacities).abs().max()) <= 0.51 / 255
    assert float(angles(back.quaternions, made.quaternions).max()) < 0.005
    assert float((back.sh[:, 1:] - made.sh[:, 1:]).abs().max()) <= 1 / 64 + 1e-5
    again = load_splats(save_splats(back, tmp_path / "b.compressed.ply"))
    torch.testing.assert_close(again.sh[:, 1:], back.sh[torch.from_numpy(z_order(back.means.numpy())), 1:])


def test_packed_harmonics_reach_the_ends_of_their_range(tmp_path: Path) -> None:
    """The first and the last of 256 steps are read as -4 and 4, as PlayCanvas does, the others in their middle."""
    made = cloud(6, 1)
    steps = torch.tensor([-9.0, -4.0, -3.96, 0.0, 3.96, 7.0])
    sh = torch.cat([made.sh[:, :1], steps[:, None, None].expand(-1, 3, 3)], dim=1)
    made = GaussianCloud(made.means, made.log_scales, made.quaternions, made.logits, sh)
    back = load_splats(save_splats(made, tmp_path / "a.compressed.ply"))
    back = back[torch.argsort(back.sh[:, 1, 0], stable=True)]
    assert back.sh[:, 3, 2].tolist() == [-4.0, -4.0, -3.953125, 0.015625, 3.953125, 4.0]


def test_the_small_splat_format(tmp_path: Path) -> None:
    made = cloud(50)
    back = load_splats(save_splats(made, tmp_path / "a.splat"))
    assert (tmp_path / "a.splat").stat().st_size == 50 * 32 and back.degree == 0
    assert torch.equal(back.means, made.means)
    torch.testing.assert_close(back.scales, made.scales)
    assert float((back.colors - made.colors.clamp(0, 1)).abs().max()) <= 0.51 / 255
    assert float(angles(back.quaternions, made.quaternions).max()) < 0.02


@pytest.mark.skipif(not has_zstandard(), reason="zstandard is not installed")
def test_spz_is_as_near_as_its_bits(tmp_path: Path) -> None:
    made = cloud(500, mode="mip")
    made = GaussianCloud(made.means, made.log_scales, made.quaternions, made.logits, 0.3 * made.sh.clamp(-1, 1), "mip")
    path = save_splats(made, tmp_path / "a.spz")
    back = load_splats(path)
    assert path.read_bytes()[:8] == struct.pack("<II", 0x5053474E, 4) and back.mode == "mip"
    assert float((back.means - made.means).abs().max()) < 2e-6
    assert float((back.log_scales - made.log_scales).abs().max()) <= 1 / 32 + 1e-6
    assert float((back.opacities - made.opacities).abs().max()) <= 0.51 / 255
    assert float((back.sh[:, 0] - made.sh[:, 0]).abs().max()) <= 0.51 / 255 / 0.15
    turned = gltf_axes(back).sh[:, 1:] - gltf_axes(made).sh[:, 1:]  # the file's own axes
    assert float(turned.abs().max()) <= 0.51 / 128
    assert float(angles(back.quaternions, made.quaternions).max()) < 0.005


@pytest.mark.parametrize(
    ("kind", "value", "edge", "told"),
    [
        (".spz", "sh", 0.99, "1 harmonics beyond -1 to 0.996 are cut"),
        (".compressed.ply", "sh", 3.99, "1 harmonics beyond -4 to 4 are cut"),
        (".spz", "log_scales", -10.0, "1 logarithms of sizes beyond -10 to 5.97 are cut"),
        (".spz", "base", 3.3, "1 colours beyond -3.35 to 3.35 are cut"),
        (".splat", "base", 1.77, "1 colours beyond -0.00196 to 1 are cut"),
    ],
)
def test_what_lies_beyond_the_range_of_a_format_is_told(kind: str, value: str, edge: float, told: str) -> None:
    c = cloud(20, 1)
    c.sh.clamp_(-0.9, 0.9)
    where = {"sh": c.sh[:, 1:], "base": c.sh[:, :1], "log_scales": c.log_scales[:, None]}[value]
    where[3, 0, 1] = edge
    assert not any("are cut" in text for text in losses(c, kind))
    where[3, 0, 1] = edge * 1.1
    assert told in losses(c, kind)


def test_glb_keeps_everything_and_says_what_it_is(tmp_path: Path) -> None:
    made = cloud(40)
    path = save_splats(made, tmp_path / "a.glb")
    document, _ = split_chunks(path.read_bytes())
    primitive = document["meshes"][0]["primitives"][0]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"] and primitive["mode"] == 0
    own = primitive["extensions"]["KHR_gaussian_splatting"]
    assert own["kernel"] == "ellipse" and own["colorSpace"] == "srgb_rec709_display"
    kinds = {name: document["accessors"][i]["type"] for name, i in primitive["attributes"].items()}
    assert kinds["KHR_gaussian_splatting:OPACITY"] == "SCALAR" and kinds["COLOR_0"] == "VEC4"
    assert sum(name.startswith("KHR_gaussian_splatting:SH_DEGREE_3") for name in kinds) == 7
    back = load_splats(path)
    torch.testing.assert_close(back.means, made.means)
    torch.testing.assert_close(back.log_scales, made.log_scales)
    torch.testing.assert_close(back.opacities, made.opacities)
    torch.testing.assert_close(back.sh, made.sh, atol=1e-5, rtol=1e-5)
    assert float(angles(back.quaternions, made.quaternions).max()) < 1e-3
    torch.testing.assert_close(picture(back), picture(made), atol=1e-4, rtol=0)


def test_nodes_of_a_glb_move_what_they_hold(tmp_path: Path) -> None:
    from unproject.geometry.splats.gltf import read_glb, write_glb

    made = cloud(10, 1)
    data = write_glb(made)
    document, _ = split_chunks(data)
    document["nodes"] = [
        {"children": [1], "translation": [1.0, 2.0, 3.0], "scale": [2.0, 2.0, 2.0]},
        {"mesh": 0, "rotation": [0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]},  # a quarter about glTF's z, our x
    ]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    old = struct.unpack_from("<I", data, 12)[0]
    body = struct.pack("<II", len(text), 0x4E4F534A) + text + data[20 + old :]
    back = read_glb(struct.pack("<III", 0x46546C67, 2, 12 + len(body)) + body, "here")
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    torch.testing.assert_close(back.means, 2 * made.means @ turn.mT + torch.tensor([3.0, 1.0, 2.0]))
    torch.testing.assert_close(back.scales, 2 * made.scales)
    torch.testing.assert_close(back.sh, rotated(made.sh, turn), atol=1e-5, rtol=1e-4)


def test_harmonics_turn_with_the_world() -> None:
    """f'(d) = f(R^T d), and the matrices are orthogonal."""
    rng = generator(3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    sh, d = torch.randn(4, 16, 3, generator=rng, dtype=torch.float64), torch.randn(9, 3, generator=rng).double()
    seen = torch.einsum("dk,nkc->dnc", basis(d, 3), rotated(sh, turn))
    torch.testing.assert_close(seen, torch.einsum("dk,nkc->dnc", basis(d @ turn, 3), sh))
    for level in (1, 2, 3):
        band = slice(level**2, (level + 1) ** 2)
        torch.testing.assert_close(rotated(sh, turn)[:, band].norm(dim=1), sh[:, band].norm(dim=1))


@needs_real
def test_real_files_are_read() -> None:
    short = load_splats(REAL / "pc_short.ply")
    assert len(short) == 100 and short.degree == 3
    assert -5.5 < float(short.logits.min()) < -5.3 and 12.5 < float(short.logits.max()) < 12.7
    raw = (REAL / "pc_short.ply").read_bytes()
    first = np.frombuffer(raw, "<f4", 62, raw.index(b"end_header\n") + 11)
    names = names_of(45)
    assert float(short.sh[0, 3, 2]) == first[names.index("f_rest_32")]  # 15 c + k
    guitar = load_splats(REAL / "guitar.compressed.ply")
    assert len(guitar) == 90854 and float(guitar.quaternions.norm(dim=1).sub(1).abs().max()) < 1e-5
    older, newer, plain = (load_splats(REAL / "formats" / f"minimal{end}") for end in ("-v2.spz", "-v3.spz", ".splat"))
    assert [len(c) for c in (older, newer, plain)] == [4, 4, 4]
    torch.testing.assert_close(newer.colors, plain.colors, atol=0.01, rtol=0)
    torch.testing.assert_close(newer.scales, plain.scales, atol=0.002, rtol=0)
    for c in (older, newer):
        torch.testing.assert_close(c.scales, plain.scales, atol=0.002, rtol=0)
        torch.testing.assert_close(c.opacities, plain.opacities)
        assert sorted(c.means.norm(dim=1).square().tolist()) == pytest.approx([0, 1, 1, 2])
        assert float(angles(gltf_axes(c).quaternions, torch.tensor([[1.0, 0, 0, 0]])).max()) < 0.03


@needs_real
def test_a_real_table_is_written_back_to_the_bit(tmp_path: Path) -> None:
    raw = (REAL / "pc_short.ply").read_bytes()
    start = raw.index(b"end_header\n") + 11
    back = save_splats(load_splats(REAL / "pc_short.ply"), tmp_path / "a.ply").read_bytes()
    assert back[back.index(b"end_header\n") + 11 :] == raw[start : start + 100 * 62 * 4]


def test_splats_that_are_not_finite_are_dropped(tmp_path: Path) -> None:
    made = cloud(5, 0)
    made.means[1, 2], made.quaternions[3] = float("nan"), 0.0
    with pytest.raises(InputError, match=r"2 splats for a.ply are not finite; keep cloud\[cloud.finite\]"):
        save_splats(made, tmp_path / "a.ply")
    from unproject.geometry.splats.ply import write_ply

    (tmp_path / "a.ply").write_bytes(write_ply(made))
    with pytest.warns(
        UserWarning, match=r"a\.ply: 2 of 5 splats are left out, broken: positions of 1, rotations of 1$"
    ):
        assert torch.equal(load_splats(tmp_path / "a.ply").means, made.means[[0, 2, 4]])
    (tmp_path / "b.ply").write_bytes(write_ply(made[[3]]))
    with pytest.raises(InputError, match=r"b\.ply holds no .* \(rotations of 1\); convert --to points keeps places"):
        load_splats(tmp_path / "b.ply")
    assert not list(tmp_path.glob("*.tmp*"))


def ply(vertex: str = "element vertex 3", **changes: str) -> bytes:
    properties = "".join(f"property float {changes.get(name, name)}\n" for name in names_of(0))
    return f"ply\nformat binary_little_endian 1.0\n{vertex}\n{properties}end_header\n".encode() + bytes(3 * 17 * 4)


SPZ4 = struct.pack("<IIIBBBBI12x", 0x5053474E, 4, 1 << 31, 0, 12, 0, 5, 32) + bytes(80)
HOSTILE = {
    "four billion.ply": (ply("element vertex 4000000000"), "before its 4000000000 rows of vertex"),
    "negative.ply": (ply("element vertex -3"), "its header holds the line 'element vertex -3'"),
    "list.ply": (ply().replace(b"property float x", b"property list uchar int x"), "no plain rows of vertex"),
    "twice.ply": (ply(x="y"), "cannot be read: .*x|y"),
    "no rotation.ply": (ply(rot_2="rot_9"), "property rot_2 is missing"),
    "rest.ply": (ply(nx="f_rest_0"), "has 1 properties f_rest"),
    "text.ply": (ply().replace(b"binary_little_endian", b"ascii"), "cannot be read: its text holds"),
    "endless.ply": (b"ply\n" + b"comment x\n" * 9000, "no PLY header"),
    "packed.ply": (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty uint packed_position\n"
        b"property uint packed_rotation\nproperty uint packed_scale\nproperty uint packed_color\nend_header\n"
        + bytes(16),
        "does not have the ranges of 1 chunks",
    ),
    "bomb.spz": (SPZ4, "more than compression can hold"),
    "gzip.spz": (
        gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 1 << 31, 3, 12, 0, 0)),
        "more than compression can hold",
    ),
    "short.spz": (
        gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 2, 9, 0, 12, 0, 0) + bytes(99)),
        "promises 9 splats, 171 bytes, but holds 99",
    ),
    "five.spz": (struct.pack("<IIIBBBBI12x", 0x5053474E, 5, 1, 0, 12, 0, 5, 32), "SPZ of version 5"),
    "other.spz": (b"hello there" * 9, "is no SPZ file"),
    "cut.spz": (gzip.compress(b"x" * 2000)[:12], "ends within its header"),
    "odd.splat": (bytes(33), "33 bytes"),
    "empty.ply": (b"", "no PLY header"),
    "mesh.glb": (b"glTF", "at least 20 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_splats(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_damage_ends_in_a_message(suffix: str, tmp_path: Path) -> None:
    """Cut short or with flipped bytes: a message, or splats."""
    if suffix == ".spz" and not has_zstandard():
        with pytest.raises(MissingExtraError, match=r"unproject\[spz\]"):
            save_splats(cloud(30), tmp_path / f"a{suffix}")
        return
    data = save_splats(cloud(30), tmp_path / f"a{suffix}").read_bytes()
    rng, target = np.random.default_rng(0), tmp_path / f"b{suffix}"
    for trial in range(40):
        broken = bytearray(data[: rng.integers(1, len(data))] if trial % 2 else data)
        for place in rng.integers(0, min(len(broken), 400), 3):
            broken[place] = rng.integers(0, 256)
        target.write_bytes(bytes(broken))
        try:
            load_splats(target)
        except InputError:
            continue


def test_unknown_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be stored as '.obj'; use one of .ply, .compressed.ply"):
        save_splats(cloud(2), tmp_path / "a.obj")
    with pytest.raises(InputError, match="does not exist"):
        load_splats(tmp_path / "a.ply")
    with pytest.raises(InputError, match="are empty"):
        save_splats(cloud(2)[:0], tmp_path / "a.ply")


def test_attributes_of_different_lengths_are_refused(tmp_path: Path) -> None:
    """A glTF whose positions are fewer than its other attributes."""
    data = save_splats(cloud(5, 0), tmp_path / "a.glb").read_bytes()
    at, length = data.index(b'"count":5'), struct.unpack_from("<I", data, 12)[0]
    assert at < 20 + length
    (tmp_path / "b.glb").write_bytes(data[:at] + b'"count":4' + data[at + 9 :])
    with pytest.raises(InputError, match=r"b\.glb.*have different lengths: \[4, 5\]"):
        load_splats(tmp_path / "b.glb")
