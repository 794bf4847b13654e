"""Materials of glTF as our textures: which image, which set of coordinates, moved and turned how, times what."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ...utils.decoding import decode_layers
from ...utils.errors import InputError
from ..stored import Image8
from .gltf_data import Accessors
from .piece import Floats, Notes

REPEAT, CLAMP = 10497, 33071
WRAPS = {33648: "MIRRORED_REPEAT", CLAMP: "CLAMP_TO_EDGE"}
GLOSSY = "KHR_materials_pbrSpecularGlossiness"
PLACES = {"base_color": "baseColorTexture", "metallic_roughness": "metallicRoughnessTexture"}
MATERIAL_KEYS = {"name", "extras", "extensions", "pbrMetallicRoughness", "normalTexture", "doubleSided", "alphaMode"}
LOST_KEYS = {"emissiveTexture": "its glow (emissive)", "occlusionTexture": "its occlusion texture"}


class Mapped(NamedTuple):
    """A texture and where its coordinates come from."""

    image: Image8  # (H, W, 3)
    coordinates: int  # n of TEXCOORD_n
    matrix: Floats  # (2, 3): u', v' of (u, v, 1), v down
    wraps: tuple[int, int]


class Surface(NamedTuple):
    """What a material says."""

    textures: dict[str, Mapped]
    factor: Floats | None  # linear (3,) of the base colour; None: it gives none


class Materials:
    """The materials of a document; each image is decoded once, what is missing is named."""

    def __init__(self, accessors: Accessors, notes: Notes) -> None:
        self._accessors, self._document, self._notes = accessors, accessors.document, notes
        self._images: dict[int, Image8 | None] = {}

    def surface(self, index: int | None) -> Surface:
        """The material of a primitive, none for None."""
        if index is None:
            return Surface({}, None)
        material = self._document["materials"][index]
        called = f"material {material.get('name', index)!r}"
        physical = material.get("pbrMetallicRoughness", {})
        factor = physical.get("baseColorFactor")
        places = {name: physical.get(key) for name, key in PLACES.items()}
        glossy = material.get("extensions", {}).get(GLOSSY)
        if glossy is not None:
            factor, places = glossy.get("diffuseFactor"), {"base_color": glossy.get("diffuseTexture")}
            self._notes.add(f"the specular and glossiness of {called}")
        places["normal"] = material.get("normalTexture")
        textures = {}
        for name, place in places.items():
            found = None if place is None else self._mapped(place, called)
            if found is not None:
                textures[name] = found
        self._scaled(textures, physical, material, called)
        self._name_losses(material, physical, factor, called)
        color = None if factor is None else np.asarray(factor[:3], dtype=np.float64)
        if color is not None and (color.shape != (3,) or not np.isfinite(color).all()):
            raise InputError(f"the base colour of {called} is {factor}, which are no three finite numbers")
        return Surface(textures, color)

    def _mapped(self, place: dict[str, Any], called: str) -> Mapped | None:
        moved = place.get("extensions", {}).get("KHR_texture_transform", {})
        texture = self._document["textures"][place["index"]]
        extensions = texture.get("extensions", {})
        source = extensions.get("EXT_texture_webp", {}).get("source", texture.get("source"))
        if source is None:
            self._notes.add(f"a texture of {called} ({', '.join(extensions) or 'it names no image'})")
            return None
        image = self._image(source)
        if image is None:
            return None
        sampler = self._document["samplers"][texture["sampler"]] if "sampler" in texture else {}
        coordinates = moved.get("texCoord", place.get("texCoord", 0))
        wraps = (sampler.get("wrapS", REPEAT), sampler.get("wrapT", REPEAT))
        return Mapped(image, coordinates, transform(moved), wraps)

    def _image(self, index: int) -> Image8 | None:
        if index not in self._images:
            entry = self._document["images"][index]
            called = f"texture {entry.get('uri', entry.get('name', index))!s:.80}"
            try:
                view = "bufferView" in entry
                data = self._accessors.view(entry["bufferView"]) if view else self._accessors.resolve(entry["uri"])
                self._images[index] = np.rint(decode_layers(data, called).rgb * 255).astype(np.uint8)
            except InputError as error:
                self._notes.add(f"{called}: {error}")
                self._images[index] = None
        return self._images[index]

    def _scaled(self, textures: dict[str, Mapped], physical: dict[str, Any], material: Any, called: str) -> None:
        """Factors of metallic and roughness go into their texture, which is made for them where there is none."""
        factors = [physical.get("roughnessFactor", 1.0), physical.get("metallicFactor", 1.0)]
        if not all(isinstance(factor, (int, float)) and math.isfinite(factor) for factor in factors):
            raise InputError(f"roughness and metallic of {called} are {factors!s:.80}, which are no finite numbers")
        scale = np.array([1.0, *factors], dtype=np.float64)
        found = textures.get("metallic_roughness")
        if found is not None:
            scaled = np.rint(found.image * scale.clip(0, 1)).astype(np.uint8)
            textures["metallic_roughness"] = found._replace(image=scaled)
        elif "pbrMetallicRoughness" in material and tuple(scale[1:]) != (1.0, 0.0):
            if textures:
                any_one = next(iter(textures.values()))
                pixel = np.rint(255 * scale.clip(0, 1)).astype(np.uint8)
                textures["metallic_roughness"] = any_one._replace(image=np.tile(pixel, (4, 4, 1)))
            else:
                self._notes.add(f"roughness {scale[1]:g} and metallic {scale[2]:g} of {called}")

    def _name_losses(self, material: dict[str, Any], physical: dict[str, Any], factor: Any, called: str) -> None:
        if material.get("alphaMode", "OPAQUE") != "OPAQUE":
            self._notes.add(f"the transparency of {called} (alphaMode {material['alphaMode']!s:.80})")
        for key, what in LOST_KEYS.items():
            if key in material:
                self._notes.add(f"{what} of {called}")
        if any(material.get("emissiveFactor", ())) and "emissiveTexture" not in material:
            self._notes.add(f"{LOST_KEYS['emissiveTexture']} of {called}")
        if material.get("normalTexture", {}).get("scale", 1) != 1:
            self._notes.add(f"the scale of the normal texture of {called}")


def transform(moved: dict[str, Any]) -> Floats:
    """KHR_texture_transform as (2, 3): scale, then rotation (counter-clockwise as seen), then offset; v points down."""
    angle, (across, down) = float(moved.get("rotation", 0.0)), moved.get("scale", (1.0, 1.0))
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = moved.get("offset", (0.0, 0.0))
    return np.array([[cos * across, sin * down, x], [-sin * across, cos * down, y]], dtype=np.float64)
