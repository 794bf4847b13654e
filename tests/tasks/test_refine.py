"""A second look at a guess: what is added where, what a fresh refiner is, rows and seeds, files, training."""

from __future__ import annotations

import copy
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from unproject.core.sampling import Denoiser
from unproject.core.training.objectives.base import Objective
from unproject.pipelines.image_to_geometry import ImageToNormals
from unproject.tasks.alternatives import load_alternative
from unproject.tasks.data import GeometryData
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.heads import load_head
from unproject.tasks.latent_control import LatentControl
from unproject.tasks.meaning import MEANING, AddedMeaning, MeaningEncoder, encoder_layers
from unproject.tasks.refine import RefineConfig, RefinedHead
from unproject.tasks.refine_train import RefineObjective
from unproject.tasks.train import LossConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SETTINGS = RefineConfig(steps=4)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture(scope="module")
def first(tiny_prior):
    return GeometryHead.from_prior(tiny_prior, HeadConfig(processing_resolution=32))


@pytest.fixture
def head(first):
    return RefinedHead(first, SETTINGS)


def text(prior) -> torch.Tensor:
    return prior.encode_text([""])["cond"]["text"]


def seen_by_encoder(unet, x, time, words) -> list[torch.Tensor]:
    """What the encoder's layers put out in a plain pass."""
    found: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda m, a, out, k=k: found.update({k: out[0] if isinstance(out, tuple) else out}))
        for k, layer in enumerate(encoder_layers(unet))
    ]
    with torch.no_grad():
        unet(x, time, words)
    for hook in hooks:
        hook.remove()
    return [found[k] for k in range(len(hooks))]


def test_a_hint_with_copied_weights_says_what_the_encoder_itself_would(tiny_prior):
    unet, hint = tiny_prior.network, noise(2, 4, 8, 8)
    words, time = text(tiny_prior).expand(2, -1, -1), torch.tensor([401, 401])
    found, _ = LatentControl(unet, 4)(noise(2, 4, 8, 8, seed=1), time, words, hint)
    wanted = seen_by_encoder(unet, hint, time, words)
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_fresh_meaning_changes_nothing_and_no_meaning_is_the_stock_network(tiny_prior):
    unet = copy.deepcopy(tiny_prior.network)
    control = AddedMeaning(MeaningEncoder(unet, 6), unet=unet)
    words, x = text(tiny_prior), noise(1, 4, 8, 8)
    plain = tiny_prior.network(x, 7, words)[0]
    assert torch.equal(unet(x, 7, words)[0], plain)
    assert control.added(x, torch.tensor([7]), words, {MEANING: noise(1, 6, 4, 4)}, {}) == {}
    torch.testing.assert_close(unet(x, 7, words)[0], plain, rtol=0, atol=0)


def test_meaning_is_added_behind_each_layer_so_that_deeper_ones_carry_it(tiny_prior):
    """Gates of 1 on constant residuals: each layer's output is the stock layer's of the changed input, plus one."""
    unet = copy.deepcopy(tiny_prior.network)
    control = AddedMeaning(MeaningEncoder(unet, 6), unet=unet)
    words, x, time = text(tiny_prior), noise(1, 4, 8, 8), torch.tensor([7])
    shapes = [one.shape for one in seen_by_encoder(tiny_prior.network, x, time, words)]
    control.network.residuals = lambda *_: [torch.full(shape, 0.5 + k) for k, shape in enumerate(shapes)]
    control.added(x, time, words, {MEANING: x}, {})
    changed = seen_by_encoder(unet, x, time, words)
    stock = seen_by_encoder(tiny_prior.network, x, time, words)
    torch.testing.assert_close(changed[0], stock[0] + 0.5)
    block = tiny_prior.network.down_blocks[0]
    embedding = tiny_prior.network.time_embedding(tiny_prior.network.get_time_embed(x, time))
    with torch.no_grad():
        inner = block.resnets[0](stock[0] + 0.5, embedding)
    torch.testing.assert_close(changed[1], inner + 1.5, rtol=1e-4, atol=1e-5)  # its first level has no attention
    again = seen_by_encoder(unet, x, time, words)  # without the row
    torch.testing.assert_close(again[0], stock[0])


