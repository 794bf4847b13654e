"""The packaged recipes of sensors, materials and intrinsic heads say what their dataclasses know."""

from __future__ import annotations

from typing import Any

import pytest

from unproject.scripts.material_recipes import FewStepRecipe, MaterialRecipe
from unproject.scripts.recipes import RECIPES, GeometryRecipe
from unproject.scripts.sensor_recipes import SensorRecipe
from unproject.utils.configs import CONFIGS, load_config, read_yaml
from unproject.utils.errors import InputError

KINDS: dict[str, tuple[str, type[Any]]] = {
    "sim2real": ("sim2real", SensorRecipe),
    "sim2real-refine": ("sim2real", SensorRecipe),
    "materials": ("materials", MaterialRecipe),
    "materials-4-steps": ("materials-few-steps", FewStepRecipe),
    "intrinsic-head": ("geometry-head", GeometryRecipe),
}


def recipe(name: str) -> Any:
    values = read_yaml(CONFIGS / "train" / f"{name}.yaml")
    objective, kind = KINDS[name]
    assert values.pop("objective") == objective
    assert objective in RECIPES
    return load_config(kind, values)


def test_both_stages_of_a_sensor_speak_of_the_same_sensor() -> None:
    first, second = recipe("sim2real"), recipe("sim2real-refine")
    assert (first.sensor.stage, second.sensor.stage) == (1, 2)
    assert first.sensor.codec == second.sensor.codec
    assert first.sensor.codec.range_m == (0.1, 10.0)
    assert first.measures == second.measures
    assert first.measures.window_px > 0  # pixels fly at edges
    assert second.first.endswith("/export")


def test_materials_are_distilled_from_what_was_trained() -> None:
    taught, fast = recipe("materials"), recipe("materials-4-steps")
    assert taught.surfaces == fast.surfaces
    assert taught.model.critic is not None
    assert fast.teacher == "runs/materials/export"
    assert fast.model.grid % 4 == 0  # four steps are taken from its levels


def test_the_intrinsic_head_is_what_score_distillation_asks() -> None:
    made = recipe("intrinsic-head")
    assert made.head.targets == ("albedo", "surface")
    assert (made.head.start, made.head.kind, made.model.loss) == ("noise", "v_prediction", "latent")


@pytest.mark.parametrize(("stage", "first"), [(2, ""), (1, "runs/x")])
def test_stage_two_alone_begins_with_a_stage(stage: int, first: str) -> None:
    values = {"train": [], "val": [], "sensor": {"stage": stage}, "first": first}
    with pytest.raises(InputError, match="stage 2 needs the folder of a trained stage 1"):
        RECIPES["sim2real"](values)
