"""Rules of score distillation on exact Gaussian priors: closed forms, reductions to each other, parameterisations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unproject.core.distillation.rules import NEGATIVE, RuleConfig
from unproject.core.distillation.rules.asd import ASD
from unproject.core.distillation.rules.csd import CSD
from unproject.core.distillation.rules.inverted import ISM, SDI
from unproject.core.distillation.rules.nfsd import NFSD
from unproject.core.distillation.rules.sds import SJC
from unproject.core.distillation.rules.vsd import VSD
from unproject.core.distillation.score import ScoreConfig, ScoreDistillation
from unproject.core.distillation.time_window import TimeWindow
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, Condition, GaussianMixturePrior
from unproject.core.sampling import NoiseSchedule
from unproject.core.sampling.prediction import Prediction
from unproject.utils.errors import InputError

MU, TAU, GUIDANCE = 0.3, 0.5, 7.5
KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
LAWS = {k: FLOW_SCHEDULE if k == "flow_prediction" else {**SD_SCHEDULE, "prediction_type": k} for k in KINDS}
WINDOW = TimeWindow((0.02,), (0.98,))
BASE = ScoreConfig(form="score", guidance=GUIDANCE, rescale=0.0, weight="sigma2", window=WINDOW)


def prior(kind: str = "epsilon", side: int = 4, components: int = 3) -> GaussianMixturePrior:
    ramp = torch.linspace(0, 0.4, side * side * 2).view(2, side, side)
    means = torch.stack([MU + 0.8 * k + (k + 1) * ramp for k in range(components)])
    stds = torch.tensor([TAU, 0.7, 0.4])[:components]
    return GaussianMixturePrior(means, stds, names=("red", "blue", "dull")[:components], scheduler_config=LAWS[kind])


def gaussian(side: int = 4, kind: str = "epsilon") -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 2, side, side), MU), torch.tensor([TAU]), scheduler_config=LAWS[kind])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(model: GaussianMixturePrior, rows: int = 1) -> Condition:
    """Prompt "red", no prompt, negative prompt "dull"."""
    condition = model.encode_text(["red"] * rows)
    return condition.branch(NEGATIVE, model.encode_text(["dull"] * rows)["cond"])


def scorer(model: GaussianMixturePrior, rule: object = None, condition: Condition | None = None, **changes):
    kind = type(rule).__name__.lower() if rule is not None else "sds"
    chosen = RuleConfig(kind, **({kind: rule} if rule is not None else {}))
    return ScoreDistillation(replace(BASE, rule=chosen, **changes), model, condition or told(model))


def pull(score: ScoreDistillation, x: Tensor, noise: Tensor, index: Tensor, share: float = 0.0, **options) -> Tensor:
    """g, which is B dL/dx, of latents x; `encode` of the analytic prior is 2 image - 1."""
    images = ((x + 1) / 2).requires_grad_()
    generator = torch.Generator().manual_seed(4)
    score(images, share, generator, noise=noise, index=index, **options).loss.backward()
    return images.grad / 2 * len(x)


def eps(model: GaussianMixturePrior, words: str, x: Tensor, noise: Tensor, index: Tensor) -> Tensor:
    """The exact noise estimate for some words at alpha x + sigma noise."""
    level = NoiseSchedule.from_config(model.scheduler_config).at_index(index)
    alpha, sigma = level.coefficients(x)
    state = alpha * x + sigma * noise
    raw = model.predict(state, level.times(x), model.encode_text([words] * len(x))["cond"])
    return Prediction(state, level, raw, model.prediction_type).eps


def states(rows: int = 3, side: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Renders that lie nearer to other components than the prompt's, so that words matter at every level."""
    index = torch.tensor([150, 520, 940])[:rows]
    places = torch.tensor([1.3, 1.0, 1.9])[:rows, None, None, None]
    return 0.6 * draw(rows, 2, side, side) + places, draw(rows, 2, side, side, seed=1), index


def sigma2(model: GaussianMixturePrior, index: Tensor) -> Tensor:
    level = NoiseSchedule.from_config(model.scheduler_config).at_index(index)
    return torch.as_tensor(level.sigma).view(-1, 1, 1, 1) ** 2


