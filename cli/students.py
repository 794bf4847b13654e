"""What a command can tell of a distilled student before anything is loaded, by its distill.json."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..utils.errors import InputError
from ..utils.files import STUDENT, read_json, student_folder

T = TypeVar("T")
NO_STUDENT = "none"
FEW_BITS, READS_NEGATIVES = "quantised", "negative"  # kinds


def about(student: str) -> Mapping[str, Any]:
    """distill.json of a student by folder or name. Raises InputError where there is none that says what it is."""
    values: Mapping[str, Any] = read_json(student_folder(student) / STUDENT)
    return values


def sampling_of(student: str) -> Mapping[str, Any]:
    """How distill.json says that it is drawn with; empty where it says nothing."""
    told = about(student).get("sampling")
    return told if isinstance(told, Mapping) else {}


def few_steps(student: str) -> bool:
    """Whether it was distilled to a few steps, which are part of what it learnt."""
    return bool(sampling_of(student).get("distilled"))


def check_student(student: str, steps: int | None, dtype: str = "float32") -> None:
    """Raises InputError for steps that a student cannot take, and for few bits in half precision."""
    able = sampling_of(student).get("step_counts") or ()
    if steps is not None and able and steps not in able:
        counts = ", ".join(str(count) for count in able)
        raise InputError(f"--steps {steps}: the student {student} was distilled to {counts}; give one of these")
    if about(student).get("kind") == FEW_BITS and dtype not in ("auto", "float32"):
        raise InputError(f"--dtype {dtype}: a student of few bits ({student}) computes in float32; leave --dtype out")


def guided_already(told: Mapping[str, Any]) -> bool:
    """Whether guidance is in the weights, by what distill.json says of sampling."""
    return bool(told.get("distilled")) and told.get("guidance") == 1


def warn_of_settings(
    student: str,
    guidance: float | None = None,
    solver: str | None = None,
    negative: str = "",
    quality: str = "balanced",
) -> None:
    """Warns of what a student of few steps was not distilled for, or does not read."""
    told = sampling_of(student)
    if not told.get("distilled"):
        return
    odd = []
    if guided_already(told) and guidance not in (None, 1.0):
        odd.append(f"--guidance {guidance:g}: {student} has guidance in its weights; more of it burns pictures out")
    if solver is not None and solver != told.get("solver"):
        odd.append(f"--solver {solver}: {student} was distilled for {told.get('solver')}; others draw worse")
    if negative and guided_already(told) and about(student).get("kind") != READS_NEGATIVES:
        odd.append(f"--negative: {student} has guidance in its weights and reads no negative prompt")
    if quality in ("fast", "best"):
        odd.append(f"--quality {quality}: {student} draws with the steps it was distilled to")
    for words in odd:
        warnings.warn(words, UserWarning, stacklevel=2)


def map_drawer(
    prior: str, student: str | None, direct25: Path | None, quality: str, placement: Mapping[str, Any]
) -> Any:
    """The pipeline of drawn normal maps with the student that was named ("none": without); where none was, with the one
    that comes with the prior."""
    from ..pipelines.direct25_mesh import Direct25TextToMesh
    from ..pipelines.drawn_quality import drawn_at_quality
    from ..pipelines.mesh_quality import usual_student
    from ..pipelines.students import drawn_by_student

    options: dict[str, Any] = {**placement} if student is None else {"student": None, **placement}
    usual = usual_student(prior) if student is None else None
    drawer = loaded_with(usual, lambda: Direct25TextToMesh.from_pretrained(prior, direct25, **options))
    if quality != "balanced":
        drawer.config = drawn_at_quality(drawer.config, quality)
    if student not in (None, NO_STUDENT):
        drawn_by_student(drawer, student)
    return drawer


def loaded_with(student: str | None, load: Callable[[], T]) -> T:
    """What `load` gives; an InputError of the student that nobody named tells how to do without."""
    try:
        return load()
    except InputError as error:
        if student is None or student not in str(error):
            raise
        raise InputError(f"{error}; --student {NO_STUDENT} leaves the normal maps to the prior") from error


def of_another(error: InputError, student: str | Path, prior: str) -> InputError:
    """The error of loading a student; on another prior than it was made for, with the ways out."""
    made_for = about(str(student)).get("prior", "another one")
    if made_for == prior:
        return error
    return InputError(
        f"{error}; {student} was made for the prior {made_for}: leave --prior out, or distill one of {prior}"
    )
