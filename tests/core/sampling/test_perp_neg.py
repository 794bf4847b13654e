"""Perp-Neg: its equation sample by sample, orthogonality, batches, views."""

from __future__ import annotations

import pytest
import torch

from unproject.core.distillation.score import ScoreConfig
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling.denoiser import Denoiser
from unproject.core.sampling.guidance import ClassifierFree
from unproject.core.sampling.perp_neg import PerpNeg, negative_branch
from unproject.generate.guides import make_guide
from unproject.generate.views import perp_neg_views
from unproject.geometry.cameras import Camera
from unproject.utils.errors import InputError

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
WORDS = ("red", "blue", "old", "dull")


def prior(kind: str = "epsilon") -> GaussianMixturePrior:
    schedule = FLOW_SCHEDULE if kind == "flow_prediction" else {**SD_SCHEDULE, "prediction_type": kind}
    means = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return GaussianMixturePrior(means, torch.tensor([0.5, 0.6, 0.4, 0.7]), names=WORDS, scheduler_config=schedule)


def condition(model, prompts, negatives):
    made = model.encode_text(list(prompts))
    for number, texts in enumerate(negatives):
        made = made.branch(negative_branch(number), model.encode_text(list(texts))["cond"])
    return made


PROMPTS, NEGATIVES = ("red", "blue"), (("blue", "dull"), ("old", "red"))
WEIGHTS = torch.tensor([[-1.5, -0.5], [-0.25, -2.0]])


def states() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, 3, generator=draw, dtype=torch.float64), torch.tensor([300.0, 700.0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_equation_by_hand_for_each_sample_of_a_batch(kind):
    """Each sample's negatives are asked at its own state: what a tiled batch gets wrong."""
    model, (x, index) = prior(kind), states()
    denoiser = Denoiser(model, condition(model, PROMPTS, NEGATIVES), PerpNeg(6.0, WEIGHTS))
    got = denoiser(x, denoiser.schedule.at_index(index)).eps
    for row in range(2):
        own, level = x[row : row + 1], denoiser.schedule.at_index(float(index[row]))
        null, toward, *away = (
            Denoiser(model, model.encode_text(words))(own, level).eps
            for words in ("anything", PROMPTS[row], NEGATIVES[0][row], NEGATIVES[1][row])
        )
        pull = toward - null
        for number, one in enumerate(away):
            u, d = one - null, toward - null
            pull = pull + WEIGHTS[number, row] * (u - (u * d).sum() / (d * d).sum() * d)
        torch.testing.assert_close(got[row : row + 1], null + 6.0 * pull, rtol=1e-6, atol=1e-8)


def test_negatives_only_push_across_and_vanish_with_their_weights():
    model, (x, index) = prior(), states()
    told = condition(model, PROMPTS, NEGATIVES)
    level = Denoiser(model, told).schedule.at_index(index)
    plain = Denoiser(model, told, ClassifierFree(6.0))(x, level).eps
    torch.testing.assert_close(Denoiser(model, told, PerpNeg(6.0, 0 * WEIGHTS))(x, level).eps, plain)
    branches = Denoiser(model, told).ask(x, level, ("cond", "null"))
    toward = (branches["cond"] - branches["null"]).eps
    across = Denoiser(model, told, PerpNeg(6.0, WEIGHTS))(x, level).eps - plain
    assert float(across.flatten(1).norm(dim=1).min()) > 0.1
    assert float((across * toward).sum((1, 2, 3)).abs().max()) < 1e-9
    same = condition(model, PROMPTS, (PROMPTS, PROMPTS))  # a negative that is the prompt itself does nothing
    torch.testing.assert_close(Denoiser(model, same, PerpNeg(6.0, WEIGHTS))(x, level).eps, plain)


def test_views_push_away_those_that_they_are_far_from():
    names = ["front", "side", "back", "top"]
    camera = Camera.orbit([0.0, 45, 90, -135, 180, 10], [0.0, 0, 0, 0, 0, 80], 3.0, 40.0, 8)
    (first, second, share), negatives, weights = perp_neg_views(camera, names)
    assert first == [0, 0, 1, 1, 1, 3] and second == [1, 1, 2, 2, 2, 3]
    torch.testing.assert_close(share[:5], torch.tensor([1, 0.5, 1, 0.5, 0]), atol=1e-5, rtol=0)
    assert negatives == [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 1]]
    expected = torch.tensor([[0, -1.574], [-0.689, -0.689], [0, -1.574], [-0.173, -1.746], [-0.394, -1.967], [0, 0]])
    torch.testing.assert_close(weights.mT, expected, atol=1e-3, rtol=0)


def test_weights_need_a_row_for_each_negative():
    with pytest.raises(InputError, match="expected \\(negatives, samples\\)"):
        PerpNeg(7.5, torch.zeros(3))


def test_a_guide_tells_each_camera_its_own_views(tiny_folders):
    """Texts and weights of a batch are those of its cameras one by one."""
    score = ScoreConfig(form="score", guidance=7.5, rescale=0.0, weight="sigma2", perp_neg=True)
    guide = make_guide(score, load_prior(tiny_folders["sd"]), "a red dog")
    camera = Camera.orbit([0.0, 50, 120, 200], [0.0, 10, 80, 0], 3.0, 40.0, 32)
    condition, perp = guide.words.told(camera)
    for row in range(4):
        alone, one = guide.words.told(camera[torch.tensor([row])])
        torch.testing.assert_close(one.weights[:, 0], perp.weights[:, row])
        for name in ("cond", "null", negative_branch(0), negative_branch(1)):
            torch.testing.assert_close(alone[name]["text"][0], condition[name]["text"][row])
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = guide.nfe
    out = guide(images, camera, 0.5, torch.Generator().manual_seed(1))
    assert guide.nfe - before == 4 * 4 and out.grad_norm > 0
