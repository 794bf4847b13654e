"""Score distillation on an exact Gaussian prior: identities, closed forms, limits, messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unproject.core.distillation.rules import RuleConfig, Seen
from unproject.core.distillation.score import (
    DivergedError,
    ScoreConfig,
    ScoreDistillation,
    image_loss,
    rescaled,
)
from unproject.core.distillation.time_window import TimeWindow
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, Condition, GaussianMixturePrior, load_prior
from unproject.core.sampling import NoiseSchedule
from unproject.generate.guides import MultiViewGuide, make_guide
from unproject.geometry.cameras import Camera, to_mvdream
from unproject.utils.errors import InputError
from unproject.utils.live_bytes import LiveBytes

MU, TAU = 0.3, 0.5
PLAIN = ScoreConfig(form="recon", guidance=1.0, rescale=0.0, weight="ratio")
SDS = ScoreConfig(form="score", guidance=1.0, rescale=0.0, weight="sigma2")


def prior(kind: str = "epsilon", side: int = 4, components: int = 1) -> GaussianMixturePrior:
    schedule = FLOW_SCHEDULE if kind == "flow_prediction" else {**SD_SCHEDULE, "prediction_type": kind}
    means = torch.stack([torch.full((2, side, side), MU + 0.8 * k) for k in range(components)])
    names = ("red", "blue")[:components]
    return GaussianMixturePrior(means, torch.full((components,), TAU), names=names, scheduler_config=schedule)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(score: ScoreDistillation, x: Tensor, noise: Tensor, index: Tensor, **options) -> Tensor:
    """B dL/dx for latents x; `encode` of the analytic prior is 2 image - 1."""
    images = ((x + 1) / 2).requires_grad_()
    score(images, 0, noise=noise, index=index, **options).loss.backward()
    return images.grad / 2 * len(x)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("t", [20, 500, 980])
def test_recon_without_rescale_is_sds_with_sigma_over_alpha(kind, t):
    model = prior(kind)
    score = ScoreDistillation(PLAIN, model, model.encode_text("any"))
    x, noise, index = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1), torch.full((3,), t)
    alpha, sigma = NoiseSchedule.from_config(model.scheduler_config).at_index(index).coefficients(x)
    noised = alpha * x + sigma * noise
    eps = sigma * (noised - alpha * MU) / (alpha**2 * TAU**2 + sigma**2)
    expected = sigma / alpha * (eps - noise)
    got = gradient(score, x, noise, index)
    assert float((got - expected).norm() / expected.norm()) < 1e-6
    for weight, factor in (("sigma2", sigma**2), ("product", sigma * alpha), ("one", 1.0)):
        other = ScoreDistillation(replace(SDS, weight=weight), model, model.encode_text("any"))
        wanted = factor * (eps - noise)
        assert float((gradient(other, x, noise, index) - wanted).norm() / wanted.norm()) < 1e-6
        same = ScoreDistillation(replace(PLAIN, weight=weight), model, model.encode_text("any"))
        assert float((gradient(same, x, noise, index) - wanted).norm() / wanted.norm()) < 1e-6


def test_asd_against_the_injected_noise_is_sds_bit_for_bit(monkeypatch):
    plain = Seen.ask

    def injected(self, *names, x=None, index=None):
        return plain(self, *names) if x is None else dict.fromkeys(names, self.render())

    monkeypatch.setattr(Seen, "ask", injected)
    model, index = prior(components=2), torch.tensor([150, 520, 940])
    x, noise = draw(3, 2, 4, 4) + 1.0, draw(3, 2, 4, 4, seed=1)
    configs = (replace(SDS, guidance=7.5, rule=RuleConfig(kind)) for kind in ("sds", "asd"))
    sds, asd = (gradient(ScoreDistillation(c, model, model.encode_text("red")), x, noise, index) for c in configs)
    assert torch.equal(asd, sds) and float(sds.abs().max()) > 0


def test_flow_gradient_is_the_velocity_difference():
    model, t = prior("flow_prediction"), 0.6
    score = ScoreDistillation(replace(SDS, weight="one"), model, model.encode_text("any"))
    x, noise, index = draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1), torch.full((2,), 599)
    noised = (1 - t) * x + t * noise
    shrink = (1 - t) * TAU**2 / ((1 - t) ** 2 * TAU**2 + t**2)
    x0 = MU + shrink * (noised - (1 - t) * MU)
    velocity = (noised - x0) / t
    expected = (1 - t) * (velocity - (noise - x))
    torch.testing.assert_close(gradient(score, x, noise, index), expected, rtol=1e-6, atol=1e-9)


def test_sds_mean_and_variance_on_a_gaussian():
    model = prior(side=64)
    score = ScoreDistillation(SDS, model, model.encode_text("any"))
    index = torch.full((32,), 400)
    x = torch.full((32, 2, 64, 64), 1.1, dtype=torch.float64)
    got = gradient(score, x, draw(32, 2, 64, 64), index)
    level = NoiseSchedule.from_config(model.scheduler_config).at_index(400.0)
    weight, v = level.sigma**2, level.alpha**2 * TAU**2 + level.sigma**2
    assert float(got.mean()) == pytest.approx(weight * level.sigma * level.alpha * (1.1 - MU) / v, rel=0.02)
    assert float(got.var()) == pytest.approx((weight * level.alpha**2 * TAU**2 / v) ** 2, rel=0.02)


def test_guidance_combines_both_branches():
    model = prior(components=2)
    condition = model.encode_text("red", "blue")
    x, noise, index = draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1), torch.tensor([300, 700])
    parts = {}
    for name, words, scale in (("red", "red", 1.0), ("blue", "blue", 1.0)):
        parts[name] = gradient(
            ScoreDistillation(replace(PLAIN, guidance=scale), model, model.encode_text(words)), x, noise, index
        )
    both = gradient(ScoreDistillation(replace(PLAIN, guidance=4.0), model, condition), x, noise, index)
    torch.testing.assert_close(both, parts["blue"] + 4.0 * (parts["red"] - parts["blue"]))
    with pytest.raises(InputError, match="unconditional"):
        ScoreDistillation(replace(PLAIN, guidance=4.0), model, Condition({"cond": condition["cond"]}))


def test_rescale_matches_the_spread_of_the_group_not_of_each_view():
    guided = draw(4, 2, 3, 3) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None]
    plain = draw(4, 2, 3, 3, seed=1)
    full = rescaled(guided, plain, 1.0, frames=2)
    for group in (slice(0, 2), slice(2, 4)):
        assert float(full[group].std()) == pytest.approx(float(plain[group].std()))
    ratio = guided[0].std() / guided[1].std()
    assert float(full[0].std() / full[1].std()) == pytest.approx(float(ratio))
    torch.testing.assert_close(rescaled(guided, plain, 0.0, 2), guided)


def test_sum_over_pixels_mean_over_images():
    model = prior()
    score = ScoreDistillation(PLAIN, model, model.encode_text("any"))
    images, noise = draw(1, 2, 4, 4), draw(1, 2, 4, 4, seed=1)
    once = score(images, 0, noise=noise, index=torch.tensor([500])).loss
    twice = score(images.repeat(2, 1, 1, 1), 0, noise=noise.repeat(2, 1, 1, 1), index=torch.tensor([500, 500])).loss
    torch.testing.assert_close(once, twice)
    out = score(images, 0, noise=noise, index=torch.tensor([500]))
    assert float(out.loss) == pytest.approx(0.5 * float(out.grad_norm) ** 2)


def test_image_space_equals_latent_space_when_decoding_is_affine():
    model = prior()
    images, noise, index = (0.25 * draw(2, 2, 4, 4) + 0.5), draw(2, 2, 4, 4, seed=1), torch.tensor([400, 400])
    grads = {}
    for space in ("latent", "image"):
        leaf = images.clone().requires_grad_()
        score = ScoreDistillation(replace(PLAIN, space=space), model, model.encode_text("any"))
        score(leaf, 0, noise=noise, index=index).loss.backward()
        grads[space] = leaf.grad
    torch.testing.assert_close(grads["image"] * 4, grads["latent"])  # latents are 2 image - 1


def test_annealed_descent_on_pixels_ends_at_the_mean():
    model = prior()
    window = TimeWindow(low=(0, 0.9, 0.02, 0.5), high=(0, 0.98, 0.1, 0.5))
    score = ScoreDistillation(replace(PLAIN, window=window), model, model.encode_text("any"))
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    for step in range(120):
        index = window.indices(step / 120, 1, 1000, generator)
        x = x - 0.3 * gradient(score, x, torch.zeros_like(x), index)
    assert float((x - MU).abs().max()) < 0.05


def test_fixed_noise_loss_falls_monotonically():
    model = prior()
    score = ScoreDistillation(PLAIN, model, model.encode_text("any"))
    x, noise, index = draw(1, 2, 4, 4), draw(1, 2, 4, 4, seed=3), torch.tensor([600])
    losses = []
    for _ in range(30):
        losses.append(float(score((x + 1) / 2, 0, noise=noise, index=index).loss))
        x = x - 0.3 * gradient(score, x, noise, index)
    assert all(later < before for before, later in zip(losses, losses[1:], strict=False))


def test_clip_limits_every_element_and_follows_its_schedule():
    model = prior()
    config = replace(PLAIN, clip=(0, 0.5, 0.1, 1))
    score = ScoreDistillation(config, model, model.encode_text("any"))
    x, noise = 9 * draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1)
    assert float(gradient(score, x, noise, torch.tensor([900, 900])).abs().max()) == pytest.approx(0.5)
    leaf = ((x + 1) / 2).requires_grad_()
    score(leaf, 0.75, noise=noise, index=torch.tensor([900, 900])).loss.backward()
    assert float(leaf.grad.abs().max()) == pytest.approx(0.2)  # dx / dimage = 2, mean over two images


class Broken(GaussianMixturePrior):
    def _forward(self, x, time, rows):
        return super()._forward(x, time, rows) * float("nan")


def test_nan_is_an_error_with_a_remedy():
    model = Broken(torch.zeros(1, 2, 4, 4), torch.ones(1))
    score = ScoreDistillation(PLAIN, model, model.encode_text("any"))
    with pytest.raises(DivergedError, match=r"index \[123\].*float32"):
        score(torch.zeros(1, 2, 4, 4), 0, noise=torch.zeros(1, 2, 4, 4), index=torch.tensor([123]))


def test_window_moves_both_ends_and_shares_one_level():
    window = TimeWindow(low=(0, 0.5, 0.02, 0.2), high=(0, 0.98, 0.5, 0.2))
    assert window.bounds(0) == (0.5, 0.98)
    assert window.bounds(0.1) == pytest.approx((0.26, 0.74))
    assert window.bounds(0.9) == (0.02, 0.5)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([window.indices(0.9, 3, 1000, generator) for _ in range(200)])
    assert bool((drawn == drawn[:, :1]).all()) and drawn.min() >= 20 and drawn.max() <= 500
    apart = replace(window, shared=False).indices(0.9, 3, 1000, generator)
    assert len(set(apart.tolist())) == 3
    assert TimeWindow((1.0,), (1.0,)).indices(0, 1, 1000, None).tolist() == [999.0]


def test_hifa_schedule_is_a_square_root():
    window = TimeWindow(low=(0.02,), high=(0.98,), draw="sqrt")
    assert window.indices(0, 2, 1000, None).tolist() == [980.0, 980.0]
    assert window.indices(0.25, 1, 1000, None).tolist() == [500.0]
    assert window.indices(1.0, 1, 1000, None).tolist() == [20.0]


def test_views_of_an_object_share_the_level():
    model = prior()
    window = TimeWindow((0.02,), (0.98,), shared=False)
    condition = model.encode_text(["any", "all"])
    score = ScoreDistillation(replace(PLAIN, window=window), model, condition)
    seen = condition.with_views(torch.zeros(4, 16), 4)
    out = score(draw(8, 2, 4, 4), 0, torch.Generator().manual_seed(0), condition=seen)
    assert len(set(out.t[:4].tolist())) == 1 and len(set(out.t.tolist())) == 2
    with pytest.raises(InputError, match="do not divide"):
        score(draw(3, 2, 4, 4), 0, torch.Generator().manual_seed(0))


class GroupMean(GaussianMixturePrior):
    """Says the mean of each group of views as x0: what sees what is readable in the answer."""

    frames = 4

    def _forward(self, x, time, rows):
        self.asked = rows
        means = x.unflatten(0, (-1, rows.frames)).mean((1, 2, 3, 4), keepdim=True)
        return means.expand(-1, rows.frames, *x.shape[1:]).flatten(0, 1)


def test_groups_of_views_share_attention_rescale_and_level():
    config = {**SD_SCHEDULE, "prediction_type": "sample"}
    model = GroupMean(torch.zeros(1, 2, 4, 4), torch.ones(1), scheduler_config=config)
    window = TimeWindow((0.02,), (0.98,), shared=False)
    guide = MultiViewGuide(replace(PLAIN, window=window), model, model.encode_text("any"), views=4)
    images, camera = draw(8, 2, 4, 4), Camera.orbit([0, 90, 180, 270, 10, 100, 190, 280], 15.0, 3.0, 40.0, 4)
    out = guide(images, camera, 0, torch.Generator().manual_seed(0))
    assert model.asked.frames == 4
    torch.testing.assert_close(model.asked["cameras"], to_mvdream(camera.c2w).to(images))
    assert len(set(out.t[:4].tolist())) == len(set(out.t[4:].tolist())) == 1 and out.t[0] != out.t[4]
    values = out.x0_hat.flatten(1)
    assert bool((values[:4] == values[0, 0]).all()) and bool((values[4:] == values[4, 0]).all())
    assert values[0, 0] != values[4, 0]
    assert make_guide(PLAIN, model, "any").views == 4
    assert make_guide(PLAIN, model, "any", views=2).views == 2


def test_rescale_acts_on_each_group_of_a_call():
    model = prior(components=2)
    condition = model.encode_text("red", "blue").repeat(2).with_views(torch.zeros(2, 16), 2)
    score = ScoreDistillation(replace(PLAIN, guidance=8.0, rescale=1.0), model, model.encode_text("red", "blue"))
    images, noise = draw(4, 2, 4, 4) * torch.tensor([1.0, 1, 5, 5])[:, None, None, None], draw(4, 2, 4, 4, seed=1)
    index = torch.full((4,), 600)
    whole = score(images, 0, noise=noise, index=index, condition=condition).x0_hat
    for rows in (slice(0, 2), slice(2, 4)):
        options = {"noise": noise[rows], "index": index[rows], "condition": condition.index(rows)}
        torch.testing.assert_close(score(images[rows], 0, **options).x0_hat, whole[rows])


@pytest.mark.parametrize(("rule", "rows"), [("csd", 2), ("nfsd", 2)])
def test_an_empty_negative_prompt_is_the_empty_prompt_and_asked_once(rule, rows):
    config = replace(SDS, rule=RuleConfig(rule), guidance=7.5)
    images, camera = draw(2, 2, 4, 4), Camera(torch.eye(4).repeat(2, 1, 1), torch.eye(3).repeat(2, 1, 1), 4, 4)
    pulls, spent = [], []
    for negative in (None, "", "blue"):
        model = prior(components=2)
        guide = make_guide(config, model, "red", negative)
        seen = images.clone().requires_grad_()
        guide(seen, camera, 0.4, torch.Generator().manual_seed(3)).loss.backward()
        pulls.append(seen.grad)
        spent.append(model.nfe // len(images))
    assert spent == [rows, rows, rows + 1]
    assert torch.equal(pulls[0], pulls[1]) and not torch.equal(pulls[0], pulls[2])


@pytest.mark.parametrize("form", ["recon", "score"])
def test_the_ratio_weight_has_a_limit_in_pure_noise(form):
    """At t = 1 of a flow alpha is 0: w = sigma / alpha is infinite, and the pull is x - x0 all the same."""
    model = prior("flow_prediction")
    config = replace(PLAIN, form=form)
    score = ScoreDistillation(config, model, model.encode_text("any"))
    x, noise = draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1)
    out = score((x + 1) / 2, 0, noise=noise, index=torch.full((2,), 999))
    torch.testing.assert_close(out.weight, torch.ones(2).double())
    torch.testing.assert_close(gradient(score, x, noise, torch.full((2,), 999)), x - MU)
    near = gradient(score, x, noise, torch.full((2,), 998))
    assert float((near - (x - MU)).abs().max()) < 0.02


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
def test_every_row_walks_its_own_number_of_steps(kind):
    model, index = prior(kind), torch.tensor([900, 300, 620])
    x, noise = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    score = ScoreDistillation(replace(PLAIN, target_steps=5), model, model.encode_text("any"))
    before = model.nfe
    whole = score((x + 1) / 2, 0, noise=noise, index=index).x0_hat
    assert model.nfe - before == 5 + 2 + 4  # ceil(5 t), row by row
    for row in range(3):
        own = slice(row, row + 1)
        alone = score((x[own] + 1) / 2, 0, noise=noise[own], index=index[own]).x0_hat
        torch.testing.assert_close(alone, whole[own])


def test_images_of_another_height_alone_are_resized():
    target, weight = draw(2, 3, 4, 8, seed=2), torch.tensor([1.0, 3.0]).double()
    images = draw(2, 3, 8, 8)
    resized = torch.nn.functional.interpolate(images, (4, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(image_loss(images, target, weight), image_loss(resized, target, weight))


def test_network_calls_are_those_of_the_branches():
    model = prior(components=2)
    images, condition = draw(2, 2, 4, 4), model.encode_text("red", "blue")
    for scale, calls in ((1.0, 2), (4.0, 4)):
        before = model.nfe
        ScoreDistillation(replace(PLAIN, guidance=scale), model, condition)(images, 0, torch.Generator().manual_seed(0))
        assert model.nfe - before == calls


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="rescale"):
        ScoreConfig(rescale=1.5)
    with pytest.raises(InputError, match="no target image"):
        ScoreConfig(form="score", space="image", rescale=0.0)
    with pytest.raises(InputError, match="fractions"):
        TimeWindow(low=(2.0,))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_a_walked_target_is_the_end_of_the_probability_flow(kind):
    """A Gaussian's flow is known: x_t moves to mu + tau (x_t - alpha mu) / spread(x_t), the nearer the more steps."""
    model, index = prior(kind), torch.full((2,), 700)
    x, noise = draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1)
    alpha, sigma = NoiseSchedule.from_config(model.scheduler_config).at_index(index).coefficients(x)
    noised = alpha * x + sigma * noise
    end = MU + TAU * (noised - alpha * MU) / (alpha**2 * TAU**2 + sigma**2).sqrt()
    errors, calls = [], []
    for steps in (1, 5, 22, 91):
        score, before = (
            ScoreDistillation(replace(PLAIN, target_steps=steps), model, model.encode_text("any")),
            model.nfe,
        )
        target = score((x + 1) / 2, 0, noise=noise, index=index).x0_hat
        errors.append(float((target - end).abs().max()))
        calls.append((model.nfe - before) // 2)
    assert calls == [1, 4, 16, 64]  # ceil(0.7 steps)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]
    assert errors[3] < 0.1


def test_a_walked_target_pulls_with_the_weight_of_its_first_level():
    model, index = prior(), torch.full((2,), 700)
    score = ScoreDistillation(replace(PLAIN, target_steps=5), model, model.encode_text("any"))
    x, noise = draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1)
    target = score((x + 1) / 2, 0, noise=noise, index=index).x0_hat
    torch.testing.assert_close(gradient(score, x, noise, index), x - target, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="target_steps=2 must be at least 1, and 1 with form"):
        replace(SDS, target_steps=2)


def test_renders_that_are_encoded_one_by_one_have_the_same_gradient(tiny_folders):
    """Of a real VAE and U-Net, at equal cost and with the activations of one render."""
    model = load_prior(tiny_folders["sd"], dtype=torch.float64)
    images = draw(4, 3, 32, 32).sigmoid().requires_grad_()
    index, noise = torch.tensor([100, 300, 500, 700]), draw(4, 4, 8, 8, seed=1)
    found = {}
    for at_once in (None, 1):
        score = ScoreDistillation(replace(PLAIN, guidance=3.0, space="both"), model, model.encode_text("a dog"))
        score.images_at_once, before, images.grad = at_once, model.nfe, None
        with LiveBytes() as live:
            out = score(images, 0, noise=noise, index=index)
            out.loss.backward()
        found[at_once] = (images.grad, out.loss.detach(), model.nfe - before, live.peak)
    (grad, loss, nfe, peak), (whole_grad, whole_loss, whole_nfe, whole_peak) = found[1], found[None]
    assert float((grad - whole_grad).norm() / whole_grad.norm()) < 1e-6
    torch.testing.assert_close(loss, whole_loss)
    assert nfe == whole_nfe and peak < 0.6 * whole_peak
