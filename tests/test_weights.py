"""The shipped weights: stock diffusers reads them, they fit the budget, and they draw what they are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from unproject.bench.rendered import RenderedPlaces
from unproject.core.priors import MultiViewPrior, load_prior
from unproject.generate.view_normals import worded
from unproject.geometry.cameras import Camera, to_mvdream
from unproject.pipelines import shortcuts
from unproject.pipelines.direct25_mesh import Direct25TextToMesh
from unproject.pipelines.shortcuts import mesh_maker
from unproject.pipelines.text_to_image import TextToImage
from unproject.pipelines.text_to_mesh import TextToMesh
from unproject.tasks.sim2real import load_sensor
from unproject.tasks.sim2real_train import residuals, wasserstein
from unproject.toybox.sensor import SensorModel
from unproject.toybox.sensor_pairs import SensorPairs

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights"
BUDGET_MB = 72
LEAN_MB = 2  # of a file of adapters
STOCK = """
import sys, numpy as np, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
image = pipe("a red chair", num_inference_steps=10, guidance_scale=3.0, output_type="np",
             generator=torch.Generator().manual_seed(5)).images[0]
np.save(sys.argv[2], image)
"""
STOCK_FLOW = STOCK.replace("StableDiffusionPipeline", "StableDiffusion3Pipeline").replace(
    "(sys.argv[1])", "(sys.argv[1], text_encoder_3=None, tokenizer_3=None)"
)
CODE = {
    "toybox": STOCK,
    "toybox-dit": STOCK_FLOW.replace('"a red chair",', '"a red chair", max_sequence_length=0,'),
    "toybox-dit, padded": STOCK_FLOW,
}


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage.from_pretrained("toybox", quality="native")


@pytest.fixture(scope="module")
def flow() -> TextToImage:
    return TextToImage.from_pretrained("toybox-dit", quality="native")


def test_all_weights_are_half_precision_and_fit_the_budget():
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < BUDGET_MB * 1e6
    for path in files:
        with safe_open(path, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64", "U8"}, path  # packed weights are bytes


def test_heads_of_adapters_are_small():
    lean = [*WEIGHTS.glob("*/adapter.safetensors"), *WEIGHTS.glob("*/refiner.safetensors"), *WEIGHTS.glob("*/stage?.*")]
    assert lean
    assert all(path.stat().st_size < LEAN_MB * 1e6 for path in lean)


def test_the_shipped_sensor_measures_more_like_the_toyboxs_than_clean_depth_does():
    pairs = SensorPairs(RenderedPlaces("val", 1, 32, maps=True), SensorModel(window_px=0.7))
    batch = pairs.batch(np.arange(4), None)
    clean, real = (torch.from_numpy(batch[name])[:, None] for name in ("clean", "measured"))
    sensor = load_sensor("toybox")
    made = sensor(batch["clean"], seed=1)
    drawn = torch.from_numpy(made.depth_m)[:, None]
    told = [residuals(sensor.codec, one, clean) for one in (real, drawn, clean)]
    assert wasserstein(told[0], told[1]) < 0.7 * wasserstein(told[0], told[2])
    assert 0 < float((~made.valid).mean()) < 0.3  # holes
    alone = torch.from_numpy(sensor(batch["clean"][1:2], seed=2).depth_m)[0]
    assert float(((alone - drawn[1, 0]).abs() < 0.01).float().mean()) > 0.99  # of the same seed, whatever is beside it


def stock_image(code: str, folder: str, path: Path) -> np.ndarray:
    subprocess.run([sys.executable, "-c", code, str(WEIGHTS / folder), str(path)], check=True, capture_output=True)
    return np.load(path)


@pytest.mark.parametrize("name", ["toybox", "toybox-dit"])
def test_stock_diffusers_in_a_clean_process_draws_the_same_image(pipe, flow, tmp_path, name):
    draw, spacing = (pipe, None) if name == "toybox" else (flow, "linspace")
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0, "spacing": spacing, "output_type": "np"}
    ours = draw("a red chair", seed=5, **settings).images[0]
    np.testing.assert_allclose(ours, stock_image(CODE[name], name, tmp_path / "stock.npy"), atol=1e-4)


def test_the_zero_tokens_of_the_stock_pipeline_leave_the_picture_much_the_same(flow, tmp_path):
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0, "spacing": "linspace", "output_type": "np"}
    ours = flow("a red chair", seed=5, **settings).images[0]
    padded = stock_image(CODE["toybox-dit, padded"], "toybox-dit", tmp_path / "stock.npy")
    assert np.abs(ours - padded).mean() < 0.03


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
@pytest.mark.parametrize("name", ["toybox", "toybox-dit"])
def test_colours_are_obeyed(pipe, flow, name, colour, channel):
    draw = {"num_inference_steps": 8, "num_images_per_prompt": 6, "seed": 0, "output_type": "pt"}
    images = (pipe if name == "toybox" else flow)(f"a {colour} cube", **draw).images
    middle = images[:, :, 24:40, 24:40].mean((0, 2, 3))
    assert int(middle.argmax()) == channel


@pytest.mark.parametrize("size", [32, 96])
def test_the_transformer_draws_other_sizes(flow, size):
    draw = {"num_inference_steps": 8, "num_images_per_prompt": 4, "seed": 0, "output_type": "pt"}
    images = flow("a red cube", height=size, width=size, **draw).images
    assert images.shape == (4, 3, size, size)
    middle = images[:, :, size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8].mean((0, 2, 3))
    assert int(middle.argmax()) == 0


def test_the_vocabulary_travels_with_the_weights(pipe):
    assert pipe.prior.unknown_words("a red chair on a xylophone") == [("xylophone", [])]


def test_a_mesh_is_guided_by_the_sibling_that_sees_four_views():
    prior = TextToMesh.from_pretrained("toybox").prior
    assert isinstance(prior, MultiViewPrior)


def test_meshes_are_drawn_with_the_embedded_prior_and_optimised_with_others(monkeypatch):
    pipe = mesh_maker("toybox")
    assert isinstance(pipe, Direct25TextToMesh) and pipe.texture is not None
    assert pipe.student is not None and pipe.student.name.endswith("toybox-lcm")
    assert pipe.painter is not None and pipe.painter.name.startswith("toybox-mv")
    monkeypatch.setattr(shortcuts, "views_come_with", lambda name, kind: False)
    assert isinstance(mesh_maker("toybox"), TextToMesh)


def test_in_bfloat16_the_adapter_still_knows_its_prior():
    pipe = Direct25TextToMesh.from_pretrained("toybox", dtype=torch.bfloat16)
    assert pipe.prior.dtype == torch.bfloat16 and pipe.texture is not None
    assert pipe.student is not None
    assert {value.dtype for one in (pipe.prior, pipe.student) for value in one.parameters()} == {torch.bfloat16}


def test_maps_are_asked_for_at_the_end_of_a_prompt_that_is_too_long():
    prior = load_prior("toybox-mv")
    long = "a red chair with " + " ".join(["a striped wide wooden seat and"] * 20)
    told = worded(prior, long, "normal map")
    assert prior.truncated(f"{long}, normal map") and not prior.truncated(told)
    assert told.startswith("a red chair with a striped") and told.endswith(", normal map")
    assert prior.truncated(told.replace(", normal", " and more of it and more of it, normal"))
    assert worded(prior, "a red chair", "normal map") == "a red chair, normal map"
    assert worded(prior, "a red chair", "") == "a red chair"


def test_four_views_are_one_object():
    """Views of one group share their background, which the prompt leaves open."""
    prior = load_prior("toybox-mv")
    cameras = to_mvdream(Camera.orbit([0.0, 90.0, 180.0, 270.0], 20.0, 3.0, 40.0, 64, 64).c2w)
    images = TextToImage(prior)(
        "a cube", cameras=cameras, num_images_per_prompt=4, num_inference_steps=10, seed=3, output_type="pt"
    ).images
    means = images[:, :, :6, :6].mean((2, 3)).reshape(4, 4, 3)  # (object, view, channel)
    within = means.std(1).mean()
    between = means.mean(1).std(0).mean()
    assert within < 0.25 * between
    assert torch.isfinite(images).all()
