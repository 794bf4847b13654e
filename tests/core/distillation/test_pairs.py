"""Pairs and views: keys, shards that go on, noise by number, one prior on two noise paths."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from unproject.core.distillation import pairs as module
from unproject.core.distillation.pairs import PairPlan, PairSet, kept, make_pairs, noises
from unproject.core.distillation.rectify import check_coupled
from unproject.core.distillation.teacher import Teacher, rollout
from unproject.core.distillation.views import flow_view, vp_view
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import Denoiser, NoiseSchedule
from unproject.utils.errors import InputError, UnprojectError

PLAN = PairPlan(count=5, steps=4, solver="ddim", guidance=2.0, batch=2)
WORDS = ["a", "b", "a b"]


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    means = torch.tensor([0.8, -0.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2).clone()
    means[0, 0, 1, 0] = 0.1
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.6]), names=("a", "b"), scheduler_config=config)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)


def test_pairs_are_the_ends_of_the_teachers_runs(tmp_path):
    teacher = Teacher(mixture())
    made = make_pairs(teacher, WORDS, PLAN, tmp_path)
    assert len(made) == 5 and made.deterministic and len(list(made.folder.glob("pairs-*.safetensors"))) == 3
    batch = made.batch(np.array([4, 1]), None)
    assert batch["captions"] == ["b", "b"] and torch.equal(batch["noise"], noises(0, [4, 1], (1, 2, 2)))
    condition = teacher.prior.encode_text(batch["captions"])
    levels = teacher.schedule.grid(4)
    ends = rollout(teacher.denoiser_at(condition, torch.tensor([2.0, 2.0])), batch["noise"], levels)[-1]
    torch.testing.assert_close(batch["latents"].double(), ends.double(), rtol=1e-3, atol=1e-3)
    plain = rollout(teacher.denoiser(condition), batch["noise"], levels)[-1]
    assert (plain - ends).abs().max() > 1e-2


def test_what_is_there_is_kept_and_what_is_broken_is_made_again(tmp_path, monkeypatch):
    teacher = Teacher(mixture())
    whole = make_pairs(teacher, WORDS, PLAN, tmp_path)
    (whole.folder / "pairs-00001.safetensors").write_bytes(b"half")
    made: list[range] = []
    drawn = module._drawn
    monkeypatch.setattr(module, "_drawn", lambda *a: made.append(a[2]) or drawn(*a))
    again = make_pairs(teacher, WORDS, PLAN, tmp_path)
    assert [list(rows) for rows in made] == [[2, 3]] and torch.equal(again.latents, whole.latents)
    about = json.loads((whole.folder / "pairs.json").read_text())
    del about["shards"]["pairs-00002.safetensors"]
    (whole.folder / "pairs.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="a part of its 5 pairs"):
        PairSet(whole.folder)


def test_the_key_is_of_everything_that_decides_the_values(tmp_path):
    teacher = Teacher(mixture())
    key = make_pairs(teacher, WORDS, PLAN, tmp_path).key
    assert make_pairs(teacher, WORDS, replace(PLAN, batch=5), tmp_path).key == key
    others = [
        (teacher, WORDS[:2], PLAN),
        (teacher, WORDS, replace(PLAN, seed=1)),
        (teacher, WORDS, replace(PLAN, guidance=1.0)),
        (teacher, WORDS, replace(PLAN, spacing="trailing")),
        (Teacher(mixture(FLOW_SCHEDULE)), WORDS, PLAN),
        (Teacher(flow_view(mixture())), WORDS, PLAN),
    ]
    keys = {make_pairs(*other, tmp_path).key for other in others}
    assert len(keys) == 6 and key not in keys


def test_states_are_kept_where_asked_and_random_runs_are_refused(tmp_path):
    plan = replace(PLAN, keep=1, count=3)
    batch = make_pairs(Teacher(mixture()), WORDS, plan, tmp_path).batch(np.array([0, 2]), None)
    assert batch["states"].shape == (2, 1, 1, 2, 2) and batch["kept"] == kept(plan) == [2]
    assert (batch["states"][:, 0] - batch["latents"]).abs().max() > 0.05
    noisy = make_pairs(Teacher(mixture()), WORDS, replace(plan, solver="lcm"), tmp_path)
    with pytest.raises(InputError, match="lcm, which adds noise"):
        check_coupled(noisy)


def test_runs_that_diverge_are_not_stored(tmp_path):
    prior = mixture()
    prior.means = prior.means * 1e4
    with pytest.raises(UnprojectError, match="diverged"):
        make_pairs(Teacher(prior), WORDS, PLAN, tmp_path)


@pytest.mark.parametrize("view", ["flow", "vp"])
def test_a_view_answers_as_the_prior_at_the_same_state(view):
    inner = mixture(SD_SCHEDULE if view == "flow" else FLOW_SCHEDULE)
    seen = flow_view(inner) if view == "flow" else vp_view(inner)
    condition = inner.encode_text(["a", "a b", "b"])
    schedule, own = (NoiseSchedule.from_config(one.scheduler_config) for one in (seen, inner))
    x0, noise = noises(1, range(3), (1, 2, 2)).double(), noises(2, range(3), (1, 2, 2)).double()
    level = schedule.at_index(torch.tensor([300.0, 550.5, 800.0]))
    same = own.path.at_lambda(torch.as_tensor(level.lam))
    ours = Denoiser(seen, condition)(schedule.add_noise(x0, noise, level), level)
    theirs = Denoiser(inner, condition)(own.add_noise(x0, noise, same), same)
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.eps, theirs.eps, rtol=0, atol=1e-6)
    if view == "flow":
        assert float(seen.levels(4)[0].sigma) == pytest.approx(0.936, abs=5e-4)


def test_a_flow_view_goes_where_the_prior_goes():
    """RK-like fine grids of both paths lead from one start to one end."""
    inner = mixture()
    seen, condition = flow_view(inner), inner.encode_text(["a b", "a b"])
    own = NoiseSchedule.from_config(inner.scheduler_config)
    z = noises(3, range(2), (1, 2, 2)).double()
    first = own.at_index(999)
    vp = rollout(Denoiser(inner, condition), z, [*(own.at_index(i) for i in range(999, 0, -2)), own.clean])[-1]
    start = z / (first.alpha + first.sigma)
    flow = rollout(Denoiser(seen, condition), start, seen.levels(500))[-1]
    torch.testing.assert_close(flow, vp, rtol=0, atol=5e-3)
