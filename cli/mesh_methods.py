"""The pipelines behind `unproject text-to-mesh --method`, and the weights that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .students import NO_STUDENT, map_drawer

if TYPE_CHECKING:
    from .shapes import TextToMesh


def check_weights(command: TextToMesh) -> None:
    """Raises InputError where the weights that the method needs, or an option names, are not there."""
    if command.direct25 is not None:
        from ..pipelines.direct25_mesh import find_weights

        find_weights(command.prior, command.direct25)
    if command.chosen == "turbo":
        from ..pipelines.turbo_mesh import TurboTextToMesh

        TurboTextToMesh.find_weights(command.prior, command.turbo)
    if command.chosen == "amortised":
        from ..pipelines.amortised_mesh import AmortisedTextToMesh

        AmortisedTextToMesh.find_weights(command.prior, command.amortised)


def loaded(command: TextToMesh) -> Any:
    """The pipeline of the method that is chosen."""
    prior, placement = command.prior, command.placement()
    if command.chosen == "turbo":
        from ..pipelines.turbo_mesh import TurboTextToMesh

        return TurboTextToMesh.from_pretrained(prior, command.turbo, **placement)
    if command.chosen == "amortised":
        from ..pipelines.amortised_mesh import AmortisedTextToMesh

        return AmortisedTextToMesh.from_pretrained(prior, command.amortised, **placement)
    if command.chosen == "direct25":
        student = NO_STUDENT if command.lora and command.student is None else command.student
        return map_drawer(prior, student, command.direct25, command.quality, placement)
    from ..pipelines.text_to_mesh import TextToMesh as Pipeline

    own: dict[str, Any] = {"rule": command.rule, "quality": command.quality, **placement}
    optimiser = Pipeline.from_pretrained(prior, command.recipe, **own)
    if command.student not in (None, NO_STUDENT):
        from ..pipelines.students import guided_by_student

        guided_by_student(optimiser, command.student)
    return optimiser
