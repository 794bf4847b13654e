"""The training command: recipes, overrides, messages, and a whole tiny run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from unproject.cli import main as cli_main
from unproject.core.training.checkpoints import read_tensors
from unproject.core.training.objectives.base import fixed_init
from unproject.core.training.objectives.diffusion import DiffusionConfig, build_text_encoder, token_ids
from unproject.core.training.objectives.flow import FlowConfig, FlowObjective
from unproject.core.training.objectives.flow_networks import FlowNetworks
from unproject.core.training.objectives.tokenizer import build_tokenizer, save_tokenizer
from unproject.core.training.objectives.vae import VAEConfig, build_vae
from unproject.scripts import (
    beginnings,
    encode_latents,
    recipes,
    train,
)
from unproject.scripts.fuzz.readers import RECIPES
from unproject.scripts.turbo_recipe import PromptSource
from unproject.toybox.captions import vocabulary
from unproject.toybox.programs import ObjectProgram
from unproject.utils.configs import CONFIGS, load_config, read_yaml
from unproject.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


class Pictures:
    """Stands for a rendered set."""

    size = 16

    def __init__(self, folders, columns=None) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def column(self, name, indices):
        return self.pixels[indices] if name == "rgb" else np.eye(4)[None]

    def program(self, index):
        return ObjectProgram("chair", "red")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "RenderedSet", Pictures)
    monkeypatch.setattr(encode_latents, "RenderedSet", Pictures)
    path = tmp_path / "tiny.yaml"
    model = "{widths: [8, 8], norm_groups: 4, validation_images: 4, image_size: 16}"
    path.write_text(f"objective: vae\ntrain: [a]\nval: [b]\nmodel: {model}\ntrainer: {{steps: 2, batch: 2}}\n")
    return str(path)


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_recipes_are_valid(path):
    assert RECIPES.keys() == recipes.RECIPES.keys()
    values = read_yaml(path)
    load_config(RECIPES[values.pop("objective")], values)


def test_a_prior_trains_on_with_the_tokens_it_was_trained_with(tmp_path):
    words, folder = list(vocabulary()), tmp_path / "tokenizer"
    save_tokenizer(build_tokenizer([*words, "further"]), folder)
    given = beginnings.tokenizer_of(str(folder))
    assert given.get_vocab() == CLIPTokenizer.from_pretrained(folder).get_vocab()
    assert all(len(ids) == 1 for ids in beginnings.tokenizer_of("")(words, add_special_tokens=False).input_ids)
    with pytest.raises(InputError, match="holds no tokenizer"):
        beginnings.tokenizer_of(str(tmp_path))
    save_tokenizer(build_tokenizer([word for word in words if word != "cat"]), tmp_path)
    with pytest.raises(InputError, match="does not know cat as single words"):
        beginnings.tokenizer_of(str(tmp_path))


def test_prompts_come_once_from_a_file_or_the_toybox(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red chair\n\n a blue car \na red chair\n")
    assert PromptSource(str(path)).read() == ["a red chair", "a blue car"]
    found = PromptSource(count=30).read()
    assert len(found) == len(set(found)) <= 30 and all(text.startswith("a") for text in found)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        PromptSource(str(path)).read()
    with pytest.raises(InputError, match="does not exist"):
        PromptSource(str(tmp_path / "none.txt")).read()


def test_overrides_are_dotted_and_typed(tiny):
    _, values = train.read_recipe(tiny, ["trainer.steps=7", "val=[c, d]", "model.kl=0.5"])
    assert (
        values["trainer"] == {"steps": 7, "batch": 2} and values["val"] == ["c", "d"] and values["model"]["kl"] == 0.5
    )


def test_mistakes_are_named(tiny, tmp_path, capsys):
    (tmp_path / "odd.yaml").write_text("objective: magic\n")
    with pytest.raises(InputError, match="vae, diffusion, flow, multiview"):
        train.read_recipe(str(tmp_path / "odd.yaml"), [])
    with pytest.raises(InputError, match="key=value"):
        train.read_recipe(tiny, ["trainer.steps"])
    assert train.main([tiny, "--set", "trainer.stpes=3"]) == 2
    assert "trainer.stpes" in capsys.readouterr().err
    assert train.main([tiny, "--export", "--out", str(tmp_path / "none")]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_a_run_trains_exports_resumes_and_feeds_the_encoder(tiny, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [tiny, "--out", str(out), "--device", "cpu"]
    assert train.main([*arguments, "--set", "trainer.max_minutes=0"]) == 0
    assert "--resume" in capsys.readouterr().err and not (out / "export").exists()
    assert train.main([*arguments, "--resume"]) == 0
    told = capsys.readouterr()
    assert "psnr" in told.err and str(out / "export") in told.err and not told.out
    assert AutoencoderKL.from_pretrained(out / "export").config.latent_channels == 4
    assert train.main(arguments) == 2
    assert "already holds ckpt-2" in capsys.readouterr().err
    assert train.main([*arguments, "--export"]) == 0
    latents = tmp_path / "latents"
    assert encode_latents.main(["--vae", str(out / "export"), "--data", "a", "--out", str(latents)]) == 0
    assert json.loads((latents / "latents.json").read_text())["count"] == 6
    assert encode_latents.main(["--vae", str(tmp_path), "--data", "a", "--out", str(latents)]) == 2
    assert {p.name for p in Path(out).iterdir()} >= {"metrics.jsonl", "recipe.json", "LATEST", "ckpt-2", "export"}


def test_a_run_can_begin_with_the_averaged_weights_of_another(tiny, tmp_path):
    out = tmp_path / "run"
    assert train.main([tiny, "--out", str(out), "--device", "cpu"]) == 0
    make, values = train.read_recipe(tiny, [])
    modules = make(values).objective.modules
    beginnings.begin_with_run(modules, str(out))
    averaged = read_tensors(out / "ckpt-2", "ema")
    named = {f"{name}.{key}": p for name, m in modules.items() for key, p in m.named_parameters() if p.requires_grad}
    assert named.keys() == averaged.keys() and all(torch.equal(named[key], averaged[key]) for key in named)
    with pytest.raises(InputError, match="holds no checkpoint; name the folder of a run"):
        beginnings.begin_with_run(modules, str(tmp_path / "none"))
    with pytest.raises(InputError, match="does not fit this model"):
        beginnings.begin_with_run({"other": modules["vae"]}, str(out))


def test_a_flow_can_begin_with_a_pipeline_whose_words_have_other_numbers(tmp_path):
    words = build_tokenizer(["a", "cat", "car", "red"])
    ids = words.get_vocab()
    ids |= {"cat</w>": ids["car</w>"], "car</w>": ids["cat</w>"]}
    merges = [tuple(pair) for pair in json.loads(words.backend_tokenizer.to_str())["model"]["merges"]]
    exchanged = CLIPTokenizer(vocab=ids, merges=merges, model_max_length=words.model_max_length)
    networks = FlowNetworks(16, 2, 2, latent_size=4, largest_latent=12, text_width=8, text_layers=(2, 1), text_heads=2)
    vae = build_vae(VAEConfig(widths=(8, 8), norm_groups=4, image_size=8), seed=0)
    given = FlowObjective(FlowConfig(networks), exchanged, vae, seed=1)
    folder = str(given.save_pipeline(tmp_path / "given"))  # halves the weights in place
    mine = FlowObjective(FlowConfig(networks), words, vae, seed=2)
    beginnings.begin_with_pipeline(mine, folder)
    prompts = ["a red cat", "a car"]
    assert words(prompts).input_ids != exchanged(prompts).input_ids
    for here, there in zip(mine.embed(prompts), given.embed(prompts), strict=True):
        torch.testing.assert_close(here, there.float(), rtol=2e-3, atol=2e-3)
    assert (mine.embed(["a cat"])[1] - mine.embed(["a car"])[1]).abs().max() > 1e-2
    fewer = FlowObjective(FlowConfig(networks), build_tokenizer(["a", "cat"]), vae)
    with pytest.raises(InputError, match="set tokenizer="):
        beginnings.begin_with_pipeline(fewer, folder)
    with pytest.raises(InputError, match="is a StableDiffusionPipeline; a flow begins with"):
        beginnings.begin_with_pipeline(mine, str(ROOT / "weights" / "toybox"))


def test_a_text_encoder_goes_on_with_the_words_it_knew():
    config = DiffusionConfig(text_width=8, text_layers=1, text_heads=2)
    old, new = build_tokenizer(["a", "red", "cat", "car"], 8), build_tokenizer(["a", "red", "cat", "zebra", "car"], 12)
    assert old.get_vocab()["red</w>"] != new.get_vocab()["red</w>"]
    with fixed_init(0):
        given, mine = build_text_encoder(config, old), build_text_encoder(config, new)
    last = mine.state_dict()["embeddings.position_embedding.weight"][8:].clone()
    beginnings.begin_with_words(mine, new, given, old, "there")
    for text in ("a red cat", "a car red"):
        known, length = token_ids(old, [text]), len(text.split()) + 1
        theirs = given(known).last_hidden_state[:, :length]
        torch.testing.assert_close(mine(token_ids(new, [text])).last_hidden_state[:, :length], theirs)
    pieces = given.get_input_embeddings().weight[old("zebra", add_special_tokens=False).input_ids]
    assert len(pieces) > 1
    torch.testing.assert_close(mine.get_input_embeddings().weight[new.get_vocab()["zebra</w>"]], pieces.mean(0))
    assert torch.equal(mine.state_dict()["embeddings.position_embedding.weight"][8:], last)
    with pytest.raises(InputError, match="start_from=there holds a network of another shape"):
        beginnings.begin_with_words(build_text_encoder(replace(config, text_layers=2), new), new, given, old, "there")


@pytest.mark.parametrize("command", ["script", "unproject"])
def test_a_diverged_run_fails_and_exports_nothing(tiny, tmp_path, capsys, command):
    """A rate at which one update throws the weights out of the range of float32: the next has no finite loss."""
    out = tmp_path / "run"
    call = train.main if command == "script" else lambda words: cli_main(["train", *words])
    device = ["--device", "cpu"]
    assert call([tiny, "--out", str(out), *device, "--set", "trainer.lr=1e30"]) == 1
    assert "diverged at step 2: " in capsys.readouterr().err and (out / "ckpt-2").is_dir()
    assert call([tiny, "--out", str(out), *device, "--export"]) == 1
    assert "diverged at step 2: " in capsys.readouterr().err and not (out / "export").exists()
