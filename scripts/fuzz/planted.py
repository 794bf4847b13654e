"""Valid files with something unknown in them: it has to be refused or named, whatever the reader makes of the rest."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

import yaml

from .cases import Case, Sample
from .mutations import glb


def _of(rng: Random, samples: Sequence[Sample], *suffixes: str) -> Sample:
    return rng.choice([one for one in samples if one.name.endswith(suffixes)])


def in_gltf(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """An extension that is required, or used; an attribute; an extension of a material, a texture or a primitive."""
    sample = _of(rng, samples, ".glb", ".gltf")
    binary = sample.name.endswith(".glb")
    length = struct.unpack_from("<I", sample.data, 12)[0] if binary else 0
    document = json.loads(sample.data[20 : 20 + length] if binary else sample.data)
    rest = sample.data[28 + length :] if binary else b""
    name, refuse = f"EXT_{word}", False
    what = rng.choice(("required", "used", "attribute", "primitive", "material", "texture"))
    primitive = rng.choice(
        [p for mesh in document["meshes"] for p in mesh["primitives"] if p.get("mode", 4) > 3] or [{}]
    )
    if (
        what == "required"
        or (what != "used" and not primitive)
        or (what in ("material", "texture") and "materials" not in document)
    ):
        what, refuse = "required", True
        document.setdefault("extensionsRequired", []).insert(0, name)
        document.setdefault("extensionsUsed", []).append(name)
    elif what == "used":
        document.setdefault("extensionsUsed", []).append(name)
    elif what == "attribute":
        name = f"_{word.upper()}"
        primitive["attributes"][name] = primitive["attributes"]["POSITION"]
    elif what == "primitive":
        primitive.setdefault("extensions", {})[name] = {"scale": 2}
    else:
        material = document["materials"][0]
        place: Any = (
            material if what == "material" else material["pbrMetallicRoughness"].get("baseColorTexture", material)
        )
        place.setdefault("extensions", {})[name] = {"strength": 1}
    data = json.dumps(document).encode()
    return Case("", sample.name, glb(data, rest) if binary else data, f"{sample.name}, unknown {what}", name, refuse)


def in_obj(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """A statement of a mesh or of a library."""
    sample = rng.choice(samples)
    lines = sample.data.decode().replace("\\\n", "").splitlines()
    lines.insert(
        rng.randrange(len(lines) + 1) if sample.name.endswith(".obj") else rng.randrange(1, len(lines)), f"{word} 1 2"
    )
    return Case("", sample.name, "\n".join([*lines, ""]).encode(), f"{sample.name}, unknown statement", word)


def in_ply(rng: Random, samples: Sequence[Sample], word: str) -> Case | None:
    """A column of text, or an element behind the others."""
    sample = _of(rng, samples, ".ply")
    head, _, rest = sample.data.partition(b"end_header\n")
    if b"format ascii" in head and rng.random() < 0.5:
        lines = head.split(b"\n")
        first = next(i for i, line in enumerate(lines) if line.startswith(b"element vertex"))
        count = int(lines[first].split()[2])
        end = next(i for i in range(first + 1, len(lines)) if not lines[i].startswith(b"property"))
        lines.insert(end, b"property float " + word.encode())
        rows = rest.split(b"\n")
        rows[:count] = [row + b" 0.5" for row in rows[:count]]
        return Case("", sample.name, b"\n".join(lines) + b"end_header\n" + b"\n".join(rows), "unknown column", word)
    more = f"element {word} 1\nproperty uchar {word}_column\nend_header\n".encode()
    body = b"7\n" if b"format ascii" in head else b"\7"
    return Case("", sample.name, head + more + rest + body, "unknown element", word)


def in_splats(rng: Random, samples: Sequence[Sample], word: str) -> Case | None:
    """A column or an element of a PLY, an extension that a GLB requires."""
    sample = _of(rng, samples, ".ply", ".glb")
    if sample.name.endswith(".glb"):
        length = struct.unpack_from("<I", sample.data, 12)[0]
        document = json.loads(sample.data[20 : 20 + length])
        document["extensionsRequired"] = [f"EXT_{word}"]
        data = glb(json.dumps(document).encode(), sample.data[28 + length :])
        return Case("", sample.name, data, "unknown required", f"EXT_{word}", True)
    return in_ply(rng, [sample], word)


def in_cameras(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """An entry of the file or of a frame, or a camera model."""
    sample = _of(rng, samples, ".json")
    document = json.loads(sample.data)
    place = rng.choice([document, *document["frames"]])
    if rng.random() < 0.5:
        place[word] = rng.choice((1, "x", [0.1]))
        return Case("", sample.name, json.dumps(document).encode(), "unknown entry", word)
    place["camera_model"] = word.upper()
    return Case("", sample.name, json.dumps(document).encode(), "unknown camera model", word.upper(), True)


def in_colmap(rng: Random, samples: Sequence[Sample], word: str) -> Case | None:
    """A camera model by name."""
    sample = _of(rng, samples, "cameras.txt")
    return Case(
        "", sample.name, sample.data.replace(b" PINHOLE ", f" {word.upper()} ".encode()), "model", word.upper(), True
    )


def in_config(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """A key of a recipe or of an option of a record."""
    sample = rng.choice(samples)
    document = yaml.safe_load(sample.data)
    inner = document.get("config", document)
    if sample.name.startswith("priors"):
        inner = rng.choice(list(document["priors"].values()))
    places = [
        inner,
        *(value for key, value in inner.items() if isinstance(value, dict) and key in ("model", "trainer", "mesh")),
    ]
    rng.choice(places)[word] = rng.choice((1, "x", [1], {"a": 1}))
    return Case("", sample.name, json.dumps(document).encode(), f"{sample.name}, unknown key", word, True)


def in_prompt(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """A word that the embedded prior has never seen."""
    words = rng.choice([one for one in samples if one.data]).data.decode("utf-8", "surrogatepass").split()[:8]
    words.insert(rng.randrange(min(len(words), 3) + 1), word)  # the encoder sees the beginning
    return Case("", "prompt.txt", " ".join(words).encode("utf-8", "surrogatepass"), "unknown word", word)


def in_options(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """An option, a command, or a value of a choice."""
    words = json.loads(rng.choice(samples).data)
    what = rng.choice(("option", "command"))
    if what == "option":
        words.append(f"--{word}")
    else:
        words[:1] = [word]
    return Case("", "words.json", json.dumps(words).encode(), f"unknown {what}", word, True)


def in_tensors(rng: Random, samples: Sequence[Sample], word: str) -> Case:
    """A kind of calibration, or an entry of its fingerprint."""
    sample = rng.choice([one for one in samples if b"fingerprint" in one.data])
    size = int.from_bytes(sample.data[:8], "little")
    header = json.loads(sample.data[8 : 8 + size])
    if rng.random() < 0.5:
        header["__metadata__"]["kind"] = word
    else:
        told = json.loads(header["__metadata__"]["fingerprint"])
        header["__metadata__"]["fingerprint"] = json.dumps({**told, word: 1})
    text = json.dumps(header).encode()
    return Case(
        "", sample.name, len(text).to_bytes(8, "little") + text + sample.data[8 + size :], "unknown", word, True
    )
