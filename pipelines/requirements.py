"""What a verb needs of a card's memory with a prior, and the settings with which it fits a card of a size.

    bytes = weights on the device + what is optimised + 1.1 (kept + largest part) + 0.8 GB for the device's libraries

kept: the encoder's activations of all renders and those of all rays, where they are not computed in parts.
largest part: of one call of the network, one part of the renders in the encoder, one part of the rays, or the decoder.
The numbers behind them are in `core.priors.footprint`, `geometry.volume.kept_bytes` and configs/priors.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ..core.priors.diffusers import FAMILIES
from ..core.priors.footprint import SD_VAE, decoder_numbers, encoder_numbers
from ..core.priors.placement import Offload, text_encoders
from ..core.priors.quantised import Weights
from ..core.priors.registry import EMBEDDED, entry_of, half_of, load_prior
from ..generate.step_memory import LEAST_RAYS
from ..geometry.representation import CHANNELS
from ..geometry.shapes import make_shape
from ..utils.configs import load_config
from .text_to_shape import MeshRecipe, load_recipe

Verb = Literal["text-to-mesh", "text-to-image"]
CARDS = (8, 12, 16, 24, 48)  # GiB
LIBRARIES_GB, FRAGMENTS = 0.8, 1.1
USABLE_GB = 0.97 * 1.0737  # of a GiB that a card has by its name
BYTES = {"full": None, "float8": 1.0, "int8": 1.0, "bnb-int8": 1.0, "int4": 0.56, "bnb-nf4": 0.56}
"""of a number of the network or T5; None: the dtype's"""
LADDER: tuple[tuple[Offload, Weights, float], ...] = (  # the fastest first
    ("none", "full", 8),
    ("text", "full", 8),
    ("text", "full", 4),
    ("text", "full", 2),
    ("model", "full", 2),
    ("text", "float8", 4),
    ("text", "float8", 2),
    ("model", "float8", 1),
    ("text", "bnb-nf4", 2),
    ("model", "bnb-nf4", 1),
    ("sequential", "full", 1),
)


@dataclass(frozen=True)
class Facts:
    """What is known of a prior without its weights."""

    name: str
    numbers: Mapping[str, float]  # parameters and buffers of network, vae, text_encoder, text_encoder_2 ...
    live: float  # numbers per latent pixel and row in a call of the network
    encode: tuple[float, float]  # numbers per pixel that autograd keeps of the encoder; block by block
    decode: float  # numbers per pixel in the decoder
    side: int  # px
    factor: int  # of the VAE
    frames: int
    half: str  # the half precision that its networks keep within
    upcasts: bool  # its VAE is in float32 where the rest is in float16
    recipe: MeshRecipe


@dataclass(frozen=True)
class Setting:
    """Options of a command."""

    dtype: str
    offload: Offload
    weights: Weights
    step_memory_gb: float

    def flags(self, verb: Verb) -> str:
        """As they are typed."""
        found = f"--dtype {self.dtype} --offload {self.offload}"
        found += "" if self.weights == "full" else f" --weights {self.weights}"
        return found + (f" --step-memory {self.step_memory_gb:g}" if verb == "text-to-mesh" else "")


@dataclass(frozen=True)
class Needs:
    """Memory in GB (10^9 bytes)."""

    weights: float
    optimised: float  # the representation with its gradients and two moments
    activations: float

    @property
    def total(self) -> float:
        """With the device's libraries."""
        return self.weights + self.optimised + self.activations + LIBRARIES_GB


def facts(name: str) -> Facts:
    """Of a prior of the registry by what is published, of others by loading them.

    Raises InputError for one that cannot be found.
    """
    found = None if name in EMBEDDED else entry_of(name)
    if found is None:
        return _loaded(name)
    entry = found[1]
    own = {} if entry.frames > 1 else {"optimise.guided_px": entry.image_size}
    recipe = "stable-diffusion" if entry.frames > 1 else "stable-diffusion-single-view"
    return Facts(
        name,
        {part: 1e6 * millions for part, millions in entry.parts.items()},
        entry.live,
        (encoder_numbers(SD_VAE), encoder_numbers(SD_VAE, by_block=True)),
        decoder_numbers(SD_VAE),
        entry.image_size,
        2 ** (len(SD_VAE["block_out_channels"]) - 1),
        entry.frames,
        entry.half,
        FAMILIES[entry.family].upcasts,
        load_config(MeshRecipe, f"text-to-mesh/{recipe}", **own),
    )


