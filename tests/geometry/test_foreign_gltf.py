"""glTF of others: what a file requires is honoured or refused by name, colours multiply in linear light."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.colors import srgb_from_linear
from unproject.geometry.meshes import Mesh
from unproject.utils.errors import InputError

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "<f4")
HALF_GREEN = (0.0, 0.2158605, 0.0)  # sRGB (0, 128, 0)
KINDS = {"<f4": 5126, "<u2": 5123, "|u1": 5121, "|i1": 5120, "<u4": 5125}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


class Maker:
    """A glTF document put together by hand."""

    def __init__(self) -> None:
        self.blob = b""
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}],
            "materials": [],
            "accessors": [],
            "bufferViews": [],
        }

    def view(self, data: bytes, **more: Any) -> int:
        self.blob += b"\0" * (-len(self.blob) % 4)
        entry = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data), **more}
        self.document["bufferViews"].append(entry)
        self.blob += data
        return len(self.document["bufferViews"]) - 1

    def array(self, values: np.ndarray, **more: Any) -> int:
        values = values.reshape(len(values), -1)
        entry = {"bufferView": self.view(values.tobytes()), "componentType": KINDS[values.dtype.str]}
        self.document["accessors"].append({**entry, "count": len(values), "type": TYPES[values.shape[1]], **more})
        return len(self.document["accessors"]) - 1

    def image(self, pixels: np.ndarray, kind: str = "PNG") -> int:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, lossless=True)
        view = self.view(stream.getvalue())
        for key, entry in (("images", {"bufferView": view, "mimeType": f"image/{kind.lower()}"}), ("textures", {})):
            self.document.setdefault(key, []).append(entry)
        self.document["textures"][-1]["source"] = len(self.document["images"]) - 1
        return len(self.document["textures"]) - 1

    def square(self, material: dict[str, Any] | None, at: float = 0.0, **extra: Any) -> dict[str, Any]:
        attributes = {"POSITION": self.array(SQUARE + np.float32([at, 0, 0])), "TEXCOORD_0": self.array(UV)}
        attributes |= {name: self.array(values) for name, values in extra.items()}
        primitive: dict[str, Any] = {"attributes": attributes}
        primitive["indices"] = self.array(np.array([0, 1, 2, 0, 2, 3], "<u2"))
        if material is not None:
            self.document["materials"].append(material)
            primitive["material"] = len(self.document["materials"]) - 1
        self.document["meshes"][0]["primitives"].append(primitive)
        return primitive

    def save(self, path: Path) -> Path:
        document = {**self.document, "buffers": [{"byteLength": len(self.blob)}]}
        if path.suffix == ".gltf":
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
            path.write_text(json.dumps({**document, "buffers": [{"byteLength": len(self.blob), "uri": uri}]}))
            return path
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        blob = self.blob + b"\0" * (-len(self.blob) % 4)
        body = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(blob), 0x004E4942) + blob
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        return path


def physical(**values: Any) -> dict[str, Any]:
    return {"pbrMetallicRoughness": {"metallicFactor": 0.0, **values}}


def flat(color: tuple[int, int, int], size: int = 4) -> np.ndarray:
    return np.tile(np.array(color, np.uint8), (size, size, 1))


def colors(mesh: Mesh) -> np.ndarray:
    """sRGB of 0 to 255 at the vertices, by position along our y (glTF's x)."""
    found = (mesh.with_vertex_colors() if mesh.textures else mesh).vertex_colors
    assert found is not None
    return (found * 255).round().numpy()[np.argsort(mesh.vertices[:, 1].numpy(), kind="stable")]


def quietly(path: Path) -> Mesh:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Mesh.load(path)


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_texture_factor_and_vertex_colour_multiply_in_linear_light(tmp_path: Path, suffix: str) -> None:
    made = Maker()
    texture = {"index": made.image(flat((255, 188, 9)))}  # 188 is half of the light
    vertex = np.tile(np.array([1, 0.5, 1], "<f4"), (4, 1))
    made.square(physical(baseColorTexture=texture, baseColorFactor=[1, 0.5, 0, 1]), COLOR_0=vertex)
    mesh = quietly(made.save(tmp_path / f"a{suffix}"))
    eighth = 255 * (1.055 * 0.1248 ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(colors(mesh), np.tile([255, eighth, 0], (4, 1)), atol=1)
    assert "base_color" in mesh.textures
    again = Mesh.load(mesh.save(tmp_path / "again.glb"))
    np.testing.assert_array_equal(colors(again), colors(mesh))


def test_a_factor_alone_and_16_bit_vertex_colours_multiply_too(tmp_path: Path) -> None:
    made = Maker()
    ramp = np.array([[0, 65535, 0], [0, 32768, 0], [0, 32768, 0], [0, 65535, 0]], "<u2")
    made.square(physical(baseColorFactor=[*HALF_GREEN, 1]), COLOR_0=ramp)
    green = colors(quietly(made.save(tmp_path / "a.glb")))[:, 1]
    np.testing.assert_allclose(green[:2], 128, atol=1)
    np.testing.assert_allclose(green[2:], 255 * (1.055 * (0.2158605 / 2) ** (1 / 2.4) - 0.055), atol=1)


def test_varying_vertex_colours_on_a_varying_texture_become_vertex_colours_by_name(tmp_path: Path) -> None:
    made = Maker()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    shade = np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1]], "<f4")
    made.square(physical(baseColorTexture={"index": made.image(pixels)}), COLOR_0=shade)
    with pytest.warns(UserWarning, match="texture detail between vertices"):
        mesh = Mesh.load(made.save(tmp_path / "a.glb"))
    assert not mesh.textures and not colors(mesh)[2:].any() and colors(mesh)[:2].any()


