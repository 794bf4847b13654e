"""Normals as a picture that a prior knows: conventions, gradients, and a weight of 0 that changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unproject.core.distillation.rules import RuleConfig
from unproject.core.distillation.score import ScoreConfig
from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.generate.guides import make_guide
from unproject.generate.normal_guide import NormalGuide, NormalsConfig
from unproject.generate.optimise import Optimisation, OptimiseConfig
from unproject.geometry.cameras import Camera
from unproject.geometry.outputs import RenderOutput
from unproject.geometry.shapes import GaussianConfig, ShapeConfig
from unproject.utils.errors import InputError

SIZE = 12
SCORE = ScoreConfig(guidance=1.0, rescale=0.0)
WORDS = ("shiny", "map")


def prior() -> GaussianMixturePrior:
    means = torch.stack([torch.full((3, SIZE, SIZE), -0.4), torch.full((3, SIZE, SIZE), 0.5)])
    return GaussianMixturePrior(means, torch.tensor([0.4, 0.3]), names=WORDS, scheduler_config=SD_SCHEDULE)


def seen(normal: torch.Tensor, alpha: float = 1.0) -> RenderOutput:
    """Every pixel with one normal (3,)."""
    map_ = normal.float().expand(1, 2, 2, 3)
    cover = torch.full((1, 2, 2, 1), alpha)
    return RenderOutput(torch.zeros(1, 2, 2, 3), cover, cover, map_)


@pytest.mark.parametrize("azimuth", [0.0, 70.0, 200.0])
def test_a_plane_that_faces_the_camera_is_blue_from_everywhere(azimuth):
    camera = Camera.orbit([azimuth], 20.0, 3.0, 40.0, 2)
    toward = camera.centres[0] / camera.centres[0].norm()
    config = NormalsConfig(axes="camera", background=(0.5, 0.5, 1.0))
    torch.testing.assert_close(config.picture(seen(toward), camera)[0, 0, 0], torch.tensor([0.5, 0.5, 1.0]))
    right = torch.linalg.inv(camera.w2c)[0, :3, 0]  # of the picture
    turned = [replace(config, mirrored=flip).picture(seen(right), camera)[0, 0, 0] for flip in (False, True)]
    torch.testing.assert_close(turned[0], torch.tensor([1.0, 0.5, 0.5]))
    torch.testing.assert_close(turned[1], torch.tensor([0.0, 0.5, 0.5]))
    up = -torch.linalg.inv(camera.w2c)[0, :3, 1]
    torch.testing.assert_close(config.picture(seen(up), camera)[0, 0, 0], torch.tensor([0.5, 1.0, 0.5]))


def test_axes_of_the_object_are_those_of_the_toybox_maps():
    """x to its front, z up, from every camera; mid-grey where nothing is, mixed at edges."""
    camera = Camera.orbit([133.0], 20.0, 3.0, 40.0, 2)
    front = torch.tensor([1.0, 0, 0])
    picture = NormalsConfig().picture
    torch.testing.assert_close(picture(seen(front), camera)[0, 0, 0], torch.tensor([1.0, 0.5, 0.5]))
    torch.testing.assert_close(picture(seen(front, 0.5), camera)[0, 0, 0], torch.tensor([0.75, 0.5, 0.5]))
    torch.testing.assert_close(picture(seen(0 * front, 0.0), camera)[0, 0, 0], torch.tensor([0.5, 0.5, 0.5]))


def optimised(weight: float | tuple[float, ...], steps: int = 2) -> Optimisation:
    shape = ShapeConfig("gaussians", gaussians=GaussianConfig(count=30, mean_lr=0.01))
    config = OptimiseConfig(steps=steps, sizes=((0, SIZE),), guided_px=SIZE, shape=shape)
    model = prior()
    guide = make_guide(SCORE, model, "shiny")
    told = NormalsConfig(weight=weight if isinstance(weight, tuple) else (weight,), words="map")
    normals = NormalGuide(told, SCORE, model, "shiny", 4)
    work = Optimisation(config, guide, 3, normals=normals)
    work.run()
    return work


def test_weight_zero_is_the_run_without_and_others_pull_on_turns():
    plain, without, pulled = optimised(0.0), optimised((0, 0.0, 0.0, 1)), optimised(4.0)
    assert plain.nfe == without.nfe == 2 * 4 and pulled.nfe == 2 * plain.nfe
    for name, value in plain.shape.state_dict().items():
        assert torch.equal(value, without.shape.state_dict()[name])
    assert not torch.equal(plain.shape.quaternions, pulled.shape.quaternions)
    assert "normals_grad" in pulled.history[0] and "normals_grad" not in plain.history[0]


class Closed(GaussianMixturePrior):
    """Knows no maps."""

    def unknown_words(self, prompt):
        return [("normal", [])] if "normal" in prompt else []


def test_priors_without_the_words_and_rules_with_a_twin_are_refused():
    model = Closed(prior().means, prior().stds, names=WORDS)
    with pytest.raises(InputError, match="has never seen 'normal'; it needs one that was taught maps"):
        NormalGuide(NormalsConfig((1.0,)), SCORE, model, "shiny", 4)
    twin = ScoreConfig(rule=RuleConfig("vsd"), form="score", rescale=0.0)
    with pytest.raises(InputError, match="learns one kind of picture"):
        NormalGuide(NormalsConfig((1.0,)), twin, prior(), "shiny", 4)
    with pytest.raises(InputError, match="must not be negative"):
        NormalsConfig((-1.0,))
