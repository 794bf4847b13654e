"""Low-rank adapters in files (Hu et al. 2021), added to the weights of a prior: W + scale (alpha / rank) B A.

They become part of the weights, so that the network has the layers and costs it had; caches, compilers and copies see
nothing new.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import InputError
from ...utils.files import split_scale
from .build import quiet, told
from .diffusers import DiffusersPrior
from .embedded import MultiViewPrior
from .single_file import kind_of, shapes_of

DOWN = ("lora_A", "lora_down", "lora.down")  # the first factor of a layer, in the layouts there are


def add_loras(prior: DiffusersPrior, loras: Sequence[str | Path]) -> None:
    """Adds adapters to a prior's weights.

    Args:
        prior: changed in place; its name says what was added.
        loras: each "FILE" or "FILE:SCALE".

    Warns of a file of which only a part fits. Raises InputError for files that are no adapters, or of another network.
    """
    if isinstance(prior, MultiViewPrior):
        raise InputError(f"{prior.name} sees several views at once; adapters are added to priors of single images")
    parsed = [split_scale(text, "lora") for text in loras]
    for path, _ in parsed:
        names = shapes_of(path)
        if not any(".lora" in name or name.startswith("lora_") for name in names):
            kind = kind_of(names)
            raise InputError(f"lora={str(path)!r}: it is {kind if isinstance(kind, str) else kind.name}, not a LoRA")
    pipe, added = prior.pipe, [f"lora{i}" for i in range(len(parsed))]
    parts = [part for part in type(pipe)._lora_loadable_modules if getattr(pipe, part, None) is not None]
    for name, (path, _) in zip(added, parsed, strict=True):
        with told(f"the LoRA {path} on {prior.name}", prior.device), quiet():
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True)
        if not any(name in names for names in pipe.get_list_adapters().values()):
            raise InputError(f"the LoRA {path} is of another network than {prior.name}")
        held = sum(any(mark in key for mark in DOWN) for key in shapes_of(path))
        found = sum(name in getattr(m, "lora_A", ()) for part in parts for m in getattr(pipe, part).modules())
        if found < held:
            told_of = f"only {found} of its {held} layers are of {prior.name}; the others are left out"
            warnings.warn(f"the LoRA {path}: {told_of}", UserWarning, stacklevel=2)
    with told(f"the LoRAs on {prior.name}", prior.device), quiet():
        pipe.set_adapters(added, [scale for _, scale in parsed])
        pipe.fuse_lora(components=parts, adapter_names=added, safe_fusing=True)
        pipe.unload_lora_weights()
    prior.name = "+".join([prior.name, *(f"{path.stem}:{scale:g}" for path, scale in parsed)])
    prior.freeze()
