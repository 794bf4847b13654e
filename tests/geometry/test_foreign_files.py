"""OBJ, PLY, STL and OFF of others: what they say is read, what cannot be kept is named."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.formats.mtl import texture_words
from unproject.geometry.formats.ply_data import read_header
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.utils.errors import InputError

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
TURNED = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"


def quietly(path: Path) -> Mesh:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Mesh.load(path)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def picture(path: Path, *colors: tuple[int, int, int]) -> None:
    """Columns of four texels each."""
    row = np.concatenate([np.tile(np.array(c, np.uint8), (4, 4, 1)) for c in colors], axis=1)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(row).save(path)


def looks(mesh: Mesh) -> list[list[int]]:
    """sRGB at the vertices in the order of x + 2 y."""
    found = (mesh.with_vertex_colors() if mesh.textures else mesh).vertex_colors
    assert found is not None
    order = (mesh.vertices[:, 0] + 2 * mesh.vertices[:, 1]).argsort()
    return (found * 255).round().int()[order].tolist()


@pytest.mark.parametrize(
    ("statement", "options", "name"),
    [
        ("map_Kd tex.png", {}, "tex.png"),
        ("map_Kd -s 1 1 1 -o 0 0 0 a tex.png", {"-s": ["1", "1", "1"], "-o": ["0", "0", "0"]}, "a tex.png"),
        ("map_Kd -clamp on -mm 0 1 -o .5 2x.png", {"-clamp": ["on"], "-mm": ["0", "1"], "-o": [".5"]}, "2x.png"),
        ('map_Kd -blendu off "my tex.png"', {"-blendu": ["off"]}, "my tex.png"),
        ("map_Kd -strange.png", {}, "-strange.png"),
        ("map_Kd\t-s\t2 1\ta b.png ", {"-s": ["2", "1"]}, "a b.png"),
    ],
)
def test_options_stand_before_the_name_of_a_texture(statement: str, options: dict[str, list[str]], name: str) -> None:
    assert texture_words(statement) == (options, name)


@pytest.mark.parametrize(
    ("place", "statement", "expected"),
    [
        ("tex.png", "map_Kd -s 1 1 1 tex.png", [[255, 0, 0], [0, 0, 255], [255, 0, 0], [0, 0, 255]]),
        ("maps/my tex.png", "map_Kd maps\\my tex.png", [[255, 0, 0], [0, 0, 255], [255, 0, 0], [0, 0, 255]]),
        ("tex.png", "map_Kd C:\\Users\\me\\tex.png", [[255, 0, 0], [0, 0, 255], [255, 0, 0], [0, 0, 255]]),
        ("tex.png", "map_Kd -o 0.5 -s 0.4 1 1 tex.png", [[0, 0, 255]] * 4),
        ("tex.png", "map_Kd tex.png\nKd 0 1 1", [[0, 0, 0], [0, 0, 255], [0, 0, 0], [0, 0, 255]]),
    ],
)
def test_textures_of_a_library(tmp_path: Path, place: str, statement: str, expected: list[list[int]]) -> None:
    picture(tmp_path / place, (255, 0, 0), (0, 0, 255))
    written(tmp_path, "a b.mtl", f"newmtl shiny one\n{statement}\nKs 1 1 1\nillum 2\n")
    mesh = quietly(written(tmp_path, "a.obj", f"mtllib a b.mtl\n{SQUARE}{TURNED}usemtl shiny one\n{FACE}"))
    assert looks(mesh) == expected


@pytest.mark.parametrize(
    ("library", "lines", "message"),
    [
        ("newmtl a\nmap_Kd lost.png", "", r"texture lost\.png of material 'a', which is not there"),
        ("newmtl b", "", "material 'a', which no library holds"),
        ("newmtl a\nd 0.5", "", r"the transparency of material 'a' \(d 0\.5\)"),
        ("newmtl a\nKe 1 0 0", "", r"the glow \(Ke\) of material 'a'"),
        ("newmtl a\nmap_Bump b.png", "", "map_Bump of material 'a'"),
        ("newmtl a", "v 5 5 5 1 0 0\n", "the colours of 1 of 5 vertices, of which the others have none"),
        ("newmtl a", "l 1 2\n", "lines"),
        ("newmtl a", "mtllib none.mtl\n", r"the material library none\.mtl, which is not there"),
        ("newmtl a", "cstype bezier\n", "free-form surfaces"),
    ],
)
def test_what_an_obj_loses_is_named(tmp_path: Path, library: str, lines: str, message: str) -> None:
    written(tmp_path, "a.mtl", library + "\n")
    path = written(tmp_path, "a.obj", f"mtllib a.mtl\n{SQUARE}{TURNED}{lines}usemtl a\n{FACE}")
    with pytest.warns(UserWarning, match=f"a.obj: not kept: .*{message}"):
        assert len(Mesh.load(path).faces) == 2


def test_a_material_without_any_library_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="material 'a', which no library holds"):
        Mesh.load(written(tmp_path, "a.obj", f"{SQUARE}usemtl a\nf 1 2 3\n"))


MARK = b"\xef\xbb\xbf"  # what Windows editors put before a text in UTF-8


def test_a_mark_before_the_text_hides_no_line(tmp_path: Path) -> None:
    for name, text in (
        ("a.obj", f"v 9 9 9\n{SQUARE}mtllib a.mtl\nusemtl a\nf 2 3 4 5\n"),
        ("a.mtl", "newmtl a\nKd 1 0 0\n"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
        ("a.xyz", "1 2 3\n4 5 6\n"),
        ("points.obj", "v 1 2 3\nv 4 5 6\n"),
    ):
        (tmp_path / name).write_bytes(MARK + text.replace("\n", "\r\n").encode())
    mesh = quietly(tmp_path / "a.obj")
    assert looks(mesh) == [[255, 0, 0]] * 4 and float(mesh.vertices.max()) == 1
    assert len(quietly(tmp_path / "a.off").faces) == 1
    for name in ("a.xyz", "points.obj"):
        assert PointCloud.load(tmp_path / name).points.tolist() == [[1, 2, 3], [4, 5, 6]]


CORNER_STL = (
    "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid a\n"
)
CORNER_PLY = (
    "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
)


def test_lines_that_end_as_on_an_old_macintosh(tmp_path: Path) -> None:
    for name, text in (
        ("a.ply", CORNER_PLY),
        ("a.stl", CORNER_STL),
        ("a.obj", f"{SQUARE}mtllib a.mtl\nusemtl a\nf 1 2 \\\n 3 4\n"),
        ("a.mtl", "newmtl a\nKd 1 \\\n 0 0\n"),
        ("a.off", "OFF\n# a corner\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
        ("a.xyz", "# x y z\n1 2 3\n4 5 6\n"),
    ):
        (tmp_path / name).write_bytes(text.replace("\n", "\r").encode())
    assert [len(quietly(tmp_path / f"a.{kind}").faces) for kind in ("ply", "stl", "obj", "off")] == [1, 1, 2, 1]
    assert looks(quietly(tmp_path / "a.obj")) == [[255, 0, 0]] * 4
    assert PointCloud.load(tmp_path / "a.xyz").points.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_binary_ply_with_such_a_header_begins_right_behind_it(tmp_path: Path) -> None:
    header = "ply\rformat binary_little_endian 1.0\relement vertex 2\r"
    header += "".join(f"property int {axis}\r" for axis in "xyz") + "end_header\r"
    values = [10, 2, 3, 4, 5, 6]  # 10 is a line's end elsewhere
    (tmp_path / "a.ply").write_bytes(header.encode() + struct.pack("<6i", *values))
    assert PointCloud.load(tmp_path / "a.ply").points.flatten().tolist() == values


ARROW = [(0, 0), (2, 0), (2, 2), (1, 0.25), (0, 2)]  # area 2.25; only its fourth corner sees all of it


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("kind", ["obj", "ply"])
def test_polygons_are_filled_and_not_overlapped(tmp_path: Path, kind: str, turn: int) -> None:
    places = [f"{x} {y} 0" for x, y in ARROW[turn:] + ARROW[:turn]]
    if kind == "obj":
        text = "".join(f"v {place}\n" for place in places) + "f 1 2 3 4 5\nf 1 2 3\n"
    else:
        text = "ply\nformat ascii 1.0\nelement vertex 5\n" + "".join(f"property float {c}\n" for c in "xyz")
        text += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
        text += "\n".join([*places, "5 0 1 2 3 4", "3 0 1 2"]) + "\n"
    corners = (mesh := quietly(written(tmp_path, f"a.{kind}", text))).vertices[mesh.faces]
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:3, 2] / 2
    assert float(areas.abs().sum()) == pytest.approx(2.25) and float(areas.sum()) == pytest.approx(2.25)


def test_a_polygon_that_no_fan_fills_is_named(tmp_path: Path) -> None:
    angles = torch.arange(10) * torch.pi / 5
    radii = torch.tensor([1.0, 0.2]).repeat(5)
    star = "".join(f"v {r * a.cos():.6f} {r * a.sin():.6f} 0\n" for r, a in zip(radii, angles, strict=True))
    with pytest.warns(UserWarning, match="the outline of 1 polygons, which no fan of triangles fills"):
        Mesh.load(written(tmp_path, "a.obj", f"{star}f 1 2 3 4 5 6 7 8 9 10\n"))


def test_relative_indices_count_from_their_line_and_lines_may_go_on(tmp_path: Path) -> None:
    moved = SQUARE.replace(" 0\n", " 5\n")
    text = f"{SQUARE}f -4 -3 \\\n-2 -1\n{moved}f -4 -3 -2 -1\n"
    mesh = quietly(written(tmp_path, "a.obj", text))
    assert len(mesh.faces) == 4 and sorted(set(mesh.vertices[:, 2].tolist())) == [0.0, 5.0]
    for corner in ("0", "-5", "x"):
        with pytest.raises(InputError, match=f"face corner '{corner}' makes no sense"):
            Mesh.load(written(tmp_path, "b.obj", f"{SQUARE}f {corner} 2 3\n"))
    with pytest.raises(InputError, match="weight other than 1"):
        Mesh.load(written(tmp_path, "b.obj", SQUARE.replace("0\n", "0 2\n") + "f 1 2 3\n"))


def test_roughness_and_metallic_of_an_obj_come_back(tmp_path: Path) -> None:
    picture(tmp_path / "tex.png", (10, 20, 30), (40, 50, 60))
    written(tmp_path, "a.mtl", "newmtl a\nmap_Kd tex.png\nmap_Pr tex.png\n")
    mesh = quietly(written(tmp_path, "a.obj", f"mtllib a.mtl\n{SQUARE}{TURNED}usemtl a\n{FACE}"))
    back = quietly(mesh.save(tmp_path / "b.obj"))
    assert back.textures["metallic_roughness"][0, [0, 7]].tolist() == [[255, 10, 0], [255, 40, 0]]


def ply(names: list[tuple[str, str]], rows: list[tuple[float, ...]], tail: str = "", body: bytes = b"") -> bytes:
    """A binary file of vertices; `tail` and `body` of further elements."""
    codes = {"float": "f", "double": "d", "uchar": "B", "ushort": "H", "short": "h", "int": "i", "uint": "I"}
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n"
    head += "".join(f"property {kind} {name}\n" for kind, name in names) + tail + "end_header\n"
    code = "<" + "".join(codes[kind] for kind, _ in names)
    return head.encode() + b"".join(struct.pack(code, *row) for row in rows) + body


PLACE = [("float", "x"), ("float", "y"), ("float", "z")]


@pytest.mark.parametrize(
    "spelling", [("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")]
)
@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("uchar", (0, 51, 255), (0, 0.2, 1)),
        ("ushort", (0, 13107, 65535), (0, 0.2, 1)),
        ("uint", (0, 858993459, 4294967295), (0, 0.2, 1)),
        ("short", (0, 6553.4, 32767), (0, 0.2, 1)),
        ("float", (0, 0.2, 1), (0, 0.2, 1)),
        ("double", (0, 0.2, 1), (0, 0.2, 1)),
    ],
)
def test_colours_go_by_their_type(
    tmp_path: Path, spelling: tuple[str, ...], kind: str, row: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    numbers = row if kind in ("float", "double") else tuple(int(v) for v in row)
    data = ply([*PLACE, *((kind, name) for name in spelling)], [(0, 0, 0, *numbers), (1, 2, 3, *numbers)])
    (tmp_path / "a.ply").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = PointCloud.load(tmp_path / "a.ply")
    torch.testing.assert_close(cloud.colors, torch.tensor([expected] * 2).float(), atol=1e-4, rtol=0)


def test_wide_integers_of_up_to_255_are_bytes_by_name(tmp_path: Path) -> None:
    data = ply([*PLACE, ("int", "red"), ("int", "green"), ("int", "blue")], [(0, 0, 0, 255, 51, 0)])
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.warns(UserWarning, match="int32, but with values of up to 255"):
        assert PointCloud.load(tmp_path / "a.ply").colors.tolist() == [[1.0, pytest.approx(0.2), 0.0]]


def test_columns_and_elements_that_are_left_out_are_named(tmp_path: Path) -> None:
    names = [*PLACE, ("float", "quality"), ("uchar", "label")]
    data = ply(names, [(0, 0, 0, 1, 2)], "element edge 1\nproperty int a\n", struct.pack("<i", 7))
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.warns(UserWarning, match="columns of vertex: quality, label; 1 rows of element edge"):
        PointCloud.load(tmp_path / "a.ply")


def test_long_headers_hide_no_faces(tmp_path: Path) -> None:
    comment = "comment " + "x" * 200 + "\n"
    tail = comment * 200 + "element face 1\nproperty list uchar int vertex_index\n"
    data = ply(PLACE, [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], tail, struct.pack("<B4i", 4, 0, 1, 2, 3))
    (tmp_path / "a.ply").write_bytes(data)
    assert [(e.name, e.length) for e in read_header(tmp_path / "a.ply").elements] == [("vertex", 4), ("face", 1)]
    assert len(quietly(tmp_path / "a.ply").faces) == 2


@pytest.mark.parametrize("order", ["little", "big", "ascii"])
def test_triangles_beside_quads_and_colours_of_faces(tmp_path: Path, order: str) -> None:
    face = "element face 2\nproperty list uchar int vertex_indices\n"
    face += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    places, rows = (
        [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (3, 0, 0)],
        [((0, 1, 2, 3), (255, 0, 0)), ((1, 4, 2), (0, 0, 51))],
    )
    head = f"ply\nformat {order if order == 'ascii' else f'binary_{order}_endian'} 1.0\nelement vertex 5\n"
    head += "".join(f"property {kind} {name}\n" for kind, name in PLACE) + face + "end_header\n"
    end = "<" if order == "little" else ">"
    if order == "ascii":
        lines = [" ".join(map(str, place)) for place in places]
        lines += [" ".join(map(str, (len(index), *index, *rgb))) for index, rgb in rows]
        body = "\n".join(lines).encode()
    else:
        body = b"".join(struct.pack(f"{end}3f", *place) for place in places)
        body += b"".join(struct.pack(f"{end}B{len(i)}i3B", len(i), *i, *rgb) for i, rgb in rows)
    (tmp_path / "a.ply").write_bytes(head.encode() + body)
    mesh = quietly(tmp_path / "a.ply")
    assert len(mesh.faces) == 3
    shade = mesh.vertex_colors[mesh.faces]  # (F, 3, 3)
    assert bool((shade == shade[:, :1]).all())
    assert sorted((shade[:, 0] * 255).round().int().tolist()) == [[0, 0, 51], [255, 0, 0], [255, 0, 0]]
    (tmp_path / "b.ply").write_bytes(head.encode() + body[:-5])
    with pytest.raises(InputError, match=r"b\.ply: it ends"):
        Mesh.load(tmp_path / "b.ply")


SPLAT = [
    *PLACE,
    ("float", "f_dc_0"),
    ("float", "f_dc_1"),
    ("float", "f_dc_2"),
    ("float", "f_rest_0"),
    ("float", "opacity"),
]
SPLAT += [("float", f"scale_{i}") for i in range(3)] + [("float", f"rot_{i}") for i in range(4)]


def test_splats_are_recognised_and_what_they_lose_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(ply(SPLAT, [(1, 2, 3, 1, -1, 9, *range(9))]))
    message = r"Gaussian splats .*columns of vertex: opacity, scale_0, .*rot_3, f_rest_0 \.\.\. \(1 columns\)"
    with pytest.warns(UserWarning, match=message):
        cloud = PointCloud.load(tmp_path / "a.ply")
    torch.testing.assert_close(cloud.colors, torch.tensor([[0.78209479, 0.21790521, 1.0]]))
    (tmp_path / "b.ply").write_bytes(ply([*PLACE, ("uint", "packed_position")], [(0, 0, 0, 1)]))
    with pytest.raises(InputError, match="compressed splats"):
        PointCloud.load(tmp_path / "b.ply")


def test_a_ply_names_its_picture(tmp_path: Path) -> None:
    picture(tmp_path / "skin a.png", (255, 0, 0), (0, 0, 255))
    tail = "comment TextureFile skin a.png\nelement face 1\nproperty list uchar int vertex_indices\n"
    tail += "property list uchar float texcoord\n"
    body = struct.pack("<B3iB6f", 3, 0, 1, 2, 6, 0.6, 0, 0.9, 0, 0.9, 1)
    (tmp_path / "a.ply").write_bytes(ply(PLACE, [(0, 0, 0), (1, 0, 0), (0, 1, 0)], tail, body))
    assert looks(quietly(tmp_path / "a.ply")) == [[0, 0, 255]] * 3
    (tmp_path / "skin a.png").unlink()
    with pytest.warns(UserWarning, match=r"texture skin a\.png, which is not there"):
        Mesh.load(tmp_path / "a.ply")


def test_colours_that_stl_and_off_hold_are_named(tmp_path: Path) -> None:
    record = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0x7FFF)
    (tmp_path / "a.stl").write_bytes(b"\0" * 80 + struct.pack("<I", 1) + record)
    with pytest.warns(UserWarning, match="colours in attribute bytes"):
        assert len(Mesh.load(tmp_path / "a.stl").faces) == 1
    triangle = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    assert len(quietly(written(tmp_path, "a.off", triangle)).faces) == 1
    with pytest.warns(UserWarning, match="the colours of faces"):
        Mesh.load(written(tmp_path, "b.off", triangle.replace("3 0 1 2", "3 0 1 2 255 0 0")))
    with pytest.raises(InputError, match="'4OFF' is a kind of OFF that is not read"):
        Mesh.load(written(tmp_path, "c.off", "4" + triangle))


def test_stl_that_is_cut_is_told_and_what_lies_behind_it_named(tmp_path: Path) -> None:
    record = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
    whole = b"solid made by hand".ljust(80) + struct.pack("<I", 2) + record * 2
    (tmp_path / "a.stl").write_bytes(whole)
    assert len(quietly(tmp_path / "a.stl").faces) == 2
    (tmp_path / "b.stl").write_bytes(whole + b"tail")
    with pytest.warns(UserWarning, match="4 bytes behind the triangles"):
        assert len(Mesh.load(tmp_path / "b.stl").faces) == 2
    for left, count in ((whole[:-50], 1), (whole[:-7], 1), (whole[:90], 0)):
        (tmp_path / "c.stl").write_bytes(left)
        with pytest.raises(InputError, match=f"c.stl: it ends after {count} of its 2 triangles"):
            Mesh.load(tmp_path / "c.stl")
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    assert len(quietly(written(tmp_path, "d.stl", f"solid a\n{facet * 2}endsolid a\n")).faces) == 2
    with pytest.raises(InputError, match="it ends before its endsolid"):
        Mesh.load(written(tmp_path, "d.stl", f"solid a\n{facet * 2}{facet[:60]}"))


def test_formats_say_what_they_cannot_hold(tmp_path: Path) -> None:
    picture(tmp_path / "tex.png", (255, 0, 0), (0, 0, 255))
    written(tmp_path, "a.mtl", "newmtl a\nmap_Kd tex.png\n")
    mesh = quietly(written(tmp_path, "a.obj", f"mtllib a.mtl\n{SQUARE}{TURNED}usemtl a\n{FACE}"))
    with pytest.warns(UserWarning, match=r"b\.stl: STL holds no colours"):
        mesh.save(tmp_path / "b.stl")
    with pytest.warns(UserWarning, match=r"b\.ply: PLY holds no texture: it became the colours of 4 vertices"):
        mesh.save(tmp_path / "b.ply")