def test_residuals_of_a_picture_are_computed_once(tiny_prior):
    unet = copy.deepcopy(tiny_prior.network)
    control, calls, features = AddedMeaning(MeaningEncoder(unet, 6), unet=unet), [], noise(1, 6, 4, 4)
    inner = control.network.residuals
    control.network.residuals = lambda *a: calls.append(1) or inner(*a)
    with torch.no_grad():
        for _ in range(3):
            control.added(noise(1, 4, 8, 8), torch.tensor([7]), text(tiny_prior), {MEANING: features}, {})
        control.added(noise(1, 4, 8, 8), torch.tensor([7]), text(tiny_prior), {MEANING: features.clone()}, {})
    assert len(calls) == 2


def test_a_refiner_that_repeats_the_guess_gives_the_guess(first, monkeypatch):
    head = RefinedHead(first, RefineConfig(steps=4, kind="sample"))
    z, start = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    guess = head.guess(z, start)
    monkeypatch.setattr(head.asked, "_forward", lambda x, time, rows: guess)
    torch.testing.assert_close(head.predict(z, start), guess, rtol=1e-5, atol=1e-5)


def test_the_guess_is_the_targets_own_group(first, head):
    z = noise(1, 4, 8, 8)
    both = first.predict(z, torch.zeros(1, 8, 8, 8))
    torch.testing.assert_close(head.guess(z, noise(1, 4, 8, 8)), both[:, 4:])


def test_rows_do_not_meet_and_the_seed_of_a_row_is_its_start(head):
    z, start = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    together = head.predict(z, start)
    torch.testing.assert_close(head.predict(z[1:2], start[1:2]), together[1:2], rtol=1e-4, atol=1e-4)
    other = head.predict(z, noise(3, 4, 8, 8, seed=2))
    assert not torch.allclose(other, together, atol=1e-3)
    torch.testing.assert_close(head.predict(z, start), together)


def test_calls_are_counted_by_whoever_makes_them(head):
    before = head.nfe
    head.predict(noise(2, 4, 8, 8), noise(2, 4, 8, 8))
    assert head.nfe - before == 2 * (1 + 1 + 4)  # guess, features, four steps


def test_it_is_a_head_for_every_pipeline(head):
    pipe = ImageToNormals(head)
    picture = torch.rand(3, 24, 32, generator=generator(3))
    made = pipe(picture, seed=5)
    assert made.normals.shape == (1, 24, 32, 3)
    assert (pipe(picture, seed=5).normals == made.normals).all()
    seen: list[int] = []
    pipe(picture, seed=5, callback_on_step_end=lambda p, call, time, values: seen.append(int(time)) or values)
    assert seen == [251, 251, 251, 1]
    two = pipe(picture, seed=5, ensemble_size=2)
    assert two.uncertainty is not None and two.uncertainty.shape == (1, 24, 32, 1)


def test_fewer_steps_and_no_hold_are_settings(head):
    assert [level.index for level in head.with_settings(steps=2, held=0.0).grid().levels] == [501, 1, -1]
    assert head.with_settings(steps=2).config.steps == 2 and head.config.steps == 4
    with pytest.raises(InputError, match="steps=0"):
        RefineConfig(steps=0)


def test_a_fresh_refiner_says_what_the_prior_says_of_the_state(first):
    """Without a hint it is the prior's own x0 at the level; read as x0 itself the same output means another thing."""
    heads = {kind: RefinedHead(first, RefineConfig(steps=4, kind=kind)) for kind in ("prior", "sample")}
    z, x, level = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1), heads["prior"].grid().levels[0]
    plain = Denoiser(first.prior, first.prior.encode_text([""]))(x, level)
    said = {}
    for kind, head in heads.items():
        head.asked.controls[0].scale = 0.0
        said[kind] = Denoiser(head.asked, head.condition(z))(x, level)
    torch.testing.assert_close(said["prior"].x0, plain.x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said["sample"].x0, plain.raw, rtol=1e-4, atol=1e-4)


def test_targets_the_first_head_lacks_are_refused(tiny_prior):
    only = GeometryHead.from_prior(tiny_prior, HeadConfig(targets=("depth",)))
    with pytest.raises(InputError, match="'normals': the head predicts depth"):
        RefinedHead(only, SETTINGS)