def test_pieces_with_a_texture_and_with_a_tint_keep_their_own_colours(tmp_path: Path) -> None:
    made = Maker()
    made.square(physical(baseColorTexture={"index": made.image(flat((200, 30, 30), 8))}))
    made.square(
        physical(baseColorTexture={"index": made.image(flat((255, 255, 255)))}, baseColorFactor=[*HALF_GREEN, 1]), 2.0
    )
    made.square(physical(baseColorFactor=[0, 0, 1, 1]), 4.0)
    mesh = quietly(made.save(tmp_path / "a.glb"))
    for written in ("b.glb", "b.obj"):
        found = colors(Mesh.load(mesh.save(tmp_path / written)))
        np.testing.assert_array_equal(found, np.repeat([[200, 30, 30], [0, 128, 0], [0, 0, 255]], 4, axis=0))


def test_a_repeated_texture_stays_repeated_on_a_sheet(tmp_path: Path) -> None:
    made = Maker()
    halves = np.concatenate([flat((255, 0, 0), 4), flat((0, 0, 255), 4)], axis=1)
    first = made.square(physical(baseColorTexture={"index": made.image(halves)}))
    first["attributes"]["TEXCOORD_0"] = made.array((UV * [3, 1] + [0.25, 0]).astype("<f4"))  # three copies
    made.square(physical(baseColorTexture={"index": made.image(flat((0, 255, 0)))}), 2.0)
    mesh = quietly(made.save(tmp_path / "a.glb"))
    assert float(mesh.uv.min()) >= 0 and float(mesh.uv.max()) <= 1
    sheet = mesh.textures["base_color"]
    reds = (sheet == [255, 0, 0]).all(axis=-1).any(axis=0)
    assert int((np.diff(reds.astype(int)) == 1).sum() + reds[0]) >= 3


def test_texture_transform_moves_turns_and_scales(tmp_path: Path) -> None:
    quarters = np.zeros((8, 8, 3), np.uint8)
    quarters[:4, :4], quarters[:4, 4:] = (255, 0, 0), (0, 255, 0)
    quarters[4:, :4], quarters[4:, 4:] = (0, 0, 255), (255, 255, 0)
    for moved, color in (
        ({"offset": [0.5, 0.5], "scale": [0.5, 0.5]}, (255, 255, 0)),
        ({"offset": [0.0, 0.5], "scale": [0.5, 0.5]}, (0, 0, 255)),
        # a quarter turn counter-clockwise as seen: (u, v) -> (v, -u), then into the picture again
        ({"offset": [0.5, 0.5], "scale": [0.5, 0.5], "rotation": np.pi / 2}, (0, 255, 0)),
    ):
        made = Maker()
        place = {"index": made.image(quarters), "extensions": {"KHR_texture_transform": moved}}
        made.square(physical(baseColorTexture=place))
        made.document |= {"extensionsUsed": ["KHR_texture_transform"], "extensionsRequired": ["KHR_texture_transform"]}
        np.testing.assert_array_equal(colors(quietly(made.save(tmp_path / "a.glb"))), np.tile(color, (4, 1)))


