"""Heads as their authors published them, other than Marigold's: told apart by their files, read into ours.

- dm-calib: DM-Calib (juneyoung9/DM-Calib); facts from DMCalib/infer.py of JunyuanDeng/DM-Calib.
- yoso: StableNormal's one-step start (Stable-X/yoso-normal-v0-3); from stablenormal/ and hubconf.py of
  Stable-X/StableNormal. Its refiner (Stable-X/stable-normal-v0-1) is refused, see REFUSED.
- stable-material: MaterialFusion's prior (thebluser/stable-material); from stablematerial/ of
  yehonathanlitman/MaterialFusion.
- primedepth: PrimeDepth (CVL-Heidelberg/PrimeDepth); see `primedepth.py`.

Weights are safetensors, or pickles that are read as tensors alone; no code of a repository is fetched or run. A folder
of a layout that is not understood is refused with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..core.priors import StableDiffusionPrior, hub, load_prior
from ..core.priors.pickled import as_safetensors, tensors_of
from ..core.priors.single_file import shapes_of
from ..core.training.checkpoints import copy_into
from ..utils.errors import InputError
from ..utils.files import read_json
from .codecs.metric import MetresCodec
from .geometry_head import GeometryHead, HeadConfig
from .latent_control import take_controlnet
from .material_score import TARGETS
from .metric_head import MetricConfig, MetricHead
from .one_step import OneStepConfig, OneStepHead
from .primedepth import is_primedepth, load_primedepth
from .stable_material import StableMaterialHead

BASE = "sd21"  # what DM-Calib and PrimeDepth were made of
BESIDE = "stable-diffusion-2-1"  # a folder beside theirs that is taken for it
LONGEST = 768  # px that StableNormal and DM-Calib look at
DOMAINS = {
    "indoor": ("indoor geometry", 50.0),
    "outdoor": ("outdoor geometry", 150.0),
    "object": ("object geometry", 10.0),
}
TURBO = 0  # the time told in YOSO's own use, without a refiner


@dataclass(frozen=True)
class Loading:
    """How weights are loaded."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    base: str | Path | None = None
    """the prior that gives what a repository lacks; None: its authors'"""


@dataclass(frozen=True)
class Layout:
    """A kind of folder."""

    marks: tuple[str, ...]
    """files of which all are there"""
    target: str
    """a codec"""
    load: Callable[[Path, Loading], Any]
    fetched: tuple[str, ...]
    """patterns of the files that are needed of a repository"""


def dm_calib(folder: Path, how: Loading) -> GeometryHead:
    """The camera head: a U-Net of [noisy camera picture, picture]; ours has the picture first."""
    unet = _unet(folder / "calib" / "unet", how)
    prior, base = _base(folder, how)
    channels = prior.vae.config.latent_channels
    _check_channels(unet, 2 * channels, channels, folder)
    swap_inputs(unet, channels)
    config = HeadConfig(
        targets=("camera",),
        kind=prior.prediction_type,
        start="noise",
        steps=20,
        processing_resolution=LONGEST,
        prompt_padding="do_not_pad",
        alignment="published",
        square=True,
        **_walk(prior),
    )
    return GeometryHead(prior, unet.requires_grad_(False).eval(), config, base)


def dm_calib_metres(folder: Path, how: Loading, domain: str = "indoor") -> MetricHead:
    """DM-Calib's second network, depth/: metres of [picture, camera] in one call, told a kind of place in words.

    Its decoder was pickled whole (depth/vae_decoder.pth); of it the tensors alone are read, once.
    """
    if domain not in DOMAINS:
        raise InputError(f"domain={domain!r} is unknown; have {', '.join(DOMAINS)}")
    words, far_m = DOMAINS[domain]
    prior, base = _base(folder, how)
    unet = _unet(folder / "depth", how)
    channels = prior.vae.config.latent_channels
    _check_channels(unet, 2 * channels, channels, folder / "depth")
    config = MetricConfig(MetresCodec(far_m, wide=True), 1000, words, processing_resolution=LONGEST)
    head = MetricHead(prior, config, base)
    head.unet.load_state_dict(unet.state_dict())
    path = folder / "depth" / "vae_decoder.pth"
    decoder = load_file(as_safetensors(path, "dm-calib", dict, layers=True))
    copy_into(head.decoder.state_dict(), decoder, str(path))
    head.text = _bare_words(prior, words)
    for module in head.modules().values():
        module.to(how.device, how.dtype).requires_grad_(False).eval()
    return head


