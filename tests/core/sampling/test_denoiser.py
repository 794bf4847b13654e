"""Guidance and the denoiser: limits, commutation, counting, batching."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import unproject
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, Condition, GaussianMixturePrior, Rows, load_prior
from unproject.core.sampling import DDIM, KINDS, ClassifierFree, Denoiser, NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.guidance import rescaled
from unproject.utils.errors import InputError

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)


@pytest.fixture
def prior():
    means = torch.stack([torch.full((1, 2, 2), float(m)) for m in (-1, 1)])
    return GaussianMixturePrior(means, torch.tensor([0.2, 0.2]), names=("left", "right"))


@pytest.fixture
def x():
    return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_guidance_one_is_the_conditional_model_and_costs_one_branch(prior, x):
    condition = prior.encode_text(["left", "right", ""])
    denoiser = Denoiser(prior, condition, 1.0)
    level = SCHEDULE.at_index(400)
    torch.testing.assert_close(denoiser(x, level).raw, prior.predict(x, 400.0, condition["cond"]), rtol=0, atol=0)
    assert denoiser.nfe == 3


def test_guidance_formula_and_cost(prior, x):
    condition = prior.encode_text(["left", "right", ""])
    denoiser = Denoiser(prior, condition, 5.0)
    cond, uncond = (prior.predict(x, 400.0, condition[name]) for name in ("cond", "null"))
    torch.testing.assert_close(denoiser(x, SCHEDULE.at_index(400)).raw, uncond + 5 * (cond - uncond))
    assert denoiser.nfe == 6


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_commutes_with_parameterisation(kind, x):
    level = SCHEDULE.at_index(torch.tensor([10.0, 500.0, 900.0]))
    branches = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    null, cond = (Prediction(x, level, raw, "epsilon") for raw in branches)
    direct = ClassifierFree(7.5)({"cond": cond, "null": null}).read(kind)
    apart = null.read(kind) + 7.5 * (cond.read(kind) - null.read(kind))
    torch.testing.assert_close(direct, apart, rtol=1e-10, atol=1e-10)


def test_full_rescale_restores_the_conditional_std(x):
    null, cond = (Prediction(x, SCHEDULE.at_index(400), raw, "epsilon") for raw in (x.flip(0), x))
    out = ClassifierFree(10.0, rescale=1.0)({"cond": cond, "null": null}).raw
    torch.testing.assert_close(out.std((1, 2, 3)), x.std((1, 2, 3)))
    half = rescaled(ClassifierFree(10.0)({"cond": cond, "null": null}), cond, 0.5).raw
    torch.testing.assert_close(half, 0.5 * out + 0.5 * (null.raw + 10 * (cond.raw - null.raw)))


def test_interval_saves_the_second_branch(prior, x):
    denoiser = Denoiser(prior, prior.encode_text("left").repeat(3), ClassifierFree(5.0, interval=(0.2, 0.8)))
    for index in (100, 500, 900):
        denoiser(x, SCHEDULE.at_index(index))
    assert denoiser.nfe == 3 + 6 + 3


def test_batch_equals_single_rows(prior, x):
    levels = SCHEDULE.grid(6)
    condition = prior.encode_text(["left", "right", ""])
    whole = Sampler(DDIM()).run(Denoiser(prior, condition, 3.0), x, levels)
    for row in range(3):
        alone = Sampler(DDIM()).run(Denoiser(prior, condition.index([row]), 3.0), x[row : row + 1], levels)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-12, atol=1e-12)


def test_levels_per_sample(prior, x):
    indices = torch.tensor([100.0, 500.0, 900.0])
    denoiser = Denoiser(prior, prior.encode_text("left").repeat(3), 4.0)
    together = denoiser(x, SCHEDULE.at_index(indices)).x0
    for row, index in enumerate(indices.tolist()):
        single = Denoiser(prior, prior.encode_text("left"), 4.0)(x[row : row + 1], SCHEDULE.at_index(index)).x0
        torch.testing.assert_close(single[0], together[row], rtol=1e-9, atol=1e-9)


def test_missing_branch_and_bad_settings_are_named(prior):
    condition = prior.encode_text("left")
    bare = Condition({"cond": condition["cond"]}, ["left"])
    with pytest.raises(InputError, match=r"scale=3\.0.*needs the branch 'null'.*use scale 1"):
        Denoiser(prior, bare, 3.0)
    with pytest.raises(InputError, match="rescale=2"):
        ClassifierFree(1.0, rescale=2)
    with pytest.raises(InputError, match="interval"):
        ClassifierFree(1.0, interval=(0.8, 0.2))


@dataclass(frozen=True)
class TwoScale:
    """InstructPix2Pix (Brooks et al. 2023), equation 3."""

    text: float = 7.5
    image: float = 1.5

    def needs(self, level):
        return ("cond", "image", "null")

    def __call__(self, p):
        return p["null"] + self.image * (p["image"] - p["null"]) + self.text * (p["cond"] - p["image"])


class Recording(GaussianMixturePrior):
    """Keeps what it was asked with."""

    reads = GaussianMixturePrior.reads | {"mark"}

    def _forward(self, x, time, rows):
        self.asked = [*getattr(self, "asked", []), (x, time, rows)]
        return super()._forward(x, time, rows)


def test_all_branches_are_asked_in_one_call_the_unconditional_one_first(x):
    prior = Recording(torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.4]))
    condition = prior.encode_text(["0", "1", ""], "1")
    condition = condition.branch("image", prior.encode_text(["", "0", "1"])["cond"]).with_rows(mark=torch.arange(3))
    level = SCHEDULE.at_index(torch.tensor([100.0, 500.0, 900.0]))
    denoiser = Denoiser(prior, condition, TwoScale(4.0, 1.5))
    found = denoiser(x, level)
    assert len(prior.asked) == 1 and denoiser.nfe == prior.nfe == 9
    states, time, rows = prior.asked[0]
    assert torch.equal(states, torch.cat([x] * 3)) and time.tolist() == [100.0, 500.0, 900.0] * 3
    assert rows["mark"].tolist() == [0, 1, 2] * 3
    assert torch.equal(rows["text"], torch.cat([condition[name]["text"] for name in ("null", "cond", "image")]))
    cond, image, null = (prior.predict(x, level.times(x), condition[name]) for name in ("cond", "image", "null"))
    torch.testing.assert_close(found.raw, null + 1.5 * (image - null) + 4.0 * (cond - image))
    apart = denoiser.ask(x, level, ("image", "null"))
    assert list(apart) == ["null", "image"]
    torch.testing.assert_close(apart["image"].raw, image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_readings_of_a_combination_are_the_combination_of_the_readings(kind, other, config, x):
    """For any weights and kinds: the state is combined too."""
    level = NoiseSchedule.from_config(config).at_index(torch.tensor([100.0, 500.0, 900.0]))
    a = Prediction(x, level, x.flip(0).exp(), kind)
    b = Prediction(x, level, x.flip(1) - 0.3, other)
    scale = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    for made, weights in (
        (a + b, (1, 1)),
        (a - b, (1, -1)),
        (3.0 * a - 0.5 * b, (3.0, -0.5)),
        (a * scale - b, (scale, -1)),
    ):
        for name in ("x0", "eps", "v", "u", "score"):
            wanted = weights[0] * getattr(a, name) + weights[1] * getattr(b, name)
            torch.testing.assert_close(getattr(made, name), wanted, rtol=1e-9, atol=1e-9)
    mixed = 0.25 * a + 0.75 * b
    assert mixed.weight == 1.0 and torch.equal(mixed.x, x)
    with pytest.raises(InputError, match="different states or levels"):
        a + Prediction(x, SCHEDULE.at_index(3), x, kind)
    with pytest.raises(InputError, match="different states or levels"):
        a - Prediction(x + 1e-6 * (x == x.max()), level, x, kind)
    assert torch.equal((a + Prediction(x.clone(), level, x, kind)).x, x)  # a copy of the same state


def test_the_interval_counts_in_train_time_of_any_length(x):
    means, stds = torch.zeros(1, 1, 2, 2), torch.tensor([0.3])
    for config, count in (
        ({**SD_SCHEDULE, "num_train_timesteps": 200}, 200),
        ({**FLOW_SCHEDULE, "num_train_timesteps": 500}, 500),
    ):
        prior = GaussianMixturePrior(means, stds, scheduler_config=config)
        denoiser = Denoiser(prior, prior.encode_text("").repeat(3), ClassifierFree(5.0, interval=(0.2, 0.8)))
        for fraction, rows in ((0.1, 3), (0.5, 6), (0.9, 3)):
            for level in (
                denoiser.schedule.at_index(fraction * count),
                denoiser.schedule.at_index(torch.full((3,), fraction * count)),
                denoiser.schedule.at_lambda(float(denoiser.schedule.at_index(fraction * count).lam)),
            ):
                before = denoiser.nfe
                denoiser(x, level)
                assert denoiser.nfe - before == rows


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_interval_holds_for_each_sample(prior, x, rescale):
    """A batch of several levels is each of its samples alone, whatever their mean."""
    guidance = ClassifierFree(5.0, rescale, interval=(0.2, 0.8))
    denoiser = Denoiser(prior, prior.encode_text("left").repeat(3), guidance)
    index = torch.tensor([100.0, 500.0, 990.0])
    together, before = denoiser(x, SCHEDULE.at_index(index)), denoiser.nfe
    for row, alone in enumerate(index):
        one = Denoiser(prior, prior.encode_text("left"), guidance)
        torch.testing.assert_close(
            together.raw[row], one(x[row : row + 1], SCHEDULE.at_index(float(alone))).raw[0], rtol=1e-9, atol=1e-9
        )
    plain = Denoiser(prior, prior.encode_text("left").repeat(3), 1.0)(x, SCHEDULE.at_index(index))
    assert [bool((a != b).any()) for a, b in zip(together.raw, plain.raw)] == [False, True, False]
    assert before == 6
    denoiser(x, SCHEDULE.at_index(torch.tensor([10.0, 100.0, 990.0])))
    assert denoiser.nfe - before == 3  # nobody is inside


def test_another_condition_has_its_own_branches_and_count(prior, x):
    left, right = (prior.encode_text([name] * 3) for name in ("left", "right"))
    denoiser, level = Denoiser(prior, left, 3.0), SCHEDULE.at_index(300)
    denoiser(x, level)
    other = denoiser.with_condition(right)
    assert torch.equal(other(x, level).raw, Denoiser(prior, right, 3.0)(x, level).raw)
    assert (denoiser.nfe, other.nfe) == (6, 6)


def test_level_coefficients_are_cast_before_they_move():
    """A device without float64 never sees one: nothing of that dtype may arrive on the state's device."""

    class Arrivals(TorchDispatchMode):
        seen: ClassVar[list] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type == "meta":
                self.seen.append(out.dtype)
            return out

    level = SCHEDULE.at_index(torch.tensor([1.0, 2.0]))
    x = torch.zeros(2, 1, 2, 2, device="meta", dtype=torch.float16)
    with Arrivals():
        alpha, _ = level.coefficients(x)
        times = level.times(x)
    assert (alpha.device.type, alpha.dtype, times.dtype) == ("meta", torch.float16, torch.float32)
    assert Arrivals.seen and torch.float64 not in Arrivals.seen


