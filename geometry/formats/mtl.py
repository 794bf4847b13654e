"""Materials of Wavefront OBJ: colours, textures with their options, and by name what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...utils.decoding import decode_layers
from ...utils.errors import InputError
from ...utils.files import is_there
from ..stored import Image8
from .border import text_of
from .piece import Floats, Notes, linear, tinted

OPTIONS = {  # arguments of the options that stand before a texture's name; those of s, o and t are one to three numbers
    "-blendu": 1,
    "-blendv": 1,
    "-boost": 1,
    "-bm": 1,
    "-cc": 1,
    "-clamp": 1,
    "-colorspace": 1,
    "-imfchan": 1,
    "-mm": 2,
    "-texres": 1,
    "-type": 1,
}
VECTORS = ("-s", "-o", "-t")
MAPS = {"map_kd": "base_color", "map_pr": "roughness", "map_pm": "metallic", "norm": "normal"}
QUIET = {"newmtl", "illum", "ka", "ks", "ns", "ni", "sharpness", "tf", "pr", "pm", "pc", "pcr", "ps", "aniso", "anisor"}
# of these the first are colours of a lamp model that is not ours; they look as they do without a word


@dataclass
class Material:
    """A material of a library."""

    color: Floats | None = None  # sRGB (3,)
    textures: dict[str, Image8] = field(default_factory=dict)
    scale: Floats = field(default_factory=lambda: np.ones(2))
    offset: Floats = field(default_factory=lambda: np.zeros(2))


def read_mtl(path: Path, notes: Notes) -> dict[str, Material]:
    """The materials of a library by name; textures are decoded, missing ones named."""
    materials: dict[str, Material] = {}
    found: dict[str, dict[str, Image8]] = {}
    current = ""
    for line in text_of(path.read_bytes()).replace("\\\n", " ").splitlines():
        words = (
            line.split("#", 1)[0].split() if not line.lower().lstrip().startswith(("map_", "norm")) else line.split()
        )
        if not words:
            continue
        key = words[0].lower()
        if key == "newmtl":
            current = line.split(None, 1)[1].strip() if len(words) > 1 else ""
            materials[current], found[current] = Material(), {}
        elif not materials:
            continue
        elif key == "kd":
            materials[current].color = _color(words[1:], current, notes)
        elif key in MAPS:
            _map(line, MAPS[key], path, current, (materials[current], found[current]), notes)
        elif key in ("d", "tr") and _number(words[-1]) not in (None, 1.0 if key == "d" else 0.0):
            notes.add(f"the transparency of material {current!r} ({' '.join(words)})")
        elif key == "ke" and any(_number(word) for word in words[1:]):
            notes.add(f"the glow (Ke) of material {current!r}")
        elif key not in QUIET | {"d", "tr", "ke"}:
            notes.add(f"{words[0]} of material {current!r}")
    return {name: _finished(material, found[name], name, notes) for name, material in materials.items()}


def _map(line: str, kind: str, path: Path, name: str, into: tuple[Material, dict[str, Image8]], notes: Notes) -> None:
    """Reads one texture statement; scale and offset of the base colour hold for the piece."""
    material, images = into
    options, file = texture_words(line)
    for option, values in options.items():
        if option in ("-s", "-o") and kind == "base_color":
            row = np.array([float(v) for v in (*values, *(("1",) if option == "-s" else ("0",)) * 2)][:2])
            if option == "-s":
                material.scale = row
            else:
                material.offset = row
        elif option == "-clamp" and values == ["on"]:
            notes.add(f"-clamp on of material {name!r} (the texture repeats instead)")
        elif option in ("-mm", "-t", "-imfchan", "-cc") and set(values) - {"0", "1", "off"}:
            notes.add(f"{option} {' '.join(values)} of material {name!r}")
    place = find_texture(path.parent, file)
    if place is None:
        notes.add(f"texture {file[:80]} of material {name!r}, which is not there")
        return
    try:
        images[kind] = np.rint(decode_layers(place.read_bytes(), str(place)).rgb * 255).astype(np.uint8)
    except InputError as error:
        notes.add(f"a texture of material {name!r}: {error}")


def texture_words(line: str) -> tuple[dict[str, list[str]], str]:
    """({option: its arguments}, file name) of a texture statement; the name may hold spaces."""
    rest = line.strip().split(None, 1)[1] if len(line.split()) > 1 else ""
    options: dict[str, list[str]] = {}
    while rest.startswith("-"):
        option, rest = _first_word(rest)
        low, count = option.lower(), OPTIONS.get(option.lower())
        if count is None and low not in VECTORS:
            return options, f"{option} {rest}".strip()
        values: list[str] = []
        while rest and len(values) < (3 if count is None else count):
            word, tail = _first_word(rest)
            if count is None and _number(word) is None:
                break
            values.append(word)
            rest = tail
        options[low], rest = values, rest.lstrip()
    return options, rest.strip().strip('"')


def _first_word(text: str) -> tuple[str, str]:
    """A word and what follows it, spaces and tabs between them left out."""
    word, *rest = text.split(None, 1)
    return word, rest[0] if rest else ""


def find_texture(folder: Path, name: str) -> Path | None:
    """The file a library names: backslashes are folders; one from another machine is looked for by its last part."""
    plain = name.replace("\\", "/")
    tries = [folder / plain, folder / plain.rsplit("/", 1)[-1]]
    return next((place for place in tries if is_there(place)), None)


def _finished(material: Material, images: dict[str, Image8], name: str, notes: Notes) -> Material:
    """Textures in our form: base colour times Kd, roughness and metallic in one picture."""
    if "base_color" in images:
        if material.color is not None and not material.color.any():
            notes.add(f"Kd 0 0 0 of material {name!r}, which would blacken its texture")
        elif material.color is not None:
            images["base_color"] = tinted(images["base_color"], linear(material.color))
    rough, metal = images.pop("roughness", None), images.pop("metallic", None)
    if rough is not None or metal is not None:
        shape = (rough if rough is not None else metal)[..., 0].shape  # type: ignore[index]
        if rough is not None and metal is not None and rough.shape != metal.shape:
            notes.add(f"map_Pm of material {name!r}, which has another size than map_Pr")
            metal = None
        green = np.full(shape, 255, np.uint8) if rough is None else rough[..., 0]
        blue = np.zeros(shape, np.uint8) if metal is None else metal[..., 0]
        images["metallic_roughness"] = np.stack([np.full(shape, 255, np.uint8), green, blue], axis=-1)
    material.textures = images
    return material


def _color(words: list[str], name: str, notes: Notes) -> Floats | None:
    values = [_number(word) for word in words]
    if None in values or len(values) not in (1, 3):
        notes.add(f"Kd {' '.join(words)} of material {name!r}")
        return None
    return np.array(values * (3 if len(values) == 1 else 1), dtype=np.float64).clip(0, 1)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
