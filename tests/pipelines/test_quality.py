"""Presets: what they fill in, what they leave to the caller, and whom they leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from unproject.cli.priors import QualityCommand
from unproject.cli.sampling import SamplingCommand
from unproject.cli.text import TextToImage as TextToImageCommand
from unproject.core.priors import GaussianMixturePrior
from unproject.core.sampling import NoiseSchedule
from unproject.core.sampling.grids import SPACINGS
from unproject.core.sampling.plan import SamplingPlan
from unproject.core.sampling.solvers import SOLVERS
from unproject.pipelines.edit_image import EditImage
from unproject.pipelines.quality import Quality, own_steps, presets, settings
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.errors import InputError
from unproject.utils.files import read_json

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def mixture(**options: object) -> GaussianMixturePrior:
    means = torch.stack([torch.full((3, 4, 4), -0.5), torch.full((3, 4, 4), 0.5)])
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.3]), names=("dark", "light"), **options)


@pytest.mark.parametrize("quality", ["fast", "balanced", "best"])
def test_a_call_takes_solver_steps_and_spacing_of_its_quality(quality: Quality) -> None:
    pipe, preset = TextToImage(mixture(), quality), presets().vp[quality]
    said = {"num_inference_steps": preset.steps, "solver": preset.solver, "spacing": preset.spacing}
    drawn = pipe("dark", seed=0, output_type="latent")
    assert drawn.nfe == pipe("dark", seed=0, output_type="latent", **said).nfe
    assert torch.equal(drawn.latents, pipe("dark", seed=0, output_type="latent", **said).latents)


def test_qualities_differ_in_cost_and_in_nearness_to_the_long_run() -> None:
    long = TextToImage(mixture())("dark", seed=0, num_inference_steps=400, spacing="logsnr", output_type="latent")
    runs = [TextToImage(mixture(), q)("dark", seed=0, output_type="latent") for q in ("fast", "balanced", "best")]
    errors = [float((run.latents - long.latents).square().mean()) for run in runs]
    assert errors[0] > errors[1] > errors[2]
    assert runs[0].nfe < runs[1].nfe < runs[2].nfe


def test_what_the_caller_says_wins() -> None:
    pipe = TextToImage(mixture(), "best")
    assert pipe("dark", seed=0, num_inference_steps=3, guidance_scale=1.0).nfe == 3
    assert type(pipe.drawing(SamplingPlan("ddim")).solver) is not type(pipe.drawing().solver)


def test_native_and_distilled_priors_keep_their_makers_settings() -> None:
    prior = mixture()
    prior.recommended = replace(prior.recommended, steps=4, solver="euler")
    assert settings(prior, "native") == SamplingPlan.of(prior.recommended)
    assert settings(prior, "balanced").steps == presets().vp["balanced"].steps
    prior.recommended = replace(prior.recommended, distilled=True)
    assert {settings(prior, quality) for quality in get_args(Quality)} == {SamplingPlan.of(prior.recommended)}


def test_guidance_is_always_the_priors_own() -> None:
    prior = mixture()
    prior.recommended = replace(prior.recommended, guidance=1.7)
    assert {settings(prior, quality).guidance for quality in get_args(Quality) if quality != "turbo"} == {1.7}


def test_flow_paths_have_presets_of_their_own() -> None:
    prior = mixture(scheduler_config=FLOW)
    assert NoiseSchedule.from_config(prior.scheduler_config).flow
    for quality, preset in presets().flow.items():
        assert settings(prior, quality).spacing == preset.spacing
    out = TextToImage(prior, "fast")("dark", seed=0, guidance_scale=1.0, output_type="latent")
    assert out.nfe == presets().flow["fast"].steps


def test_the_table_names_known_solvers_and_grows_with_quality() -> None:
    for table in (presets().vp, presets().flow):
        assert list(table) == ["fast", "balanced", "best"]
        assert all(preset.solver.partition(":")[0] in SOLVERS for preset in table.values())
        assert table["fast"].steps <= table["balanced"].steps <= table["best"].steps
    assert own_steps("fast") < own_steps("balanced") == own_steps("native") < own_steps("best")


@pytest.mark.parametrize(("path", "experiment"), [("vp", "sampling"), ("flow", "sampling-dit")])
def test_presets_are_what_the_experiment_chose(path: str, experiment: str) -> None:
    chosen = read_json(RESULTS / f"{experiment}.json")["presets"]
    for preset in getattr(presets(), path).values():
        found = chosen[str(preset.steps)]
        assert (preset.solver, preset.spacing or "trailing") == (found["solver"], found["spacing"])


def test_methods_with_their_own_solver_take_their_steps_from_quality() -> None:
    picture = torch.full((3, 4, 4), 0.25)
    for quality in ("fast", "best"):
        made = EditImage(mixture(), quality)(picture, "dark", "dark", guidance_scale=1.0, output_type="pt")
        assert made.nfe == 4 * round(0.8 * own_steps(quality))


def test_an_unknown_quality_is_refused_and_the_command_line_knows_them_all() -> None:
    with pytest.raises(InputError, match="quality='ultra' is unknown; have fast, balanced, best, native, turbo"):
        TextToImage(mixture(), "ultra")
    assert get_args(get_type_hints(TextToImageCommand)["quality"]) == get_args(Quality)
    assert (*get_args(get_type_hints(QualityCommand)["quality"]), "turbo") == get_args(Quality)
    assert get_args(get_args(get_type_hints(SamplingCommand)["spacing"])[0]) == SPACINGS
