"""Checkpoints in one file, as they are shared: told apart by the names of their tensors, loaded through diffusers.

Only the header of a safetensors file is read for that. A file never holds its tokenizer and settings: these come from
a folder or repository of its kind, the `base`, which also gives the parts that the file lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...utils.errors import InputError, damage
from ...utils.files import read_json
from .build import as_prior, family_of, missing_parts, pipeline_class, quiet, told
from .diffusers import DiffusersPrior
from .variants import pick_variant, weight_files

UNET = "model.diffusion_model."
_CLIP, _SDXL = "cond_stage_model.transformer.text_model.", "conditioner.embedders."
_NETWORK = tuple(f"{UNET}{name}.weight" for name in ("input_blocks.0.0", "middle_block.0.in_layers.2", "out.2"))
_VAE = tuple(f"first_stage_model.{name}.weight" for name in ("encoder.conv_in", "decoder.conv_in", "decoder.conv_out"))
_FLUX = ("img_in.weight", "double_blocks.0.img_mod.lin.weight", "final_layer.linear.weight")
MULTI_VIEW = "a multi-view checkpoint in MVDream's layout"
NAMES = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """A family of single files."""

    name: str
    family: str
    """pipeline class"""
    base: str
    """id of the registry whose settings are the family's"""
    parts: Mapping[str, tuple[str, ...]]
    """tensors without which a component of the pipeline is not there; the denoising network is the first"""


