"""Gaussians whose number follows the picture: what is copied, split and removed, and what the optimiser keeps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unproject.core.training.loop import Loop
from unproject.core.training.loss import LossOut
from unproject.core.training.players import Player, named_groups
from unproject.geometry.cameras import Camera
from unproject.geometry.shapes import GaussianConfig, Gaussians, load_shape
from unproject.geometry.splats.density import SHRINK, DensityConfig, decide, reset_logit
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment
from unproject.utils.seeds import generator

RULES = DensityConfig(every=2, start=0.0, stop=0.9, reset_every=7, grow_grad2d=0.5, grow_scale3d=0.1, prune_scale3d=0.4)


def test_rules_of_3dgs() -> None:
    """Small and strongly pulled: copied. Large and strongly pulled: split. Faint: gone. Huge: gone after a reset."""
    pull = torch.tensor([1.0, 1.0, 0.1, 1.0, 0.1, 1.0])
    scales = torch.tensor([0.05, 0.3, 0.3, 0.05, 0.9, 0.9])
    opacities = torch.tensor([0.5, 0.5, 0.5, 0.001, 0.5, 0.5])
    early = decide(RULES, Moment(4, 100), pull, scales, opacities, 1.0)
    assert early.kept.tolist() == [0, 2, 4] and early.cloned.tolist() == [0] and early.split.tolist() == [1, 5, 1, 5]
    late = decide(RULES, Moment(8, 100), pull, scales, opacities, 1.0)
    assert late.kept.tolist() == [0, 2] and late.split.tolist() == [1, 1]  # halves of .9 are still too large
    assert decide(RULES, Moment(4, 100), pull, scales, opacities, 20.0).cloned.tolist() == [0, 1, 5]
    few = decide(replace(RULES, most=7), Moment(4, 100), pull + torch.arange(6) * 0.01, scales, opacities, 1.0)
    assert few.split.tolist() == [5, 5] and not len(few.cloned)  # only the strongest


def test_times_of_refinement_and_reset() -> None:
    rules = DensityConfig(start=0.1, stop=0.5, every=10, reset_every=30)
    steps = range(101)
    assert [s for s in steps if rules.refines(Moment(s, 100))] == [20, 30, 40]
    assert [s for s in steps if rules.resets(Moment(s, 100))] == [30]
    assert not any(replace(rules, every=0, reset_every=0).refines(Moment(s, 100)) for s in steps)
    assert reset_logit(rules) == pytest.approx(float(torch.logit(torch.tensor(0.01))))
    with pytest.raises(InputError, match=r"start=0.6 <= stop=0.5"):
        DensityConfig(start=0.6)


def camera() -> Camera:
    return Camera.orbit([20.0, 140.0], [10.0, -30.0], 3.0, 34.0, 24, 20)


def shape(**changes: object) -> Gaussians:
    settings = {"count": 30, "degree": 1, "opacity": 0.5, "density": RULES, **changes}
    return Gaussians(GaussianConfig(**settings), generator(4))  # type: ignore[arg-type]


def test_pull_is_the_gradient_in_the_picture() -> None:
    """Places count where the picture spans [-1, 1]: half the size in pixels for each camera of a mean over cameras."""
    made, seen = shape(), []
    real = made._drawn

    def kept(*args: object, **kwargs: object) -> object:
        out = real(*args, **kwargs)  # type: ignore[arg-type]
        seen.extend(made._looks)
        return out

    made._drawn = kept  # type: ignore[method-assign, assignment]
    made.render(camera()).rgb.square().mean().backward()
    gradient = seen[0]["means2d"].grad * torch.tensor([12.0, 10.0]) * 2
    made.after_backward(Moment(1, 10))
    torch.testing.assert_close(made.pull, gradient.norm(dim=-1).sum(0))
    assert made.times.tolist() == (seen[0]["radii"] > 0).all(-1).sum(0).tolist() and float(made.times.max()) == 2
    made.after_backward(Moment(1, 10))
    torch.testing.assert_close(made.pull, gradient.norm(dim=-1).sum(0))  # a look counts once
    with torch.no_grad():
        made.render(camera())
    assert not made._looks


def test_halves_lie_within_and_are_smaller() -> None:
    made = shape(count=400)
    with torch.no_grad():
        made.log_scales.copy_(torch.tensor([0.5, 0.3, 0.2]).log().expand(400, 3))
        made.pull.fill_(1.0)
        made.times.fill_(1.0)
    before = made.means.detach().clone()
    change = made.after_step(Moment(2, 100))
    assert change is not None and len(change.kept) == 0 and len(made.means) == 800
    torch.testing.assert_close(made.log_scales[0].exp() * SHRINK, torch.tensor([0.5, 0.3, 0.2]))
    from unproject.geometry.splats.cloud import rotation_matrices

    offset = made.means.detach() - before[change.split]
    local = (rotation_matrices(made.quaternions.detach()).mT @ offset[..., None])[..., 0]
    torch.testing.assert_close(local.std(dim=0), torch.tensor([0.5, 0.3, 0.2]), rtol=0.1, atol=0)
    assert float((made.means[0] - made.means[400]).detach().norm()) > 1e-3 and not made.pull.any()


def loop_of(made: Gaussians, steps: int = 20) -> Loop:
    target = torch.rand(2, 20, 24, 3, generator=generator(6))

    def loss(turn: object) -> LossOut:
        seen = made.render(camera())
        return LossOut((seen.rgb - target).square().mean() * 100, {})

    player = Player(
        "shape",
        lambda: named_groups(made, made.param_groups(1.0)),
        partial(torch.optim.Adam, betas=(0.9, 0.99)),
        ema=0.5,
        grows=True,
        before_step=lambda turn: made.after_backward(Moment(turn.step, steps)),
        after_step=lambda turn: made.after_step(Moment(turn.step, steps)),
    )
    return Loop([player], {"shape": loss})


def test_a_run_grows_learns_and_resets() -> None:
    made = shape(density=replace(RULES, grow_grad2d=0.02))
    loop = loop_of(made)
    first = loop.advance()
    counts, logits = [], []
    for _ in range(13):
        logs = loop.advance()
        counts.append(len(made.means))
        logits.append(float(made.logits.detach().max()))
    assert counts[-1] > 30 and counts == sorted(counts)
    assert logits[6] == pytest.approx(reset_logit(RULES), abs=1e-6) and logits[5] > -1  # step 7
    player = loop.players["shape"]
    assert {len(p) for p in player.named.values()} == {counts[-1]} and len(made.pull) == counts[-1]
    assert all(float(torch.isfinite(p).all()) for p in made.parameters())
    assert first.keys() == logs.keys()


@pytest.mark.parametrize("stop", [3, 8])
def test_growth_resumes_to_the_bit(stop: int, tmp_path: Path) -> None:
    rules = replace(RULES, grow_grad2d=0.02)
    shapes = [shape(density=rules) for _ in range(3)]
    whole, first, second = (loop_of(s) for s in shapes)
    whole.run(11)
    first.run(stop)
    back = load_shape(shapes[1].save(tmp_path))
    shapes[2].restore(back.state_dict(), "here")
    tensors, document = first.state()
    second.load(tensors, document, "here")
    second.run(11)
    assert len(shapes[2].means) == len(shapes[0].means) > 30
    for name, value in shapes[0].state_dict().items():
        assert torch.equal(value, shapes[2].state_dict()[name]), name


def test_degrees_come_one_by_one() -> None:
    made = shape(degree=2, degree_every=0.25)
    with torch.no_grad():
        made.rest.copy_(torch.randn(made.rest.shape, generator=generator(1)))
    pictures: list[Tensor] = []
    for step, wanted in ((0, 0), (24, 0), (25, 1), (50, 2), (100, 2)):
        made.on_step(Moment(step, 100), generator(0))
        assert int(made.degree) == wanted
        pictures.append(made.render(camera()).rgb.detach())
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
    assert not torch.equal(pictures[2], pictures[3])


def test_nothing_outside_the_bounds_is_drawn_and_rays_are_refused() -> None:
    made = shape()
    with torch.no_grad():
        made.means.mul_(0.9 / made.means.norm(dim=1, keepdim=True))
    assert float(made.render(camera()).alpha.max()) > 0.1
    with torch.no_grad():
        made.means.mul_(0.96 / 0.9)
    assert not made.render(camera()).alpha.any()

    class Single:
        def rays(self) -> tuple[Tensor, Tensor]:
            return torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)

    with pytest.raises(InputError, match=r"set fit.steps to 0"):
        made.render(Single())
