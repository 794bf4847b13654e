"""What a training begins with: weights of a pipeline, of a network or of another run, tokenizers, codecs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.checkpoints import copy_into, latest_checkpoint, read_tensors
from ..core.training.objectives.flow import FlowObjective
from ..core.training.objectives.tokenizer import MAX_LENGTH, build_tokenizer
from ..toybox.captions import vocabulary
from ..utils.errors import InputError
from ..utils.files import read_json


def stable_diffusion(base: str) -> StableDiffusionPrior:
    """The prior of a recipe's `base`. Raises InputError for one of another kind."""
    prior = load_prior(base)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"base={base} is not a Stable Diffusion prior")
    return prior


def begin_with(network: nn.Module, given: nn.Module, folder: str, free: tuple[str, ...] = ()) -> None:
    """Copies weights; those whose names end in one of `free` stay fresh where their shapes differ.

    Raises InputError when the networks differ in anything else.
    """
    mine, state = network.state_dict(), given.state_dict()
    fresh = [key for key in mine if key.endswith(free) and key in state and mine[key].shape != state[key].shape]
    try:
        network.load_state_dict({**state, **{key: mine[key] for key in fresh}})
    except RuntimeError as error:
        raise InputError(f"start_from={folder} holds a network of another shape: {error}") from error


@torch.no_grad()
def begin_with_words(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, given: CLIPTextModel, words: CLIPTokenizer, folder: str
) -> None:
    """Copies a text encoder that numbers its tokens in another way or reads shorter texts: tokens both know get the
    embeddings they had, those of a word that is new begin as the mean of its old pieces, later places stay fresh.

    Raises InputError when the encoders differ in anything else.
    """
    old = given.get_input_embeddings().weight
    mine, theirs = tokenizer.get_vocab(), words.get_vocab()
    rows, places = encoder.get_input_embeddings().weight.clone(), _places(encoder).weight.clone()
    begin_with(encoder, given, folder, ("token_embedding.weight", "position_embedding.weight", "position_ids"))
    for token, number in mine.items():
        if token in theirs:
            rows[number] = old[theirs[token]]
        elif token.endswith("</w>"):
            rows[number] = old[words(token.removesuffix("</w>"), add_special_tokens=False).input_ids].mean(0)
    shared = _places(given).weight[: len(places)]
    places[: len(shared)] = shared
    encoder.get_input_embeddings().weight.copy_(rows)
    _places(encoder).weight.copy_(places)


def _places(encoder: CLIPTextModel) -> nn.Embedding:
    (found,) = (module for name, module in encoder.named_modules() if name.endswith("position_embedding"))
    assert isinstance(found, nn.Embedding)
    return found


def begin_with_pipeline(objective: FlowObjective, folder: str) -> None:
    """Copies transformer and text encoders of a pipeline; the embedding of a word goes where the objective's own
    tokenizer numbers it. Raises InputError for another kind of pipeline, and when words or shapes differ."""
    kind = read_json(Path(folder) / "model_index.json").get("_class_name")
    if kind != "StableDiffusion3Pipeline":
        raise InputError(f"start_from={folder} is a {kind}; a flow begins with a StableDiffusion3Pipeline or a run")
    given = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    theirs, mine = given.tokenizer.get_vocab(), objective.tokenizer.get_vocab()
    if theirs.keys() != mine.keys():
        raise InputError(
            f"start_from={folder} does not know the words of the recipe's tokenizer; set tokenizer={folder}/tokenizer"
        )
    for name, module in objective.modules.items():
        begin_with(module, getattr(given, name), folder)
    order = torch.tensor([theirs[token] for token in sorted(mine, key=mine.__getitem__)])
    for encoder in (objective.text_encoder, objective.text_encoder_2):
        rows = encoder.get_input_embeddings().weight.data
        rows[: len(order)] = rows[order]


def begin_with_run(modules: dict[str, nn.Module], folder: str) -> None:
    """Copies the averaged weights of a run's newest checkpoint. Raises InputError when there is none or it differs."""
    checkpoint = latest_checkpoint(Path(folder))
    if checkpoint is None:
        raise InputError(f"start_from={folder} holds no checkpoint; name the folder of a run (--out)")
    mine = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    given = read_tensors(checkpoint, "model") | read_tensors(checkpoint, "ema")
    copy_into(mine, given, f"start_from={checkpoint}")


def tokenizer_of(folder: str, max_length: int = MAX_LENGTH) -> CLIPTokenizer:
    """The tokenizer in a folder, or a new one of the toybox's words. Raises InputError when the folder lacks a word."""
    if not folder:
        return build_tokenizer(vocabulary(), max_length)
    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise InputError(
            f"tokenizer={folder} holds no tokenizer; give the tokenizer folder of a prior, or leave it out"
        )
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    split = [word for word in vocabulary() if len(tokenizer(word, add_special_tokens=False).input_ids) != 1]
    if split:
        raise InputError(f"tokenizer={folder} does not know {', '.join(split[:8])} as single words; build a new one")
    return tokenizer


def load_vae(folder: str | Path) -> AutoencoderKL:
    """The codec in float32, frozen. Raises InputError when the folder holds none."""
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder} holds no codec; train and export one first (scripts.train vae)")
    return AutoencoderKL.from_pretrained(folder).float().eval().requires_grad_(False)
