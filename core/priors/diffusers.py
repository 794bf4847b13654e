"""Diffusers pipelines as priors: Stable Diffusion 1.x/2.x, SDXL, SD3 and FLUX.

Only the component loading and the text encoding of diffusers are used; sampling is ours. Weights are safetensors,
pipeline classes come from the table below, never from the repository that holds the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.seeds import sample_noise
from .base import PredictionType, Recommended
from .control import IMAGE_PROMPT, PictureControl, summed
from .latents import latent_affine, packed, patch_positions, unpacked
from .noise import predicts
from .placed import PlacedPrior
from .placement import execution_device
from .rows import COND, NEGATIVE, NULL, Condition, Rows

DEFAULT_EMBEDDED_GUIDANCE = 3.5  # FLUX.1-dev
FEW_STEPS = {  # schedulers that only distilled models come with, and the solvers that suit these
    "LCMScheduler": "lcm",
    "TCDScheduler": "ddim",
    "FlowMatchLCMScheduler": "lcm",
}
P = TypeVar("P", bound="DiffusersPrior")


class DiffusersPrior(PlacedPrior):
    """What the families share: the pipeline object, the VAE, truncation, saving."""

    backbone = "unet"
    steered_by: tuple[str, ...] = ()  # classes of the controls that can be added
    reads_pictures = False  # whether an image prompt can be added
    controls: tuple[PictureControl, ...] = ()
    spacing: str | None = None  # of the sigmas that the family's pipeline itself gives to its scheduler
    uses: tuple[str, ...] = ()  # parts of the stock pipeline that are needed and that other families leave out
    upcasts = False  # whether the stock pipeline decodes in float32 where a VAE's config says force_upcast

    def __init__(self, pipe: Any, name: str = "", frozen: bool = True) -> None:
        """`frozen`: False leaves the networks as trainable as they are."""
        self.pipe, self.name = pipe, name or type(pipe).__name__
        self.network: nn.Module = getattr(pipe, self.backbone)
        self.vae = pipe.vae
        config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
        given = self.spacing is not None and not config.get("use_flow_sigmas")
        self.scheduler_config = {**config, "spacing": self.spacing} if given else config
        self.prediction_type = predicts(config)
        settings = self.network.config
        side = settings.get("sample_size") or 64
        channels = settings["in_channels"]
        self.vae_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_shape = (channels, side, side)
        self.image_size = side * self.vae_factor
        self.dtype = next(self.network.parameters()).dtype
        if (precise := self._dtype_for(self.vae, self.vae.dtype)) != self.vae.dtype:
            self.vae.to(dtype=precise)
        self.guidance_embedded = takes_scale(self.network)
        if self.few_steps:  # their teacher's guidance is in the weights, or an input
            scale = self.recommended.guidance if self.guidance_embedded else 1.0
            solver = FEW_STEPS.get(config["_class_name"], self.recommended.solver)
            self.recommended = Recommended(guidance=scale, steps=4, solver=solver, distilled=True)
        if frozen:
            self.freeze()

    @property
    def few_steps(self) -> bool:
        """Whether the model was distilled to a few steps, as its files tell."""
        return self.scheduler_config["_class_name"] in FEW_STEPS

    def modules(self) -> dict[str, nn.Module]:
        """See Prior.modules."""
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        beside = {control.row: control.network for control in self.controls}
        return {**parts, **beside, self.backbone: self.network}

    def controlled(self: P, controls: Sequence[PictureControl]) -> P:
        """This prior with controls beside its network (`steering.with_controls`); everything else is shared."""
        other = copy.copy(self)
        other.controls, other.nfe = tuple(controls), 0
        other.reads = self.reads | {control.row for control in controls}
        return other

    def _asked(self, x: Tensor, time: Tensor, text: Tensor, rows: Rows, more: dict[str, Any] | None = None) -> Tensor:
        """The answer of a U-Net to text (B, L, D) with what steers it; `more` are its further conditions."""
        state, text, more = self._state(x, rows), text.to(self.dtype), more or {}
        added = summed([control.added(state, time, text, rows, more) for control in self.controls])
        if IMAGE_PROMPT in self.reads:
            more = {**more, "image_embeds": [rows[IMAGE_PROMPT].to(self.dtype)[:, None]]}
        added |= {"timestep_cond": self._scale_features(x, rows), "return_dict": False}
        return self.network(state, time, text, **({"added_cond_kwargs": more} if more else {}), **added)[0]

    def _beside(self, asked: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
        """What the controls add to a transformer that is asked `asked`."""
        return summed([control.joint(asked, rows, self._control_latents) for control in self.controls])

    @torch.no_grad()
    def _control_latents(self, pictures: Tensor, shifted: bool) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1], with or without the shift of the VAE's config."""
        latents = self.encode(pictures)
        shift, scale = latent_affine(self.vae.config, latents)
        return latents if shifted else latents + shift * scale

    def _dtype_for(self, module: nn.Module, dtype: torch.dtype | None) -> torch.dtype | None:
        """A codec that overflows in half precision (SDXL's) stays in float32.

        Other families' configs say so too when they are written, as it is the default, and their pipelines never look.
        """
        overflows = self.upcasts and bool(self.vae.config.get("force_upcast")) and dtype == torch.float16
        return torch.float32 if overflows and module is self.vae else dtype

    def with_network(self: P, network: nn.Module, kind: PredictionType) -> P:
        """This prior with another network, whose output is of another kind; everything else is shared.

        It counts its own calls. The network is neither frozen nor moved.
        """
        other = copy.copy(self)
        other.network, other.prediction_type, other.nfe = network, kind, 0
        other.guidance_embedded = takes_scale(network)
        other.dtype = next(network.parameters()).dtype
        return other

    def on_path(self: P, config: Mapping[str, Any]) -> P:
        """This prior as one of the noise path of another scheduler config."""
        other = copy.copy(self)
        other.scheduler_config, other.prediction_type, other.nfe = config, predicts(config), 0
        return other

    def _scale_features(self, x: Tensor, rows: Rows) -> Tensor | None:
        """Features (B, d) of w = s - 1 for U-Nets that take a guidance scale s (rows "guidance", else 1).

        [sin, cos] of 1000 w 10000^{-j / (d / 2 - 1)} (Kingma et al. 2021; Luo et al. 2023); None where it takes none.
        """
        if not self.guidance_embedded:
            return None
        scale = rows["guidance"] if "guidance" in rows else torch.ones(x.shape[0])
        width = int(self.network.config["time_cond_proj_dim"])  # type: ignore[index]
        weight = (scale.to(x.device, torch.float32) - 1) * 1000
        return get_timestep_embedding(weight, width, downscale_freq_shift=1).to(self.dtype)

    def _state(self, x: Tensor, rows: Rows) -> Tensor:
        """The network's input: the state, behind the channels of a `concat` row where there is one."""
        joined = torch.cat([rows["concat"].to(x), x], 1) if "concat" in rows else x
        return joined.to(self.dtype)

    def encode(
        self, images: Tensor, sample: bool = False, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """See Prior.encode: (posterior - shift) * scale, the posterior's mean unless `sample`."""
        posterior = self.vae.encode((2 * images - 1).to(execution_device(self.vae), self.vae.dtype)).latent_dist
        latents = posterior.mean
        if sample:
            if generator is None:
                raise InputError("encode(sample=True) draws noise: pass a generator")
            noise = sample_noise(latents.shape[1:], generator, latents.shape[0], latents.device)
            latents = latents + posterior.std * noise.to(latents.dtype)
        shift, scale = latent_affine(self.vae.config, latents)
        return ((latents - shift) * scale).to(torch.promote_types(images.dtype, torch.float32))

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """See Prior.decode."""
        shift, scale = latent_affine(self.vae.config, latents)
        latents = (latents / scale + shift).to(execution_device(self.vae), self.vae.dtype)
        images = self.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5
        return images.clamp(0, 1) if clamp else images

    def _tokenizer(self) -> tuple[Any, int]:
        """The tokenizer that sees most of the prompt and its length limit."""
        return self.pipe.tokenizer, self.pipe.tokenizer.model_max_length

    def truncated(self, prompt: str) -> str:
        """See Prior.truncated."""
        return cut_words(*self._tokenizer(), prompt)

    def save(self, folder: str | Path) -> Path:
        """Writes the whole pipeline folder, loadable by plain diffusers."""
        self.pipe.save_pretrained(str(folder), safe_serialization=True)
        return Path(folder)


def cut_words(tokenizer: Any, limit: int, prompt: str) -> str:
    """The end of a prompt beyond what a text encoder reads; empty when all of it is read."""
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    return tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True).strip() if len(ids) > limit else ""