def test_files_name_the_first_head_and_give_the_same_answers(head_folder):
    first = GeometryHead.load(head_folder)
    head = RefinedHead(first, SETTINGS, seed=3)
    with torch.no_grad():
        head.meaning.gates.fill_(0.25)
    with pytest.raises(InputError, match="base=None"):
        head.save(head_folder.parent / "refined")
    folder = head.save(head_folder.parent / "refined", head_folder.name)
    back = load_alternative(folder, "normals")
    z, start = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    torch.testing.assert_close(back.predict(z, start), head.predict(z, start), rtol=0.02, atol=0.02)  # fp16 on the disk
    with pytest.raises(InputError, match="predicts normals, not depth"):
        load_alternative(folder, "depth")


def test_another_head_to_go_on_from_is_warned_of(head_folder, tmp_path):
    root = tmp_path / "heads"
    shutil.copytree(head_folder.parent, root)
    first = GeometryHead.load(root / head_folder.name)
    folder = RefinedHead(first, SETTINGS).save(root / "refined", head_folder.name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_alternative(folder, "normals", first=root / head_folder.name)
    shutil.copytree(root / head_folder.name, root / "other")
    with pytest.warns(UserWarning, match=rf"learnt to refine {head_folder.name}, and is given .*other to go on from"):
        load_alternative(folder, "normals", first=root / "other")
    with pytest.raises(InputError, match=r"a head of the kind 'refined', not a plain one; give it as --refine --refi"):
        load_head(folder)


def test_a_head_on_another_codec_than_its_prior_is_refused(first):
    other = copy.copy(first)
    other.prior = copy.copy(first.prior)
    other.prior.vae = AutoencoderKL(latent_channels=8, block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(InputError, match="codec of 8 channels, where the prior's own has 4"):
        RefinedHead(other, RefineConfig())
    shipped = load_head("toybox", ("normals",))
    assert RefinedHead(shipped, RefineConfig(meaning=False)).first is shipped


def test_absent_weights_say_how_to_train_them(monkeypatch, tmp_path):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="unproject train normals-refine"):
        load_alternative("refiner", "normals")
    with pytest.raises(InputError, match="unproject train primedepth"):
        load_alternative("primedepth", "depth")
    with pytest.raises(InputError, match="neither a folder nor one of primedepth, primedepth-sd21 for depth"):
        load_alternative("magic", "depth")
    with pytest.raises(InputError, match="holds no head of these kinds"):
        load_alternative(tmp_path, "depth")


def test_training_meets_the_states_of_the_run_and_leaves_the_first_head_alone(first, planes):
    head = RefinedHead(first, SETTINGS)
    data = GeometryData([planes(4)])
    objective = RefineObjective(LossConfig(loss="regression"), head, data)
    assert isinstance(objective, Objective)
    batch = data.batch(np.arange(4), None)
    before = copy.deepcopy(first.unet.state_dict())
    one = objective.loss(batch, generator(0), 0)
    assert torch.equal(one.loss, objective.loss(batch, generator(0), 0).loss)
    one.loss.backward()
    for name in ("unet", "hint"):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.modules()[name].parameters()), name
    assert bool(head.meaning.gates.grad.abs().sum() > 0)
    assert all(p.grad is None for p in (*first.unet.parameters(), *first.prior.vae.parameters()))
    assert all(torch.equal(before[k], v) for k, v in first.unet.state_dict().items())
    assert set(objective.validate()) == {"normals_mean", "normals_below_30"}


def test_held_states_are_the_guess_and_low_ones_the_truth(first, planes):
    objective = RefineObjective(LossConfig(loss="regression"), RefinedHead(first, SETTINGS), None)
    clean, guess = torch.full((400, 1, 1, 1), 5.0), torch.full((400, 1, 1, 1), -5.0)
    states, level = objective.states(clean, guess, generator(1))
    low = level.index < 100
    assert 0.3 < float(low.float().mean()) < 0.7
    assert float((states[low] - 5).abs().max()) < 0.5  # index 1 has hardly any noise
    held = states[~low].flatten()
    share = float((held == -5).float().mean())
    assert 0.3 < share < 0.7 and float(held[held != -5].mean()) < 0
