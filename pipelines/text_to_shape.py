"""What text-to-mesh and text-to-splats share: a representation is optimised until a frozen prior likes its renders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..core.distillation.score import ScoreConfig
from ..core.priors import Prior, load_prior, multi_view_sibling
from ..core.sampling.calibration import fingerprint
from ..core.training.checkpoints import remove_checkpoints
from ..generate.diagnostics import Diagnostics
from ..generate.guides import make_guide
from ..generate.normal_guide import NormalGuide, NormalsConfig
from ..generate.optimise import Optimisation, OptimiseConfig
from ..generate.step_memory import BUDGET_GB
from ..generate.views import turntable_cameras
from ..geometry.representation import MeshConfig, Representation
from ..utils.configs import config_path, load_config, read_yaml, to_dict
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.files import check_named
from ..utils.pictures import grid, save_image
from ..utils.progress import Progress
from .base import PriorPipeline
from .picture_conditions import read_picture
from .picture_inputs import PictureLike
from .prompts import check_guidance, check_prompt, warn_about, warn_about_negatives
from .sampling_parts import whole_number

TEXTURE = (16, 4096)  # texels along an edge: charts of a mesh do not fit into fewer, more take all memory
REAL_BACKBONES = "sd15, sd21-base or an MVDream checkpoint"
StepEnd = Callable[[Any, int, dict[str, float], dict[str, Any]], None]
S = TypeVar("S", bound="TextToShape")


@dataclass(frozen=True)
class BeginConfig:
    """A first stage with another prior, from whose shape the run goes on (StableDreamer: pixels, then latents)."""

    prior: str = ""  # name or folder; empty: there is no first stage
    steps: int = 150
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True)
class MeshRecipe:
    """configs/text-to-mesh/*.yaml and text-to-splats/*.yaml: what pulls, what is optimised, how it becomes a mesh."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    optimise: OptimiseConfig = field(default_factory=OptimiseConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    normals: NormalsConfig = field(default_factory=NormalsConfig)
    begin: BeginConfig = field(default_factory=BeginConfig)
    preview_every: int = 25  # steps between updates of preview.png; 0: never

    def __post_init__(self) -> None:
        if self.optimise.fit.steps and self.normals.used:
            raise InputError(
                f"normals.weight={self.normals.weight} pulls on whole renders; set optimise.fit.steps to 0"
            )
        if self.optimise.fit.steps and self.score.space == "latent":
            raise InputError(
                f'fit.steps needs targets as images; set score.space to "image", or optimise.fit.steps to 0 instead of '
                f"{self.optimise.fit.steps}"
            )


class Optimised(NamedTuple):
    """What a call made, and of what."""

    work: Optimisation
    recipe: MeshRecipe
    seed: int
    started: datetime


class TextToShape(PriorPipeline):
    """Base of pipelines from prompts to shapes with any prior."""

    recipes: ClassVar[str]  # folder of the packaged recipes
    step_memory_gb: float = BUDGET_GB  # of the activations of a step; what needs more is computed in parts

    def __init__(
        self, prior: Prior, recipe: MeshRecipe | str | Path | None = None, rule: str | Path | None = None
    ) -> None:
        """What a call does.

        Args:
            prior: any.
            recipe: None or "default" is what suits the prior; else a packaged name, a YAML file or a MeshRecipe.
            rule: of score distillation, a packaged name of configs/rules ("sds", "asd", ...) or a YAML file; None: the
                recipe's.
        """
        super().__init__(prior)
        self.recipe = load_recipe(recipe, prior, rule, self.recipes)
        self.first = first_prior(self.recipe.begin.prior, prior) if self.recipe.begin.prior else None

    @classmethod
    def from_pretrained(
        cls: type[S],
        name: str | Path = "toybox",
        recipe: MeshRecipe | str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        torch_dtype: torch.dtype | None = None,
        rule: str | Path | None = None,
        **options: Any,
    ) -> S:
        """Loads a prior by name, folder, registry id or hub repository; `torch_dtype` is diffusers' name of `dtype`.

        "toybox" loads its multi-view sibling when that is installed; "toybox" as a folder stays single-view.
        """
        check_named(name, "prior", "give the name or folder of one, such as 'toybox'")
        chosen = multi_view_sibling(str(name)) or str(name)
        return cls(load_prior(chosen, device, torch_dtype or dtype, **options), recipe, rule)

    def _made(
        self,
        prompt: str,
        negative: str | None,
        recipe: MeshRecipe,
        seed: int,
        out: str | Path | None,
        resume: bool,
        callback: StepEnd | None,
        diagnostics: str | Path | Diagnostics | None,
        picture: PictureLike | None = None,
        start: Representation | None = None,
    ) -> Optimised:
        """Optimises one shape, from `start` on where there is one; see __call__ for the arguments."""
        check_prompt(prompt)
        warn_about(self.prior, prompt, REAL_BACKBONES)
        warn_about_negatives(self.prior, negative, REAL_BACKBONES)
        started = datetime.now(timezone.utc)
        folder = None if out is None else Path(out)
        first = self._first_stage(recipe, seed, prompt, negative, folder, resume)
        seen = read_picture(self.prior, picture)
        work = _started(recipe, self.prior, seed, prompt, negative, folder, resume, self.step_memory_gb, seen)
        if first is not None and work.step == 0:
            work.shape.restore(dict(first.shape.state_dict()), "the first stage")
            work.nfe, work.seconds = first.nfe, first.seconds
        if start is not None and work.step == 0:
            work.shape.restore(dict(start.state_dict()), "the shape to start from")
        if diagnostics is not None:
            told = diagnostics if isinstance(diagnostics, Diagnostics) else Diagnostics(Path(diagnostics))
            work.watch = told.watching(self.prior, recipe.optimise.steps)
        self._optimise(work, recipe, folder, prompt, callback)
        return Optimised(work, recipe, seed, started)

    def _first_stage(
        self, recipe: MeshRecipe, seed: int, prompt: str, negative: str | None, folder: Path | None, resume: bool
    ) -> Optimisation | None:
        """The shape that another prior made, if the recipe wants one; it has checkpoints of its own in first/."""
        if self.first is None:
            return None
        prior, own = self.first, first_recipe(recipe, self.first)
        place = None if folder is None else folder / "first"
        work = _started(own, prior, seed, prompt, negative, place, resume, self.step_memory_gb)
        self._optimise(work, own, place, f"{prompt}, first with {prior.name}", None)
        return work

    def _adjusted(
        self, steps: int | None, guidance: float | None, faces: int | None = None, texture: int | None = None
    ) -> MeshRecipe:
        """The recipe with what a call changes."""
        changes: dict[str, Any] = {}
        if steps is not None:
            whole_number("num_inference_steps", steps)
            changes["optimise.steps"] = steps
        if guidance is not None:
            check_guidance(self.prior, guidance)
            if not self.recipe.score.rule.made.guided:
                kind = self.recipe.score.rule.kind
                raise InputError(f"guidance_scale={guidance}: the rule {kind!r} has no guidance scale; leave it out")
            changes["score.guidance"] = guidance
        if faces is not None:
            whole_number("faces", faces, 4)
            changes["mesh.faces"] = faces
        if texture is not None:
            whole_number("texture", texture, *TEXTURE)
            changes["mesh.texture"] = texture
        return load_config(MeshRecipe, to_dict(self.recipe), **changes) if changes else self.recipe

    def _optimise(
        self, work: Optimisation, recipe: MeshRecipe, folder: Path | None, prompt: str, callback: StepEnd | None
    ) -> None:
        with Progress(recipe.optimise.steps, prompt, done=work.step) as bar:

            def on_step(work: Optimisation, step: int, log: dict[str, float]) -> None:
                bar.advance(1, t=f"{log.get('t', 0):.2f}", opacity=f"{log['alpha']:.2f}")
                if folder is not None and recipe.preview_every and step % recipe.preview_every == 0:
                    write_preview(work, folder / "preview.png")
                if callback is not None:
                    callback(self, step, log, {"optimisation": work})

            work.run(folder, on_step)


def _started(
    recipe: MeshRecipe,
    prior: Prior,
    seed: int,
    prompt: str,
    negative: str | None,
    folder: Path | None,
    resume: bool,
    budget_gb: float,
    picture: Tensor | None = None,
) -> Optimisation:
    """The optimisation with a prior at its start, or where the newest checkpoint in `folder` was written; a step
    keeps `budget_gb` of activations."""
    views = recipe.optimise.views.views
    guide = make_guide(recipe.score, prior, prompt, negative, views, picture=picture)
    normals = NormalGuide(recipe.normals, recipe.score, prior, prompt, views) if recipe.normals.used else None
    if folder is None:
        return Optimisation(recipe.optimise, guide, seed, prior.device, None, normals, budget_gb)
    guided_by: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative, "prior": fingerprint(prior)}
    guided_by |= {"score": recipe.score}
    guided_by |= {"normals": recipe.normals} if recipe.normals.used else {}
    guided_by |= {"begin": recipe.begin} if recipe.begin.prior else {}
    guided_by |= {} if picture is None else {"ip_adapter_image": digest({"picture": picture})}
    work = Optimisation(recipe.optimise, guide, seed, prior.device, guided_by, normals, budget_gb)
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
        work.resume(folder)
    else:
        remove_checkpoints(folder)
    return work


def chosen_seed(seed: int | None, generator: torch.Generator | None) -> int:
    """The seed of a call: given, drawn from a generator, or 0."""
    if generator is None:
        if seed is not None:
            whole_number("seed", seed, 0)
        return seed or 0
    if seed is not None:
        raise InputError("give either seed or generator, not both")
    return int(torch.randint(2**32, (), generator=generator, device=generator.device))


def load_recipe(
    recipe: MeshRecipe | str | Path | None, prior: Prior, rule: str | Path | None = None, folder: str = "text-to-mesh"
) -> MeshRecipe:
    """A recipe by packaged name of `folder` or file; None and "default" choose by the prior, which is shown its own
    size.

    A rule replaces what the recipe says of its own; without a recipe's name, rules that pull through whole renders are
    given one that does.
    """
    settings = {} if rule is None else read_yaml(rule_path(rule))
    changes: dict[str, Any] = {"score": settings} if settings else {}
    if isinstance(recipe, MeshRecipe):
        return load_config(MeshRecipe, to_dict(recipe), **changes) if changes else recipe
    if recipe is None or recipe == "default":
        name = prior.recipe if prior.multiview else f"{prior.recipe}-single-view"
        own = {} if prior.multiview else {"optimise.guided_px": prior.image_size}
        pulled = settings.get("form") == "score" or "space" in settings
        if pulled and load_config(MeshRecipe, f"{folder}/{name}").optimise.fit.steps:
            name = f"{name}-pulled"
        return load_config(MeshRecipe, f"{folder}/{name}", **own, **changes)
    known = isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml"))
    return load_config(MeshRecipe, f"{folder}/{recipe}" if known else recipe, **changes)


def first_prior(name: str, prior: Prior) -> Prior:
    """The prior of a first stage, placed like the other one. Raises InputError, which says where one comes from."""
    try:
        return load_prior(name, prior.device, prior.dtype)
    except InputError as error:
        raise InputError(
            f"the first stage of the recipe: {error}; `unproject train pixels --out runs/pixels` makes "
            "runs/pixels/export, and begin.prior of a recipe of one's own names any other prior"
        ) from error


def first_recipe(recipe: MeshRecipe, first: Prior) -> MeshRecipe:
    """The recipe of a first stage with a prior that is shown its own size; the shape is that of the whole run."""
    side = first.image_size
    optimise = replace(recipe.optimise, steps=recipe.begin.steps, sizes=((0, side),), guided_px=side)
    return replace(recipe, score=recipe.begin.score, optimise=optimise, normals=NormalsConfig(), begin=BeginConfig())


def rule_path(rule: str | Path) -> Path:
    """The file of a rule's settings. Raises InputError listing what exists."""
    known = isinstance(rule, str) and not rule.endswith((".yaml", ".yml"))
    return config_path(f"rules/{rule}") if known else Path(rule)


def write_preview(work: Optimisation, path: Path, views: int = 4, size: int = 96) -> Path:
    """A strip of views of what is there: colours above normals."""
    seen = work.picture(turntable_cameras(views, size))
    return save_image(path, grid([*seen.rgb.cpu(), *(0.5 * seen.normal + 0.5).cpu()], views))
