"""What damaged files made of the readers once: each kind is refused by name, or what is left out is named."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.cli.files import only_points
from unproject.geometry.camera_files import load_colmap, load_nerfstudio
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.geometry.splats.cloud import GaussianCloud
from unproject.geometry.splats.files import load_splats, save_splats
from unproject.geometry.splats.gltf import declares_splats
from unproject.utils.errors import InputError, damage

CORNERS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
POSE = [[1.0, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]


def rewritten(path: Path, change: Any) -> Path:
    """A GLB with its JSON changed in place by `change(document)`."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + data[20 + length :]
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


def textured(tmp_path: Path) -> Path:
    """A GLB with a texture."""
    picture = np.full((4, 4, 3), 90, np.uint8)
    uv = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0.5, 0.25]])
    return Mesh(CORNERS, FACES, uv=uv, uv_faces=FACES, textures={"base_color": picture}).save(tmp_path / "a.glb")


@pytest.mark.parametrize("place", ["attribute", "primitive", "texture", "material"])
def test_what_stands_deep_in_a_gltf_is_named(tmp_path: Path, place: str) -> None:
    def change(document: dict[str, Any]) -> None:
        primitive, material = document["meshes"][0]["primitives"][0], document["materials"][0]
        if place == "attribute":
            primitive["attributes"]["_HEAT"] = primitive["attributes"]["POSITION"]
            return
        texture = material["pbrMetallicRoughness"]["baseColorTexture"]
        holder = {"primitive": primitive, "texture": texture, "material": material}[place]
        holder["extensions"] = {"EXT_heat": {"unit": "K"}}

    with pytest.warns(UserWarning, match="not kept: .*(_HEAT|EXT_heat)"):
        Mesh.load(rewritten(textured(tmp_path), change))


def test_a_sparse_accessor_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        entry = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
        view = entry.pop("bufferView")
        places = {"indices": {"bufferView": view, "componentType": 5125}, "values": {"bufferView": view}}
        entry.update(count=1 << 28, sparse={"count": 1, **places})

    with pytest.raises(InputError, match="has no data"):
        Mesh.load(rewritten(textured(tmp_path), change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("POSITION"), "lacks the entry 'POSITION'"),
        (lambda d: d["accessors"].clear(), "points to something that is not there"),
        (lambda d: d.update(nodes="x"), "of another type"),
        (lambda d: d["nodes"][0].update(matrix=[1.0] * 15), "too few or too many"),
        (
            lambda d: d["materials"][0]["pbrMetallicRoughness"].update(roughnessFactor="rough" * 40),
            r"roughness and metallic of .* are \['roughrough.{60,70}, which are no finite numbers",
        ),
        (
            lambda d: d["materials"][0]["pbrMetallicRoughness"].update(baseColorFactor=[1, float("nan"), 0, 1]),
            "base colour",
        ),
    ],
)
def test_damage_is_told_in_words_and_with_the_file(tmp_path: Path, change: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"a.glb.*{told}") as caught:
        Mesh.load(rewritten(textured(tmp_path), change))
    assert caught.value.__cause__ is not caught.value


def test_a_gltf_about_nothing_is_no_splat_file_and_no_crash(tmp_path: Path) -> None:
    """Whoever looks at its header first: the word for splats, the modes of its primitives, the mesh."""
    path = rewritten(textured(tmp_path), lambda document: document.update(asset=3))
    assert not declares_splats(path) and not only_points(path)
    with pytest.raises(InputError, match="the glTF's entry asset is not an object"):
        Mesh.load(path)


def test_long_and_impossible_names_are_files_that_are_not_there(tmp_path: Path) -> None:
    long = "n" * 5000
    (tmp_path / "a.mtl").write_text(f"newmtl m\nmap_Kd {long}.png\nnorm a\0b.png\n")
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl {long}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n")
    with pytest.warns(UserWarning, match="texture nnn.*material library nnn.*, which is not there") as told:
        Mesh.load(tmp_path / "a.obj")
    assert len(str(told[0].message)) < 600
    (tmp_path / "t.json").write_text(json.dumps({"fl_x": 9, "frames": [{"file_path": long, "transform_matrix": POSE}]}))
    with pytest.raises(InputError, match="no w and h") as caught:
        load_nerfstudio(tmp_path / "t.json")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("line", ["vn 0 1", "vt x 0", "v 1 2", f"f 1 2 {'9' * 5000}", "v 1 2 a"])