def test_numbers_leave_the_device_before_they_become_float64():
    root = Path(unproject.__file__).parent
    found = [path.name for path in (root / "core").rglob("*.py") if ".double().cpu()" in path.read_text()]
    assert not found


def test_networks_are_asked_by_the_denoiser_alone():
    """`Prior.predict` appears nowhere else, but where a prior is made of priors."""
    root = Path(unproject.__file__).parent
    folders = ("core", "tasks", "generate", "pipelines", "bench", "scripts", "cli")
    found = {
        path.relative_to(root).as_posix()
        for folder in folders
        for path in (root / folder).rglob("*.py")
        if re.search(r"(?<!head)(prior|model|network|base|fine)\.(predict|_forward)\(", path.read_text())
    }
    assert found == {"core/sampling/denoiser.py", "core/sampling/model_schedule.py"}


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_channels_of_a_concat_row_come_first(tiny_folders, name):
    prior = load_prior(tiny_folders[name])
    seen = []
    prior.network.forward = lambda x, *_, **__: seen.append(x) or (x[:, :4],)
    rows = prior.encode_text(["a dog", "a chair"])["cond"]
    image, x = torch.ones(2, 3, 8, 8), torch.zeros(2, 4, 8, 8)
    prior.predict(x, 10.0, rows.with_tensors(concat=image))
    assert torch.equal(seen[0], torch.cat([image, x], 1))


