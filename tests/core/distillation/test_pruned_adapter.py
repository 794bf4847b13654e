"""A smaller U-Net with an adapter: where it begins, what learns, what its file holds."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from unproject.core.distillation.cuts import without
from unproject.core.distillation.export import About, export, kind_of, load_student
from unproject.core.distillation.prune import FeatureMatching, FeatureObjective, Pruned, feature_pairs, pruned
from unproject.core.distillation.pruned_adapter import FILE, PrunedLora
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import load_prior
from unproject.core.priors.base import Recommended
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator as rng

SMALL = PrunedLora(mid=False, rank=2)


def test_it_begins_as_the_pruned_network_and_the_adapter_alone_learns(tiny_folders, asked):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, SMALL)
    assert torch.equal(asked(student.network), asked(pruned(prior.network, Pruned(mid=False))))
    assert all(value.requires_grad == (".lora_" in name) for name, value in student.network.named_parameters())
    objective = FeatureObjective(student, Teacher(prior), FeatureMatching("self-attn"))
    batch = {"latents": torch.randn(2, 4, 8, 8, generator=rng(3)), "captions": ["a dog", "a red chair"]}
    objective.loss(batch, rng(4), 0).loss.backward()
    assert sum(float(value.grad.abs().sum()) for value in student.network.parameters() if value.requires_grad) > 0
    assert 0 < student.trained_share < 0.2


def test_single_units_are_left_out_with_their_weights(tiny_folders, asked):
    prior, gone = load_prior(tiny_folders["sd"]), ("down_blocks.1.attentions.0", "up_blocks.0.resnets.0")
    student = Student(prior, PrunedLora(removed=gone, rank=2))
    with without(prior.network, gone[0]), without(prior.network, gone[1]):
        assert torch.equal(asked(student.network), asked(prior.network))
    left = [name for name, _ in student.network.named_parameters() if name.startswith(gone)]
    assert all("conv_shortcut" in name for name in left) and len(left) < 5
    assert feature_pairs(student.network, prior.network, FeatureMatching("self-attn"))
    with pytest.raises(InputError, match="is no unit of this network; have down_blocks"):
        Student(prior, PrunedLora(removed=("up_blocks.0.resnets.9",)))


def test_its_file_is_the_adapter_and_comes_back_as_plain_weights(tiny_folders, tmp_path, asked):
    student = Student(load_prior(tiny_folders["sd"]), SMALL)
    with torch.no_grad():
        for value in student.network.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=rng(5))
    folder = export(student, tmp_path / "s", About("small", str(tiny_folders["sd"]), "0" * 16, Recommended()))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {FILE, "distill.json"}
    learnt = sum(value.numel() for value in student.network.parameters() if value.requires_grad)
    assert sum(value.numel() for value in load_file(folder / FILE).values()) == learnt
    assert kind_of("pruned-lora", {"mid": False, "rank": 2}) == SMALL
    loaded = load_student(folder).network
    assert not any("lora" in name for name in loaded.state_dict())
    torch.testing.assert_close(asked(loaded), asked(student.network), rtol=1e-4, atol=1e-5)
