"""Changes of valid files: of bytes, of numbers and words, of JSON inside its container, of chunks behind checksums."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from .cases import Case, Kind, Sample

INTERESTING = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    *(
        b"0",
        b"1",
        b"-1",
        b"nan",
        b"inf",
        b"-inf",
        b"1e999",
        b"1e-999",
        b"1e308",
        b"-0",
        b"0x10",
        b"1_0",
        b"1,5",
        b"NaN",
    ),
    *(
        b"2147483648",
        b"4294967296",
        b"9223372036854775808",
        b"99999999999999999999",
        b"9" * 5000,
        b"",
        b"x",
        b"/",
        b"//",
    ),
    *(
        b"\xff\xfe",
        b"\0",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"#",
        b"\\",
        b"%s",
        b"{}",
        b"~",
        b"null",
        b"true",
        b"[",
        b"]",
        b'"',
    ),
    *(
        b"\r",
        b"\n",
        b"\t",
        b"\x0b",
        b"\x1c",
        "\u2028".encode(),
        "\u0660".encode(),
        "²".encode(),
        b"../" * 40,
        b"a" * 5000,
    ),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        1e308,
        -1e308,
        1e-320,
        float("nan"),
        float("inf"),
        2**31,
        2**53,
        2**64,
        -(2**63),
    ),
    *(
        "",
        "x",
        "0",
        "\0",
        "nan",
        "\ud800",
        "../x",
        "/etc/hostname",
        "data:,",
        "a" * 3000,
        [],
        {},
        [[]],
        [None],
        {"": None},
    ),
    *([0] * 3, [0.0] * 16, ["a"], {"a": {"a": {}}}, [1e999, 1, 1], [[1, 2, 3]], 10**400, 4294967295, [-1], 1e20),
)
NUMBER = re.compile(rb"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
WORD = re.compile(rb"[^\s]+")


def mutated(rng: Random, kind: Kind, samples: Sequence[Sample]) -> Case:
    """A sample with one to four changes."""
    sample = rng.choice(samples)
    data, made = sample.data, [sample.name]
    inner = _inner(sample)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if inner is not None and rng.random() < 0.6:
            data, what = inner(rng, data), inner.__name__.strip("_")
        elif kind.text and rng.random() < 0.7:
            data, what = _text(rng, data)
        else:
            data, what = _bytes(rng, data, rng.choice(samples).data)
        made.append(what)
    return Case(kind.name, sample.name, data, ", ".join(made))


def _inner(sample: Sample) -> Callable[[Random, bytes], bytes] | None:
    """The change that knows a container."""
    suffix = sample.name.rsplit(".", 1)[-1]
    if sample.data[:2] == b"\x1f\x8b":
        return _inside_gzip
    return {"glb": _glb, "gltf": _json, "json": _json, "png": _png, "safetensors": _safetensors}.get(suffix)


def _bytes(rng: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    """One change of bytes."""
    changed, size = bytearray(data), max(len(data), 1)
    at, length = rng.randrange(size), min(rng.choice((1, 1, 2, 4, 8, 16, 64, 300)), size)
    if rng.random() < 0.3:
        at = min(at, rng.randrange(size), rng.randrange(size))  # headers stand in front
    what = rng.choice(("bit", "byte", "number", "cut", "remove", "insert", "repeat", "zeros", "splice", "swap", "nest"))
    if what == "bit":
        for _ in range(rng.choice((1, 1, 3, 20))):
            place = rng.randrange(size)
            changed[place : place + 1] = bytes([(changed[place] if changed else 0) ^ (1 << rng.randrange(8))])
    elif what == "byte":
        changed[at : at + 1] = bytes([rng.choice((0, 255, 127, 128, 10, 32, 45, 48, 57, rng.randrange(256)))])
    elif what == "number":
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(INTERESTING) % 256**width
        changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
    elif what == "cut":
        del changed[at:]
    elif what == "remove":
        del changed[at : at + length]
    elif what == "insert":
        changed[at:at] = rng.choice((bytes(length), rng.randbytes(length), rng.choice(WORDS)))
    elif what == "repeat":
        changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
    elif what == "zeros":
        changed[at : at + length] = bytes([rng.choice((0, 255))]) * length
    elif what == "splice":
        start = rng.randrange(len(other) or 1)
        changed[at : at + length] = other[start : start + rng.choice((length, 200))]
    elif what == "swap":
        start = rng.randrange(size)
        changed[at : at + length], changed[start : start + length] = (
            data[start : start + length],
            data[at : at + length],
        )
    else:
        changed[at:at] = rng.choice((b"[", b"{", b'{"a":', b"(", b"- ")) * rng.choice((100, 3000, 100_000))
    return bytes(changed), f"{what} at {at}"


def _text(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A number or word of a text becomes another, or lines change places."""
    if rng.random() < 0.25:
        lines = data.splitlines(keepends=True)
        if len(lines) > 1:
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            what = rng.choice(("lines swapped", "line repeated", "line removed"))
            if what == "lines swapped":
                lines[i], lines[j] = lines[j], lines[i]
            elif what == "line repeated":
                lines[i:i] = [lines[j]] * rng.choice((1, 2, 30))
            else:
                del lines[i]
            return b"".join(lines), what
    found = [match.span() for match in (NUMBER if rng.random() < 0.6 else WORD).finditer(data)]
    if not found:
        return data, "nothing"
    start, end = rng.choice(found)
    return data[:start] + rng.choice((*WORDS, *(str(n).encode() for n in INTERESTING))) + data[end:], f"word at {start}"


