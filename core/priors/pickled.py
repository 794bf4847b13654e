"""Pickled checkpoints as tensors by name, once, without running anything that they ask for.

`torch.load(weights_only=True)` refuses whatever is not data. A module that somebody pickled whole names the classes of
its layers; for those of torch and diffusers something inert stands in that keeps what it is given, so that its weights
are found under the names a state dict would have. Any other name is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...utils.errors import InputError
from ...utils.files import atomic_path, cache_root

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
LAYERS = ("torch.nn.modules.", "diffusers.models.", "diffusers.configuration_utils.", "torch._C._nn.")


class StandIn:
    """In the place of a pickled layer or function."""

    def __init__(self, *given: Any) -> None:
        """What it is called with says nothing."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        """An entry of a dictionary that it stands for."""


def tensors_of(path: str | Path, layers: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: of a safetensors file, or of a pickled one or its "state_dict".

    layers: also of a module that was pickled whole.

    Raises InputError for what cannot be read without running code, and names what it asks for.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        with torch.serialization.safe_globals(_stand_ins(path) if layers else []):
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many kinds for what is no checkpoint or holds more than tensors
        raise InputError(f"{path} holds no weights that can be read without running code ({_first(error)})") from error
    if isinstance(document, StandIn):
        return dict(_within(document))
    held = document.get("state_dict", document) if isinstance(document, Mapping) else {}
    found = {str(key): value for key, value in held.items() if isinstance(value, Tensor)}
    odd = [key for key in held if str(key) not in found]
    if odd and held is not document:
        raise InputError(f"{path}: {odd[0]} is no tensor")
    if not found:
        raise InputError(f"{path} holds no tensors by name, at the top or as a state_dict")
    return found


def as_safetensors(
    path: Path, folder: str, keep: Callable[[dict[str, Tensor]], dict[str, Tensor]], layers: bool = False
) -> Path:
    """What `keep` takes of a checkpoint, as a safetensors file in the cache, made when it is first asked for.

    folder: below the cache, of this kind of checkpoint.

    Raises InputError as `tensors_of` and `keep` do.
    """
    about = path.resolve().stat()
    key = sha256(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_root() / folder / f"{path.stem}-{key}.safetensors"
    if not target.is_file():
        kept = {name: value.contiguous().clone() for name, value in keep(tensors_of(path, layers)).items()}
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            save_file(kept, temporary)
    return target


def _stand_ins(path: Path) -> list[Any]:
    """Stand-ins for the layers that a file names, by their full names; others stay refused."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    strange = [name for name in names if not name.startswith(LAYERS)]
    if strange:
        raise InputError(f"it asks for {', '.join(sorted(strange)[:3])}")
    return [(type(name.rsplit(".", 1)[-1], (StandIn,), {}), name) for name in names]


def _within(layer: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The weights of a layer and of those inside it, named as its state dict would."""
    held = vars(layer)
    for part in ("_parameters", "_buffers"):
        for name, value in held.get(part, {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
    for name, inner in held.get("_modules", {}).items():
        if inner is not None:
            yield from _within(inner, f"{prefix}{name}.")


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
