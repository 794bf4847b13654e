"""Heads in the few bits of a student: rounded weights in packed memory, and no other kind of student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unproject.core.distillation.packed import PackedLayer
from unproject.tasks.few_bits import bits_of, with_bits_of
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.utils.errors import InputError


def student(folder: Path, kind: str, **settings: object) -> Path:
    folder.mkdir()
    (folder / "distill.json").write_text(json.dumps({"kind": kind, "settings": settings}))
    return folder


def test_a_head_has_as_many_bits_as_the_student_and_is_asked_once_as_before(tiny_prior, tmp_path: Path) -> None:
    head = GeometryHead.from_prior(tiny_prior, HeadConfig(("depth",), processing_resolution=32))
    few = with_bits_of(head, student(tmp_path / "w3", "quantised", weight_bits=3))
    layers = [one for one in few.unet.modules() if isinstance(one, PackedLayer)]
    assert {one.bits for one in layers} == {3, 8} and few.config == head.config
    name = "down_blocks.0.resnets.0.conv1"
    assert max(len(channel.unique()) for channel in few.unet.get_submodule(name).weight.flatten(1)) <= 2**3
    x, rows = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)), tiny_prior.encode_text(["", ""])
    with torch.no_grad():
        answers = [one.unet(x, 999, rows["cond"]["text"], return_dict=False)[0] for one in (few, head)]
    assert answers[0].shape == answers[1].shape and not torch.allclose(*answers, atol=1e-3)
    assert few.asked.network is few.unet and head.asked.network is head.unet


@pytest.mark.parametrize("kind", ["lora", "full", "pruned", "told"])
def test_students_that_draw_are_none_of_a_head(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"of kind {kind}, made to draw from words.*give it as --prior"):
        bits_of(student(tmp_path / "fast", kind))
    assert bits_of(student(tmp_path / "w4", "quantised", weight_bits=4)) == 4
    assert bits_of(student(tmp_path / "usual", "quantised")) == 4  # what is not said is as it is by default