def test_each_texture_has_its_set_of_coordinates(tmp_path: Path) -> None:
    made = Maker()
    halves = np.concatenate([flat((255, 0, 0), 8)[:, :4], flat((0, 0, 255), 8)[:, :4]], axis=1)
    place = {"index": made.image(halves), "texCoord": 1}
    made.square(physical(baseColorTexture=place), TEXCOORD_1=(UV * [0.4, 1] + [0.55, 0]).astype("<f4"))
    np.testing.assert_array_equal(colors(quietly(made.save(tmp_path / "a.glb"))), np.tile([0, 0, 255], (4, 1)))
    made.document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] = 2
    with pytest.warns(UserWarning, match="textures of a piece without TEXCOORD_2"):
        Mesh.load(made.save(tmp_path / "b.glb"))


@pytest.mark.parametrize(
    "name",
    ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_texture_basisu", "KHR_gaussian_splatting", "ACME_x"],
)
@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_what_is_required_and_unknown_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    made = Maker()
    made.square(physical())
    made.document |= {"extensionsUsed": [name], "extensionsRequired": ["KHR_texture_transform", name]}
    with pytest.raises(InputError, match=f"requires {name}, which is not read; .*export"):
        Mesh.load(made.save(tmp_path / f"a{suffix}"))


def test_compressed_triangles_are_never_half_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    made = Maker()
    made.square(physical())
    packed = made.square(physical(), 2.0)
    packed["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    del made.document["accessors"][packed["attributes"]["POSITION"]]["bufferView"]
    with pytest.raises(InputError, match="KHR_draco_mesh_compression only"):
        Mesh.load(made.save(tmp_path / "a.glb"))
    packed["extensions"] = {}
    with pytest.raises(InputError, match="has no data"):
        Mesh.load(made.save(tmp_path / "b.glb"))


def test_draco_is_decoded_where_the_extra_is_there(tmp_path: Path) -> None:
    """The same square twice: as it is, and from Draco's buffer, with colours as normalised bytes."""
    draco = pytest.importorskip("DracoPy")
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    data = draco.encode(SQUARE, faces, colors=rgb, quantization_bits=14)
    decoded = draco.decode(data)
    ids = {one["attribute_type"]: one["unique_id"] for one in decoded.attributes}  # 0 positions, 2 colours
    made = Maker()
    packed = made.square(physical(), COLOR_0=rgb)
    for index in (*packed["attributes"].values(), packed["indices"]):
        del made.document["accessors"][index]["bufferView"]
    del packed["attributes"]["TEXCOORD_0"]
    made.document["accessors"][packed["attributes"]["COLOR_0"]]["normalized"] = True
    names = {"POSITION": ids[0], "COLOR_0": ids[2]}
    packed["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": made.view(data), "attributes": names}}
    made.document |= {name: ["KHR_draco_mesh_compression"] for name in ("extensionsUsed", "extensionsRequired")}
    mesh = quietly(made.save(tmp_path / "a.glb"))
    assert len(mesh.faces) == 2 and mesh.vertex_colors is not None
    places = mesh.vertices[:, [1, 2, 0]]  # glTF's axes
    for place, color in zip(SQUARE, rgb / 255):
        at = int((places - torch.from_numpy(place)).norm(dim=1).argmin())
        assert float((places[at] - torch.from_numpy(place)).norm()) < 1e-3
        np.testing.assert_allclose(mesh.vertex_colors[at], srgb_from_linear(torch.from_numpy(color)), atol=1e-3)
    for damage, message in (
        (b"DRACO no", "cannot be decoded"),
        (data[: len(data) // 2], "cannot be decoded|fit|values"),
    ):
        packed["extensions"]["KHR_draco_mesh_compression"]["bufferView"] = made.view(damage)
        with pytest.raises(InputError, match=message):
            Mesh.load(made.save(tmp_path / "b.glb"))


def test_splats_in_a_primitive_are_named(tmp_path: Path) -> None:
    made = Maker()
    made.square(physical())["extensions"] = {"KHR_gaussian_splatting": {}}
    with pytest.raises(InputError, match="KHR_gaussian_splatting; it holds Gaussian splats"):
        Mesh.load(made.save(tmp_path / "a.glb"))


def test_webp_and_quantised_positions_are_read(tmp_path: Path) -> None:
    made = Maker()
    texture = made.image(flat((10, 200, 30)), "WEBP")
    made.document["textures"][texture] = {"extensions": {"EXT_texture_webp": {"source": 0}}}
    square = made.square(physical(baseColorTexture={"index": texture}))
    square["attributes"]["POSITION"] = made.array((SQUARE * 127).astype("|i1"), normalized=True)
    made.document["nodes"][0]["scale"] = [2, 2, 2]
    made.document["extensionsRequired"] = ["EXT_texture_webp", "KHR_mesh_quantization"]
    mesh = quietly(made.save(tmp_path / "a.glb"))
    np.testing.assert_allclose(mesh.bounds.numpy(), [[0, 0, 0], [0, 2, 2]], atol=1e-6)
    np.testing.assert_array_equal(colors(mesh), np.tile([10, 200, 30], (4, 1)))


def test_strips_fans_sparse_rows_and_strides_are_triangles(tmp_path: Path) -> None:
    for mode, index in ((5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])):
        made = Maker()
        square = made.square(None)
        square["mode"], square["indices"] = mode, made.array(np.array(index, "<u2"))
        wide = np.concatenate([SQUARE, SQUARE], axis=1)
        place = {"bufferView": made.view(wide.tobytes(), byteStride=24), "componentType": 5126, "type": "VEC3"}
        rows, values = made.view(np.array([2], "<u2").tobytes()), made.view(np.array([3, 1, 0], "<f4").tobytes())
        sparse = {"indices": {"bufferView": rows, "componentType": 5123}, "values": {"bufferView": values}, "count": 1}
        made.document["accessors"].append({**place, "count": 4, "sparse": sparse})
        square["attributes"] = {"POSITION": len(made.document["accessors"]) - 1}
        mesh = quietly(made.save(tmp_path / "a.glb"))
        assert len(mesh.faces) == 2 and float(mesh.vertices[:, 1].max()) == 3
        assert float(mesh.face_normals()[:, 0].min()) > 0.99  # glTF's +z is our +x: wound alike


LOST = {
    "material 'glass'.*alphaMode BLEND": lambda d: d["materials"][0].update(name="glass", alphaMode="BLEND"),
    "glow": lambda d: d["materials"][0].update(emissiveFactor=[1, 0, 0]),
    "roughness 0.5 and metallic 0": lambda d: d["materials"][0]["pbrMetallicRoughness"].update(roughnessFactor=0.5),
    "1 animations": lambda d: d.update(animations=[{}]),
    "1 other scenes": lambda d: d["scenes"].append({"nodes": []}),
    "skin": lambda d: d["nodes"][0].update(skin=0),
    "lines": lambda d: d["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "mode": 1}),
    "ACME_shine": lambda d: d.update(extensionsUsed=["ACME_shine"]),
    "morph targets": lambda d: d["meshes"][0]["primitives"][0].update(targets=[{}]),
}


@pytest.mark.parametrize("what", LOST)
def test_what_a_mesh_cannot_hold_is_named(tmp_path: Path, what: str) -> None:
    made = Maker()
    made.square(physical(baseColorFactor=[1, 0, 0, 1], roughnessFactor=1.0))
    quietly(made.save(tmp_path / "plain.glb"))
    LOST[what](made.document)
    with pytest.warns(UserWarning, match=f"a.glb: not kept: .*{what}"):
        Mesh.load(made.save(tmp_path / "a.glb"))


def test_missing_pictures_and_buffers_are_named_and_nothing_is_fetched(tmp_path: Path) -> None:
    made = Maker()
    texture = made.image(flat((1, 2, 3)))
    made.document["images"][0] = {"uri": "wood%20grain.png"}
    made.square(physical(baseColorTexture={"index": texture}))
    with pytest.warns(UserWarning, match=r"wood%20grain\.png.*wood grain\.png is missing"):
        Mesh.load(made.save(tmp_path / "a.glb"))
    Image.fromarray(flat((9, 8, 7))).save(tmp_path / "wood grain.png")
    np.testing.assert_array_equal(colors(quietly(tmp_path / "a.glb")), np.tile([9, 8, 7], (4, 1)))
    document = json.loads(made.save(tmp_path / "a.gltf").read_text())
    document["buffers"][0]["uri"] = "https://example.org/a.bin"
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    with pytest.raises(InputError, match="nothing is fetched"):
        Mesh.load(tmp_path / "a.gltf")


def test_circles_of_nodes_and_old_versions_are_refused(tmp_path: Path) -> None:
    made = Maker()
    made.square(None)
    made.document["nodes"] = [{"children": [1]}, {"children": [0], "mesh": 0}]
    with pytest.raises(InputError, match="circle"):
        Mesh.load(made.save(tmp_path / "a.glb"))
    (tmp_path / "b.glb").write_bytes(struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0))
    with pytest.raises(InputError, match=r"glTF 1\.0"):
        Mesh.load(tmp_path / "b.glb")
    made = Maker()
    made.square(None)
    made.document["asset"] = {"version": "2.0", "minVersion": "2.1"}
    with pytest.raises(InputError, match=r"needs a reader of glTF 2\.1"):
        Mesh.load(made.save(tmp_path / "c.glb"))
