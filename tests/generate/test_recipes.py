"""The packaged recipes: what they ask for at every step of their default number, written out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unproject.generate.optimise import OptimiseConfig
from unproject.geometry.fields import HeadConfig
from unproject.pipelines.text_to_mesh import MeshRecipe
from unproject.utils.configs import CONFIGS, load_config
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment, Ramp

Literal = tuple[float, ...]  # [first step, value, value, last step], as one would say it
STEPS: dict[str, dict[str, Literal]] = {
    "toybox": {
        "steps": (45,),
        "low": (0, 0.98, 0.05, 45),
        "high": (0, 0.98, 0.15, 45),
        "lr": (0, 1.0, 0.2, 45),
        "beta": (0, 0.06, 0.015, 20),
        "occupancy_from": (3,),
        "sizes": (0, 64),
    },
    "toybox-single-view": {
        "steps": (300,),
        "low": (0, 0.5, 0.02, 300),
        "high": (0, 0.98, 0.45, 300),
        "lr": (0, 1.0, 0.2, 300),
        "beta": (0, 0.1, 0.02, 250),
        "occupancy_from": (20,),
        "sizes": (0, 32, 100, 64),
    },
    "toybox-pulled": {
        "steps": (300,),
        "low": (0, 0.5, 0.02, 300),
        "high": (0, 0.98, 0.45, 300),
        "lr": (0, 1.0, 0.2, 300),
        "beta": (0, 0.1, 0.02, 250),
        "occupancy_from": (20,),
        "sizes": (0, 32, 100, 64),
    },
    "stable-diffusion": {
        "steps": (10000,),
        "low": (0, 0.98, 0.02, 8000),
        "high": (0, 0.98, 0.5, 8000),
        "lr": (1.0,),
        "opacity": (0, 1.0, 10.0, 10000),
        "orientation": (0, 10.0, 1000.0, 5000),
        "occupancy_from": (200,),
        "sizes": (0, 64, 5000, 256),
    },
    "stable-diffusion-single-view": {
        "steps": (10000,),
        "low": (0.02,),
        "high": (0, 0.98, 0.5, 8000),
        "lr": (1.0,),
        "opacity": (0, 1.0, 10.0, 10000),
        "orientation": (0, 10.0, 1000.0, 5000),
        "occupancy_from": (200,),
        "sizes": (0, 64, 5000, 256),
    },
}


def by_hand(literal: Literal, step: int) -> float:
    if len(literal) == 1:
        return literal[0]
    first, before, after, last = literal
    if step >= last:
        return after
    return before + (after - before) * max(step - first, 0) / (last - first)


def ramps(recipe: MeshRecipe) -> dict[str, Literal]:
    run, window = recipe.optimise, recipe.score.window
    named = {"low": window.low, "high": window.high, "lr": run.lr, "beta": run.shape.volume.field.head.beta}
    return named | {"opacity": run.losses.opacity, "orientation": run.losses.orientation}


def test_every_packaged_recipe_is_here() -> None:
    assert {path.stem for path in (CONFIGS / "text-to-mesh").glob("*.yaml")} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_schedules_have_their_values_at_every_step(name: str) -> None:
    recipe, wanted = load_config(MeshRecipe, f"text-to-mesh/{name}"), STEPS[name]
    steps = int(wanted["steps"][0])
    assert recipe.optimise.steps == steps and recipe.optimise.shape.volume.field.grid.starts == (0, 0, 0)
    found = {key: Ramp.of(literal) for key, literal in ramps(recipe).items()}
    sizes = wanted["sizes"]
    for step in range(steps + 1):
        now = Moment(step, steps)
        for key in found.keys() & wanted.keys():
            assert abs(found[key].at(now.share) - by_hand(wanted[key], step)) < 1e-12, (key, step)
        px = sizes[3] if len(sizes) == 4 and step >= sizes[2] else sizes[1]
        assert recipe.optimise.size_at(now) == px
        occupied = now.reached(recipe.optimise.shape.volume.occupancy_from)
        assert occupied == (step >= wanted["occupancy_from"][0])


@pytest.mark.parametrize("steps", [9, 45, 100])
def test_another_number_of_steps_keeps_the_shares(steps: int) -> None:
    recipe = load_config(MeshRecipe, "text-to-mesh/toybox")
    lr, run = Ramp.of(recipe.optimise.lr), replace(recipe.optimise, steps=steps)
    assert [lr.at(Moment(step, run.steps).share) for step in (0, steps)] == [1.0, 0.2]
    beta = Ramp.of(run.shape.volume.field.head.beta)
    assert beta.at(20 / 45) == pytest.approx(0.015) and beta.at(10 / 45) == pytest.approx(0.0375)
    sizes = replace(run, sizes=((0, 32), (0.4, 64)))
    assert [sizes.size_at(Moment(step, steps)) for step in (round(0.4 * steps) - 1, round(0.4 * steps))] == [32, 64]


def test_ramps_are_linear_between_their_ends_and_jump_where_these_meet() -> None:
    ramp = Ramp.of([0.2, 5.0, 1.0, 0.6])
    assert [ramp.at(share) for share in (0.0, 0.2, 0.3, 0.6, 1.0)] == pytest.approx([5, 5, 4, 1, 1], abs=1e-12)
    jump = Ramp.of([0.5, 1.0, 2.0, 0.5])
    assert [jump.at(share) for share in (0.4999, 0.5, 1.0)] == [1.0, 2.0, 2.0]
    assert Ramp.of(3).at(0.7) == Ramp.of([3.0]).at(0.0) == 3.0


@pytest.mark.parametrize("literal", [[0, 1.0, 0.2, 300], [0.5, 1.0, 2.0, 0.4], [-0.1, 1.0, 2.0, 1], [1, 2]])
def test_ramps_that_are_none_are_refused(literal: list[float]) -> None:
    with pytest.raises(InputError, match="shares of the run"):
        Ramp.of(literal)


def test_numbers_of_steps_are_not_shares(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sizes=.*shares of the run"):
        OptimiseConfig(sizes=((0, 32), (120, 64)))
    with pytest.raises(InputError, match=r"occupancy_from=20.*share of the run"):
        load_config(MeshRecipe, {"optimise": {"shape": {"volume": {"occupancy_from": 20}}}})
    with pytest.raises(InputError, match="shares of the run"):
        load_config(MeshRecipe, {"optimise": {"shape": {"volume": {"field": {"grid": {"starts": [0, 0, 10]}}}}}})
    assert HeadConfig().beta == (0, 0.1, 0.02, 1)
