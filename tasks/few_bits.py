"""Heads with the form of a student: the network of a head is its own, but its weights can have a student's few bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

from diffusers import UNet2DConditionModel

from ..core.distillation.export import kind_of
from ..core.distillation.lent import about_student
from ..core.distillation.packed import packed_network
from ..core.distillation.quest import Quantised
from ..utils.errors import InputError
from .geometry_head import GeometryHead


def with_unet(head: GeometryHead, unet: UNet2DConditionModel) -> GeometryHead:
    """The same head with another network."""
    other = copy.copy(head)
    other.unet, other.asked = unet, head.prior.with_network(unet, head.config.kind)
    return other


def bits_of(student: str | Path) -> int:
    """The bits of a student's weights. Raises InputError for students of other kinds, which heads cannot use."""
    about = about_student(student)
    if about["kind"] != Quantised.name:
        raise InputError(
            f"the student {student} is of kind {about['kind']}, made to draw from words; a head has a network of its "
            f"own, which only takes the bits of students of kind {Quantised.name} (quest, toybox-w4). A head that was "
            "taught on a smaller network is a folder: give it as --prior"
        )
    return cast(Quantised, kind_of(about["kind"], about["settings"])).weight_bits


def with_bits_of(head: GeometryHead, student: str | Path) -> GeometryHead:
    """A head whose weights are packed in as many bits as those of a student; it is asked as before."""
    return with_unet(head, packed_network(head.unet, bits_of(student)))