def _loaded(name: str) -> Facts:
    prior = load_prior(name)
    parts = {"network": prior.network, "vae": prior.vae, **dict(text_encoders(prior))}
    numbers = {key: float(sum(t.numel() for t in part.state_dict().values())) for key, part in parts.items()}
    config = prior.vae.config
    pixels = (prior.image_size // prior.vae_factor) ** 2
    return Facts(
        name,
        numbers,
        prior.row_bytes(prior.image_size, prior.image_size) / prior.dtype.itemsize / pixels,
        (encoder_numbers(config), encoder_numbers(config, by_block=True)),
        decoder_numbers(config),
        prior.image_size,
        prior.vae_factor,
        prior.frames,
        half_of(name),
        prior.upcasts,
        load_recipe(None, prior),
    )


def needs(known: Facts, setting: Setting, verb: Verb) -> Needs:
    """What the verb needs with these settings."""
    width = getattr(torch, setting.dtype).itemsize
    exact = 4 if known.upcasts and setting.dtype == "float16" else width
    latent = (known.side // known.factor) ** 2
    row = known.live * latent * width
    if verb == "text-to-image":
        busy, kept = max(2 * row, known.decode * known.side**2 * exact), 0.0
        optimised = 0.0
    else:
        busy, kept, optimised = _step(known, setting.step_memory_gb * 1e9, row, exact)
    weights = _weights(known, setting, width, exact)
    return Needs(weights / 1e9, optimised / 1e9, FRAGMENTS * (busy + kept) / 1e9)


def _step(known: Facts, budget: float, row: float, width: int) -> tuple[float, float, float]:
    """(largest part, kept, optimised) in bytes of a step of the recipe at its largest renders."""
    config = known.recipe.optimise
    size, seen = config.sizes[-1][1], config.guided_px or config.sizes[-1][1]
    groups = config.groups[-1][1] if config.groups else config.views.groups
    views = config.views.views * groups
    shape = make_shape(config.shape, torch.Generator())
    orientation = any(config.losses.orientation)
    ray = shape.ray_bytes(CHANNELS if orientation else CHANNELS[:3])
    whole, by_block = (numbers * seen**2 * width for numbers in known.encode)
    image = whole if whole <= budget else by_block
    rows = min(2 * views, max(known.frames, budget // row if row else 2 * views))
    images, rays = max(1.0, budget // image), max(float(LEAST_RAYS), budget // ray if ray else 0)
    kept = (views * image if images >= views else 0.0) + (views * size**2 * ray if rays >= views * size**2 else 0.0)
    parts = [rows * row, 0.0 if images >= views else images * image, 0.0 if rays >= views * size**2 else rays * ray]
    numbers = sum(p.numel() for p in shape.parameters())
    return max(parts), kept, 4.0 * 4 * numbers


def _weights(known: Facts, setting: Setting, width: int, exact: int) -> float:
    """Bytes of weights on the device at the worst moment."""
    stored = BYTES[setting.weights] or width
    sizes = {}
    for name, numbers in known.numbers.items():
        large = name == "network" or numbers > 2e9
        sizes[name] = numbers * (exact if name == "vae" else stored if large else width)
    texts = [size for name, size in sizes.items() if name.startswith("text")]
    if setting.offload == "none":
        return sum(sizes.values())
    if setting.offload == "text":
        return max(sizes["network"] + sizes["vae"], *texts)
    if setting.offload == "model":
        return max(sizes["network"] + sizes["vae"], *texts)
    return sizes["vae"] + max(0.03 * sizes["network"], 0.2e9)


def fitting(known: Facts, verb: Verb, card_gib: float) -> tuple[Setting, Needs] | None:
    """The fastest settings that fit a card, and what they need; None where none do."""
    for offload, weights, budget in LADDER:
        for dtype in dict.fromkeys((known.half, "bfloat16") if known.upcasts else (known.half,)):
            setting = Setting(dtype, offload, weights, budget)
            found = needs(known, setting, verb)
            if found.total <= card_gib * USABLE_GB:
                return setting, found
    return None