class StableDiffusionPrior(DiffusersPrior):
    """Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net."""

    recommended = Recommended(7.5, 50)
    reads = frozenset({"text", "concat", NEGATIVE})
    steered_by: tuple[str, ...] = ("ControlNetModel", "T2IAdapter")
    reads_pictures = True

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text."""
        texts, against = paired(prompts, negative)
        return Condition({COND: Rows({"text": self._embed(texts)}), NULL: Rows({"text": self._embed(against)})}, texts)

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        tokenizer, limit = self._tokenizer()
        distinct = list(dict.fromkeys(texts))
        tokens = tokenizer(distinct, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        encoder = self.pipe.text_encoder
        mask = tokens.attention_mask.to(self.device) if getattr(encoder.config, "use_attention_mask", None) else None
        embeds = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return embeds[[distinct.index(text) for text in texts]]

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        text = torch.cat([rows["text"], rows[NEGATIVE]], 1) if NEGATIVE in rows else rows["text"]
        return self._asked(x, time, text, rows)


class StableDiffusionXLPrior(DiffusersPrior):
    """SDXL: two text encoders, pooled embedding and size ids."""

    upcasts = True
    recommended = Recommended(5.0, 50)
    reads = frozenset({"text", "pooled", "time_ids", "concat"})
    steered_by = ("ControlNetModel", "T2IAdapter")
    reads_pictures = True

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text; without a negative prompt the unconditional branch follows the model's own rule."""
        texts, against = paired(prompts, negative)
        with torch.no_grad():
            embeds, null, pooled, null_pooled = self.pipe.encode_prompt(
                texts, device=self.device, negative_prompt=None if negative is None else against
            )
        return two_branches(embeds, pooled, null, null_pooled, texts)

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        time_ids = rows.get("time_ids")  # (B, 6); by default the size drawn, uncropped
        if time_ids is None:
            height, width = (side * self.vae_factor for side in x.shape[-2:])
            time_ids = torch.tensor([(height, width, 0, 0, height, width)]).expand(x.shape[0], -1)
        added = {"text_embeds": rows["pooled"].to(self.dtype), "time_ids": time_ids.to(x.device, self.dtype)}
        return self._asked(x, time, rows["text"], rows, added)


