"""Cuts: mixed kernels, regional attention and their limits, units that do nothing, assembly, incubation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unproject.core.distillation.asdm import IncubateObjective, Incubating, Slim, redundancy, units_of
from unproject.core.distillation.cuts import CondConv2d, RegionalAttention, cuts_of, only
from unproject.core.distillation.states import FromData
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import load_prior
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator as rng

TEXTS = ["a dog", "a red chair"]
REMOVED = ("mid_block.resnets.1", "up_blocks.0.attentions.1")


def convolutions(count: int = 3) -> list[nn.Conv2d]:
    made = [nn.Conv2d(3, 5, 3, padding=1) for _ in range(count)]
    with torch.no_grad():
        for k, one in enumerate(made):
            one.weight.normal_(generator=rng(k))
            one.bias.normal_(generator=rng(10 + k))
    return made


def test_one_hot_routing_is_that_kernel_and_equal_kernels_are_one():
    parts, x = convolutions(), torch.randn(1, 3, 6, 6, generator=rng(5))
    mixed = CondConv2d(parts)
    with torch.no_grad():
        for k in range(3):
            mixed.routing.bias.fill_(-1e4)[k] = 1e4
            assert torch.equal(mixed(x), parts[k](x))
        same = CondConv2d([parts[0]] * 3)
        same.routing.weight.normal_(generator=rng(7))
        torch.testing.assert_close(same(x), parts[0](x), rtol=1e-5, atol=1e-5)
        mixed.on = False
        assert torch.equal(mixed(x), parts[0](x))
    with pytest.raises(InputError, match="different shapes"):
        CondConv2d([parts[0], nn.Conv2d(3, 4, 3)])


def test_every_sample_has_its_own_kernel():
    mixed, x = CondConv2d(convolutions()), torch.randn(4, 3, 6, 6, generator=rng(5))
    with torch.no_grad():
        mixed.routing.weight.normal_(std=60.0, generator=rng(7))
        apart = torch.cat([mixed(one[None]) for one in x])
        torch.testing.assert_close(mixed(x), apart, rtol=1e-5, atol=1e-5)
        shares = mixed.routing(x.mean((2, 3))).softmax(-1)
    assert shares.std(0).max() > 0.05


@pytest.mark.parametrize(("window", "pool"), [(4, 0), (0, 1), (2, 2), (2, 0)])
def test_regions_that_are_everything_are_full_attention(make_unet, window, pool):
    layer = make_unet(seed=2).down_blocks[0].attentions[0].transformer_blocks[0].attn1
    x = torch.randn(2, 16, 16, generator=rng(1))
    with torch.no_grad():
        full, found = layer(x), RegionalAttention(layer, window, pool)(layer, x)
        if (window, pool) in ((4, 0), (0, 1)):
            torch.testing.assert_close(found, full, rtol=0, atol=1e-6)
            return
        assert (found - full).abs().max() > 1e-4
        if not pool:  # a token sees its window alone
            changed = x.clone()
            changed[:, 15] += 1.0
            after = RegionalAttention(layer, window, pool)(layer, changed)
            seen = (after - found).abs().amax((0, 2)) > 1e-6
            assert seen.nonzero().flatten().tolist() == [10, 11, 14, 15]
        off = RegionalAttention(layer, window, pool)
        off.on = False
        torch.testing.assert_close(off(layer, x), full, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="square maps"):
        RegionalAttention(layer, 3, 0)(layer, x)
    with pytest.raises(InputError, match="nor both 0"):
        RegionalAttention(layer, 0, 0)


def test_a_unit_that_does_nothing_has_no_score(tiny_folders, asked):
    prior = load_prior(tiny_folders["sd"])
    with torch.no_grad():
        for part in (prior.network.mid_block.resnets[1].conv2, prior.network.up_blocks[0].attentions[1].proj_out):
            part.weight.zero_(), part.bias.zero_()
    teacher, condition = Teacher(prior), prior.encode_text(TEXTS)
    state = FromData(teacher.schedule)(torch.randn(2, 4, 8, 8, generator=rng(1)), condition, rng(2))
    found = redundancy(teacher, state, condition)
    assert list(found) == units_of(prior.network)
    assert all((score == 0) == (name in REMOVED) for name, score in found.items())
    slim = Student(prior, Slim(REMOVED, experts=False))
    torch.testing.assert_close(asked(slim.network), asked(prior.network), rtol=0, atol=1e-5)


def test_what_is_switched_back_is_the_teacher(tiny_folders, asked):
    prior = load_prior(tiny_folders["sd"])
    whole = Student(prior, Slim()).network
    assert torch.equal(asked(whole), asked(prior.network))
    slim = Student(prior, Slim(REMOVED, regional=("attn1",), window=2, pool=2)).network
    assert (asked(slim) - asked(prior.network)).abs().max() > 1e-3
    stages = list(cuts_of(slim))
    assert {"mid_block", "up_blocks.0", "down_blocks.0"} <= set(stages)
    with only(slim, "nowhere"):
        torch.testing.assert_close(asked(slim), asked(prior.network), rtol=0, atol=1e-5)
    with only(slim, "mid_block"):
        assert (asked(slim) - asked(prior.network)).abs().max() > 1e-4
    with pytest.raises(InputError, match="is no unit"):
        Student(prior, Slim(("mid_block.resnets.7",)))


def test_kernels_of_removed_units_stay_as_a_choice(tiny_folders, asked):
    prior = load_prior(tiny_folders["sd"])
    network = Student(prior, Slim(("mid_block.resnets.1",))).network
    mixed = network.mid_block.resnets[0].conv2
    assert isinstance(mixed, CondConv2d)
    assert torch.equal(mixed.weight[1], prior.network.mid_block.resnets[1].conv2.weight)
    plain = Student(prior, Slim(("mid_block.resnets.1",), experts=False)).network
    torch.testing.assert_close(asked(network), asked(plain), rtol=0, atol=2e-2)


def test_incubation_trains_the_cuts_of_a_stage_and_files_come_back(tiny_folders, tmp_path, asked):
    prior, kind = load_prior(tiny_folders["sd-v"]), Slim(REMOVED, regional=("attn1",), window=2, pool=2)
    student = Student(prior, kind)
    objective = IncubateObjective(student, Teacher(prior), Incubating())
    batch = {"latents": torch.randn(2, 4, 8, 8, generator=rng(3)), "captions": TEXTS}
    first, again = (objective.loss(batch, rng(4), 0) for _ in range(2))
    assert torch.equal(first.loss, again.loss) and first.logs["block"] > 0
    with torch.no_grad():
        for cuts in cuts_of(student.network).values():
            for cut in cuts:
                for value in getattr(cut, "parts", nn.Module()).parameters():
                    value += 0.1 * torch.randn(value.shape, generator=rng(8))
    first = objective.loss(batch, rng(4), 0)
    with only(student.network, "nowhere"):
        torch.testing.assert_close(asked(student.network), asked(prior.network), rtol=0, atol=1e-5)
    optimizer = torch.optim.Adam([p for p in student.network.parameters() if p.requires_grad], 3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        objective.loss(batch, rng(4), 0).loss.backward()
        optimizer.step()
    assert objective.loss(batch, rng(4), 0).loss < 0.9 * first.loss
    with only(student.network, "nowhere"):
        torch.testing.assert_close(asked(student.network), asked(prior.network), rtol=0, atol=1e-5)
    folder = student.save(tmp_path / "s")
    assert torch.equal(asked(kind.loaded(prior, folder).network), asked(student.network))
    again = Student(student.prior, Slim())
    assert torch.equal(asked(again.network), asked(student.network)) and cuts_of(again.network)
    with pytest.raises(InputError, match="none of"):
        IncubateObjective(Student(prior), Teacher(prior), Incubating())