def load_metric(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
                **options: Any) -> MetricHead:  # fmt: skip
    """A head of metres: a folder that `MetricHead.save` wrote, DM-Calib's folder, or "dm-calib".

    Raises InputError for what is none.
    """
    if str(name) == "dm-calib" or layout_of(Path(name)) == "dm-calib":
        fetched = str(name) == "dm-calib"
        folder = fetch_published("juneyoung9/DM-Calib", "dm-calib", options) if fetched else Path(name)
        return dm_calib_metres(folder, Loading(device, dtype, options.get("base")))
    return MetricHead.load(name, device, dtype)


@torch.no_grad()
def _bare_words(prior: StableDiffusionPrior, words: str) -> Tensor:
    """Embedding (1, L, D) of words without padding."""
    ids = prior.pipe.tokenizer(words, truncation=True, return_tensors="pt").input_ids
    embedding: Tensor = prior.pipe.text_encoder(ids.to(prior.device))[0]
    return embedding


def swap_inputs(unet: UNet2DConditionModel, channels: int, scale: float = 1.0) -> None:
    """conv_in for [picture, state] instead of [state, picture]; the picture's latents may come `scale` times larger.

    state: all but the last `channels`. The answer is the same to the last digits.
    """
    weight = unet.conv_in.weight
    state, picture = weight.data[:, :-channels], weight.data[:, -channels:]
    weight.data = torch.cat([picture / scale, state], 1)


def yoso(folder: Path, how: Loading) -> OneStepHead:
    """The one-step head: unet/ and controlnet/, the latter asked on clean latents (`latent_control`)."""
    settings = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    told = settings.get("t_start")
    config = OneStepConfig(
        timestep=told if isinstance(told, int) else TURBO,
        prompt=str(settings.get("prompt") or ""),
        processing_resolution=int(settings.get("default_processing_resolution") or LONGEST),
    )
    head = OneStepHead(_prior(folder, how), config)
    take_controlnet(head.hint, _state(folder / "controlnet"), str(folder / "controlnet"))
    head.hint.to(how.device, how.dtype).requires_grad_(False).eval()
    return head


def stable_material(folder: Path, how: Loading) -> StableMaterialHead:
    """Albedo and surface out of a photograph."""
    from transformers import CLIPVisionModelWithProjection

    prior = _prior(folder, how, words=False, kind="v_prediction")
    vision = CLIPVisionModelWithProjection.from_pretrained(
        folder / "image_encoder", dtype=how.dtype, **_files(folder / "image_encoder")
    )
    unet: Any = prior.network
    channels, groups = prior.vae.config.latent_channels, len(TARGETS)
    _check_channels(unet, (groups + 1) * channels, groups * channels, folder)
    if unet.config.cross_attention_dim != 2 * vision.config.projection_dim:
        read, given = unet.config.cross_attention_dim, 2 * vision.config.projection_dim
        raise InputError(f"{folder}: the U-Net reads tokens of {read}, CLIP's twice have {given}")
    swap_inputs(unet, channels, prior.vae.config.scaling_factor)
    config = HeadConfig(
        targets=TARGETS, start="noise", steps=50, processing_resolution=512, alignment="published", **_walk(prior)
    )
    return StableMaterialHead(prior, unet, vision.to(how.device).requires_grad_(False).eval(), config)


def primedepth(folder: Path, how: Loading) -> Any:
    """The checkpoint in a folder, or the file itself."""
    path = folder if folder.is_file() else next(path for path in sorted(folder.iterdir()) if _holds_reader(path))
    _, base = _named_base(folder, how)
    return load_primedepth(path, how.device, how.dtype, base)


SETTINGS = ("*.json", "*.txt", "*.model")
LAYOUTS = {
    "dm-calib": Layout(("calib/unet/config.json",), "camera", dm_calib, ("calib/unet/*", "depth/*")),
    "yoso": Layout(("controlnet/config.json", "unet/config.json"), "normals", yoso, (*SETTINGS, "*.safetensors")),
    "stable-material": Layout(
        ("image_encoder/config.json", "unet/config.json"), "albedo", stable_material, (*SETTINGS, "*.safetensors")
    ),
    "primedepth": Layout((), "depth", primedepth, ("*.ckpt", "*.safetensors")),
}
REFUSED = {  # a file, what a folder with it is
    "dino_controlnet/config.json": "StableNormal's refiner: how it reads the features of DINOv2 is told by code of its "
    "repository alone, which is never run. Its one-step head is understood (--head yoso-normal), and `unproject train "
    "normals-refine --set base=FOLDER` makes a refiner of that",
    "cc_projection/config.json": "Stable Material for several views at once, which is not understood: give the one for "
    "single views, thebluser/stable-material",
}


