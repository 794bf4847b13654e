"""PrimeDepth as its authors published it (CVL-Heidelberg/PrimeDepth, github.com/vislearn/PrimeDepth): one file in LDM's
names that holds the whole prior beside `labeller.*`, what reads its preimage.

The names and channels were read in ldm/modules/diffusionmodules/labeller.py and configs/inference.yaml of that
repository. The prior becomes one of ours through the loader of single files; of the labeller refiner, fusion and the
branch of depth are taken, the branch of segmentation is left out. Words come from the last layer of the text encoder,
where Stable Diffusion 2 reads the one before. The published code captions the picture and draws noise; here the words
are empty and the noise is one fixed map, so that the same picture has the same depth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from ..core.priors import Condition, StableDiffusionPrior, load_prior
from ..core.priors.pickled import as_safetensors
from ..core.priors.rows import COND
from ..core.training.checkpoints import copy_into
from ..utils.errors import InputError
from .geometry_head import HeadConfig
from .preimage_head import PreimageConfig, PreimageHead
from .refiner import RefinerConfig

LABELLER = "labeller."
LEFT_OUT = (f"{LABELLER}label_predictor.",)
BRANCH = f"{LABELLER}depth_predictor."
WORDS = "cond_stage_model.model."
LAST = f"{WORDS}transformer.resblocks.23."  # of OpenCLIP's ViT-H, which Stable Diffusion 2 does not ask
LONGEST = 1024  # px
FUSED = {"convs_features": "features", "convs_attentions": "attention", "convs_merge": "merge"}
BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def is_primedepth(names: Any) -> bool:
    """Whether tensors of these names are such a checkpoint."""
    return any(str(name).startswith(f"{LABELLER}refiner.output_blocks.") for name in names)


def load_primedepth(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, base: str | Path | None = None
) -> PreimageHead:
    """The head of a checkpoint, pickled or in safetensors; what is pickled is converted once.

    base: gives the settings and tokenizer of the prior, by default Stable Diffusion 2.1's.

    Raises InputError for a file of something else, and names the first key that has no place.
    """
    rest, reader = (as_safetensors(path, f"primedepth/{part.__name__}", part) for part in (_prior_part, _reader_part))
    options: dict[str, Any] = {} if base is None else {"base": base}
    prior = load_prior(rest, device, dtype, **options)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"{path} holds a prior that is no Stable Diffusion")
    state = load_file(reader)
    head = PreimageHead(prior, _settings(state, prior, str(path)))
    if f"{LAST}ln_1.weight" in state:
        head.text = Condition({COND: head.text[COND].with_tensors(text=last_layer(prior, state))})
    copy_into(head.refiner.state_dict(), reader_names(state, str(path)), str(path))
    copy_into(head.branch.decoder.state_dict(), branch_names(state, prior), str(path))
    for module in head.modules().values():
        module.requires_grad_(False).eval()
    return head


def _prior_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the labeller."""
    return {k: v for k, v in state.items() if not k.startswith(LABELLER)}


def _reader_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The labeller with the last layer of words."""
    if not is_primedepth(state):
        raise InputError(f"this is no checkpoint of PrimeDepth: it has no {LABELLER}refiner")
    mine = (LABELLER, LAST, f"{WORDS}ln_final.")
    return {k: v for k, v in state.items() if k.startswith(mine) and not k.startswith(LEFT_OUT)}


def _settings(state: Mapping[str, Tensor], prior: StableDiffusionPrior, where: str) -> PreimageConfig:
    first, out = f"{LABELLER}refiner.output_blocks.0.0.out_layers.3.weight", f"{LABELLER}refiner.out.2.weight"
    if first not in state or out not in state:
        raise InputError(f"{where} lacks {first if first not in state else out}: it is not whole")
    unet: Any = prior.network
    ratio = state[first].shape[0] / unet.up_blocks[0].resnets[0].out_channels
    asked = HeadConfig(
        targets=("depth",), kind="sample", processing_resolution=LONGEST, codecs={"depth": {"space": "disparity"}}
    )
    refiner = RefinerConfig(ratio, state[out].shape[0], layout="published")
    return PreimageConfig(asked, refiner, free_range=True)


def reader_names(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The weights of refiner and fusion under our names. Raises InputError for a key that has no place."""
    found = {}
    for key, value in state.items():
        if key.startswith(BRANCH) or not key.startswith(LABELLER):
            continue
        name = key.removeprefix(LABELLER)
        if fused := re.fullmatch(r"(convs_\w+)\.(\d+)\.(\w+)", name):
            found[f"stages.{fused[2]}.{FUSED.get(fused[1], fused[1])}.{fused[3]}"] = value
        elif ending := re.fullmatch(r"refiner\.out\.([02])\.(\w+)", name):
            found[f"{'norm' if ending[1] == '0' else 'last'}.{ending[2]}"] = value
        elif block := re.fullmatch(r"refiner\.output_blocks\.(\d+)\.0\.([\w.]+)\.(\w+)", name):
            found[f"stages.{block[1]}.block.{BLOCK.get(block[2], block[2])}.{block[3]}"] = value
        elif up := re.fullmatch(r"refiner\.output_blocks\.(\d+)\.[12]\.conv\.(\w+)", name):
            found[f"stages.{int(up[1]) + 1}.up.{up[2]}"] = value
        elif words := re.fullmatch(r"refiner\.output_blocks\.(\d+)\.1\.([\w.]+)", name):
            found[f"stages.{words[1]}.transformer.{words[2]}"] = value
        else:
            raise InputError(f"{where}: the key {key!r} has no place in a reader of a preimage")
    return found


def branch_names(state: Mapping[str, Tensor], prior: StableDiffusionPrior) -> dict[str, Tensor]:
    """The weights of the branch of depth under the names of diffusers' decoder."""
    decoder = {
        f"first_stage_model.decoder.{key.removeprefix(BRANCH)}": value
        for key, value in state.items()
        if key.startswith(BRANCH)
    }
    converted = convert_ldm_vae_checkpoint(decoder, dict(prior.vae.config))
    return {key.removeprefix("decoder."): value for key, value in converted.items()}


@torch.no_grad()
def last_layer(prior: StableDiffusionPrior, state: Mapping[str, Tensor]) -> Tensor:
    """(1, L, D) of the empty prompt: what the encoder's last layer but one says, through the last and its norm."""
    tokenizer, limit = prior.pipe.tokenizer, prior.pipe.tokenizer.model_max_length
    ids = tokenizer("", padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids
    encoder = prior.pipe.text_encoder
    x = encoder(ids.to(encoder.device), output_hidden_states=True).hidden_states[-1].float()

    def own(name: str) -> tuple[Tensor, Tensor]:
        return tuple(state[f"{name}.{part}"].float().to(x) for part in ("weight", "bias"))  # type: ignore[return-value]

    heads, width = int(encoder.config.num_attention_heads), x.shape[-1]
    normed = F.layer_norm(x, (width,), *own(f"{LAST}ln_1"))
    inner = (state[f"{LAST}attn.in_proj_weight"], state[f"{LAST}attn.in_proj_bias"])
    q, k, v = F.linear(normed, *(part.float().to(x) for part in inner)).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + F.linear(seen, *own(f"{LAST}attn.out_proj"))
    hidden = F.gelu(F.linear(F.layer_norm(x, (width,), *own(f"{LAST}ln_2")), *own(f"{LAST}mlp.c_fc")))
    x = x + F.linear(hidden, *own(f"{LAST}mlp.c_proj"))
    return F.layer_norm(x, (width,), *own(f"{WORDS}ln_final")).to(prior.dtype)
