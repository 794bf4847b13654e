"""The experiment on orbits: its measures on known pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unproject.bench import orbits
from unproject.bench.registry import experiment
from unproject.core.priors.rows import Rows
from unproject.core.training.orbit_clips import motion
from unproject.toybox.judge import Judge
from unproject.toybox.judge_net import FeatureMaps
from unproject.utils.errors import InputError


@pytest.fixture(scope="module")
def truth():
    return orbits.RenderedOrbits.of("val", 1, 48)


def test_true_renders_agree_and_shifted_ones_do_not(truth):
    views = truth.rgb[truth.groups()[0]] / 255.0
    floor = orbits.disagreement(truth, 0, views)
    painted = np.broadcast_to(np.array([0.2, 0.5, 0.9]), views.shape)
    assert orbits.disagreement(truth, 0, painted) == pytest.approx(0, abs=1e-6)
    odd = views.copy()
    odd[::2] = 1 - odd[::2]  # every other frame in other colours
    assert floor < 0.12 and orbits.disagreement(truth, 0, odd) > 2 * floor
    step = np.zeros_like(views)
    step += 0.1 * (np.arange(8) % 2)[:, None, None, None]
    assert orbits.disagreement(truth, 0, step) == pytest.approx(0.1, abs=1e-6)


def test_the_truth_measures_as_the_truth(truth):
    views = truth.rgb[truth.groups()[0]].astype(np.float32) / 255
    eyes = FeatureMaps(Judge.from_pretrained().net)
    own = orbits.measured(truth, 0, views, eyes)
    assert (
        own["psnr"] == pytest.approx(100)
        and own["feature_distance"] < 1e-6
        and own["motion"] == pytest.approx(1, abs=0.02)
    )
    noisy = np.clip(views + 0.1, 0, 1)
    noisy[0] = 0  # the picture itself does not count
    off = orbits.measured(truth, 0, noisy, eyes)
    assert 19.5 < off["psnr"] < 22 and off["feature_distance"] > own["feature_distance"]
    still = np.broadcast_to(views[:1], views.shape)
    assert orbits.measured(truth, 0, still, eyes)["motion"] == 0


def test_four_views_are_compared_with_every_second_frame(truth):
    true = orbits.truth_of(truth)[0]
    np.testing.assert_array_equal(true, truth.rgb[truth.groups()[0]][::2].astype(np.float32) / 255)
    off = true.copy()
    off[0], off[2] = 0, off[2] + 0.1
    assert orbits.quarter(off, true)["psnr_quarter"] == pytest.approx((100 + 20 + 100) / 3, abs=0.01)
    eyes = FeatureMaps(Judge.from_pretrained().net)
    views = truth.rgb[truth.groups()[0]] / 255.0
    odd = views.copy()
    odd[1::2] = 0
    assert orbits.measured(truth, 0, odd, eyes)["psnr_quarter"] == pytest.approx(100)


def test_every_other_orbit_stands_still():
    both = orbits.RenderedOrbits.of("train", 2, 16)
    clips = both.half_still().rgb.reshape(2, 8, 16, 16, 3)
    assert motion(clips[0]) == 0 < motion(clips[1]) and np.array_equal(clips[1], both.rgb[8:])


def test_claims_are_paired():
    record = {"psnr": 10.0, "disagreement": 0.2, "motion": 0.5}
    found = {name: [record, record] for name in (orbits.SCRATCH, orbits.PRIOR, orbits.ADAPTER, orbits.APART)}
    found[orbits.PRIOR] = [{**record, "psnr": 12.0}] * 2
    found[orbits.ADAPTER] = [{**record, "disagreement": 0.1}] * 2
    found[orbits.JOINT] = [{**record, "psnr": 10.5}] * 2
    found[orbits.MIXED], found[orbits.CURATED] = [record] * 2, [{**record, "motion": 0.75}] * 2
    made = orbits.claims(found)
    assert made["prior_over_scratch_db"]["mean"] == 2 and made["adapter_over_scratch_db"]["mean"] == 0
    assert made["joint_over_adapter_db"]["mean"] == 0.5 and "several_over_joint_db" not in made
    found[orbits.JOINT], found[orbits.SEVERAL] = [{**record, "psnr_quarter": 12.0}] * 2, [{"psnr_quarter": 13.5}] * 2
    assert orbits.claims(found)["several_over_joint_db"]["mean"] == 1.5
    assert made["disagreement_of_independent"]["ratio"] == pytest.approx(0.5)
    assert made["curated_motion_of_mixed"]["ratio"] == pytest.approx(1.5)


def test_independent_views_do_not_see_each_other():
    from unproject.core.priors import load_prior

    prior = orbits.ApartPrior(load_prior("toybox"), frames=2)
    for parameter in prior.parts.parameters():
        parameter.data += 0.02
    told = prior.told(torch.randn(1, *prior.latent_shape), torch.rand(2, 3), 2)["cond"]
    x = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    both = prior.predict(x, 400.0, told)
    alone = prior.predict(x[1:], 400.0, Rows({name: told[name][1:] for name in told.tensors}))
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)


def test_the_experiment_is_known_and_needs_an_image_prior():
    assert experiment("orbits").baseline == ("setting", orbits.SCRATCH)
    with pytest.raises(InputError, match="single images"):
        orbits.objective_of(orbits.ADAPTER, "toybox-dit", 0)