def layout_of(folder: Path) -> str:
    """The name of a folder's (or checkpoint file's) layout; "" for another. Raises InputError for those of REFUSED."""
    if folder.is_file():
        return "primedepth" if _holds_reader(folder) else ""
    for mark, what in REFUSED.items():
        if (folder / mark).is_file():
            raise InputError(f"{folder} is {what}")
    for name, layout in LAYOUTS.items():
        if layout.marks and all((folder / mark).is_file() for mark in layout.marks):
            return name
    return "primedepth" if folder.is_dir() and any(_holds_reader(path) for path in folder.iterdir()) else ""


def load_published(folder: Path, how: Loading) -> Any:
    """The head of a folder or file of one of LAYOUTS. Raises InputError for one that is not whole, or none of them."""
    name = layout_of(folder)
    if not name:
        raise InputError(f"{folder} is none of the layouts {', '.join(LAYOUTS)}")
    try:
        return LAYOUTS[name].load(folder, how)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is not whole, or no {name}: {str(error).splitlines()[0]}") from error


def fetch_published(repo: str, layout: str, options: Mapping[str, Any]) -> Path:
    """The folder of a repository in the hub's cache. Raises InputError naming what failed and the ways out."""
    where = {name: value for name, value in options.items() if name in hub.WHERE}
    where["local_files_only"] = where.get("local_files_only") or not hub.reachable()
    try:
        return hub.fetch_folder(repo, LAYOUTS[layout].fetched, where)
    except hub.Unfetched as error:
        raise InputError(f"head {repo!r} could not be fetched ({error}). Give a local folder instead") from error


def _holds_reader(path: Path) -> bool:
    """Whether a file is PrimeDepth's checkpoint, by its names, or by its own where it is pickled."""
    if path.suffix == ".safetensors" and path.is_file():
        return is_primedepth(shapes_of(path))
    return path.suffix == ".ckpt" and path.stem.lower().startswith("primedepth")


def _named_base(folder: Path, how: Loading) -> tuple[str, str | Path | None]:
    """(the name of the prior that weights stand on, where its files are; None: as usual)."""
    beside = folder.resolve().parent / BESIDE
    found = how.base or (beside if beside.is_dir() else None)
    return str(found or BASE), found


def _base(folder: Path, how: Loading) -> tuple[StableDiffusionPrior, str]:
    name, _ = _named_base(folder, how)
    prior = load_prior(name, how.device, how.dtype)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"base={name} of {folder} is not a Stable Diffusion prior")
    return prior, name


def _walk(prior: StableDiffusionPrior) -> dict[str, Any]:
    """How DDIM walks the levels of a prior's scheduler, and where it ends."""
    config = prior.scheduler_config
    end = "zero" if config.get("set_alpha_to_one") else "index0"
    return {"spacing": config.get("timestep_spacing") or "leading", "final": end}


def _check_channels(unet: UNet2DConditionModel, given: int, said: int, folder: Path) -> None:
    own = (unet.config.in_channels, unet.config.out_channels)
    if own != (given, said):
        raise InputError(f"{folder}: the U-Net has {own[0]} channels in and {own[1]} out, expected {given} and {said}")


def _prior(folder: Path, how: Loading, words: bool = True, kind: str = "") -> StableDiffusionPrior:
    """The parts in a folder as a prior; `kind`: what its network's output means, where the files say otherwise."""
    settings = read_json(folder / "scheduler" / "scheduler_config.json")
    known = {name: settings[name] for name in DDIMScheduler().config if name in settings and not name.startswith("_")}
    encoder, tokenizer = None, None
    if words:
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=how.dtype, **_files(folder / "text_encoder")
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=how.dtype, **_files(folder / "vae")),
        unet=_unet(folder / "unet", how),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**{**known, **({"prediction_type": kind} if kind else {})}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return StableDiffusionPrior(pipe.to(how.device), folder.name)


def _unet(folder: Path, how: Loading) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=how.dtype, **_files(folder)).to(how.device)


def _files(folder: Path) -> dict[str, Any]:
    """Options of loading: safetensors, nothing from elsewhere, and half precision where there is no other."""
    names = [path.name for path in folder.glob("*.safetensors")]
    half = {"variant": "fp16"} if names and all(".fp16." in name for name in names) else {}
    return {"use_safetensors": True, "local_files_only": True, **half}


def _state(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no safetensors")
    return {name: value for path in files for name, value in tensors_of(path).items()}