def test_lines_of_obj_that_make_no_sense_are_shown(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\n{line}\nf 1 2 3\n")
    with pytest.raises(InputError, match=r"a\.obj: (the line|face corner|a vertex has 2)") as caught:
        Mesh.load(tmp_path / "a.obj")
    assert len(str(caught.value)) < 400 and "reshape" not in str(caught.value)


def ply(tmp_path: Path, rows: str, kind: str = "uchar", count: str = "2") -> Path:
    names = "".join(f"property float {n}\n" for n in "xyz") + f"property {kind} red\nproperty {kind} green\n"
    head = f"ply\nformat ascii 1.0\nelement vertex {count}\n{names}property {kind} blue\nproperty float nx\n"
    (tmp_path / "a.ply").write_text(f"{head}property float ny\nproperty float nz\nend_header\n{rows}")
    return tmp_path / "a.ply"


@pytest.mark.parametrize(
    ("rows", "count", "told"),
    [
        ("0 0 0 300 0 0 0 0 1\n0 0 0 0 0 0 0 0 1\n", "2", "property red holds 300, which is no uint8"),
        ("0 0 0 -1 0 0 0 0 1\n0 0 0 0 0 0 0 0 1\n", "2", "property red holds -1"),
        ("0 0 0 nan 0 0 0 0 1\n0 0 0 0 0 0 0 0 1\n", "2", "property red holds nan"),
        ("0 0 0 1 0 0 0 0 one\n0 0 0 0 0 0 0 0 1\n", "2", "its text holds 'one' where a number belongs"),
        ("", "9" * 5000, "its header holds the line"),
        ("", "²", "its header holds the line"),
    ],
)
def test_ply_text_holds_what_its_columns_can(tmp_path: Path, rows: str, count: str, told: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=f"a.ply: {told}"):
            PointCloud.load(ply(tmp_path, rows, count=count))


def test_colours_and_normals_that_are_not_finite_are_left_out_by_name(tmp_path: Path) -> None:
    rows = "0 0 0 1 0 nan 0 0 1\n1 2 3 0 0 0 0 inf 1\n"
    with pytest.warns(UserWarning, match="colours, some of which are not finite; normals, some of which"):
        cloud = PointCloud.load(ply(tmp_path, rows, "float"))
    assert cloud.colors is None and cloud.normals is None and len(cloud) == 2
    (tmp_path / "a.obj").write_text("v 0 0 0 nan 0 0\nv 1 0 0 1 0 0\nv 0 1 0 0 0 1\nf 1 2 3\n")
    with pytest.warns(UserWarning, match="colours, some of which are not finite"):
        assert Mesh.load(tmp_path / "a.obj").vertex_colors is None


def test_positions_beyond_float32_are_refused_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1e308 0 0\nv 0 -1e308 0\nf 1 2 3\n")
    (tmp_path / "a.off").write_text("OFF\n3 1 0\n0 0 0\n1e308 0 0\n0 1 0\n3 0 1 2\n")
    for name in ("a.obj", "a.off"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match=f"{name}: positions reach up to 1e.308, which is too large"):
                Mesh.load(tmp_path / name)


def splats() -> GaussianCloud:
    rng = torch.Generator().manual_seed(0)
    turn = torch.nn.functional.normalize(torch.randn(4, 4, generator=rng), dim=1)
    return GaussianCloud(CORNERS, CORNERS - 4, turn, torch.randn(4, generator=rng), torch.randn(4, 4, 3, generator=rng))


def test_splats_refuse_and_name_what_they_do_not_read(tmp_path: Path) -> None:
    path = save_splats(splats(), tmp_path / "a.glb")
    with pytest.raises(InputError, match=r"a\.glb requires EXT_packed, which is not read"):
        load_splats(rewritten(path, lambda d: d.update(extensionsRequired=["KHR_gaussian_splatting", "EXT_packed"])))
    save_splats(splats(), tmp_path / "b.glb")
    with pytest.raises(InputError, match=r"b\.glb: .*beyond its buffer"):
        load_splats(rewritten(tmp_path / "b.glb", lambda d: d["bufferViews"][0].update(byteLength=10**6)))
    data = save_splats(splats(), tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"property float nx", b"property float heat"))
    with pytest.warns(UserWarning, match="not kept: columns of vertex: heat"):
        load_splats(tmp_path / "a.ply")
    more = b"element label 1\nproperty uchar kind\nend_header\n"
    (tmp_path / "a.ply").write_bytes(data.replace(b"end_header\n", more) + b"\7")
    with pytest.warns(UserWarning, match="not kept: 1 rows of element label"):
        load_splats(tmp_path / "a.ply")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in (".ply", ".compressed.ply"):
            load_splats(save_splats(splats(), tmp_path / f"own{suffix}"))


