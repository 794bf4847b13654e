"""Few bits: many bits are exact, grids come back, the gradient of a step, switching off, sizes, stages."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from unproject.core.distillation.quantised import (
    input_scales,
    integers,
    packed,
    quantised,
    scales_of,
    unpacked,
    weight_scales,
)
from unproject.core.distillation.quest import (
    Quantised,
    Selective,
    SelectiveObjective,
    activate,
    plain_network,
    quant_layers,
    stored,
)
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import load_prior
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator as rng

TEXTS = ["a dog", "a red chair"]
SMALL = {"times": 3, "runs": 2, "prompts": ("a dog", "")}


def test_the_gradient_of_a_step_is_the_published_one():
    """round(u) - u inside the range, the clipped bound minus z outside."""
    x = torch.tensor([-0.9, -0.31, 0.12, 0.4, 3.0, -3.0]).double()
    delta, zero = torch.tensor(0.17).double().requires_grad_(True), torch.tensor(6.0).double()
    quantised(x, delta, zero, 4).sum().backward()
    u = x / 0.17
    inside = (u.round() + 6 >= 0) & (u.round() + 6 <= 15)
    wanted = torch.where(inside, u.round() - u, torch.where(u > 0, 15.0 - 6, 0.0 - 6)).sum()
    assert not inside.all() and float(delta.grad) == pytest.approx(float(wanted), abs=1e-6)
    y = x.clone().requires_grad_(True)
    quantised(y, delta.detach(), zero, 4).sum().backward()
    assert torch.equal(y.grad, inside.double())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_values_on_the_grid_come_back_to_the_bit(bits):
    whole = torch.randint(0, 2**bits, (5, 3, 3), generator=rng(1)).to(torch.uint8)
    delta, zero = torch.rand(5, 1, 1, generator=rng(2)) + 0.1, torch.full((5, 1, 1), 2.0)
    values = (whole.float() - zero) * delta
    assert torch.equal(integers(values, delta, zero, bits), whole)
    assert torch.equal(quantised(values, delta, zero, bits), values)
    assert torch.equal(unpacked(packed(whole, bits), bits, whole.shape), whole)
    assert packed(whole, bits).numel() == (23 if bits <= 4 else 45)


def test_the_chosen_ranges_lose_less_than_the_whole_one():
    weight = torch.randn(6, 400, generator=rng(1))
    delta, zero = weight_scales(weight, 3)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    plain = (high - low) / 7
    error, whole = (
        (quantised(weight, d, z, 3) - weight).abs().pow(2.4).sum()
        for d, z in ((delta, zero), (plain, (-low / plain).round()))
    )
    assert error < whole and (delta <= plain + 1e-6).all()
    values = torch.cat([torch.randn(50_000, generator=rng(2)), torch.tensor([40.0])])
    assert float(input_scales(values, 4)[0]) < 40 / 15
    fine = quantised(weight, *scales_of(low, high, 16), 16)
    assert (fine - weight).norm() / weight.norm() < 1e-3


def test_many_bits_are_the_network_and_off_is_to_the_bit(tiny_folders, asked):
    prior = load_prior(tiny_folders["sd"])
    fine, coarse = (Student(prior, Quantised(bits, 16, **SMALL)).network for bits in (8, 3))
    x, text = torch.randn(2, 4, 8, 8, generator=rng(1)), prior.encode_text(["a dog", ""])["cond"]["text"]
    with torch.no_grad():
        plain, close, far = (one(x, 999, text).sample for one in (prior.network, fine, coarse))
    close, far = ((one - plain).norm() / plain.norm() for one in (close, far))
    assert close < 0.02 and far > 3 * close
    activate(coarse, False)
    assert torch.equal(asked(coarse), asked(prior.network))
    with pytest.raises(InputError, match="weight_bits=1"):
        Quantised(weight_bits=1)


def test_inputs_take_the_scale_of_the_nearest_time(tiny_folders, asked):
    network = Student(load_prior(tiny_folders["sd"]), Quantised(8, 8, **SMALL)).network
    clock = network.quantised_clock
    assert clock.times.tolist() == [999.0, 666.0, 332.0]
    before = asked(network)
    assert clock.rows.tolist() == [0, 2]
    layers = dict(quant_layers(network))
    assert len(set(layers["conv_in"].input_delta.tolist())) == 3
    with torch.no_grad():
        for layer in layers.values():
            layer.input_delta[1] *= 50
    assert torch.equal(asked(network), before)
    with torch.no_grad():
        for layer in layers.values():
            layer.input_delta[2] *= 50
    after = asked(network)
    assert torch.equal(after[0], before[0]) and (after[1] - before[1]).abs().max() > 1e-3


def test_packed_files_are_small_and_come_back(tiny_folders, tmp_path, asked):
    prior = load_prior(tiny_folders["sd"])
    kind = Quantised(4, 8, **SMALL)
    student, fresh = Student(prior, kind), Student(prior, kind, seed=5)
    folder = student.save(tmp_path / "s")
    fresh.load(folder)
    assert torch.equal(asked(fresh.network), asked(student.network))
    assert torch.equal(asked(kind.loaded(prior, folder).network), asked(student.network))
    weights = sum(v.numel() for k, v in stored(student.network).items() if k.endswith("layer.weight"))
    whole = sum(layer.layer.weight.numel() for _, layer in quant_layers(student.network))
    assert weights < 0.55 * whole  # bytes; two weights in one, and the outer layers' eight bits
    stock = UNet2DConditionModel.from_pretrained(folder / "plain" / "unet")
    rounded = plain_network(student.network)
    torch.testing.assert_close(asked(stock.float()), asked(rounded), rtol=5e-3, atol=5e-3)
    assert not any(quant_layers(rounded)) and any(quant_layers(student.network))


@pytest.mark.parametrize(("weights", "count"), [("time", 1), ("sensitive", 1), ("none", 0)])
def test_a_stage_trains_what_it_says_and_helps(tiny_folders, weights, count, asked):
    prior = load_prior(tiny_folders["sd-v"])
    student = Student(prior, Quantised(3, 4, **SMALL))
    objective = SelectiveObjective(student, Teacher(prior), Selective(weights))
    learning = [name for name, p in student.network.named_parameters() if p.requires_grad]
    named = [name for name in learning if name.endswith("layer.weight")]
    assert bool(named) == bool(count) and all(name.endswith(("layer.weight", "input_delta")) for name in learning)
    batch = {"latents": torch.randn(2, 4, 8, 8, generator=rng(3)), "captions": TEXTS}
    first = objective.loss(batch, rng(4), 0).loss
    assert torch.equal(first, objective.loss(batch, rng(4), 0).loss)
    optimizer = torch.optim.Adam([p for p in student.network.parameters() if p.requires_grad], 1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        objective.loss(batch, rng(4), 0).loss.backward()
        optimizer.step()
    assert objective.loss(batch, rng(4), 0).loss < first
    again = Student(student.prior, Quantised(3, 4, **SMALL))
    assert torch.equal(asked(again.network), asked(student.network))
    with pytest.raises(InputError, match="no quantised layer"):
        SelectiveObjective(Student(prior), Teacher(prior), Selective("all"))


def test_what_is_loaded_searches_no_scales(tiny_folders, tmp_path, monkeypatch, asked):
    """They are in the file; the search over shrunk ranges takes longer than drawing a picture."""
    from unproject.core.distillation import quantised as layers

    prior, kind = load_prior(tiny_folders["sd"]), Quantised(3, 8, **SMALL)
    student, tried = Student(prior, kind), []
    folder = student.save(tmp_path / "s")
    search = layers.weight_scales
    monkeypatch.setattr(layers, "weight_scales", lambda *given: tried.append(given[2]) or search(*given))
    assert torch.equal(asked(kind.loaded(prior, folder).network), asked(student.network)) and set(tried) == {1}


def test_ranges_of_inputs_are_the_quantile_with_the_least_error():
    values = torch.randn(30_000, generator=rng(4)).abs() * 0.1
    values[7] = 40.0
    found = input_scales(values, 4)
    tried = [scales_of(values.min(), values.max(), 4)]
    tried += [scales_of(values.quantile(1 - q), values.quantile(q), 4) for q in (0.999, 0.9999, 0.99999)]
    errors = [float((quantised(values, *pair, 4) - values).square().sum()) for pair in tried]
    best = tried[errors.index(min(errors))]
    assert torch.equal(found[0], best[0]) and torch.equal(found[1], best[1])
