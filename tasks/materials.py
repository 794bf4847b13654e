"""Materials from words or a photograph, by a prior that draws three pictures at once (StableMaterials, 2024).

The prior's U-Net gets the latents of albedo, of the normal, and of (roughness, metallic, height) side by side, behind
those of a photograph, which are zeros where there is none: text and picture are the two branches of guidance, the null
branch has neither. A network distilled to consistency is told the guidance scale and takes four steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.priors import Condition, Rows, StableDiffusionPrior, weights_root
from ..core.priors.base import PredictionType
from ..core.priors.rows import COND, NULL
from ..core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from ..core.sampling.grids import Spacing
from ..core.sampling.guidance import guided
from ..core.sampling.sampler import Denoise, StepCallback
from ..core.sampling.solvers.base import Solver
from ..core.sampling.solvers.consistency import Consistency
from ..core.sampling.tileable import Tileable, decode_tileable
from ..core.training.adapters import adapted, own_weights, packed
from ..core.training.checkpoints import copy_into
from ..core.training.export import folder_path
from ..utils.configs import load_config, to_dict
from ..utils.errors import InputError
from ..utils.files import check_named, read_json, write_json
from ..utils.runs import versions
from ..utils.seeds import generator, sample_noise
from .bases import base_prior
from .codecs.pbr import GROUPS, MaterialMaps, from_pictures, to_pictures
from .geometry_head import ADAPTER, ENDS
from .native_materials import NativeMaterialPrior, is_native, load_native

MANIFEST = "materials.json"
EMBEDDED = "toybox-materials"
PUBLISHED_GUIDANCE = 10.0
HOW_TO_TRAIN = "train one: `unproject train materials` and `unproject train materials-4-steps`, then give its folder"


@dataclass(frozen=True)
class MaterialConfig:
    """How a material prior is asked; saved with its weights."""

    steps: int = 50
    guidance: float = 3.0
    spacing: Spacing = "trailing"
    distilled: bool = False
    """to consistency: it takes `steps` or fewer, and is told the guidance scale"""
    levels: int = 50
    """of the grid that a distilled network learnt"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance < 0:
            raise InputError(f"steps={self.steps} must be at least 1 and guidance={self.guidance} at least 0")


