"""Files of splats: 3DGS PLY (exact), packed PLY, .splat, SPZ and GLB; written atomically, re-opened and compared.

PLY and .splat keep the world they are in, as meshes in PLY do; SPZ and GLB are turned to glTF's axes and back.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from ...utils.errors import InputError, UnprojectError
from ...utils.files import atomic_path
from ..formats.ply_data import read_header
from .cloud import GaussianCloud
from .gltf import declares_splats, gltf_axes, read_glb, write_glb
from .harmonics import C0
from .packing import PACKED, STEP
from .ply import names_of, read_ply, write_packed_ply, write_ply
from .spz import COLOR, read_spz, write_spz

SUFFIXES = (".ply", ".compressed.ply", ".splat", ".spz", ".glb")
SPLAT = np.dtype([("xyz", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("turn", "u1", 4)])


def save_splats(cloud: GaussianCloud, path: str | Path) -> Path:
    """Writes the format of the suffix, one of SUFFIXES, and reads it back.

    Raises InputError for an unknown suffix or an empty or non-finite cloud, MissingExtraError for SPZ without
    zstandard, UnprojectError when the file reads back wrong.
    """
    path = Path(path)
    kind = suffix_of(path)
    if not len(cloud):
        raise InputError(f"the splats for {path.name} are empty; nothing to write")
    if not bool(cloud.finite.all()):
        raise InputError(
            f"{int((~cloud.finite).sum())} splats for {path.name} are not finite; keep cloud[cloud.finite]"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode(cloud.detached(), kind))
        back = decode(temporary.read_bytes(), kind, str(path))
        if len(back) != len(cloud) or back.degree != (0 if kind == ".splat" else cloud.degree):
            raise UnprojectError(f"{path} read back differently from what was written; nothing was kept")
    return path


def load_splats(path: str | Path) -> GaussianCloud:
    """Reads any of SUFFIXES; Gaussians with NaN or infinite numbers are left out, with a warning. Raises InputError
    when unusable."""
    cloud = read_splats(path)
    if bool(cloud.finite.all()) and len(cloud):
        return cloud
    counts = cloud.broken()
    wrong = ", ".join(f"{name} of {count}" for name, count in counts.items() if count and name != "splats")
    if counts["splats"] == len(cloud):
        more = f" ({wrong}); convert --to points keeps places and colours" if wrong else ""
        raise InputError(f"{path} holds no splats with finite numbers{more}")
    warnings.warn(f"{path}: {counts['splats']} of {len(cloud)} splats are left out, broken: {wrong}", stacklevel=2)
    return cloud[cloud.finite]


def read_splats(path: str | Path) -> GaussianCloud:
    """All Gaussians of a file as they stand there, broken ones too. Raises InputError when unusable."""
    path = Path(path)
    kind = suffix_of(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a file of splats")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    return decode(data, kind, str(path))


def is_splat_file(path: str | Path) -> bool:
    """Whether a file of one of SUFFIXES holds splats: PLY and GLB may hold other things, be damaged or incomplete."""
    path = Path(path)
    kind = suffix_of(path)
    if kind in (".splat", ".spz"):
        return True
    if kind == ".glb":
        return declares_splats(path)
    try:
        vertices = [element for element in read_header(path).elements if element.name == "vertex"]
    except InputError:
        return False
    whole = set(names_of(0, flat=True)) - {"nx", "ny", "nz"}  # what every file of 3DGS has
    return any(whole <= set(element.names) or set(PACKED) <= set(element.names) for element in vertices)


def losses(cloud: GaussianCloud, kind: str) -> list[str]:
    """What a format cannot hold of a cloud, in words; empty where it holds everything."""
    lost = []
    if kind == ".splat":
        lost.append("colours, opacities and orientations become bytes")
        if cloud.degree:
            lost.append(f"harmonics of degree {cloud.degree} are left out: colours no longer follow the view")
    if kind == ".spz":
        lost.append("positions are rounded to 24 bits, all else to bytes or less")
    if kind == ".compressed.ply":
        lost.append(
            "positions and sizes are rounded to 10 or 11 bits of their ranges, all else to bytes; another order"
        )
    for what, values, low, high in _ranges(cloud, kind):
        beyond = int(((values < low) | (values > high)).sum())
        if beyond:
            lost.append(f"{beyond} {what} beyond {low:.3g} to {high:.3g} are cut")
    if cloud.mode != "default" and kind in (".splat", ".spz", ".glb"):
        lost.append(f"the render mode {cloud.mode} is not said")
    if cloud.mode == "2dgs" and kind in (".splat", ".spz", ".glb"):
        lost.append("flat splats become thin ones")
    return lost


def _ranges(cloud: GaussianCloud, kind: str) -> list[tuple[str, torch.Tensor, float, float]]:
    """(what, its values, least, most) of what a format holds in a fixed range, half a step included."""
    rest = cloud.sh[:, 1:]
    if kind == ".splat":
        return [("colours", cloud.colors, -0.5 / 255, 1 + 0.5 / 255)]
    if kind == ".spz":
        grey = 128 / (COLOR * 255)
        sizes = ("logarithms of sizes", cloud.log_scales, -10 - 1 / 32, 255.5 / 16 - 10)
        return [("colours", cloud.sh[:, 0], -grey, grey), sizes, ("harmonics", rest, -1 - 1 / 256, 127.5 / 128)]
    if kind == ".compressed.ply":
        return [("logarithms of sizes", cloud.log_scales, -20, 20), ("harmonics", rest, -128 * STEP, 128 * STEP)]
    return []


def suffix_of(path: Path) -> str:
    """The one of SUFFIXES that a path ends with. Raises InputError for another."""
    name = path.name.lower()
    found = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    if not found:
        raise InputError(f"splats cannot be stored as {path.suffix or path.name!r}; use one of {', '.join(SUFFIXES)}")
    return max(found, key=len)


def encode(cloud: GaussianCloud, kind: str) -> bytes:
    """The bytes of a file."""
    if kind == ".spz":
        return write_spz(gltf_axes(cloud))
    writers = {".ply": write_ply, ".compressed.ply": write_packed_ply, ".splat": _write_splat, ".glb": write_glb}
    return writers[kind](cloud)


def decode(data: bytes, kind: str, where: str) -> GaussianCloud:
    """The inverse of `encode`; both kinds of PLY are told apart by their headers."""
    if kind == ".spz":
        return gltf_axes(read_spz(data, where), back=True)
    readers = {".ply": read_ply, ".compressed.ply": read_ply, ".splat": _read_splat, ".glb": read_glb}
    return readers[kind](data, where)


def _write_splat(cloud: GaussianCloud) -> bytes:
    """32 bytes each: position, scale, sRGB and opacity, quaternion (w, x, y, z) around 128; no harmonics."""
    table = np.zeros(len(cloud), SPLAT)
    table["xyz"], table["scale"] = cloud.means.numpy(), cloud.scales.numpy()
    rgba = torch.cat([cloud.colors, cloud.opacities[:, None]], dim=1)
    turn = torch.nn.functional.normalize(cloud.quaternions, dim=1)
    table["rgba"] = (rgba.clamp(0, 1) * 255).round().byte().numpy()
    table["turn"] = (turn * 128 + 128).round().clamp(0, 255).byte().numpy()
    return table.tobytes()


def _read_splat(data: bytes, where: str) -> GaussianCloud:
    if not data or len(data) % SPLAT.itemsize:
        raise InputError(f"{where} has {len(data)} bytes; a .splat file has {SPLAT.itemsize} for each Gaussian")
    table = np.frombuffer(data, SPLAT)
    values = {name: torch.from_numpy(table[name].astype(np.float32)) for name in SPLAT.names or ()}
    sh = ((values["rgba"][:, :3] / 255 - 0.5) / C0)[:, None]
    scales = torch.where(values["scale"] >= 0, values["scale"], torch.nan)
    turn, opacity = (values["turn"] - 128) / 128, values["rgba"][:, 3] / 255
    return GaussianCloud.from_values(values["xyz"], scales, turn, opacity, sh)