SD1 = Kind(
    "a Stable Diffusion 1.x checkpoint",
    "StableDiffusionPipeline",
    "sd15",
    {
        "unet": _NETWORK,
        "vae": _VAE,
        "text_encoder": (f"{_CLIP}embeddings.position_embedding.weight", f"{_CLIP}final_layer_norm.weight"),
    },
)
SD2 = Kind(
    "a Stable Diffusion 2.x checkpoint",
    "StableDiffusionPipeline",
    "sd21",
    {
        "unet": _NETWORK,
        "vae": _VAE,
        "text_encoder": ("cond_stage_model.model.token_embedding.weight", "cond_stage_model.model.ln_final.weight"),
    },
)
SDXL = Kind(
    "an SDXL checkpoint",
    "StableDiffusionXLPipeline",
    "sdxl",
    {
        "unet": _NETWORK,
        "vae": _VAE,
        "text_encoder": (f"{_SDXL}0.transformer.text_model.embeddings.position_embedding.weight",),
        "text_encoder_2": (f"{_SDXL}1.model.positional_embedding", f"{_SDXL}1.model.ln_final.weight"),
    },
)
FLUX_T5 = "text_encoders.t5xxl.transformer.shared.weight"
_FLUX_PARTS = {
    "vae": ("vae.encoder.conv_in.weight", "vae.decoder.conv_out.weight"),
    "text_encoder": ("text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight",),
    "text_encoder_2": (FLUX_T5,),
}
OTHERS: tuple[tuple[str, str], ...] = (  # a part of a name, what a file with it is
    (f"{UNET}camera_embed.", MULTI_VIEW),
    (".lora_", "a LoRA: give the prior that it belongs to, and this file with --lora"),
    ("emb_params", "a textual inversion, which is not supported: a LoRA or a whole checkpoint is"),
    ("string_to_param", "a textual inversion, which is not supported: a LoRA or a whole checkpoint is"),
    ("control_model.", "a ControlNet, which is no prior of its own"),
    ("controlnet_", "a ControlNet, which is no prior of its own"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint in one file, which is not supported: give a folder or sd3"),
    (f"{_SDXL}0.model.", "the SDXL refiner, which is not supported: give the base model"),
    ("down_blocks.", "a network in diffusers' layout without its settings: give the folder of the whole pipeline"),
    (
        "transformer_blocks.",
        "a network in diffusers' layout without its settings: give the folder of the whole pipeline",
    ),
    ("decoder.conv_in.", "a VAE alone"),
)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file by name; no weights are read. Raises InputError for another kind of file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no safetensors file: {damage(error)}") from error


def kind_of(shapes: Shapes) -> Kind | str:
    """What a checkpoint with these tensors is: a kind that is loaded, or a description of something else."""
    if any(name.startswith("<") or name in ("*", "clip_l", "clip_g") for name in shapes) and len(shapes) <= 2:
        return dict(OTHERS)["emb_params"]
    for mark, what in OTHERS[:8]:
        if any(mark in name for name in shapes):
            return what
    prefix = next(
        (prefix for prefix in ("", UNET) if any(n.startswith(f"{prefix}double_blocks.") for n in shapes)), None
    )
    if prefix is not None:
        guided = any(name.startswith(f"{prefix}guidance_in.") for name in shapes)
        network = {"transformer": tuple(f"{prefix}{name}" for name in _FLUX)}
        kind, base = ("dev", "flux-dev") if guided else ("schnell", "flux-schnell")
        return Kind(f"a FLUX.1 {kind} checkpoint", "FluxPipeline", base, {**network, **_FLUX_PARTS})
    if any(name.startswith(UNET) for name in shapes):
        return _stable_diffusion(shapes)
    return next(
        (what for mark, what in OTHERS[8:] if any(mark in name for name in shapes)), "no checkpoint that is known"
    )


def _stable_diffusion(shapes: Shapes) -> Kind | str:
    channels = (shapes.get(_NETWORK[0]) or (0, 4))[1:2]
    if channels and channels[0] not in (4, 0):
        return f"a Stable Diffusion for inpainting or edits ({channels[0]} input channels), which is not supported"
    if any(name.startswith((_SDXL, f"{UNET}label_emb.")) for name in shapes):
        return SDXL
    keys = [shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2]
    second = any(name.startswith("cond_stage_model.model.") for name in shapes) or (keys and keys[0][1] == 1024)
    return SD2 if second else SD1


def lacking(kind: Kind, shapes: Shapes) -> list[str]:
    """The parts of a kind that a file does not hold."""
    return [part for part, names in kind.parts.items() if not all(name in shapes for name in names)]


def load_single_file(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    base: str | Path | None,
    folder_of: Callable[[str | Path, bool], Path],
) -> DiffusersPrior:
    """The prior of a checkpoint in one file.

    Args:
        path: the file.
        device: where the networks live.
        dtype: their dtype.
        base: prior that gives settings and parts that the file lacks; None: settings of the family's own.
        folder_of: finds the folder of a prior's files: of settings only, or with weights too where the second
            argument is true.

    Raises InputError that says what the file is when it cannot serve, before anything else is looked for.
    """
    shapes = shapes_of(path)
    kind = kind_of(shapes)
    if isinstance(kind, str):
        raise InputError(f"{path} is {kind}")
    network, lack = next(iter(kind.parts)), lacking(kind, shapes)
    if network in lack:
        raise InputError(
            f"{path} is {kind.name} whose {NAMES.get(network, network)} is not whole; fetch the file again"
        )
    if lack and base is None:
        have, needed = (
            " and ".join(NAMES.get(part, part) for part in kind.parts if (part in lack) is lacks)
            for lacks in (False, True)
        )
        raise InputError(
            f"{path} is {kind.name} with the {have} only; give --base with a folder or prior that has the {needed}, "
            f"such as --base {kind.base}"
        )
    try:
        folder = folder_of(base or kind.base, bool(lack))
    except InputError as error:
        raise InputError(f"{path} is {kind.name}; its settings come from {base or kind.base}: {error}") from error
    index = read_json(folder / "model_index.json")
    if family_of(index, str(folder)) != kind.family:
        raise InputError(f"{path} is {kind.name}, and {base} a {index['_class_name']}; give another --base")
    missing = missing_parts(kind.family, index)
    maker, settings = pipeline_class(kind.family), {"torch_dtype": dtype, "local_files_only": True}
    with told(str(path), device), quiet():
        given = {}
        if lack:
            unwanted = {part: None for part in kind.parts if part not in lack}
            variant = pick_variant(weight_files(folder), unused=(*missing, *unwanted))
            others = {**settings, **missing, **unwanted, "variant": variant, "use_safetensors": True}
            rest = maker.from_pretrained(str(folder), **others)
            given = {part: getattr(rest, part) for part in lack}
        pipe = maker.from_single_file(str(path), config=str(folder), **settings, **missing, **given)
        pipe.to(device)
    return as_prior(pipe, kind.family, path.stem)