class MaterialPrior(StableDiffusionPrior):
    """A prior of stacked latents (B, 3 C, h, w); its "concat" row, the latents of a photograph, may be left out."""

    def __init__(self, base: StableDiffusionPrior, unet: UNet2DConditionModel, kind: PredictionType) -> None:
        """`base` lends codec and text encoder; the U-Net has 4 C inputs and 3 C outputs."""
        parts = {name: part for name, part in base.pipe.components.items() if name != "unet"}
        parts |= {"feature_extractor": None, "safety_checker": None}
        pipe = StableDiffusionPipeline(**parts, unet=unet, requires_safety_checker=False)
        super().__init__(pipe, f"{base.name} materials", frozen=False)
        own = base.latent_shape[0]
        given = (unet.config.in_channels, unet.config.out_channels)
        if given != (own * (1 + GROUPS), own * GROUPS):
            raise InputError(f"a material prior on {base.name} needs {own * (1 + GROUPS)} channels in and "
                             f"{own * GROUPS} out, got {given}")  # fmt: skip
        self.base, self.prediction_type, self.rank = base, kind, 0
        self.latent_shape = (own * GROUPS, *base.latent_shape[1:])
        self.scheduler_config = base.scheduler_config

    @classmethod
    def from_prior(cls, base: StableDiffusionPrior, rank: int = 0, seed: int = 0) -> MaterialPrior:
        """Untrained: every picture is drawn as the prior would draw it, the photograph is not looked at yet.

        rank: of the adapters that learn, beside first and last layers; 0: everything does. `seed` is theirs.
        """
        made = cls(base, stacked_unet(base.network, GROUPS), base.prediction_type)  # type: ignore[arg-type]
        if rank:
            adapted(made.network, rank, whole=ENDS, seed=seed)
            made.rank = rank
        return made

    def _state(self, x: Tensor, rows: Rows) -> Tensor:
        photo = rows["concat"].to(x) if "concat" in rows else x.new_zeros(len(x), x.shape[1] // GROUPS, *x.shape[2:])
        return torch.cat([photo, x], 1).to(self.dtype)

    def encode_maps(self, maps: MaterialMaps) -> Tensor:
        """Latents (B, 3 C, h, w)."""
        pictures = to_pictures(maps)
        latents = self.encode(pictures.flatten(0, 1) / 2 + 0.5)
        return latents.reshape(len(maps), -1, *latents.shape[2:])

    def decode_maps(self, latents: Tensor, tileable: bool = False) -> MaterialMaps:
        """Maps of latents (B, 3 C, h, w)."""
        groups = latents.reshape(-1, latents.shape[1] // GROUPS, *latents.shape[2:])
        images = decode_tileable(self, groups, False) if tileable else self.decode(groups, clamp=False)
        return from_pictures((2 * images - 1).reshape(len(latents), GROUPS, 3, *images.shape[2:]))

    def described(self, texts: Sequence[str], photos: Tensor | None = None) -> Condition:
        """Condition of texts, with photographs (B, 3, H, W) in [0, 1] in the conditional branch alone."""
        told = self.encode_text(list(texts))
        if photos is None:
            return told
        latents = self.encode(photos.to(self.device))
        cond = told[COND].with_tensors(concat=latents)
        null = told[NULL].with_tensors(concat=torch.zeros_like(latents))
        return Condition({COND: cond, NULL: null}, told.prompts)


def stacked_unet(unet: UNet2DConditionModel, groups: int) -> UNet2DConditionModel:
    """A copy with (1 + n) C inputs and n C outputs whose every output is the prior's for its own input's mean.

    The photograph's kernel begins as zeros; those of the groups are the prior's divided by their number, so that the
    same latents in every group give the prior's answer in every group.
    """
    own = unet.config.in_channels
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    grown = UNet2DConditionModel.from_config(
        {**config, "in_channels": own * (1 + groups), "out_channels": own * groups}
    )
    state = dict(unet.state_dict())
    kernel = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([torch.zeros_like(kernel), *[kernel / groups] * groups], 1)
    for name in ("conv_out.weight", "conv_out.bias"):
        state[name] = torch.cat([state[name]] * groups)
    grown.load_state_dict({name: value.float() for name, value in state.items()})
    return grown.to(unet.device)


def told_scale(unet: Any) -> None:
    """Makes a U-Net take a guidance scale (`time_cond_proj_dim`), which changes nothing at first."""
    from ..core.distillation.kinds import SCALE_FEATURES

    time = unet.time_embedding
    time.cond_proj = nn.Linear(SCALE_FEATURES, time.linear_1.in_features, bias=False).to(unet.device, unet.dtype)
    nn.init.zeros_(time.cond_proj.weight)
    unet.register_to_config(time_cond_proj_dim=SCALE_FEATURES)


@dataclass
class MaterialOutput:
    """Materials and what made them."""

    maps: MaterialMaps
    tileable: bool
    nfe: int
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.maps)


class MaterialGenerator:
    """Draws materials."""

    def __init__(self, prior: MaterialPrior | NativeMaterialPrior, config: MaterialConfig = MaterialConfig()) -> None:
        if config.distilled and not prior.guidance_embedded:
            raise InputError("a distilled material prior is told its guidance scale; this network takes none")
        self.prior, self.config = prior, config
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        image: np.ndarray | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        size: int | tuple[int, int] | None = None,
        tileable: bool = True,
        seed: int | Sequence[int] = 0,
        generator_of: Sequence[torch.Generator] | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> MaterialOutput:
        """Materials, one for each prompt.

        Args:
            prompt: what they are made of; may be empty with a picture.
            image: a photograph (H, W, 3), sRGB in [0, 1], of a surface, for all of them.
            num_inference_steps: None: the prior's own, 4 of a distilled one.
            guidance_scale: classifier-free, 1 is none; None: the prior's own.
            size: pixels of the result, a side or (height, width), multiples of the codec's factor; None: the prior's.
            tileable: whether edges continue on the other side.
            seed: one for each, or the first of consecutive ones.
            generator_of: a generator for each instead of seeds.
            callback_on_step_end: see `Sampler.run`.

        Raises InputError for sizes and numbers of steps that cannot be, and for neither words nor picture.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if image is None and not all(text.strip() for text in texts):
            raise InputError("prompt is empty and there is no image; give one of them")
        steps, shape = self._steps(num_inference_steps), self._shape(size)
        sources = _sources(seed, generator_of, len(texts))
        before = self.prior.nfe
        with torch.no_grad():
            photos = None if image is None else self._photo(image, shape).expand(len(texts), -1, -1, -1)
            condition = self.prior.described(texts, photos)
            noise = sample_noise((self.prior.latent_shape[0], *shape), sources, len(texts), self.prior.device)
            latents = self.run(condition, noise, steps, guidance_scale, tileable, sources, callback_on_step_end)
            maps = self.prior.decode_maps(latents, tileable)
        return MaterialOutput(maps, tileable, self.prior.nfe - before, seed if isinstance(seed, int) else None)

    def run(
        self,
        condition: Condition,
        noise: Tensor,
        steps: int,
        guidance_scale: float | None = None,
        tileable: bool = True,
        sources: Sequence[torch.Generator] | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Latents (B, 3 C, h, w) of noise like them."""
        scale = self.config.guidance if guidance_scale is None else guidance_scale
        told: Denoise
        running: Solver
        if self.config.distilled:
            from ..core.distillation.consistency import trained_levels

            known = trained_levels(self.schedule, self.config.levels)
            every = self.config.levels // steps
            levels, running = [*known[:-1:every][:steps], known[-1]], Consistency()
            guidance, condition = guided(self.prior, condition, torch.full((len(noise),), scale))
            told = Denoiser(self.prior, condition, guidance)
        else:
            levels, running = self.schedule.grid(steps, self.config.spacing, "zero"), DDIM()
            told = Denoiser(self.prior, condition, scale)
        asked = Tileable.for_steps(told, self.prior.network, steps) if tileable else told
        return Sampler(running).run(asked, noise, levels, sources, callback)

    def _steps(self, wanted: int | None) -> int:
        steps = self.config.steps if wanted is None else wanted
        most = self.config.levels if self.config.distilled else self.schedule.steps
        if not 1 <= steps <= most:
            raise InputError(f"num_inference_steps={steps} must lie between 1 and {most}")
        return steps

    def _shape(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(h, w) of the latents."""
        if size is None:
            return self.prior.latent_shape[1], self.prior.latent_shape[2]
        height, width = (size, size) if isinstance(size, int) else size
        unit = self.prior.vae_factor * 2 ** (len(self.prior.network.config["block_out_channels"]) - 1)  # type: ignore
        if min(height, width) < unit or height % unit or width % unit:
            raise InputError(f"size={height} x {width} must be multiples of {unit} px")
        return height // self.prior.vae_factor, width // self.prior.vae_factor

    def _photo(self, image: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """The middle of a photograph, of the wanted shape, (1, 3, H, W)."""
        picture = torch.as_tensor(np.asarray(image, np.float32))
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"image has shape {tuple(picture.shape)}, expected (H, W, 3) in [0, 1]")
        height, width = (side * self.prior.vae_factor for side in shape)
        scale = min(picture.shape[0] / height, picture.shape[1] / width)
        rows, columns = (max(1, round(side * scale)) for side in (height, width))
        top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
        middle = picture[top : top + rows, left : left + columns].permute(2, 0, 1)[None]
        return F.interpolate(middle, (height, width), mode="bilinear", antialias=True).clamp(0, 1)

    def save(self, folder: str | Path, base: str, **facts: Any) -> Path:
        """Writes unet/, or adapters, (fp16 safetensors) and materials.json; `base` names the prior it stands on.

        Raises InputError for a folder that holds something else.
        """
        folder = Path(folder)
        if not isinstance(self.prior, MaterialPrior):
            raise InputError(f"{self.prior.name} lies in files as it was published; copy its folder")
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
            raise InputError(f"{folder} is no folder of a material prior and would be replaced; choose another folder")
        with folder_path(folder) as temporary:
            if self.prior.rank:
                save_file(packed(own_weights(self.prior.network)), temporary / ADAPTER)
            else:
                unet = copy.deepcopy(self.prior.network).half()
                unet.save_pretrained(temporary / "unet", safe_serialization=True)  # type: ignore[operator]
            told = {"base": base, "kind": self.prior.prediction_type, "config": to_dict(self.config)}
            told |= {"rank": self.prior.rank} if self.prior.rank else {}
            write_json(temporary / MANIFEST, {**told, "versions": versions(), **facts})
        return folder


def _sources(
    seed: int | Sequence[int], generators: Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator]:
    if generators is not None:
        sources = list(generators)
    else:
        seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
        sources = [generator(one) for one in seeds]
    if len(sources) != count:
        raise InputError(f"got {len(sources)} seeds or generators for {count} materials; give one for each")
    return sources


def load_materials(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MaterialGenerator:
    """A frozen generator: "toybox", a folder that `MaterialGenerator.save` wrote, or one of the published weights.

    Raises InputError when it is none, or its prior or weights are missing.
    """
    check_named(name, "the name of the materials", "give toybox or a folder")
    folder = weights_root() / EMBEDDED if str(name) == "toybox" else Path(name)
    if is_native(folder):
        native, distilled = load_native(folder, True, device, dtype)
        asked = MaterialConfig(4 if distilled else 50, PUBLISHED_GUIDANCE, "leading", distilled)
        return MaterialGenerator(native, asked)
    if not (folder / MANIFEST).is_file():
        where = "the package holds no weights for materials" if str(name) == "toybox" else f"{folder} has no {MANIFEST}"
        raise InputError(f"--prior {name}: {where}; {HOW_TO_TRAIN}")
    told = read_json(folder / MANIFEST)
    if not isinstance(told, dict) or not {"base", "kind", "config"} <= told.keys():
        raise InputError(f"{folder / MANIFEST} must name the base prior, the kind of its output and its config")
    base, config = base_prior(folder, str(told["base"]), device, dtype), load_config(MaterialConfig, told["config"])
    try:
        if told.get("rank"):
            lean = MaterialPrior.from_prior(base, int(told["rank"]))
            if config.distilled:
                told_scale(lean.network)
            copy_into(own_weights(lean.network), load_file(folder / ADAPTER), str(folder / ADAPTER))
            prior = lean.with_network(lean.network.to(device, dtype), told["kind"])
        else:
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=dtype)
            prior = MaterialPrior(base, unet.to(device), told["kind"])
    except OSError as error:
        raise InputError(f"{folder} is not a whole material prior: {str(error).splitlines()[0]}") from error
    return MaterialGenerator(prior.freeze(), config)
