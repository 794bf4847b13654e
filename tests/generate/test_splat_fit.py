"""Splats from posed pictures: what is learnt, held out, refined, and how a stopped fit goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unproject.generate.splat_fit import SplatFit, SplatFitConfig, fit_splats, random_places, starting_cloud
from unproject.geometry.cameras import Camera
from unproject.geometry.points import PointCloud
from unproject.geometry.posed import PosedImages, around, moved, pose_errors
from unproject.geometry.shapes import GaussianConfig
from unproject.geometry.splats import GaussianCloud
from unproject.geometry.splats.density import DensityConfig
from unproject.geometry.splats.drawing import draw
from unproject.geometry.splats.relocation import RelocationConfig
from unproject.utils.errors import InputError, Stopped
from unproject.utils.seeds import generator

RULES = DensityConfig(every=6, start=0.0, stop=0.8, reset_every=0, grow_grad2d=1e-4)
SPLATS = GaussianConfig(count=60, bounds=1e9, degree=1, degree_every=0.5, mean_lr_end=0.1, density=RULES)
CONFIG = SplatFitConfig(steps=24, sizes=((0, 0.75), (0.25, 1.0)), held_out=4, checkpoint_every=8, splats=SPLATS)


def body() -> GaussianCloud:
    """A dozen coloured blobs without symmetry."""
    rng = generator(1)
    means = 0.35 * torch.randn(12, 3, generator=rng)
    scales = 0.05 + 0.15 * torch.rand(12, 3, generator=rng)
    sh = 1.2 * torch.randn(12, 1, 3, generator=rng)
    return GaussianCloud.from_values(means, scales, torch.randn(12, 4, generator=rng), torch.full((12,), 0.9), sh)


def pictures(views: int = 9, size: int = 24, alpha: bool = True, cameras: Camera | None = None) -> PosedImages:
    camera = around(views, size, 3.0, 36.0) if cameras is None else cameras
    seen = draw(body(), camera, ("rgb",), 0.0)[0]
    plain = seen.rgb / seen.alpha.clamp_min(1e-3) if alpha else seen.rgb
    return PosedImages.from_floats(camera, plain, seen.alpha if alpha else None)


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_a_fit_learns_and_its_number_changes(strategy: str) -> None:
    mcmc = RelocationConfig(every=6, start=0.0, growth=1.3, most=90)
    splats = replace(SPLATS, strategy=strategy, mcmc=mcmc)
    run = SplatFit(pictures(), replace(CONFIG, steps=60, splats=splats))
    before = [one["psnr"] for one in run.measured(run.held)]
    run.run()
    after = run.measured(run.held)
    assert sum(one["psnr"] for one in after) / len(after) > sum(before) / len(before) + 2
    assert len(run.cloud) != 60 and run.cloud.degree == 1 and all(0 < one["ssim"] <= 1 for one in after)
    assert run.history[-1]["step"] == 60 and run.history[0]["step"] == 50


def test_every_picture_is_learnt_from_once_before_any_again() -> None:
    run = SplatFit(pictures(11), replace(CONFIG, views=2))
    assert len(run.learnt) == 8 and len(run.held) == 3
    drawn = [row for step in range(8) for row in run._rows(step)]
    assert sorted(drawn[:8]) == list(range(8)) == sorted(drawn[8:]) and drawn[:8] != drawn[8:]
    assert SplatFit(pictures(11), replace(CONFIG, views=2), seed=1)._rows(0) != run._rows(0)


def test_only_the_rates_of_places_and_poses_fall() -> None:
    player = SplatFit(pictures(), replace(CONFIG, refine_poses=True, views=4)).loop.players["splats"]
    player.set_rate(12)
    rates = [group["lr"] / base for group, base in zip(player.optimizer.param_groups, player.rates, strict=True)]
    assert rates == pytest.approx([0.1**0.5, 1, 1, 1, 1, 1, 0.01**0.5])
    assert player.rates[1] == pytest.approx(2 * SPLATS.scale_lr) and player.rates[-1] == CONFIG.pose_lr


def test_held_out_pictures_do_not_teach() -> None:
    """Whatever they show, the same splats come out."""
    given = pictures()
    other = given.images.clone()
    other[::4] = 255 - other[::4]
    short = replace(CONFIG, steps=4)
    first, second = (fit_splats(p, short) for p in (given, replace(given, images=other)))
    assert torch.equal(first.shape.means, second.shape.means)
    assert not torch.equal(first.held.images, second.held.images)


def test_pixels_that_say_nothing_do_not_teach() -> None:
    given = pictures(alpha=False)
    valid = torch.ones(*given.images.shape[:3], 1, dtype=torch.bool)
    valid[:, :, :7] = False
    other = given.images.clone()
    other[:, :, :7] = 200
    short = replace(CONFIG, steps=3, sizes=((0, 1.0),))
    runs = [fit_splats(replace(given, images=images, valid=valid), short) for images in (given.images, other)]
    assert torch.equal(runs[0].shape.means, runs[1].shape.means)
    assert runs[0].measured(runs[0].learnt)[0] != runs[0].measured(replace(runs[0].learnt, valid=None))[0]


def test_a_stopped_fit_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = replace(CONFIG, refine_poses=True, opacity_weight=0.01, scale_weight=0.01)
    whole = fit_splats(pictures(), config)
    first = SplatFit(pictures(), config)

    def stop(run: SplatFit, step: int, log: dict[str, float]) -> None:
        if step == 16:
            run.save(tmp_path)
            raise Stopped(step, 24, str(tmp_path), 2)

    with pytest.raises(Stopped):
        first.run(None, stop)
    going_on = fit_splats(pictures(), config, out=tmp_path)
    for name, value in whole.shape.state_dict().items():
        assert torch.equal(value, going_on.shape.state_dict()[name]), name
    assert whole.pose_steps is not None and going_on.pose_steps is not None
    assert torch.equal(whole.pose_steps, going_on.pose_steps) and whole.pose_steps.abs().max() > 0
    with pytest.raises(InputError, match=r"made with another pictures \('.*cameras \('.*'\), views \(1\)"):
        fit_splats(pictures(cameras=around(9, 24, 3.5, 36.0)), replace(config, views=2), out=tmp_path)


def test_poses_find_their_way_back() -> None:
    """From the true splats, turned and shifted cameras move towards the true ones."""
    truth = pictures(6, 40)
    rng = generator(5)
    steps = torch.randn(6, 6, generator=rng) * torch.tensor([0.02] * 3 + [0.03] * 3)
    wrong = replace(truth, cameras=moved(truth.cameras, steps))
    frozen = replace(SPLATS, mean_lr=0, scale_lr=0, turn_lr=0, opacity_lr=0, color_lr=0, density=DensityConfig(every=0))
    config = SplatFitConfig(
        steps=100, sizes=((0, 1.0),), held_out=0, refine_poses=True, pose_lr=0.008, background="black", splats=frozen
    )
    run = SplatFit(wrong, config)
    run.shape._take(body().with_degree(1))
    run.loop = run.loop.__class__([run._player()], {"splats": run._loss})
    before, psnr = pose_errors(wrong.cameras, truth.cameras)[0], run.measured(run.learnt, refined=True)
    run.run()
    with torch.no_grad():
        after = pose_errors(run.cameras(list(range(6))), truth.cameras)[0]
    assert float(after.mean()) < 0.6 * float(before.mean())
    gained = [b["psnr"] - a["psnr"] for a, b in zip(psnr, run.measured(run.learnt, refined=True), strict=True)]
    assert min(gained) > 1 and sum(gained) / 6 > 3


def test_splats_begin_at_points_or_where_something_may_be() -> None:
    given = pictures(12, 32)
    place = random_places(given, 200, generator(2))
    assert len(place) == 200 and bool(given.may_be_full(place).all())
    anywhere = random_places(pictures(12, 32, alpha=False), 200, generator(2))
    assert float(anywhere.norm(dim=-1).max()) > 1.2 and float(place.norm(dim=-1).mean()) < 1.0
    points = PointCloud(torch.randn(30, 3, generator=generator(3)), torch.rand(30, 3, generator=generator(4)))
    known = replace(given, points=points)
    cloud = starting_cloud(known, CONFIG, generator(0))
    assert (
        torch.equal(cloud.means, points.points)
        and len(starting_cloud(known, replace(CONFIG, start="random"), generator(0))) == 60
    )
    torch.testing.assert_close(cloud.colors, points.colors)
    few = starting_cloud(known, replace(CONFIG, splats=replace(SPLATS, density=DensityConfig(most=7))), generator(0))
    assert len(few) == 7 and all(bool((place == points.points).all(1).any()) for place in few.means)
    with pytest.raises(InputError, match="start=points, but the pictures come with none"):
        starting_cloud(given, replace(CONFIG, start="points"), generator(0))


def test_backgrounds_lie_behind_transparent_pictures_only() -> None:
    run = SplatFit(pictures(), CONFIG)
    assert not torch.equal(run._background(2), run._background(2)) and run.judged_over == 1.0
    assert SplatFit(pictures(), replace(CONFIG, background="black")).judged_over == 0.0
    assert not SplatFit(pictures(alpha=False), CONFIG)._background(2).any()


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"held_out": 1}, "held_out=1"), ({"sizes": ((0.2, 1.0),)}, "start at share 0"), ({"ssim": 1.5}, "ssim=1.5")],
)
def test_settings_that_cannot_be(changes: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_pictures_have_to_be_large_enough() -> None:
    with pytest.raises(InputError, match="too small to fit"):
        SplatFit(pictures(4, 12), CONFIG)