def test_packed_splats_without_one_range_of_colours_have_colours_in_the_unit_range(tmp_path: Path) -> None:
    path = save_splats(splats(), tmp_path / "a.compressed.ply")
    path.write_bytes(path.read_bytes().replace(b"float min_g", b"float xin_g"))
    with pytest.warns(UserWarning, match="columns of chunk: xin_g"):
        found = load_splats(path)
    assert bool(found.finite.all())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"transform_matrix": np.diag([2.0, 2, 2, 1]).tolist()}, "no rotation and place"),
        ({"transform_matrix": np.diag([-1.0, 1, 1, 1]).tolist()}, "no rotation and place"),
        ({"transform_matrix": [[*row[:3], 1e300] for row in POSE[:3]] + [POSE[3]]}, "too far"),
        ({"transform_matrix": [[10**400] * 4] * 4}, "not a usable transforms.json"),
        ({"transform_matrix": [*POSE[:3], [0, 0, 0, 1e308]]}, "no rotation and place"),
        ({"fl_x": 1e300}, "focal lengths"),
        ({"cx": float("inf")}, "no pixels"),
        ({"fl_x": 10**400}, "not a usable transforms.json"),
    ],
)
def test_poses_and_lenses_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    frame = {"file_path": "a.png", "transform_matrix": POSE, "w": 32, "h": 24, "fl_x": 30, **change}
    (tmp_path / "a.json").write_text(json.dumps({"frames": [frame]}))
    with pytest.raises(InputError, match=f"a.json.*{told}"):
        load_nerfstudio(tmp_path / "a.json")


def test_a_transform_that_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    frame = {"file_path": "a.png", "transform_matrix": POSE, "w": 32, "h": 24, "fl_x": 30}
    flat = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    (tmp_path / "a.json").write_text(json.dumps({"frames": [frame], "applied_transform": flat}))
    with pytest.raises(InputError, match="applied_transform that cannot be taken back"):
        load_nerfstudio(tmp_path / "a.json")


@pytest.mark.parametrize("pose", ["0 0 0 0 1 2 3", "1 0 0 0 nan 2 3", "1 0 0 0 1 2 1e400", "1e300 0 0 0 1 2 3"])
def test_poses_of_colmap_that_cannot_be_are_refused(tmp_path: Path, pose: str) -> None:
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 32 24 30 30 16 12\n")
    (tmp_path / "images.txt").write_text(f"1 {pose} 1 a.png\n\n")
    with pytest.raises(InputError, match=r"the image a\.png has no usable pose"):
        load_colmap(tmp_path)


def test_damage_speaks_of_the_file() -> None:
    assert damage(KeyError("count")) == "it lacks the entry 'count'"
    assert damage(ValueError("cannot reshape array of size 3 into shape (2)")).startswith("its numbers are too few")
    assert damage(ValueError("x" * 1000)).endswith("x ...") and len(damage(ValueError("x" * 1000))) < 310
    assert damage(OSError(5, "Input/output error")) == "[Errno 5] Input/output error"
    assert "nested too deeply" in damage(RecursionError()) and "another type" in damage(TypeError("x"))
    assert damage(StopIteration()) == "it is damaged (StopIteration)"
