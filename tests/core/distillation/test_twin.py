"""The twin of VSD on tiny random models: the prior at first, learns renders and cameras, leaves the prior alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unproject.core.distillation.rules import RuleConfig
from unproject.core.distillation.rules.vsd import VSD
from unproject.core.distillation.score import ScoreConfig
from unproject.core.distillation.teacher import prior_hash
from unproject.core.distillation.twin import Twin
from unproject.core.priors import MultiViewPrior, inflate, load_prior
from unproject.core.sampling.denoiser import Denoiser
from unproject.core.training.loop import Loop
from unproject.generate.guides import make_guide
from unproject.generate.views import ViewConfig, draw_cameras
from unproject.geometry.cameras import to_mvdream
from unproject.utils.seeds import generator

CONFIG = VSD(rank=2, lr=1e-2, no_camera=0.0)
SCORE = ScoreConfig(rule=RuleConfig("vsd", vsd=CONFIG), form="score", guidance=1.0, rescale=0.0, weight="sigma2")


def multi_view(folder) -> MultiViewPrior:
    pipe = load_prior(folder).pipe
    views = inflate(pipe.unet)
    with torch.no_grad():
        views.camera_embedding[2].weight.normal_(0, 0.3, generator=generator(1))
    return MultiViewPrior(pipe, views)


def camera_rows(views: int = 4) -> torch.Tensor:
    return to_mvdream(draw_cameras(ViewConfig(views=views), 8, generator(3)).c2w)


@pytest.mark.parametrize("kind", ["sd", "sd-v", "sd3", "views"])
def test_it_answers_what_the_prior_does_at_first(kind, tiny_folders):
    prior = multi_view(tiny_folders["sd"]) if kind == "views" else load_prior(tiny_folders[kind])
    twin, condition = Twin(prior, CONFIG), prior.encode_text(["a red dog"] * 4)
    asked = condition
    if kind == "views":
        asked = condition = prior.encode_text(["a red dog"]).with_views(camera_rows(), 4)
    elif twin.cameras:
        asked = condition.with_rows(cameras=camera_rows())
    assert twin.cameras == (kind != "sd3")
    x = torch.randn(4, *prior.latent_shape, generator=generator(0))
    level = Denoiser(prior, condition).schedule.at_index(500.0)
    with torch.no_grad():
        own, other = Denoiser(prior, condition)(x, level).raw, twin.told(x, asked)(x, level).raw
    torch.testing.assert_close(other, own, rtol=1e-4, atol=1e-5)
    assert twin.nfe == 4 and prior.nfe == 4


@pytest.mark.parametrize("kind", ["sd", "views"])
def test_it_learns_what_the_renders_look_like_from_where(kind, tiny_folders):
    """Two renders at two cameras, one text: its error falls, by cameras too, and the prior keeps its weights."""
    prior = multi_view(tiny_folders["sd"]) if kind == "views" else load_prior(tiny_folders[kind])
    before, twin = prior_hash(prior), Twin(prior, replace(CONFIG, rank=8, lr=3e-2))
    condition = prior.encode_text(["a red dog"])
    condition = (
        condition.with_views(camera_rows(2), 2)
        if kind == "views"
        else condition.repeat(2).with_rows(cameras=camera_rows(2))
    )
    x = torch.randn(1, *prior.latent_shape, generator=generator(0)) * torch.tensor([1.0, -1.0])[:, None, None, None]
    twin.told(x, condition)
    player = twin.player(after="")
    loop = Loop([player], {"twin": lambda turn: twin.loss(generator(5))})
    losses = [loop.advance()["loss"] for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]
    assert prior_hash(prior) == before and not any(p.requires_grad for p in prior.parameters())
    names = list(player.named)
    assert all(".lora_" in name or "camera_embedding" in name for name in names)
    assert any("camera_embedding" in name for name in names) == (kind == "sd")


def test_lessons_are_pure_and_cameras_are_left_out_sometimes(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    twin = Twin(prior, replace(CONFIG, no_camera=1.0))
    with torch.no_grad():
        twin.prior.views.camera_embedding[2].weight.normal_(0, 1.0, generator=generator(1))
    x = torch.randn(2, *prior.latent_shape, generator=generator(0))
    condition = prior.encode_text(["a dog"] * 2)
    values = []
    for rows in (camera_rows(2), camera_rows(2).flip(0)):
        twin.told(x, condition.with_rows(cameras=rows))
        values += [float(twin.loss(generator(2)).loss.detach()) for _ in range(2)]
    assert len(set(values)) == 1, "the same draws give the same lesson, and nobody saw the cameras"


@pytest.mark.parametrize("kind", ["sd", "sd3", "views"])
def test_guides_tell_it_the_plain_prompt_and_the_cameras(kind, tiny_folders):
    """At first g is 0 for a multi-view prior without guidance; one of single images is told the view in words too."""
    prior = multi_view(tiny_folders["sd"]) if kind == "views" else load_prior(tiny_folders[kind])
    guide, camera = make_guide(SCORE, prior, "a red dog"), draw_cameras(ViewConfig(), 32, generator(3))
    images = torch.rand(4, 3, 32, 32, generator=generator(0))
    out = guide(images, camera, 0.5, generator(1))
    assert guide.nfe == 8 and guide.twin is not None
    assert (out.grad_norm == 0) == (kind == "views")
    guide.twin.loss(generator(2))
    assert guide.nfe == 12, "lessons are counted"