class StableDiffusion3Prior(DiffusersPrior):
    """SD3 and SD3.5: a diffusion transformer on a rectified flow, CLIP and optional T5 text."""

    recommended = Recommended(7.0, 28, solver="euler")

    backbone = "transformer"
    reads = frozenset({"text", "pooled"})
    steered_by = ("SD3ControlNetModel",)

    def __init__(self, pipe: Any, name: str = "", frozen: bool = True) -> None:
        super().__init__(pipe, name, frozen)
        self.latent_multiple = int(pipe.transformer.config["patch_size"])

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text."""
        texts, against = paired(prompts, negative)
        with torch.no_grad():
            embeds, null, pooled, null_pooled = self.pipe.encode_prompt(
                texts, None, None, device=self.device, negative_prompt=against
            )
        return two_branches(embeds, pooled, null, null_pooled, texts)

    def _tokenizer(self) -> tuple[Any, int]:
        return (self.pipe.tokenizer_3, 256) if self.pipe.text_encoder_3 is not None else super()._tokenizer()

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        asked = {"hidden_states": x.to(self.dtype), "timestep": time}
        asked["encoder_hidden_states"] = rows["text"].to(self.dtype)
        asked["pooled_projections"] = rows["pooled"].to(self.dtype)
        return self.network(**asked, **self._beside(asked, rows), return_dict=False)[0]

    def tokens(self, latents: Tensor) -> int:
        """See Prior.tokens."""
        return latents.shape[-2] * latents.shape[-1] // self.latent_multiple**2


class FluxPrior(DiffusersPrior):
    """FLUX.1: latents packed in 2x2 patches, network time in [0, 1], guidance scale as an input where distilled."""

    backbone = "transformer"
    reads = frozenset({"text", "pooled"})
    steered_by = ("FluxControlNetModel",)
    latent_multiple = 2
    spacing = "trailing"
    recommended = Recommended(3.5, 28, solver="euler")

    def __init__(self, pipe: Any, name: str = "", frozen: bool = True) -> None:
        super().__init__(pipe, name, frozen)
        settings = pipe.transformer.config
        side = getattr(pipe, "default_sample_size", 128)
        self.latent_shape = (settings["in_channels"] // 4, side, side)
        self.image_size = side * self.vae_factor

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text; guidance-distilled models get an unconditional branch only for a negative prompt."""
        texts, against = paired(prompts, negative)
        limit = self._tokenizer()[1]
        with torch.no_grad():
            embeds, pooled, _ = self.pipe.encode_prompt(texts, None, device=self.device, max_sequence_length=limit)
            if negative is None and self.guidance_embedded:
                return Condition({COND: Rows({"text": embeds, "pooled": pooled})}, texts)
            null, null_pooled, _ = self.pipe.encode_prompt(against, None, device=self.device, max_sequence_length=limit)
        return two_branches(embeds, pooled, null, null_pooled, texts)

    @property
    def few_steps(self) -> bool:
        """See DiffusersPrior.few_steps; the model that takes no guidance scale (schnell) is one too."""
        return super().few_steps or not self.pipe.transformer.config["guidance_embeds"]

    def _tokenizer(self) -> tuple[Any, int]:
        return self.pipe.tokenizer_2, 512 if self.guidance_embedded else 256

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        height, width = x.shape[-2:]
        guidance = rows.get("guidance") if self.guidance_embedded else None  # (B,)
        if self.guidance_embedded and guidance is None:
            guidance = torch.full((x.shape[0],), DEFAULT_EMBEDDED_GUIDANCE)
        asked = {
            "hidden_states": packed(x).to(self.dtype),
            "timestep": (time / 1000).to(self.dtype),
            "guidance": None if guidance is None else guidance.to(x.device, torch.float32),
            "pooled_projections": rows["pooled"].to(self.dtype),
            "encoder_hidden_states": rows["text"].to(self.dtype),
            "txt_ids": torch.zeros(rows["text"].shape[1], 3, device=x.device, dtype=self.dtype),
            "img_ids": patch_positions(height // 2, width // 2).to(x.device, self.dtype),
        }
        return unpacked(self.network(**asked, **self._beside(asked, rows), return_dict=False)[0], height, width)

    def tokens(self, latents: Tensor) -> int:
        """See Prior.tokens."""
        return latents.shape[-2] * latents.shape[-1] // 4


def takes_scale(network: nn.Module) -> bool:
    """Whether a network is told the guidance scale: FLUX.1-dev's, and U-Nets with a `time_cond_proj_dim`."""
    config = getattr(network, "config", {})
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def two_branches(
    text: Tensor, pooled: Tensor, null_text: Tensor, null_pooled: Tensor, prompts: Sequence[str]
) -> Condition:
    """The condition of models with token and pooled embeddings, (B, L, D) and (B, P) in both branches."""
    null = Rows({"text": null_text, "pooled": null_pooled})
    return Condition({COND: Rows({"text": text, "pooled": pooled}), NULL: null}, prompts)


def paired(prompts: str | Sequence[str], negative: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts as lists of equal length (one negative prompt serves all)."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    against = [negative or ""] * len(texts) if negative is None or isinstance(negative, str) else list(negative)
    if len(against) == 1:
        against = against * len(texts)
    if len(against) != len(texts):
        raise InputError(f"got {len(against)} negative prompts for {len(texts)} prompts; give one or one per prompt")
    for text in (*texts, *against):
        if not isinstance(text, str):
            raise InputError(f"a prompt must be text, got {type(text).__name__}")
    return texts, against


FAMILIES: dict[str, type[DiffusersPrior]] = {
    "StableDiffusionPipeline": StableDiffusionPrior,
    "StableDiffusionXLPipeline": StableDiffusionXLPrior,
    "StableDiffusion3Pipeline": StableDiffusion3Prior,
    "FluxPipeline": FluxPrior,
}
