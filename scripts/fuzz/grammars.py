"""What hypothesis writes: prompts, command lines, and documents that are nearly those that are read."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from ...cli.commands import COMMANDS

NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.5, 1.0, 1e-9, 7.5]),
)
FILES = (
    "photo.png",
    "mask.png",
    "mesh.glb",
    "cloud.ply",
    "words.txt",
    "run.json",
    "folder",
    "cameras.json",
    "none.png",
    ".",
    "-",
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "a red chair", "toybox", "auto", "cpu", "cuda", "deep:3", "ddim", "best", "../x", "a" * 300, "NaN"]
    ),
    st.sampled_from(FILES),
    st.sampled_from(
        ["deblur:1", "inpaint", "sr:4", "sr:0", "deep:0,0,x", "toybox:0.4", "ghvb:1,2", "dpm-v3:9", "hb:,", "usf:"]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=12,
)


def written(name: str, document: Any) -> tuple[str, bytes]:
    """A JSON file."""
    return name, json.dumps(document).encode("utf-8", "surrogatepass")


def prompts() -> Any:
    """Any text, and sentences of known and unknown words."""
    known = st.sampled_from(
        [
            "a",
            "an",
            "the",
            "red",
            "blue",
            "chair",
            "dog",
            "on",
            "left",
            "of",
            "two",
            ",",
            ".",
            "3d",
            "view,",
            "from",
            "behind",
            "(",
            ")",
            "--",
            "striped",
        ]
    )
    words = st.lists(st.one_of(known, st.text(max_size=9)), max_size=90).map(" ".join)
    text = st.one_of(st.text(max_size=60), words, st.text(alphabet=st.characters(), max_size=30))
    return text.map(lambda made: ("prompt.txt", made.encode("utf-8", "surrogatepass")))


def command_lines() -> Any:
    """A command with some of its own options, others, and any values."""
    everything = sorted({field.name for command in COMMANDS for field in fields(command)})

    def lines(command: Any) -> Any:
        own = [field.name for field in fields(command)] * 3
        name = st.sampled_from([*own, *everything]).map(lambda n: "--" + n.replace("_", "-"))
        option = st.tuples(name, st.lists(st.one_of(TEXTS, NUMBERS.map(str)), max_size=2)).map(lambda o: [o[0], *o[1]])
        lists = st.lists(TEXTS, max_size=3), st.lists(option, max_size=4)
        return st.tuples(*lists).map(
            lambda parts: [command.name, *parts[0], *(word for one in parts[1] for word in one)]
        )

    return st.sampled_from(COMMANDS).flatmap(lines).map(lambda words: written("words.json", words))


def transforms() -> Any:
    """transforms.json with entries missing, of other types, or strange."""
    row = st.lists(st.floats(-2, 2), min_size=4, max_size=4)
    pose = st.one_of(
        st.lists(row, min_size=4, max_size=4), st.just([[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]), VALUES
    )
    numbers = st.one_of(st.floats(1, 2000), NUMBERS, VALUES)
    models = st.sampled_from(["OPENCV", "OPENCV_FISHEYE", "ORTHOPHOTO", "EQUIRECTANGULAR", "PINHOLE", "", None, 3])
    lens = dict.fromkeys(("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "p2", "camera_angle_x"), numbers)
    shared = st.fixed_dictionaries({}, optional={**lens, "camera_model": models, "applied_scale": numbers})
    frame = st.fixed_dictionaries(
        {"file_path": TEXTS, "transform_matrix": pose}, optional={**lens, "camera_model": models}
    )
    frames = st.one_of(st.lists(frame, max_size=3), VALUES)
    return st.tuples(shared, frames).map(lambda m: written("transforms.json", {**m[0], "frames": m[1]}))


def plys() -> Any:
    """Headers of any elements and properties over too few, enough or too many numbers."""
    kinds = st.sampled_from(
        ["char", "uchar", "short", "ushort", "int", "uint", "float", "double", "int64", "float16", "half"]
    )
    names = st.one_of(
        st.sampled_from(
            [
                "x",
                "y",
                "z",
                "nx",
                "ny",
                "nz",
                "red",
                "green",
                "blue",
                "alpha",
                "s",
                "t",
                "vertex_indices",
                "texcoord",
                "f_dc_0",
                "rot_0",
            ]
        ),
        st.text(max_size=4),
    )
    plain = st.tuples(kinds, names).map(lambda p: f"property {p[0]} {p[1]}")
    listed = st.tuples(kinds, kinds, names).map(lambda p: f"property list {p[0]} {p[1]} {p[2]}")
    xyz = st.just("property float x\nproperty float y\nproperty float z")
    counts = st.one_of(st.integers(0, 6), st.sampled_from([2**31, 2**62, 10**30]))
    element = st.tuples(
        st.sampled_from(["vertex", "vertex", "face", "tristrips", "chunk", "sh", "edge", "camera"]),
        counts,
        st.lists(st.one_of(xyz, plain, listed), max_size=4),
    ).map(lambda e: "\n".join([f"element {e[0]} {e[1]}", *e[2]]))
    order = st.sampled_from(["ascii", "ascii", "binary_little_endian", "binary_big_endian", "none"])
    body = st.one_of(
        st.lists(st.one_of(st.integers(-2, 9), NUMBERS), max_size=60).map(lambda v: " ".join(map(str, v)).encode()),
        st.binary(max_size=200),
    )
    parts = st.tuples(order, st.lists(element, max_size=4), body)
    return parts.map(
        lambda p: (
            "made.ply",
            "\n".join(["ply", f"format {p[0]} 1.0", *p[1], "end_header", ""]).encode("utf-8", "replace") + p[2],
        )
    )


def gltfs() -> Any:
    """Documents of the right keys with any values."""
    small = st.one_of(st.integers(-1, 4), VALUES)
    attributes = st.dictionaries(
        st.sampled_from(["POSITION", "NORMAL", "TEXCOORD_0", "COLOR_0", "X"]), small, max_size=3
    )
    primitive = st.fixed_dictionaries(
        {"attributes": st.one_of(attributes, VALUES)},
        optional={"indices": small, "mode": small, "material": small, "extensions": VALUES, "targets": VALUES},
    )
    mesh = st.fixed_dictionaries({"primitives": st.lists(primitive, max_size=2)})
    node = st.fixed_dictionaries(
        {},
        optional={
            "mesh": small,
            "children": st.lists(st.integers(-1, 3), max_size=3),
            "matrix": VALUES,
            "rotation": VALUES,
            "scale": VALUES,
            "skin": small,
        },
    )
    accessor = st.fixed_dictionaries(
        {
            "componentType": st.sampled_from([5121, 5123, 5126, 5125, 9]),
            "type": st.sampled_from(["SCALAR", "VEC2", "VEC3", "MAT4", "X"]),
            "count": st.one_of(st.integers(0, 4), NUMBERS),
        },
        optional={"bufferView": small, "byteOffset": small, "normalized": st.booleans(), "sparse": VALUES},
    )
    view = st.fixed_dictionaries(
        {"buffer": st.just(0), "byteLength": st.one_of(st.integers(0, 60), NUMBERS)},
        optional={"byteOffset": small, "byteStride": small},
    )
    document = {
        "meshes": st.lists(mesh, max_size=2),
        "nodes": st.lists(node, max_size=3),
        "accessors": st.lists(accessor, max_size=4),
        "bufferViews": st.lists(view, max_size=3),
    }
    more = {
        "asset": VALUES,
        "scene": small,
        "scenes": VALUES,
        "materials": VALUES,
        "textures": VALUES,
        "images": VALUES,
        "extensionsRequired": VALUES,
        "extensionsUsed": VALUES,
    }
    buffers = [{"byteLength": 60, "uri": "data:application/octet-stream;base64," + "AACAPw" * 13 + "AA"}]
    return st.fixed_dictionaries(document, optional=more).map(lambda d: written("made.gltf", {**d, "buffers": buffers}))


def objs() -> Any:
    """Lines of the right keys with any numbers."""
    number = st.one_of(st.integers(-5, 6), NUMBERS).map(str)
    corner = st.one_of(st.integers(-5, 5).map(str), st.lists(st.one_of(number, st.just("")), max_size=4).map("/".join))
    vectors = st.tuples(st.sampled_from(["v", "v", "v", "vt", "vn"]), st.lists(number, max_size=7)).map(
        lambda v: " ".join([v[0], *v[1]])
    )
    faces = st.lists(corner, max_size=6).map(lambda f: " ".join(["f", *f]))
    others = st.one_of(
        st.sampled_from(
            [
                "usemtl painted",
                "usemtl",
                "mtllib a.mtl",
                "mtllib",
                "s off",
                "g",
                "l 1 2",
                "curv 0 1",
                "v 1 2 3",
                "vt 0 0",
            ]
        ),
        st.text(max_size=12),
    )
    return st.lists(st.one_of(vectors, faces, others), max_size=25).map(
        lambda lines: ("made.obj", "\n".join(lines).encode("utf-8", "surrogatepass"))
    )


def headers() -> Any:
    """Safetensors headers of tensors that are not there, overlap, or are of unknown types."""
    kind = st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X"])
    tensor = st.fixed_dictionaries(
        {
            "dtype": kind,
            "shape": st.lists(NUMBERS, max_size=4),
            "data_offsets": st.lists(st.one_of(st.integers(0, 64), NUMBERS), max_size=3),
        }
    )
    names = st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [
                "model.diffusion_model.input_blocks.0.0.weight",
                "lora_unet_a.lora_down.weight",
                "double_blocks.0.x",
                "<x>",
                "*",
            ]
        ),
    )
    header = st.dictionaries(names, st.one_of(tensor, VALUES), max_size=4)
    extra = st.fixed_dictionaries(
        {},
        optional={
            "__metadata__": st.one_of(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), VALUES)
        },
    )

    def file(parts: Any) -> tuple[str, bytes]:
        text = json.dumps({**parts[0], **parts[1]}).encode("utf-8", "surrogatepass")
        return parts[3], (len(text) + parts[2]).to_bytes(8, "little") + text + bytes(64)

    return st.tuples(
        header,
        extra,
        st.sampled_from([0, 0, 0, 1, 1000, 2**40]),
        st.sampled_from(["calibration.safetensors", "made.safetensors"]),
    ).map(file)


def documents() -> Any:
    """Recipes and records with any values at known keys."""
    keys = [
        "score",
        "optimise",
        "mesh",
        "preview_every",
        "faces",
        "kind",
        "steps",
        "guidance",
        "config",
        "command",
        "plan",
        "notes",
        "seed",
        "prompt",
        "trainer",
        "model",
        "objective",
        "train",
        "val",
    ]
    inner = st.dictionaries(st.one_of(st.sampled_from(keys), st.text(max_size=5)), VALUES, max_size=5)
    command = st.sampled_from([*(command.name for command in COMMANDS), "x"])
    records = st.tuples(command, inner, st.one_of(inner, VALUES)).map(
        lambda r: written("run.json", {"command": r[0], "config": r[1], "notes": r[2]})
    )
    recipes = st.one_of(inner, VALUES).map(lambda d: written("recipe.yaml", d))
    return st.one_of(records, recipes)
