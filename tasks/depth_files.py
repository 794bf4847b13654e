"""Reading metric depth from files: NPZ, NPY, and 16-bit PNG in millimetres. Reading this loads no network library."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ..utils.errors import InputError, out_of_memory

DEPTH_SUFFIXES = (".npz", ".npy", ".png")
KEYS = ("depth_m", "depth", "clean")
MAX_VALUES = 100_000_000
BROKEN = (  # what numpy and PIL raise for damaged files
    *(ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


class MetricDepth(NamedTuple):
    """A depth map."""

    depth_m: np.ndarray  # (H, W) float32, 0 where there is none
    K: np.ndarray | None  # (3, 3) pixels, where the file has it


def read_depth(path: str | Path, unit_m: float | None = None) -> MetricDepth:
    """Z-depth in metres of a file.

    NPZ: the array `depth_m`, `depth` or the only one of two dimensions, `K` where it is there; a `valid` mask is
    obeyed. PNG: 16 bits, millimetres. `unit_m` is the length of a unit where it is another (None: 1 m, of PNG .001 m).

    Raises InputError for files that are none, for depth that its own facts say is not in metres, and for a K that is no
    pinhole's.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        raise InputError(f"{path} is no depth map; have {', '.join(DEPTH_SUFFIXES)}")
    try:
        if suffix == ".png":
            values, K = _png(path), None
        elif suffix == ".npy":
            with path.open("rb") as stream:
                _check_array(path, stream, path.stat().st_size)
            values, K = np.load(path, allow_pickle=False), None
        else:
            values, K = _npz(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read as depth: {error}") from error
    except BROKEN as error:  # whose words may quote what the file holds
        if out_of_memory(error):  # the machine's fault, not the file's
            raise
        raise InputError(f"{path} cannot be read as depth: it is damaged; write it again") from error
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values.reshape([side for side in values.shape if side != 1] if values.size > 1 else (1, 1))
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not 4 <= values.size <= MAX_VALUES:
        raise InputError(f"{path} holds {values.dtype} of shape {values.shape}, expected one depth map (H, W)")
    scale = unit_m if unit_m is not None else 0.001 if suffix == ".png" else 1.0
    depth = values.astype(np.float32) * np.float32(scale)
    return MetricDepth(np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)), K)


def not_depth(path: Path) -> str:
    """Why a PNG of a folder is no depth map to read, by its header: a picture, or levels beside the same numbers.

    Empty for other files, and for depth.
    """
    if path.suffix.lower() != ".png":
        return ""
    beside = (path.with_name(f"{path.stem.removesuffix('-16bit')}{end}") for end in (".npz", ".npy"))
    twin = next((one for one in beside if one.is_file()), None)
    if twin is not None:
        return f"{path} shows {twin.name}"
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode = image.mode
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return f"{path} cannot be read: {error}"
    return "" if mode.startswith("I") else f"{path} is a picture of {mode}, no depth of 16 bits"


def _png(path: Path) -> np.ndarray:
    from PIL import Image

    from ..utils.decoding import image_size

    width, height = image_size(path)
    if width * height > MAX_VALUES:
        raise InputError(f"{path} has {width} x {height} px, more than {MAX_VALUES}")
    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            raise InputError(f"{path} is a picture of {image.mode}; depth in PNG has one channel of 16 bits")
        return np.asarray(image).astype(np.int64)


def _check_array(where: Path | str, stream: IO[bytes], size: int) -> None:
    """Reads the header of an NPY of `size` bytes, so that no memory is asked for values that are not there.

    Raises InputError for more values than MAX_VALUES, ValueError where the file holds fewer than it says.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    count = math.prod(shape)
    if count > MAX_VALUES:
        raise InputError(f"{where} holds {count} values, more than {MAX_VALUES}")
    if count * dtype.itemsize > size:
        raise ValueError(f"{where} says that it holds {count} values and has {size} bytes")


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as parts:
        for part in parts.infolist():
            if part.filename.endswith(".npy"):
                with parts.open(part) as stream:
                    _check_array(f"{path}, {part.filename},", stream, part.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in KEYS if name in arrays.files]
        if not names:
            names = [name for name in arrays.files if name not in ("K", "valid") and arrays[name].ndim >= 2][:2]
        if len(names) != 1 and not (names and names[0] in KEYS):
            raise InputError(f"{path} holds {', '.join(arrays.files)}; name the depth map `depth_m`")
        free = str(arrays["invariance"]) if "invariance" in arrays.files else "none"
        if free not in ("none", ""):
            raise InputError(f"{path} holds depth up to an {free} map, not metres; make it with `depth --metric`")
        values = arrays[names[0]]
        if "valid" in arrays.files and arrays["valid"].shape == values.shape:
            values = np.where(arrays["valid"].astype(bool), values, 0)
        K = arrays["K"] if "K" in arrays.files else None
        if K is not None and K.shape != (3, 3):
            raise InputError(f"{path}: K has shape {K.shape}, expected (3, 3)")
        if K is not None:
            from ..geometry.intrinsics import checked_matrix

            K = checked_matrix(K, path)
        return values, K
