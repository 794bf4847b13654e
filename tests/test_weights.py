"""The shipped weights: stock diffusers reads them, they fit the budget, and they draw what they are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from unproject.core.priors import MultiViewPrior, load_prior
from unproject.geometry.cameras import Camera, to_mvdream
from unproject.pipelines.text_to_image import TextToImage
from unproject.pipelines.text_to_mesh import TextToMesh

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights"
BUDGET_MB = 60
STOCK = """
import sys, numpy as np, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
image = pipe("a red chair", num_inference_steps=10, guidance_scale=3.0, output_type="np",
             generator=torch.Generator().manual_seed(5)).images[0]
np.save(sys.argv[2], image)
"""


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage.from_pretrained("toybox", quality="native")


def test_all_weights_are_half_precision_and_fit_the_budget():
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < BUDGET_MB * 1e6
    for path in files:
        with safe_open(path, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_stock_diffusers_in_a_clean_process_draws_the_same_image(pipe, tmp_path):
    path = tmp_path / "stock.npy"
    subprocess.run([sys.executable, "-c", STOCK, str(WEIGHTS / "toybox"), str(path)], check=True, capture_output=True)
    ours = pipe("a red chair", num_inference_steps=10, guidance_scale=3.0, output_type="np", seed=5).images[0]
    np.testing.assert_allclose(ours, np.load(path), atol=1e-4)


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_colours_are_obeyed(pipe, colour, channel):
    images = pipe(f"a {colour} cube", num_inference_steps=8, num_images_per_prompt=6, seed=0, output_type="pt").images
    middle = images[:, :, 24:40, 24:40].mean((0, 2, 3))
    assert int(middle.argmax()) == channel


def test_the_vocabulary_travels_with_the_weights(pipe):
    assert pipe.prior.unknown_words("a red chair on a xylophone") == [("xylophone", [])]


def test_a_mesh_is_guided_by_the_sibling_that_sees_four_views():
    prior = TextToMesh.from_pretrained("toybox").prior
    assert isinstance(prior, MultiViewPrior)


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
