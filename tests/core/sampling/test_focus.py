"""Control: strength 0, direction, parameterisations; attention taps against diffusers' own maths; the FOCUS cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch.nn import functional as F

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, KINDS, Denoiser, NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.attention import AttentionTap, _blurred, subject_phrases, subject_tokens
from unproject.core.sampling.focus import (
    COSTS,
    AttentionCost,
    VelocityControl,
    attend_and_excite_cost,
    attention_control,
    cost_gradient,
    divergence,
    focus_cost,
    moved,
    parse_control,
)
from unproject.toybox.captions import caption
from unproject.toybox.programs import SceneProgram, draw
from unproject.utils.errors import InputError

FAMILIES = ("sd", "sdxl", "sd3", "flux")


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    means = torch.stack([torch.full((1, 2, 2), float(m)) for m in (-1, 1)]).double()
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.3]), scheduler_config=config)


def noise(batch: int = 6) -> torch.Tensor:
    return torch.randn(batch, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def away_from_left(denoiser, x, level) -> torch.Tensor:
    """Half the squared distance of the clean estimate to +1."""
    return 0.5 * (denoiser.ask(x, level, ("cond",))["cond"].x0 - 1).square().sum((1, 2, 3))


def sampled(prior, controls, x, steps: int = 20) -> torch.Tensor:
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(steps)
    return Sampler(DDIM()).run(Denoiser(prior, prior.encode_text([""] * len(x)), controls=controls), x, levels)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_strength_zero_is_the_plain_sampler_bit_for_bit_and_free(config):
    prior, x = mixture(config), noise()
    plain = sampled(prior, (), x)
    before = prior.nfe
    assert torch.equal(sampled(prior, (VelocityControl(away_from_left, 0.0),), x), plain)
    assert prior.nfe - before == 20 * 6


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("weight", ["local", "noise", "linear"])
def test_control_descends_its_cost_and_the_wrong_sign_climbs(config, weight):
    prior, x = mixture(config), noise()

    def cost(strength: float) -> float:
        out = sampled(prior, (VelocityControl(away_from_left, strength, weight),), x)
        return float((out - 1).square().mean())

    assert cost(0.05) < cost(0.0) < cost(-0.05)


def test_a_path_and_its_flow_are_controlled_alike():
    """At equal signal-to-noise ratio the change of (x0, eps) is the same for VP and flow priors."""
    changes = []
    for config in (SD_SCHEDULE, FLOW_SCHEDULE):
        prior = mixture(config)
        denoiser = Denoiser(prior, prior.encode_text([""] * 6))
        level = denoiser.schedule.at_lambda(-0.4)
        x = (level.alpha + level.sigma) * noise()
        plain = denoiser(x, level)
        controlled = VelocityControl(away_from_left, 0.7)(denoiser, plain)
        changes.append((controlled.x0 - plain.x0, controlled.eps - plain.eps))
    for vp, flow in zip(*changes):
        torch.testing.assert_close(vp, flow, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_changes_u_and_keeps_the_state(kind):
    level = NoiseSchedule.from_config(SD_SCHEDULE).at_index(500)
    prediction = Prediction(noise(), level, noise().flip(0), kind)
    change = noise().roll(1, 0)
    after = moved(prediction, change)
    torch.testing.assert_close(after.u - prediction.u, change, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(level.alpha * after.x0 + level.sigma * after.eps, noise(), rtol=1e-10, atol=1e-10)


def test_gradient_is_per_row_and_leaves_no_graph():
    prior = mixture()
    denoiser = Denoiser(prior, prior.encode_text([""] * 6))
    level, x = denoiser.schedule.at_index(500), noise()
    with torch.no_grad():
        whole = cost_gradient(away_from_left, denoiser, x, level)
    assert not whole.requires_grad
    single = Denoiser(prior, prior.encode_text([""]))
    torch.testing.assert_close(cost_gradient(away_from_left, single, x[2:3], level)[0], whole[2], rtol=1e-9, atol=1e-12)
    small = 1e-6 * torch.ones_like(x)
    rise = away_from_left(denoiser, x + small, level) - away_from_left(denoiser, x - small, level)
    torch.testing.assert_close(rise / 2e-6, whole.sum((1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_divergence_and_cost_at_their_ends():
    rows = torch.rand(3, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(divergence(rows[:1].repeat(3, 1))) == pytest.approx(0.0, abs=1e-9)
    apart = torch.block_diag(*(row[None, :5] for row in rows))
    assert float(divergence(apart)) == pytest.approx(1.0, abs=1e-9)
    assert 0 < float(divergence(rows)) < 1
    assert float(divergence(7 * rows)) == pytest.approx(float(divergence(rows)))
    maps = apart[[0, 0, 1, 2, 2]].reshape(5, 3, 5)
    perfect = [[0, 1], [2], [3, 4]]
    assert float(focus_cost(maps, perfect)) == pytest.approx(0.0, abs=1e-9)
    assert float(focus_cost(maps, [[0, 2], [1]])) > 0.3
    assert float(focus_cost(maps, [[0], [1]])) == pytest.approx(0.5)  # one place for two subjects
    assert float(focus_cost(maps, [[0]])) == 0.0
    assert float(attend_and_excite_cost(maps, perfect)) == pytest.approx(0.0)


def test_a_neglected_subject_is_judged_by_its_share_of_a_pixel():
    """The published cost: at each pixel the subjects' maps are divided by their sum; 1 - the smallest peak."""
    maps = torch.tensor([[[0.6, 0.1, 0.2]], [[0.2, 0.3, 0.2]], [[0.1, 0.1, 0.4]]], dtype=torch.float64)
    shares = [[0.4 / 0.5, 0.2 / 0.3, 0.2 / 0.6], [0.1 / 0.5, 0.1 / 0.3, 0.4 / 0.6]]  # tokens 0 and 1 are one subject
    wanted = 1 - min(max(row) for row in shares)
    assert float(attend_and_excite_cost(maps, [[0, 1], [2]])) == pytest.approx(wanted)
    assert float(attend_and_excite_cost(0.01 * maps, [[0, 1], [2]])) == pytest.approx(wanted)
    assert float(attend_and_excite_cost(maps, [[0]])) == pytest.approx(0.0)


