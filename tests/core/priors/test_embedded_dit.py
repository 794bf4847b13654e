"""The embedded flow transformer behind the prior interface."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from unproject.core.priors import available, load_prior
from unproject.core.priors.embedded import TOYBOX_DIT, EmbeddedFlowPrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.utils.errors import InputError

WORDS = ["a", "red", "chair", "wagon", "dog"]


@pytest.fixture(scope="module")
def weights(tiny_folders, tmp_path_factory):
    """A weights folder that holds toybox-dit alone."""
    root = tmp_path_factory.mktemp("weights")
    shutil.copytree(tiny_folders["sd3"], root / "toybox-dit")
    (root / "toybox-dit" / "vocabulary.json").write_text(json.dumps(WORDS))
    return root


@pytest.fixture
def prior(weights, monkeypatch):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(weights))
    return load_prior("toybox-dit")


def noise(rows: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(3))


def test_it_loads_by_name_with_its_settings(prior):
    assert isinstance(prior, EmbeddedFlowPrior)
    assert prior.name == "toybox-dit" and prior.prediction_type == "flow_prediction"
    assert prior.recommended == TOYBOX_DIT
    assert not any(p.requires_grad for p in prior.parameters())
    make_solver(TOYBOX_DIT.solver, flow=True, kind=prior.prediction_type)
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(TOYBOX_DIT.steps, TOYBOX_DIT.spacing)
    assert len(levels) == TOYBOX_DIT.steps + 1 and levels[0].sigma == 1 and levels[-1].sigma == 0


def test_it_knows_its_words(prior):
    assert prior.vocabulary == tuple(WORDS)
    assert prior.unknown_words("A RED chair") == []
    assert prior.unknown_words("a red wagn") == [("wagn", ["wagon"])]


def test_without_a_vocabulary_it_is_a_plain_sd3(tiny_folders):
    plain = load_prior(tiny_folders["sd3"])
    assert not isinstance(plain, EmbeddedFlowPrior) and plain.recommended.steps == 28


def test_text_is_that_of_the_stock_pipeline_without_zero_tokens(prior):
    prompts, against = ["a red chair", "a dog", "a red chair"], ["", "a wagon", ""]
    condition = prior.encode_text(prompts, against)
    stock = prior.pipe.encode_prompt(prompts, None, None, negative_prompt=against, max_sequence_length=0)
    ours = [condition[branch][name] for name in ("text", "pooled") for branch in ("cond", "null")]
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert condition["cond"]["text"].shape[1] == 77 and condition.prompts == prompts
    assert torch.equal(prior.encode_text("a dog")["null"]["text"], prior.encode_text("")["cond"]["text"])


@pytest.mark.parametrize("size", [(8, 8), (4, 8), (6, 4)])
def test_sampling_equals_the_stock_pipeline_at_any_size(prior, weights, size):
    pipe = StableDiffusion3Pipeline.from_pretrained(weights / "toybox-dit", text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    x, prompts = noise(2, *size), ["a red chair", "a dog"]
    stock = pipe(
        prompts,
        latents=x,
        num_inference_steps=5,
        guidance_scale=3.0,
        height=4 * size[0],
        width=4 * size[1],
        max_sequence_length=0,
        output_type="latent",
    ).images
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(5)
    with torch.no_grad():
        ours = Sampler(DDIM()).run(Denoiser(prior, prior.encode_text(prompts), 3.0), x, levels)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


def test_a_batch_equals_its_rows(prior):
    condition, x = prior.encode_text(["a red chair", "a dog"]), noise(2)
    both = prior.predict(x, 400.0, condition["cond"])
    alone = torch.cat([prior.predict(x[i : i + 1], 400.0, condition["cond"].index([i])) for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
    assert prior.nfe == 4 and prior.tokens(x) == 16


def test_save_and_reload(prior, tmp_path):
    again = load_prior(prior.save(tmp_path / "copy"))
    assert isinstance(again, EmbeddedFlowPrior) and again.vocabulary == prior.vocabulary
    x, condition = noise(2), prior.encode_text(["a dog"] * 2)
    assert torch.equal(again.predict(x, 10.0, condition["cond"]), prior.predict(x, 10.0, condition["cond"]))


def test_missing_weights_name_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"'toybox-dit' are not in .*UNPROJECT_WEIGHTS$"):
        load_prior("toybox-dit")
    (tmp_path / "toybox").mkdir()
    with pytest.raises(InputError, match=r"'toybox-dit' are not in .*use the prior 'toybox'$"):
        load_prior("toybox-dit")
    assert "flow transformer" in available()["toybox-dit"]
