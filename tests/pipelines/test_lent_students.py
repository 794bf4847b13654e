"""Students lent to pipelines: what is asked, with which settings, and who refuses."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from unproject.cli.shapes import TextToMesh
from unproject.core.priors.base import Recommended
from unproject.core.sampling.plan import SamplingPlan
from unproject.generate.view_normals import NormalsDraw
from unproject.pipelines import map_student, mesh_quality, students
from unproject.pipelines.direct25_mesh import Direct25Config, Direct25TextToMesh
from unproject.pipelines.students import drawn_by_student, guided_by_student, lent
from unproject.pipelines.text_to_shape import load_recipe
from unproject.utils.errors import InputError

FAST = Recommended(1.0, 4, None, "lcm", distilled=True, step_counts=(4,))
WHOLE = Recommended(3.0, 20, "trailing", "ddim")


@dataclass
class Pipe:
    """What the functions touch of a pipeline."""

    prior: Any
    config: Any = None
    recipe: Any = None
    student: Any = "the usual one"


def given(monkeypatch: pytest.MonkeyPatch, told: Recommended) -> Any:
    made = SimpleNamespace(name="views with student", recommended=told)
    monkeypatch.setattr(students, "lent", lambda prior, student: made)
    return made


def test_maps_are_drawn_as_the_student_says_and_nothing_else_changes(monkeypatch) -> None:
    made = given(monkeypatch, FAST)
    config = Direct25Config(NormalsDraw(plan=SamplingPlan(guidance=2.0)))
    pipe: Any = Pipe("views", config)
    assert drawn_by_student(pipe, "fast") is FAST and pipe.prior is made and pipe.student is None
    plan = pipe.config.normals.plan
    assert (plan.solver, plan.steps, plan.guidance) == ("lcm", 4, 1.0)
    assert pipe.config.paint == config.paint and pipe.config.normals.ring == config.normals.ring


def test_score_distillation_asks_without_guidance_where_it_is_in_the_weights(monkeypatch) -> None:
    prior: Any = SimpleNamespace(recipe="toybox", name="toybox-mv", frames=4)
    recipe = load_recipe("toybox", prior, None, "text-to-mesh")
    assert recipe.score.guidance not in (None, 1.0)
    pipe: Any = Pipe(prior, recipe=recipe)
    given(monkeypatch, FAST)
    with pytest.warns(UserWarning, match="previews by score distillation are coarse"):
        guided_by_student(pipe, "fast")
    assert pipe.recipe.score.guidance == 1.0 and pipe.recipe.optimise == recipe.optimise
    pipe = Pipe(prior, recipe=recipe)
    given(monkeypatch, WHOLE)
    guided_by_student(pipe, "small")
    assert pipe.recipe is recipe  # its guidance is the prior's


def test_the_student_that_comes_along_draws_for_its_prior_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(map_student, "lent", lambda prior, student: (prior, str(student)))
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    find = map_student.map_student
    assert find("toybox", "views", "auto") is None  # not there
    (tmp_path / "toybox-lcm").mkdir()
    (tmp_path / "toybox-lcm" / "distill.json").write_text("{}")
    assert find("toybox", "views", "auto") == find("toybox-mv", "views", "auto") == ("views", "toybox-lcm")
    assert find("runs/mine", "views", "auto") is None and find("toybox", "views", None) is None
    assert find("runs/mine", "views", "runs/fast") == ("views", "runs/fast")


def test_the_command_and_the_pipeline_know_one_student_of_a_prior(monkeypatch, tmp_path) -> None:
    drawn = mesh_quality.DrawnSpending(students={"mine": "quick"})
    monkeypatch.setattr(mesh_quality, "spending", lambda: mesh_quality.Spending(drawn=drawn))
    monkeypatch.setattr(map_student, "lent", lambda prior, student: (prior, str(student)))
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "distill.json").write_text("{}")
    asked = TextToMesh(prompt=("a red chair",), prior="mine", method="direct25")
    assert asked.usual_student == "quick" and map_student.map_student("mine", "views", "auto") == ("views", "quick")
    assert map_student.map_student("toybox", "views", "auto") is None


def test_a_call_that_says_how_is_drawn_by_the_prior() -> None:
    student: Any = SimpleNamespace(recommended=FAST, name="quick")
    pipe = Direct25TextToMesh.__new__(Direct25TextToMesh)
    pipe.prior, pipe.student = "views", student  # type: ignore[assignment]
    config = Direct25Config(NormalsDraw(plan=SamplingPlan(guidance=2.0)))
    drawer, taken = pipe._drawer(config, told=False)
    assert drawer is student and (taken.normals.plan.solver, taken.normals.plan.guidance) == ("lcm", 1.0)
    assert taken.paint == config.paint and pipe._drawer(config, told=True) == ("views", config)
    pipe.student = None
    assert pipe._drawer(config, told=False) == ("views", config)


def test_only_a_prior_of_several_views_takes_a_network() -> None:
    with pytest.raises(InputError, match="to a prior of several views, which sd15 is not"):
        lent(SimpleNamespace(name="sd15"), "fast")  # type: ignore[arg-type]