def test_maps_are_blurred_with_reflected_edges():
    """Against scipy's correlation, whose "mirror" does not repeat the edge pixel, as torch's "reflect"."""
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    taps = np.exp([-0.5, 0.0, -0.5])
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    wanted = [correlate(picture, kernel, mode="mirror") for picture in maps.flatten(0, 1).numpy()]
    np.testing.assert_allclose(_blurred(maps).flatten(0, 1).numpy(), np.stack(wanted), rtol=1e-12)
    assert _blurred(maps[..., :1]).shape == (2, 3, 4, 1)


def test_cost_is_differentiable():
    maps = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: focus_cost(m, [[0, 1], [2, 3]]), (maps,))


@pytest.mark.parametrize("name", FAMILIES)
def test_tap_leaves_the_output_alone_and_sums_to_what_the_text_gets(tiny_folders, name):
    prior = load_prior(tiny_folders[name])
    condition = prior.encode_text("a red chair")
    denoiser = Denoiser(prior, condition)
    x = torch.randn(1, prior.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
    level = denoiser.schedule.at_index(500)
    with torch.no_grad():
        plain = denoiser(x, level).raw
        with AttentionTap(prior.network) as tap:
            assert torch.equal(denoiser(x, level).raw, plain)
        assert torch.equal(denoiser(x, level).raw, plain)
    maps = tap.maps((8, 8))
    side = {"sd3": 4, "flux": 4}.get(name, 8)
    assert maps.shape == (1, condition["cond"]["text"].shape[1], side, side)
    share = maps.sum(1)
    assert bool((share > 0).all())
    if name in ("sd", "sdxl"):
        torch.testing.assert_close(share, torch.ones_like(share))
    else:
        assert float(share.max()) < 1


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_tapped_probabilities_are_those_the_network_used(tiny_folders, name, monkeypatch):
    """Compared with the queries and keys that reach the attention kernel."""
    prior = load_prior(tiny_folders[name])
    seen: list[torch.Tensor] = []
    kernel = F.scaled_dot_product_attention

    def spy(query, key, value, *args, **kwargs):
        seen.append((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1).mean(1))
        return kernel(query, key, value, *args, **kwargs)

    condition = prior.encode_text("a red chair")
    tokens = condition["cond"]["text"].shape[1]
    x = torch.randn(1, prior.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(prior, condition)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad(), AttentionTap(prior.network) as tap:
        denoiser(x, denoiser.schedule.at_index(500))
    if name == "sd":
        kept = [p.mT for p in seen if p.shape[-1] == tokens]
    elif name == "sd3":
        kept = [p[:, :-tokens, -tokens:].mT for p in seen]
    else:
        kept = [seen[0][:, tokens:, :tokens].mT]  # the double-stream block comes first
    assert len(kept) == len(tap._recorded)
    for ours, theirs in zip(tap._recorded, kept):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_focus_lowers_its_cost_on_the_real_classes(tiny_folders, name):
    prior = load_prior(tiny_folders[name])
    prompt = "a red chair of the blue dog"
    cost = AttentionCost(subject_tokens(prior, prompt, ["red chair", "blue dog"]))
    denoiser = Denoiser(prior, prior.encode_text([prompt, "the tall wagon"]))
    x = torch.randn(2, prior.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
    level = denoiser.schedule.at_index(600)
    slope = cost_gradient(cost, denoiser, x, level)
    assert slope.shape == x.shape
    assert float(slope.abs().amax((1, 2, 3)).min()) > 0
    with torch.no_grad():
        before = cost(denoiser, x, level)
        step = 0.05 * slope / slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        after = cost(denoiser, x - step, level)
    assert bool((after < before).all())
    assert all(p.grad is None for p in prior.parameters())


def test_subject_tokens_find_the_words(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    prompt = "a red chair of the red dog"
    groups = subject_tokens(prior, prompt, ["red", "chair", "red dog"])
    words = prior.pipe.tokenizer(prompt).input_ids
    decoded = ["".join(prior.pipe.tokenizer.decode([words[i]]).strip() for i in group) for group in groups]
    assert decoded == ["red", "chair", "reddog"]
    assert min(groups[2]) > max(groups[1]) > max(groups[0])
    with pytest.raises(InputError, match="'wagon' is not in the prompt"):
        subject_tokens(prior, prompt, ["wagon"])
    with pytest.raises(InputError, match="no tokenizer"):
        subject_tokens(mixture(), prompt, ["red"])


def test_maps_follow_the_proportions_of_the_latents(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    denoiser = Denoiser(prior, prior.encode_text("a dog"))
    with torch.no_grad(), AttentionTap(prior.network) as tap:
        denoiser(torch.zeros(1, 4, 4, 8), denoiser.schedule.at_index(5))
    assert tap.maps((4, 8)).shape[-2:] == (4, 8)


def test_bad_input_is_named(tiny_folders):
    with pytest.raises(InputError, match="weight='late'"):
        VelocityControl(away_from_left, 1.0, "late")
    with pytest.raises(InputError, match="floor=0"):
        VelocityControl(away_from_left, 1.0, floor=0)
    with pytest.raises(InputError, match="at least one token"):
        AttentionCost([[]])
    prior = mixture()
    denoiser = Denoiser(prior, prior.encode_text([""] * 6))
    level = denoiser.schedule.at_index(500)
    with pytest.raises(InputError, match="no network"):
        AttentionCost([[1], [2]])(denoiser, noise(), level)
    with pytest.raises(InputError, match="one number per row"):
        cost_gradient(lambda d, x, lv: x.sum(), denoiser, noise(), level)
    with pytest.raises(InputError, match="no attention to text"):
        AttentionTap(torch.nn.Linear(2, 2))
    sd = load_prior(tiny_folders["sd"])
    with pytest.raises(InputError, match="nothing was recorded"):
        AttentionTap(sd.network).maps((8, 8))
    rows = Denoiser(sd, sd.encode_text(["a dog", "a chair"]))
    with pytest.raises(InputError, match="subjects for 1 rows"):
        AttentionCost([[[1], [2]]])(rows, torch.zeros(2, 4, 8, 8), rows.schedule.at_index(5))


@pytest.mark.parametrize(
    ("prompt", "subjects"),
    [
        ("a red chair behind a blue dog", ["red chair", "blue dog"]),
        ("a photo of a red chair to the left of two dogs, seen from behind", ["red chair", "dogs"]),
        ("A render of a cup of tea on top of the old table, front view", ["cup of tea", "old table"]),
        ("a cat, a dog and an orange lamp", ["cat", "dog", "orange lamp"]),
        ("a picture of a sofa", ["sofa"]),
        ("", []),
    ],
)
def test_subjects_are_read_off_simple_sentences(prompt, subjects):
    assert subject_phrases(prompt) == subjects


def test_subjects_of_every_two_object_sentence_of_the_toybox():
    prior = load_prior("toybox")
    for index in range(200):
        program = draw("val", index, "scene")
        if isinstance(program, SceneProgram) and program.relation:
            sentence = caption(program, "front", np.random.default_rng(index))
            found = subject_phrases(sentence)
            assert len(found) == 2, (sentence, found)
            assert all(subject_tokens(prior, sentence, found))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_control_by_name_is_the_one_made_by_hand(tiny_folders, family):
    prior, prompt = load_prior(str(tiny_folders[family])), "a red chair behind a blue dog"
    x = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(3))
    level = NoiseSchedule.from_config(prior.scheduler_config).grid(4)[1]
    tokens = subject_tokens(prior, prompt, ["red chair", "blue dog"])
    by_hand = VelocityControl(AttentionCost(tokens, attend_and_excite_cost), 2.0)
    named = attention_control("attend-and-excite:2", prior, prompt)
    answers = [
        Denoiser(prior, prior.encode_text([prompt] * 2), controls=(control,))(x, level).raw
        for control in (by_hand, named)
    ]
    assert torch.equal(*answers)


def test_controls_that_make_no_sense_are_refused(tiny_folders):
    prior = load_prior(str(tiny_folders["sd"]))
    assert parse_control("focus") == ("focus", 1.0)
    assert {parse_control(f"{name}:-2")[1] for name in COSTS} == {-2.0}
    for text in ("focuss", "focus:x", "focus:nan", ""):
        with pytest.raises(InputError, match="write focus"):
            parse_control(text)
    with pytest.raises(InputError, match=r"only \['red chair'\] was found"):
        attention_control("focus", prior, "a red chair")
    with pytest.raises(InputError, match="'wagon' is not in the prompt"):
        attention_control("focus", prior, "a red chair", ["chair", "wagon"])