def test_rows_of_models_that_take_guidance_and_sizes(tiny_folders):
    flux = load_prior(tiny_folders["flux"])
    seen = {}
    forward = flux.network.forward
    flux.network.forward = lambda *args, **given: seen.update(given) or forward(*args, **given)
    condition = flux.encode_text(["a dog", "a chair"], "red").with_rows(guidance=torch.tensor([1.5, 4.0]))
    Denoiser(flux, condition, 2.0)(
        torch.zeros(2, 4, 8, 8), NoiseSchedule.from_config(flux.scheduler_config).at_index(9)
    )
    assert seen["guidance"].tolist() == [1.5, 4.0, 1.5, 4.0]
    sdxl = load_prior(tiny_folders["sdxl"])
    forward_xl = sdxl.network.forward
    sdxl.network.forward = lambda *args, **given: seen.update(given) or forward_xl(*args, **given)
    ids = torch.tensor([[64, 32, 0, 8, 32, 32], [32, 32, 0, 0, 32, 32]])
    rows = sdxl.encode_text(["a dog", "a chair"])["cond"]
    sdxl.predict(torch.zeros(2, 4, 8, 8), 10.0, rows.with_tensors(time_ids=ids))
    assert seen["added_cond_kwargs"]["time_ids"].tolist() == ids.tolist()
    sdxl.predict(torch.zeros(2, 4, 8, 16), 10.0, rows)
    assert seen["added_cond_kwargs"]["time_ids"].tolist() == [[32, 64, 0, 0, 32, 64]] * 2


def test_groups_share_attention_whatever_the_branch(x):
    """The rows of a call carry the groups of their condition."""
    prior = Recording(torch.zeros(1, 1, 2, 2), torch.ones(1))
    condition = prior.encode_text(["0", "0"]).with_views(torch.arange(64.0).reshape(4, 16), 2)
    Denoiser(prior, condition, 3.0)(torch.zeros(4, 1, 2, 2), SCHEDULE.at_index(5))
    rows: Rows = prior.asked[0][2]
    assert rows.frames == 2 and torch.equal(rows["cameras"], torch.arange(64.0).reshape(4, 16).repeat(2, 1))