RULES = [None, SJC(), SJC(reduced=False), CSD(), NFSD(), ISM(), SDI(), ASD()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule or "sds").split("(")[0])
def test_every_parameterisation_pulls_the_same(rule):
    """eps, x0 and v of one prior give one g; forms recon and score are one."""
    x, noise, index = states()
    index = index.clamp_min(200)  # x0 kinds divide by sigma
    found = [pull(scorer(prior(kind), rule), x, noise, index, 0.4) for kind in KINDS[:3]]
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-6
    recon = pull(scorer(prior(), rule, form="recon"), x, noise, index, 0.4)
    assert float((recon - found[0]).norm() / found[0].norm()) < 1e-6


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule or "sds").split("(")[0])
def test_a_flow_pulls_by_velocities(rule):
    """eps_a - eps_b = (1 - t)(u_a - u_b) at one state, so the pull of an image that the prompt likes is finite."""
    x, noise, index = states()
    out = pull(scorer(prior("flow_prediction"), rule), x, noise, index)
    assert bool(torch.isfinite(out).all()) and float(out.norm()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_sds_is_the_guided_noise_less_the_injected(kind):
    model, (x, noise, index) = prior(kind), states()
    cond, null = (eps(model, words, x, noise, index) for words in ("red", "anything"))
    expected = sigma2(model, index) * (null + GUIDANCE * (cond - null) - noise)
    torch.testing.assert_close(pull(scorer(model), x, noise, index), expected, rtol=1e-6, atol=1e-8)


def test_sjc_is_sds_without_weight_in_variance_exploding_units():
    """D(z) = z - s eps at z = x + s n: -(D - x) / s and, plain, -(D - z) / s."""
    model, (x, noise, index) = prior(), states()
    level = NoiseSchedule.from_config(model.scheduler_config).at_index(index)
    alpha, sigma = level.coefficients(x)
    s = sigma / alpha
    z = x + s * noise
    cond, null = (eps(model, words, x, noise, index) for words in ("red", "anything"))
    denoised = z - s * (null + GUIDANCE * (cond - null))
    for reduced, centre in ((True, x), (False, z)):
        got = pull(scorer(model, SJC(reduced), weight="one"), x, noise, index)
        torch.testing.assert_close(got, -(denoised - centre) / s, rtol=1e-6, atol=1e-8)
    same = pull(scorer(model, weight="one"), x, noise, index)
    torch.testing.assert_close(pull(scorer(model, SJC(), weight="one"), x, noise, index), same)


def test_csd_moves_from_the_empty_to_the_negative_prompt():
    model, (x, noise, index) = prior(), states()
    cond, null, against = (eps(model, words, x, noise, index) for words in ("red", "anything", "dull"))
    weight = sigma2(model, index)
    for share, expected in ((0.0, cond - null), (0.25, cond - 0.75 * null - 0.25 * against), (1.0, cond - against)):
        torch.testing.assert_close(pull(scorer(model, CSD()), x, noise, index, share), weight * expected)
    late = CSD(against=(0, -1.0, -0.5, 1), empty=(0, 0.0, -0.5, 1))
    torch.testing.assert_close(pull(scorer(model, late), x, noise, index, 0.0), weight * (cond - against))
    torch.testing.assert_close(
        pull(scorer(model, late), x, noise, index, 1.0), weight * (cond - 0.5 * (against + null))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_csd_with_four_terms_is_sds(kind):
    model, (x, noise, index) = prior(kind), states()
    four = CSD(condition=(GUIDANCE,), against=(0.0,), empty=(1 - GUIDANCE,), noise=1.0)
    torch.testing.assert_close(
        pull(scorer(model, four), x, noise, index), pull(scorer(model), x, noise, index), rtol=1e-6, atol=1e-9
    )


def test_csd_vanishes_when_the_prompt_says_nothing():
    model, (x, noise, index) = prior(), states()
    empty = scorer(model, CSD(), model.encode_text("anything"))
    assert float(pull(empty, x, noise, index, 0.7).abs().max()) < 1e-12


def test_nfsd_leaves_the_noise_out():
    """Below t = 200 d_D is eps_0, above eps_0 - eps_-; without a negative prompt only s d_c is left above."""
    model, (x, noise, index) = prior(), states()
    cond, null, against = (eps(model, words, x, noise, index) for words in ("red", "anything", "dull"))
    weight, classifier = sigma2(model, index), GUIDANCE * (cond - null)
    expected = classifier + null - torch.tensor([0.0, 1, 1])[:, None, None, None] * against
    torch.testing.assert_close(pull(scorer(model, NFSD()), x, noise, index), weight * expected)
    plain = pull(scorer(model, NFSD(), model.encode_text("red")), x, noise, index)
    torch.testing.assert_close(plain[1:], (weight * classifier)[1:])
    csd = pull(scorer(model, CSD()), x, noise, index)
    torch.testing.assert_close(plain[1:], GUIDANCE * csd[1:])


def test_asd_asks_further_in_the_noise_with_the_same_noise():
    model, (x, noise, index) = prior(), states()
    later = torch.tensor([150.0, 520, 940]) + torch.tensor([13.0, 50, 59])  # floor(.1 (t - 20)), no further than 999
    cond, null = (eps(model, words, x, noise, index) for words in ("red", "anything"))
    beyond = eps(model, "red", x, noise, later)
    expected = sigma2(model, index) * (null + GUIDANCE * (cond - null) - beyond)
    torch.testing.assert_close(pull(scorer(model, ASD(random=False)), x, noise, index), expected)
    top = pull(scorer(model, ASD(shift=5.0, random=False)), x, noise, index)
    last = eps(model, "red", x, noise, torch.tensor([800.0, 999, 999]))
    torch.testing.assert_close(top, sigma2(model, index) * (null + GUIDANCE * (cond - null) - last))


def test_asd_shifts_are_spread_below_the_largest_and_shared_by_views():
    class Asked(GaussianMixturePrior):
        def _forward(self, x, time, rows):
            self.times = [*getattr(self, "times", []), time.clone()]
            return super()._forward(x, time, rows)

    base = gaussian()
    model = Asked(base.means, base.stds, scheduler_config=SD_SCHEDULE)
    condition = model.encode_text("any").repeat(300).with_views(torch.zeros(600, 16), 2)
    score = scorer(model, ASD(), model.encode_text("any"), guidance=1.0)
    x, index = draw(600, 2, 4, 4), torch.full((600,), 820)
    pull(score, x, draw(600, 2, 4, 4, seed=1), index, condition=condition)
    shift = model.times[-1] - 820
    assert bool((shift[::2] == shift[1::2]).all()) and float(shift.min()) >= 0 and float(shift.max()) <= 80
    assert float(shift.mean()) == pytest.approx(39.5, abs=4) and bool((shift == shift.floor()).all())


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_mean_and_variance_of_asd_on_a_gaussian(shift):
    """Noise coefficient of g: w (sigma_t^2 / v_t - sigma_t'^2 / v_t'), v = alpha^2 tau^2 + sigma^2; SDS has 1 there."""
    model, t, offset = gaussian(64), 400, 1.1
    later = t + int(shift * (t - 20))
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    mean, spread = 0.0, 0.0
    for index, sign in ((t, 1), (later, -1)):
        level = schedule.at_index(float(index))
        v = level.alpha**2 * TAU**2 + level.sigma**2
        mean += sign * level.sigma * level.alpha * (offset - MU) / v
        spread += sign * level.sigma**2 / v
    score = scorer(model, ASD(shift, random=False), model.encode_text("any"), guidance=1.0, weight="one")
    x = torch.full((32, 2, 64, 64), offset, dtype=torch.float64)
    got = pull(score, x, draw(32, 2, 64, 64), torch.full((32,), t))
    if shift == 0:
        assert float(got.abs().max()) < 1e-12
        return
    assert float(got.mean()) == pytest.approx(mean, rel=0.02)
    assert float(got.std()) == pytest.approx(abs(spread), rel=0.02)
    sds = pull(scorer(model, None, model.encode_text("any"), guidance=1.0, weight="one"), x, draw(32, 2, 64, 64),
               torch.full((32,), t))  # fmt: skip
    assert float(got.var()) < 0.05 * float(sds.var())


def test_sdi_of_a_gaussian_has_no_variance_and_a_known_target():
    """The inversion of x is alpha mu + sqrt(v / v_0) (x - alpha_0 mu), where the prior denoises towards mu."""
    model, index = gaussian(), torch.tensor([640, 640])
    x = draw(2, 2, 4, 4)
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    start, level = schedule.at_index(0.0), schedule.at_index(640.0)
    v0, v = (one.alpha**2 * TAU**2 + one.sigma**2 for one in (start, level))
    state = level.alpha * MU + (v / v0) ** 0.5 * (x - start.alpha * MU)
    target = MU + level.alpha * TAU**2 / v * (state - level.alpha * MU)
    errors = []
    for steps in (10, 40, 160):
        score = scorer(model, SDI(steps, eta=0.0), model.encode_text("any"), guidance=1.0, weight="ratio")
        outs = [score((x + 1) / 2, 0, noise=draw(2, 2, 4, 4, seed=seed), index=index) for seed in (1, 2)]
        assert torch.equal(outs[0].x0_hat, outs[1].x0_hat)
        errors.append(float((outs[0].x0_hat - target).abs().max()))
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2] and errors[2] < 0.02
    noisy = scorer(model, SDI(), model.encode_text("any"), guidance=1.0, weight="ratio")
    one, two = (pull(noisy, x, draw(2, 2, 4, 4, seed=seed), index) for seed in (1, 1))
    torch.testing.assert_close(one, two)


def test_sdi_inverts_away_from_the_prompt():
    """One step: x_t = alpha_t x0 + sigma_t eps of eps_0 - 7.5 (eps_c - eps_0) at index 0."""
    model, x = prior(), 0.5 * draw(2, 2, 4, 4) + 1.3  # nearer to another component than the prompt's
    index, zero = torch.tensor([700, 900]), torch.zeros(2)
    level = NoiseSchedule.from_config(SD_SCHEDULE).at_index(index)
    start = NoiseSchedule.from_config(SD_SCHEDULE).at_index(zero)
    (a, s), (a0, s0) = level.coefficients(x), start.coefficients(x)
    begun = (x - s0 * 0) / a0  # so that alpha_0 begun is x: `eps` below noises its argument
    cond, null = (eps(model, words, begun, torch.zeros_like(x), zero) for words in ("red", "anything"))
    noise = null - 7.5 * (cond - null)
    state = a * (x - s0 * noise) / a0 + s * noise
    cond, null = (eps(model, words, state / a, torch.zeros_like(x), index) for words in ("red", "anything"))
    kappa = (state - a * x) / s
    expected = null + GUIDANCE * (cond - null) - kappa
    got = pull(scorer(model, SDI(1, eta=0.0), weight="one"), x, draw(2, 2, 4, 4, seed=1), index)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_ism_is_the_difference_of_two_points_of_one_inversion():
    """A short interval of an unconditional prior leaves nothing; its two steps are those of DDIM."""
    model, x, noise = prior(), 0.5 * draw(1, 2, 4, 4) + 1.0, draw(1, 2, 4, 4, seed=1)
    schedule, index = NoiseSchedule.from_config(SD_SCHEDULE), torch.tensor([500])
    score = scorer(model, ISM(interval=(0.1,), stride=0.2, steps=1), weight="one")
    got = pull(score, x, noise, index)
    state = schedule.add_noise(x, noise, schedule.at_index(200.0))
    for now, after in ((200.0, 400.0), (400.0, 500.0)):
        level = schedule.at_index(now)
        last = eps(model, "anything", state / level.alpha, torch.zeros_like(x), torch.tensor([now]))
        clean = (state - level.sigma * last) / level.alpha
        state = schedule.add_noise(clean, last, schedule.at_index(after))
    level = schedule.at_index(500.0)
    cond, null = (eps(model, words, state / level.alpha, torch.zeros_like(x), index) for words in ("red", "anything"))
    torch.testing.assert_close(got, null + GUIDANCE * (cond - null) - last, rtol=1e-6, atol=1e-8)


def test_inverted_rules_vary_less_than_asd_and_asd_less_than_sds():
    model, x = gaussian(16), draw(1, 2, 16, 16).repeat(24, 1, 1, 1)
    index, noise = torch.full((24,), 500), draw(24, 2, 16, 16, seed=2)
    spread = {}
    for name, rule in (("sds", None), ("asd", ASD()), ("ism", ISM()), ("sdi", SDI(eta=0.0))):
        score = scorer(model, rule, model.encode_text("any"), guidance=1.0)
        spread[name] = float(pull(score, x, noise, index).var(0).mean())
    assert spread["sds"] > 2 * spread["asd"] and spread["asd"] > 2 * spread["ism"] and spread["sdi"] < 1e-20


class Particle:
    """A twin that knows its renders exactly: the score of a delta at each of them."""

    nfe = 0

    def told(self, x, condition):
        return lambda state, level: Prediction(state, level, x, "sample")


class Echo:
    """A twin that answers what the prior does for the prompt."""

    nfe = 0

    def __init__(self, model):
        self.model = model

    def told(self, x, condition):
        from unproject.core.sampling.denoiser import Denoiser

        return Denoiser(self.model, told(self.model, len(x)))


@pytest.fixture
def vsd(monkeypatch):
    """VSD with a given twin on an analytic prior."""

    def made(model, twin, **changes):
        monkeypatch.setattr("unproject.core.distillation.twin.Twin", lambda prior, config: twin)
        return scorer(model, VSD(), **changes)

    return made


def test_vsd_of_a_single_render_is_sds(vsd):
    model, (x, noise, index) = prior(), states()
    got = pull(vsd(model, Particle()), x, noise, index)
    torch.testing.assert_close(got, pull(scorer(model), x, noise, index), rtol=1e-6, atol=1e-9)


def test_vsd_with_the_prior_as_its_twin_is_csd_and_vanishes_without_guidance(vsd):
    model, (x, noise, index) = prior(), states()
    csd = pull(scorer(model, CSD()), x, noise, index)
    torch.testing.assert_close(pull(vsd(model, Echo(model)), x, noise, index), (GUIDANCE - 1) * csd)
    assert float(pull(vsd(model, Echo(model), guidance=1.0), x, noise, index).abs().max()) < 1e-12


@pytest.mark.parametrize(("rule", "rows"), [(None, 2), (SJC(), 2), (CSD(), 3), (NFSD(), 3), (ASD(), 3), (ISM(), 5)])
def test_network_rows_of_a_step(rule, rows):
    """Forwards of each image: branches, and for ISM three strides to s and one step to t."""
    model, (x, noise, _) = prior(), states()
    before = model.nfe
    pull(scorer(model, rule), x, noise, torch.full((3,), 599), 0.4)
    assert model.nfe - before == 3 * (rows + isinstance(rule, ISM))


def test_settings_of_other_rules_are_refused():
    with pytest.raises(InputError, match="even"):
        replace(BASE, even=-1.0)
    with pytest.raises(InputError, match=r"score\.rule\.asd has no meaning for the rule 'csd'"):
        RuleConfig("csd", asd=ASD(shift=0.2))
    with pytest.raises(InputError, match=r"kind='adsd' is unknown; have sds, sjc"):
        RuleConfig("adsd")
    with pytest.raises(InputError, match="to which the rule 'nfsd' does not pull; use 0 and 1"):
        ScoreConfig(rule=RuleConfig("nfsd"))
    with pytest.raises(InputError, match="must sum to noise"):
        CSD(noise=1.0)
    with pytest.raises(InputError, match="moves towards more noise"):
        ASD(shift=-0.1)
    with pytest.raises(InputError, match="needs a prior with a network; analytic has none"):
        scorer(prior(), VSD())


def test_rules_move_their_settings_with_the_run():
    """ISM's interval shrinks from 100 to 80 train steps over the first 30 %."""
    model, (x, noise, index) = prior(), states()
    first, later = (pull(scorer(model, ISM()), x, noise, index, share) for share in (0.0, 0.5))
    fixed = [pull(scorer(model, ISM(interval=(w,))), x, noise, index) for w in (0.1, 0.08)]
    torch.testing.assert_close(first, fixed[0])
    torch.testing.assert_close(later, fixed[1])


def test_asd_without_a_shift_asks_once_and_is_csd_bit_for_bit_where_nothing_is_rounded():
    model, (x, noise, index) = prior(), (rows[:2] for rows in states())
    x, asked = (8 * x).round() / 8, list[int]()

    def coarse(state, time, rows, plain=model._forward):
        asked.append(len(state))
        return (plain(state, time, rows) * 64).round() / 64

    model._forward = coarse  # type: ignore[method-assign]
    made = (scorer(model, rule, guidance=8.0, weight="one") for rule in (CSD(), ASD(shift=0.0)))
    csd, asd = (pull(score, x, noise, index) for score in made)
    assert torch.equal(asd, 7 * csd) and float(csd.abs().max()) > 0
    assert asked[1:] == [2 * len(x)]


def test_pulls_are_evened_by_the_error_of_each_image():
    model, (x, noise, index) = prior(), states()
    plain = pull(scorer(model, ASD(shift=0.0)), x, noise, index)
    alpha, sigma = NoiseSchedule.from_config(model.scheduler_config).at_index(index).coefficients(x)
    cond, null = (eps(model, words, x, noise, index) for words in ("red", "anything"))
    error = (x - (x - sigma * (null + GUIDANCE * (cond - null))) / alpha).abs().flatten(1).mean(1)
    evened = scorer(model, ASD(shift=0.0), even=0.1)
    torch.testing.assert_close(pull(evened, x, noise, index), plain / (error + 0.1)[:, None, None, None])
