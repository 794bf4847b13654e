"""Maps from a text-to-image prior: the target latents are denoised beside the image's latent.

Marigold (Ke et al. 2024): network input [z_image, z_target,t] on channels; one group of latent channels a target.
E2E-FT (Garcia et al. 2025): the same network asked once at t = T - 1 with z_target = 0 is a regressor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.priors import Condition, Rows, StableDiffusionPrior, weights_root
from ..core.sampling import DDIM, Denoiser, Kind, Level, NoiseSchedule, Sampler
from ..core.sampling.grids import Spacing
from ..core.sampling.solvers import Consistency, Solver
from ..core.training.adapters import adapted, own_weights, packed
from ..core.training.checkpoints import copy_into
from ..core.training.export import folder_path
from ..utils.configs import load_config, to_dict
from ..utils.errors import InputError
from ..utils.files import read_json, write_json
from ..utils.runs import versions
from .bases import CODEC, base_prior
from .codecs import CODECS, StackCodec
from .confidence import ErrorModel
from .ensemble import Solver as Alignment
from .walk import USUAL, Walk

MANIFEST = "head.json"
OWN_ENTRIES = ("base", "config", "versions", "confidence")  # of it, which `save` makes anew
PROMPT = "prompt.safetensors"
ADAPTER = "adapter.safetensors"
ENDS = ("conv_in", "conv_norm_out", "conv_out")  # what reads and writes latents
EARLIER = {  # keys of head.json before codecs had their own: (codec, argument)
    "depth_space": ("depth", "space"),
    "shift_invariant": ("depth", "shift"),
    "full_z_range": ("normals", "full_z_range"),
}


@dataclass(frozen=True)
class HeadConfig:
    """How a head is asked; saved with its weights."""

    targets: tuple[str, ...] = ("depth", "normals")
    """names of codecs, in the order of the latent groups"""
    kind: Kind = "v_prediction"
    """what the network's output means; need not be the prior's"""
    start: Literal["zeros", "noise"] = "zeros"
    """zeros: a one-step regressor; noise: a sampler"""
    steps: int = 1
    timestep: int | None = None
    """train index a regressor's network is told instead of T - 1; at low ones the prior expects a clean picture (as in
    the first code of GenPercept, Xu et al. 2025, with 1). Needs kind "sample": other kinds are read at T - 1"""
    solver: Literal["ddim", "lcm"] = "ddim"
    """lcm: of a head that was distilled to a few steps (Luo et al. 2023), which add noise"""
    spacing: Spacing | None = "trailing"
    """None: as the prior's own scheduler"""
    final: Literal["zero", "index0"] = "zero"
    """zero: the result is the predicted x0; index0: the state at the least-noise train step"""
    processing_resolution: int = 96
    """px of the longest edge; 0 = the input's own"""
    square: bool = False
    """pictures are seen in the middle of black squares"""
    prompt_padding: Literal["max_length", "do_not_pad"] = "max_length"
    """of the empty prompt"""
    alignment: Alignment = "consensus"
    """how the members of an ensemble are brought to one scale; published: as diffusers' Marigold does"""
    rank: int = 0
    """of the adapters that the network learnt as, beside its first and last layers; 0: all its weights"""
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """arguments of the targets' codecs that differ from the defaults, e.g. {depth: {space: log}}"""

    def __post_init__(self) -> None:
        if not self.targets or not set(self.targets) <= set(CODECS) or len(set(self.targets)) < len(self.targets):
            raise InputError(f"targets={self.targets} must be distinct names out of {', '.join(CODECS)}")
        if not set(self.codecs) <= set(self.targets):
            raise InputError(f"codecs names {', '.join(self.codecs)}, but the targets are {', '.join(self.targets)}")
        if self.steps < 1 or self.processing_resolution < 0:
            raise InputError(f"steps={self.steps} must be >= 1 and processing_resolution >= 0")
        if self.start == "zeros" and self.steps != 1:
            raise InputError(f"steps={self.steps}: a head that starts from zeros is a one-step regressor; use 1")
        if self.start == "zeros" and self.solver != "ddim":
            raise InputError(f"solver={self.solver!r}: a head that starts from zeros is asked once; use ddim")
        if self.timestep is not None and (self.start, self.kind) != ("zeros", "sample"):
            raise InputError(
                f'timestep={self.timestep} needs start "zeros" and kind "sample", got {self.start!r} and {self.kind!r}'
            )

    def codec(self) -> StackCodec:
        """The codecs of the targets. Raises InputError for arguments they do not take."""
        kinds: dict[str, Any] = {name: CODECS[name] for name in self.targets}
        return StackCodec({name: load_config(kind, self.codecs.get(name, {})) for name, kind in kinds.items()})

    @classmethod
    def read(cls, values: Mapping[str, Any], **defaults: Any) -> HeadConfig:
        """The config in a head.json; `defaults` for what it leaves out. Keys of EARLIER go to their codecs."""
        now = {**defaults, **{key: value for key, value in values.items() if key not in EARLIER}}
        codecs = {name: dict(arguments) for name, arguments in now.get("codecs", {}).items()}
        for key, (codec, argument) in EARLIER.items():
            if key in values and codec in now.get("targets", cls.targets):
                codecs.setdefault(codec, {})[argument] = values[key]
        return load_config(cls, {**now, "codecs": codecs})


