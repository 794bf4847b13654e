"""What a training recipe can be: each builds objective, data and export from the values of its YAML file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline

from ..core.priors.embedded import write_vocabulary
from ..core.priors.multiview import MultiViewUNet
from ..core.training.config import TrainerConfig
from ..core.training.latents import ViewGroups
from ..core.training.mixed_sizes import MixedSizes
from ..core.training.objectives.diffusion import DiffusionConfig, DiffusionObjective
from ..core.training.objectives.flow import FlowConfig, FlowObjective
from ..core.training.objectives.multiview import MultiViewConfig, MultiViewObjective
from ..core.training.objectives.pixels import PixelBatches, PixelConfig, PixelObjective
from ..core.training.objectives.tokenizer import MAX_LENGTH, build_tokenizer
from ..core.training.objectives.unet_weights import begin_with_cameras, begin_with_unet
from ..core.training.objectives.vae import VAEConfig, VAEObjective
from ..core.training.objectives.vae_weights import begin_with_codec, reset_posterior, save_vae
from ..tasks.data import CameraColumns, GeometryData
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.other_codec import begun_with
from ..tasks.train import HeadObjective, LossConfig, random_unet_like, tensors_of
from ..toybox.captions import vocabulary
from ..toybox.dataset import RenderedSet
from ..toybox.judge import Judge
from ..toybox.judge_net import FeatureMaps
from ..toybox.judge_pairs_train import PairConfig, PairObjective, PairViews
from ..toybox.judge_train import JudgeConfig, JudgeObjective, labelled
from ..toybox.maps import MapPictures
from ..utils.configs import load_config
from ..utils.errors import InputError
from .amortised_recipe import amortised_job
from .beginnings import (
    begin_with,
    begin_with_pipeline,
    begin_with_run,
    begin_with_words,
    load_vae,
    stable_diffusion,
    tokenizer_of,
)
from .drawn import Drawn, ObjectPhrases, drawn
from .head_recipes import metric_job, one_step_job, preimage_job, refine_job
from .job import Job
from .material_recipes import few_step_job, material_job
from .orbit_recipe import orbit_job
from .sensor_recipes import sensor_job
from .texture_recipe import texture_job
from .turbo_recipe import turbo_job


@dataclass(frozen=True)
class VAERecipe:
    """Pictures and maps to codec."""

    train: tuple[str, ...]
    """rendered folders; with other kinds than "picture", rendered with maps"""
    val: tuple[str, ...]
    kinds: tuple[str, ...] = ("picture",)
    """what of each view is coded (toybox.maps.MAPS); one named twice comes twice as often"""
    start_from: str = ""
    """diffusers folder of a codec, or folder of another run, which this one begins with; empty: fresh weights"""
    fresh_noise: bool = False
    """the posterior begins at model.logvar_start again, so that channels that the KL had given up are heard"""
    eyes: str = ""
    """folder of the judge whose features are compared when model.features is not 0; empty: the embedded one"""
    model: VAEConfig = field(default_factory=VAEConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class DiffusionRecipe:
    """Latents and captions to text-to-image prior."""

    train: tuple[Drawn, ...]
    val: tuple[Drawn, ...]
    vae: str
    """diffusers folder of the codec"""
    start_from: str = ""
    """pipeline folder whose U-Net and text encoder the training begins with; where its latents have other channels or
    its tokenizer other words, what reads them begins fresh; empty: fresh weights"""
    strange: float = 0.0
    """share of captions with strange words in them (toybox.strange)"""
    max_length: int = MAX_LENGTH
    """tokens of a text"""
    model: DiffusionConfig = field(default_factory=DiffusionConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class SizedSet:
    """Pictures of one size and their latents."""

    train: tuple[Drawn, ...]
    val: tuple[Drawn, ...]
    share: float = 1.0
    """relative number of batches of this size"""


@dataclass(frozen=True)
class FlowRecipe:
    """Latents of one or several sizes and captions to a rectified-flow prior."""

    sets: tuple[SizedSet, ...]
    """the default size first: an epoch is one pass over it"""
    vae: str
    """diffusers folder of the codec"""
    strange: float = 0.0
    """share of captions with strange words in them (toybox.strange)"""
    tokenizer: str = ""
    """transformers folder of the tokenizer, that of another prior of the same words; empty: one is built"""
    max_length: int = MAX_LENGTH
    """tokens of a text that a built tokenizer reads"""
    start_from: str = ""
    """pipeline folder, or folder of another run, whose averaged weights this one begins with; empty: from scratch"""
    model: FlowConfig = field(default_factory=FlowConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class MultiViewRecipe:
    """Text-to-image prior and four-view groups to multi-view prior."""

    train: tuple[Drawn, ...]
    val: tuple[Drawn, ...]
    base: str
    """pipeline folder of the 2-D prior"""
    base_name: str = "toybox"
    """name under which the exported folder finds the 2-D prior: its sibling"""
    start_from: str = ""
    """multi-view folder whose weights the training begins with; empty: the 2-D prior's"""
    cameras: str = ""
    """multi-view folder of which the camera embedding alone is taken; empty: that of start_from, or a fresh one"""
    strange: float = 0.0
    """share of captions with strange words in them (toybox.strange)"""
    single_share: float = 0.3
    """share of batches of single pictures"""
    model: MultiViewConfig = field(default_factory=MultiViewConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class JudgeRecipe:
    """Rendered objects and scenes to judge."""

    train: tuple[str, ...]
    """rendered folders of indices that no generator trains on"""
    val: tuple[str, ...]
    start_from: str = ""
    """folder of an exported judge or of another judge's run, which this one begins with; empty: from scratch"""
    model: JudgeConfig = field(default_factory=JudgeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class PairsRecipe:
    """Rendered pairs to the judge's reader of two objects."""

    train: tuple[str, ...]
    """folders of kind pair, of indices that no generator trains on"""
    val: tuple[str, ...]
    judge: str = ""
    """folder of the judge that is to read pairs; empty: the embedded one"""
    model: PairConfig = field(default_factory=PairConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class GeometryRecipe:
    """Text-to-image prior and renders with geometry to a depth and normals head."""

    train: tuple[str, ...]
    """folders rendered with geometry; sizes may differ when model.augment.crop makes them equal"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the prior"""
    base_name: str = "toybox"
    """name under which the exported head finds its prior: its sibling"""
    start_from: str = "prior"
    """prior, random (the baseline without a prior), or the folder of a head that learns more, with the widths it has;
    one that learnt on another codec is fitted to the base's first (tasks.other_codec)"""
    head: HeadConfig = field(default_factory=HeadConfig)
    model: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class PixelRecipe:
    """Pictures and captions to a prior of pixels that shares the text encoder of another."""

    train: tuple[str, ...]
    """rendered folders"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the other prior"""
    strange: float = 0.0
    """share of captions with strange words in them (toybox.strange)"""
    model: PixelConfig = field(default_factory=PixelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def vae_job(values: dict[str, Any]) -> Job:
    """Trains on split train, measures PSNR on split val, exports a diffusers AutoencoderKL folder."""
    recipe = load_config(VAERecipe, values)
    crop = recipe.model.image_size
    once = tuple(dict.fromkeys(recipe.kinds))
    pictures = MapPictures([(RenderedSet(folder), recipe.kinds) for folder in recipe.train], crop)
    held_out = MapPictures([(RenderedSet(folder), once) for folder in recipe.val], crop)
    eyes = FeatureMaps(Judge.from_pretrained(recipe.eyes or None).net) if recipe.model.features else None
    objective = VAEObjective(recipe.model, held_out, recipe.trainer.seed, held_out.scores, eyes)
    if (Path(recipe.start_from) / "config.json").is_file():
        begin_with_codec(objective.vae, load_vae(recipe.start_from), recipe.start_from)
    elif recipe.start_from:
        begin_with_run(objective.modules, recipe.start_from)
    if recipe.fresh_noise:
        reset_posterior(objective.vae, recipe.model.logvar_start)
    return Job(recipe.trainer, objective, pictures, lambda out: save_vae(objective.vae, pictures, out))


def diffusion_job(values: dict[str, Any]) -> Job:
    """Trains U-Net and text encoder, exports a whole StableDiffusionPipeline folder."""
    recipe = load_config(DiffusionRecipe, values)
    (train, _), (val, _) = drawn(recipe.train, recipe.strange), drawn(recipe.val)
    vae, tokenizer = load_vae(recipe.vae), build_tokenizer(vocabulary(), recipe.max_length)
    objective = DiffusionObjective(recipe.model, tokenizer, vae, val, recipe.trainer.seed)
    if recipe.start_from:
        base = StableDiffusionPipeline.from_pretrained(recipe.start_from)
        begin_with_unet(objective.unet, base.unet, recipe.start_from)
        begin_with_words(objective.text_encoder, tokenizer, base.text_encoder, base.tokenizer, recipe.start_from)
    return Job(recipe.trainer, objective, train, lambda out: with_vocabulary(objective.save_pipeline(out)))


def pixel_job(values: dict[str, Any]) -> Job:
    """Trains a U-Net on pixels, exports a folder that `load_prior` reads."""
    recipe = load_config(PixelRecipe, values)
    base = stable_diffusion(recipe.base)
    size = recipe.model.factor * recipe.model.network.latent_size
    train, val = (
        PixelBatches(MapPictures([(RenderedSet(folder), ("picture",)) for folder in folders], size, strange))
        for folders, strange in ((recipe.train, recipe.strange), (recipe.val, 0.0))
    )
    objective = PixelObjective(recipe.model, base, val, recipe.trainer.seed)
    return Job(recipe.trainer, objective, train, lambda out: objective.save(out, recipe.base))


def flow_job(values: dict[str, Any]) -> Job:
    """Trains SD3 transformer and text encoders, exports a whole StableDiffusion3Pipeline folder with vocabulary."""
    recipe = load_config(FlowRecipe, values)
    train = [drawn(part.train, recipe.strange)[0] for part in recipe.sets]
    val = [drawn(part.val)[0] for part in recipe.sets]
    vae = load_vae(recipe.vae)
    objective = FlowObjective(
        recipe.model, tokenizer_of(recipe.tokenizer, recipe.max_length), vae, val, recipe.trainer.seed
    )
    if (Path(recipe.start_from) / "model_index.json").is_file():
        begin_with_pipeline(objective, recipe.start_from)
    elif recipe.start_from:
        begin_with_run(objective.modules, recipe.start_from)
    data = MixedSizes(train, [part.share for part in recipe.sets])
    return Job(recipe.trainer, objective, data, lambda out: with_vocabulary(objective.save_pipeline(out)))


def multiview_job(values: dict[str, Any]) -> Job:
    """Fine-tunes the inflated U-Net, exports the multi-view folder."""
    recipe = load_config(MultiViewRecipe, values)
    (latents, train), (val_latents, val) = drawn(recipe.train, recipe.strange), drawn(recipe.val)
    groups = ViewGroups(latents, ObjectPhrases(train), recipe.single_share)
    held_out = ViewGroups(val_latents, ObjectPhrases(val), 0.0)
    if not (Path(recipe.base) / "model_index.json").is_file():
        raise InputError(f"base={recipe.base} is not a pipeline folder; train and export the 2-D prior first")
    base = StableDiffusionPipeline.from_pretrained(recipe.base)
    objective = MultiViewObjective(recipe.model, base, held_out, recipe.trainer.seed)
    if recipe.start_from:
        begin_with(objective.unet, MultiViewUNet.load(recipe.start_from), recipe.start_from)
    if recipe.cameras:
        given = MultiViewUNet.load(recipe.cameras)
        begin_with_cameras(objective.unet.camera_embedding, given.camera_embedding, recipe.cameras)

    def export(out: Path) -> Path:
        if not recipe.model.train_text:
            return objective.save(out, recipe.base_name)
        with_vocabulary(objective.save_base(out / recipe.base_name))
        return objective.save(out / f"{recipe.base_name}-mv", recipe.base_name).parent

    return Job(recipe.trainer, objective, groups, export)


def judge_job(values: dict[str, Any]) -> Job:
    """Trains the judge, exports judge.json and judge.safetensors."""
    recipe = load_config(JudgeRecipe, values)
    train = labelled(recipe.train)
    objective = JudgeObjective(recipe.model, train, labelled(recipe.val), recipe.trainer.seed)
    if recipe.start_from and (Path(recipe.start_from) / "judge.json").is_file():
        objective.begin_with(Judge.from_pretrained(recipe.start_from))
    elif recipe.start_from:
        begin_with_run(objective.modules, recipe.start_from)
    return Job(recipe.trainer, objective, train, objective.save)


def pairs_job(values: dict[str, Any]) -> Job:
    """Trains the reader of two objects, exports pairs.json and pairs.safetensors: weights/judge-pairs."""
    recipe = load_config(PairsRecipe, values)
    train, val = (PairViews(RenderedSet(folders, ("rgb",))) for folders in (recipe.train, recipe.val))
    objective = PairObjective(recipe.model, Judge.from_pretrained(recipe.judge or None), val, recipe.trainer.seed)
    return Job(recipe.trainer, objective, train, objective.save)


def geometry_job(values: dict[str, Any]) -> Job:
    """Trains a head, exports unet/ and head.json (which hold the validation numbers)."""
    recipe = load_config(GeometryRecipe, values)
    if recipe.start_from == "random" and recipe.head.rank:
        raise InputError(f"start_from=random: adapters of rank {recipe.head.rank} go with a prior; use head.rank=0")
    columns = recipe.head.codec().columns()
    train, held_out = (
        GeometryData([CameraColumns(RenderedSet(folder)) for folder in folders], recipe.model.augment, columns)
        for folders in (recipe.train, recipe.val)
    )
    head = begun_head(recipe, train)
    objective = HeadObjective(recipe.model, head, held_out)

    def export(out: Path) -> Path:
        return head.save(out, recipe.base_name, validation=objective.validate())

    return Job(recipe.trainer, objective, train, export)


def begun_head(recipe: GeometryRecipe, data: GeometryData) -> GeometryHead:
    """The head that a recipe begins with. Raises InputError where the one it goes on from has other adapters."""
    prior = stable_diffusion(recipe.base)
    if recipe.start_from == "random":
        unet = GeometryHead.from_prior(prior, recipe.head).unet
        return GeometryHead(prior, random_unet_like(unet, recipe.trainer.seed), recipe.head)
    if recipe.start_from == "prior":
        return GeometryHead.from_prior(prior, recipe.head)
    given = GeometryHead.load(recipe.start_from)
    if given.config.rank != recipe.head.rank:
        ranks = f"adapters of rank {given.config.rank}, not {recipe.head.rank}"
        raise InputError(f"start_from={recipe.start_from} has {ranks} (0: all weights); set head.rank to the first")
    rng = np.random.default_rng(recipe.trainer.seed)
    some = (tensors_of(given, data.batch(rng.integers(len(data), size=16), rng)) for _ in range(32))
    return begun_with(given, prior, recipe.head, some, recipe.start_from)


def with_vocabulary(folder: Path) -> Path:
    """The pipeline folder with the words its prior has seen."""
    write_vocabulary(folder, vocabulary())
    return folder


RECIPES: dict[str, Callable[[dict[str, Any]], Job]] = {
    "vae": vae_job,
    "diffusion": diffusion_job,
    "flow": flow_job,
    "multiview": multiview_job,
    "judge": judge_job,
    "judge-pairs": pairs_job,
    "geometry-head": geometry_job,
    "pixels": pixel_job,
    "primedepth": preimage_job,
    "metric-depth": metric_job,
    "one-step": one_step_job,
    "normals-refine": refine_job,
    "sim2real": sensor_job,
    "materials": material_job,
    "materials-few-steps": few_step_job,
    "triplane-turbo": turbo_job,
    "amortised": amortised_job,
    "direct25-texture": texture_job,
    "orbits": orbit_job,
}