def _json(rng: Random, data: bytes) -> bytes:
    """A value of a JSON document becomes another, goes away, or stands twice."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return json.dumps(change_value(rng, document)).encode("utf-8", "surrogatepass")


def change_value(rng: Random, document: Any) -> Any:
    """The document with one change."""
    places = list(_places(document))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    old = holder[key]
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(old, list) and old:
        old.append(rng.choice(old))
    elif what == 2 and isinstance(old, (int, float)) and not isinstance(old, bool) and abs(old) < 1e300:
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 1000, old + 0.5, str(old), [old]))
    elif what == 3:
        other, name = rng.choice(places)
        if key in (range(len(holder)) if isinstance(holder, list) else holder):
            holder[key] = json.loads(json.dumps(other[name]))
    else:
        holder[key] = rng.choice(VALUES)
    return document


def _places(value: Any) -> Any:
    """(holder, key) of everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield value, key
        yield from _places(item)


def _glb(rng: Random, data: bytes) -> bytes:
    """The JSON or the binary chunk of a GLB changes and its lengths follow."""
    try:
        length = struct.unpack_from("<I", data, 12)[0]
        document, rest = data[20 : 20 + length], data[28 + length :]
    except struct.error:
        return data
    if rng.random() < 0.75:
        document = _json(rng, document)
    else:
        rest, _ = _bytes(rng, rest, rest)
    return glb(document, rest)


def glb(document: bytes, rest: bytes) -> bytes:
    """A container of both chunks."""
    document += b" " * (-len(document) % 4)
    rest += bytes(-len(rest) % 4)
    chunks = struct.pack("<I4s", len(document), b"JSON") + document
    chunks += struct.pack("<I4s", len(rest), b"BIN\0") + rest if rest else b""
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _png(rng: Random, data: bytes) -> bytes:
    """A chunk of a PNG changes and its checksum follows; pixels change behind their compression."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return data
    index = rng.randrange(len(chunks))
    name, body = chunks[index]
    if name == b"IDAT" and rng.random() < 0.7:
        try:
            body = zlib.compress(_bytes(rng, zlib.decompress(body), body)[0])
        except zlib.error:
            return data
    else:
        body, _ = _bytes(rng, body, data)
    chunks[index] = name, body
    if rng.random() < 0.1:
        rng.shuffle(chunks)
    return data[:8] + b"".join(png_chunk(name, body) for name, body in chunks)


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _safetensors(rng: Random, data: bytes) -> bytes:
    """The header of a safetensors file changes and its length follows."""
    size = int.from_bytes(data[:8], "little")
    header = _json(rng, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _inside_gzip(rng: Random, data: bytes) -> bytes:
    """What is compressed changes."""
    try:
        inside = gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return data
    return gzip.compress(_bytes(rng, inside, inside)[0], 1, mtime=0)