class GeometryHead:
    """A U-Net that predicts maps, and the prior whose VAE and empty prompt it uses."""

    def __init__(
        self, prior: StableDiffusionPrior, unet: UNet2DConditionModel, config: HeadConfig, base: str | None = None
    ) -> None:
        """`base`: the name or folder the prior was loaded by, None where it is not known."""
        self.prior, self.unet, self.config, self.codec, self.base = prior, unet, config, config.codec(), base
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        self.latent_channels = prior.vae.config.latent_channels
        expected = (self.latent_channels * (1 + self.groups), self.latent_channels * self.groups)
        if (unet.config.in_channels, unet.config.out_channels) != expected:
            raise InputError(
                f"a head for {', '.join(config.targets)} needs a U-Net with {expected[0]} input and {expected[1]} "
                f"output channels, got {unet.config.in_channels} and {unet.config.out_channels}"
            )
        if config.timestep is not None and not 0 <= config.timestep < self.schedule.steps:
            raise InputError(
                f"timestep={config.timestep} must lie in 0 to {self.schedule.steps - 1}, the prior's steps"
            )
        self.asked = prior.with_network(unet, config.kind)
        self._empty: Tensor | None = None
        self.brings_codec = False
        """whether its folder holds the codec, not the base's"""
        self.confidence: dict[str, ErrorModel] = {}
        """by target, where the head was calibrated"""
        self.facts: dict[str, Any] = {}
        """what else its head.json told, such as the numbers of validation; for `save`"""

    @property
    def groups(self) -> int:
        """Number of targets n."""
        return self.codec.groups

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""
        return self.asked.nfe

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.unet.parameters()).device

    @classmethod
    def from_prior(cls, prior: StableDiffusionPrior, config: HeadConfig = HeadConfig()) -> GeometryHead:
        """An untrained head that starts from the prior's weights (`expanded_unet`)."""
        unet = expanded_unet(prior.network, len(config.targets), shared=config.timestep is None)
        if config.rank:
            adapted(unet, config.rank, whole=ENDS)
        return cls(prior, unet, config)

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> GeometryHead:
        """Reads a head that `save` wrote with its base. Raises InputError when it is none or the base is missing."""
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or not {"base", "config"} <= manifest.keys():
            raise InputError(f"{folder / MANIFEST} must name the base prior and hold the head's config")
        if kind := manifest.get("kind"):
            how = f"--refine --refiner {folder}" if kind == "refined" else f"--head {folder}"
            raise InputError(f"{folder} holds a head of the kind {kind!r}, not a plain one; give it as {how}")
        config = HeadConfig.read(manifest["config"])
        base = str(manifest["base"])
        prior = base_prior(folder, base, device, dtype)
        try:
            if config.rank:
                unet = cls.from_prior(prior, config).unet
                copy_into(own_weights(unet), load_file(folder / ADAPTER), str(folder / ADAPTER))
            else:
                unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=dtype)
            empty = load_file(folder / PROMPT)["empty"]
        except OSError as error:
            raise InputError(f"{folder} is not a whole head: {str(error).splitlines()[0]}") from error
        beside = folder.resolve().parent / base
        found = str(beside) if beside.is_dir() and beside.parent != weights_root().resolve() else base
        head = cls(prior, unet.to(device, dtype).eval().requires_grad_(False), config, found)
        head._empty, head.brings_codec = empty.to(device, dtype), (folder / CODEC).is_dir()
        head.confidence = {k: ErrorModel.read(v) for k, v in manifest.get("confidence", {}).items()}
        head.facts = {name: fact for name, fact in manifest.items() if name not in OWN_ENTRIES}
        return head

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """Writes unet/ (or adapters), the empty prompt and a codec of its own (fp16), and head.json with `facts`.

        `base` names the prior, found as a sibling folder or by name; None: as it was found before. Only its codec is
        used: the prompt is kept here because a text encoder that learns more would change it. A head that is the
        prior's own network (Marigold) is written as its whole pipeline instead.

        Raises InputError without a base and for a folder that holds something else: the whole folder is replaced.
        """
        folder, whole = Path(folder), self.unet is self.prior.network
        base = base or self.base
        if base is None and not whole:
            raise InputError(
                'base=None: this head was not loaded from files; name its prior, for example base="toybox"'
            )
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
            raise InputError(f"{folder} is no folder of a head and would be replaced; choose another folder")
        described: dict[str, Any] = {} if whole else {"base": base}
        with folder_path(folder) as temporary:
            if whole:
                self.prior.save(temporary)
            else:
                self._save_parts(temporary)
            described |= {"config": to_dict(self.config), "versions": versions(), **facts}
            if self.confidence:
                described["confidence"] = {name: to_dict(model) for name, model in self.confidence.items()}
            write_json(temporary / MANIFEST, described)
        return folder

    def _save_parts(self, folder: Path) -> None:
        if self.config.rank:
            save_file(packed(own_weights(self.unet)), folder / ADAPTER)
        whole = {} if self.config.rank else {"unet": self.unet}
        for name, module in {**whole, **({CODEC: self.prior.vae} if self.brings_codec else {})}.items():
            copy = type(module).from_config(module.config)
            copy.load_state_dict(module.state_dict())
            copy.half().save_pretrained(folder / name, safe_serialization=True)
        save_file({"empty": self.empty_prompt().half().contiguous()}, folder / PROMPT)

    def empty_prompt(self) -> Tensor:
        """Embedding (1, L, D) of the empty prompt, padded as the config says."""
        if self._empty is None:
            tokenizer, encoder = self.prior.pipe.tokenizer, self.prior.pipe.text_encoder
            limit = tokenizer.model_max_length
            ids = tokenizer(
                "", padding=self.config.prompt_padding, max_length=limit, truncation=True, return_tensors="pt"
            ).input_ids
            with torch.no_grad():
                self._empty = encoder(ids.to(encoder.device))[0]
        return self._empty

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.prior.encode(images)

    def encode_targets(self, targets: dict[str, Tensor], valid: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(latents (B, n C, h, w), codec states) of targets by name."""
        pictures, states = self.codec.encode(targets, valid)  # (B, n, 3, H, W)
        latents = self.prior.encode(pictures.flatten(0, 1) / 2 + 0.5)  # (B n, C, h, w)
        return latents.reshape(pictures.shape[0], -1, *latents.shape[2:]), states

    def decode_pictures(self, latents: Tensor) -> Tensor:
        """Pictures (B, n, 3, H, W), about [-1, 1], of latents (B, n C, h, w); differentiable."""
        groups = latents.reshape(-1, self.latent_channels, *latents.shape[2:])  # (B n, C, h, w)
        pictures = 2 * self.prior.decode(groups, clamp=False) - 1
        return pictures.reshape(latents.shape[0], self.groups, *pictures.shape[1:])

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Maps (B, C, H, W) by name, e.g. depth in [0, 1] and unit normals in the viewer frame."""
        return self.codec.decode(self.decode_pictures(latents))

    def denoiser(self, image_latents: Tensor) -> Denoiser:
        """The head for fixed images (B, C, h, w), whose latents come before those of the targets."""
        empty, told = self.empty_prompt().to(image_latents.device), self.config.timestep
        rows = Rows({"concat": image_latents}).with_tensors(text=empty)
        remap = None if told is None else lambda time: torch.full_like(time, told)
        return Denoiser(self.asked, Condition({"cond": rows}), time_remap=remap)

    def levels(self, steps: int, spacing: Spacing | None = None) -> list[Level]:
        """steps + 1 levels from the noisiest to the end."""
        grid = self.schedule.grid(steps, spacing or self.config.spacing, self.config.final)
        return [self.first_level() if level.index == self.schedule.steps - 1 else level for level in grid]

    def first_level(self) -> Level:
        """Train index T - 1; exactly pure noise on schedules with zero terminal signal."""
        last = self.schedule.steps - 1
        if self.prior.scheduler_config.get("rescale_betas_zero_snr"):
            return replace(self.schedule.at_index(last), alpha=0.0, sigma=1.0, lam=-math.inf)
        return self.schedule.at_index(last)

    def shape(self, image_latents: Tensor) -> tuple[int, int, int]:
        """(n C, h, w) of the target latents."""
        return (self.latent_channels * self.groups, *image_latents.shape[2:])

    @torch.no_grad()
    def predict(self, image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        """Target latents (B, n C, h, w) from a start state: noise, or zeros for a regressor."""
        levels = self.levels(walk.steps or self.config.steps, walk.spacing)
        return Sampler(self.solver).run(self.denoiser(image_latents), start, levels, walk.generator, walk.callback)

    @property
    def solver(self) -> Solver:
        """What the steps are made with."""
        return Consistency() if self.config.solver == "lcm" else DDIM()

    @property
    def stochastic(self) -> bool:
        """Whether its steps add noise."""
        return self.solver.stochastic

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GeometryHead:
        """Moves and casts the networks."""
        self.prior.to(device, dtype)
        self.asked.to(device, dtype)
        if self._empty is not None:
            self._empty = self._empty.to(device=device, dtype=dtype)
        return self

    def with_config(self, **changes: Any) -> GeometryHead:
        """The same networks asked differently."""
        head = GeometryHead(self.prior, self.unet, replace(self.config, **changes), self.base)
        head.confidence, head.brings_codec = self.confidence, self.brings_codec
        head._empty = self._empty if head.config.prompt_padding == self.config.prompt_padding else None
        return head


def expanded_unet(unet: UNet2DConditionModel, targets: int, shared: bool = True) -> UNet2DConditionModel:
    """A copy with (1 + n) C inputs and n C outputs; conv_out's kernel and bias are repeated n times.

    shared: conv_in's kernel is repeated 1 + n times and divided by 1 + n; with z_target = z_image in every group, every
    group of the output is the original output. Otherwise the image has the kernel to itself and the targets begin with
    zeros: every group of the output is the prior's for the image.
    """
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    copies = 1 + targets
    config["in_channels"], config["out_channels"] = config["in_channels"] * copies, config["out_channels"] * targets
    grown = UNet2DConditionModel.from_config(config)
    state = unet.state_dict()
    kernel = state["conv_in.weight"]
    parts = [kernel / copies] * copies if shared else [kernel] + [torch.zeros_like(kernel)] * targets
    state["conv_in.weight"] = torch.cat(parts, dim=1)
    state["conv_out.weight"] = state["conv_out.weight"].repeat(targets, 1, 1, 1)
    state["conv_out.bias"] = state["conv_out.bias"].repeat(targets)
    grown.load_state_dict({name: value.float() for name, value in state.items()})
    return grown.to(unet.device)
