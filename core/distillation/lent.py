"""Students in other places than the drawing of single pictures: in the network of a prior of several views."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from ...utils.errors import InputError
from ...utils.files import STUDENT, read_json, student_folder
from ..priors import MultiViewPrior
from ..priors.diffusers import DiffusersPrior
from ..priors.multiview import MultiViewUNet
from ..sampling import NoiseSchedule
from .quest import quant_layers

WANTED = "; take an adapter or a smaller U-Net (lora-distillation, lcm-lora, rectified-diffusion, koala)"


def seeing_views(many: MultiViewPrior, student: DiffusersPrior) -> MultiViewPrior:
    """A multi-view prior with a student's network and its own cameras, which is asked as the student recommends.

    Nothing is trained anew: the multi-view network is the one of single pictures with joint attention and cameras.
    Raises InputError for a student that does not fit in (`misfit`).
    """
    if why := misfit(many, student):
        raise InputError(
            f"the student {student.name} {why}, which the multi-view prior {many.name} has no place for{WANTED}"
        )
    network: Any = copy.deepcopy(student.network)
    made = many.with_views(MultiViewUNet(network, many.views.camera_embedding))
    made.name, made.recommended = f"{many.name} with {student.name}", student.recommended
    return made


def misfit(many: MultiViewPrior, student: DiffusersPrior) -> str:
    """What of a student a multi-view prior has no place for, in words; empty where it fits."""
    network, paths = student.network, [NoiseSchedule.from_config(one.scheduler_config) for one in (many, student)]
    if student.guidance_embedded:
        return "is told a guidance scale"
    if student.negative_embedded:
        return "reads its negative prompt in the network"
    if any(quant_layers(network)):
        return "has inputs rounded row by row"
    plain = isinstance(network, UNet2DConditionModel) and network.conv_out.out_channels == many.latent_shape[0]
    if not plain or student.prediction_type != many.prediction_type:
        return "answers with something else than the prior's network"
    if paths[0].flow != paths[1].flow or paths[0].steps != paths[1].steps:
        return "is on another noise path"
    return ""


def about_student(name: str | Path) -> Mapping[str, Any]:
    """What distill.json says of a student by folder or name. Raises InputError where there is none."""
    values: Mapping[str, Any] = read_json(student_folder(name) / STUDENT)
    return values
