"""Every block of docs/diffusers.md runs on tiny pipelines, one after the other as on the page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unproject.core.priors import from_pipeline
from unproject.core.sampling.caches import apply_cache, cache_of, remove_cache
from unproject.scripts.random_backbones import TINY
from unproject.utils.errors import InputError


def blocks(root: Path) -> list[str]:
    page = (root / "docs" / "diffusers.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def tiny(family: str) -> Any:
    pipe = TINY[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


def test_the_page_runs(root: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {"pipe": tiny("sd15"), "prompt": "a red chair", "picture": PICTURE}
    listed = blocks(root)
    assert len(listed) == 6
    for number, block in enumerate(listed):
        path = tmp_path / f"block_{number + 1}.py"
        path.write_text(block)
        told |= runpy.run_path(str(path), told)
    assert told["cache"].reused_steps > 0 and cache_of(told["pipe"]) is None
    assert told["image"].size == told["edited"].size == (32, 32)
    assert told["near_and_far"][0] < told["near_and_far"][1]
    assert told["normals"].shape == (1, 32, 32, 3)
    assert np.allclose(np.linalg.norm(told["normals"], axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize(("family", "cache"), [("sd3", "regions:0.5"), ("flux", "regions:0.5"), ("sdxl", "inherit")])
def test_the_cache_on_stock_transformers(family: str, cache: str) -> None:
    pipe = tiny(family)
    made = apply_cache(pipe, cache)
    draw = {"num_inference_steps": 9, "height": 32, "width": 32, "output_type": "latent"}
    assert np.isfinite(pipe("a dog", **draw).images.numpy()).all()
    assert made.reused_steps > 0
    remove_cache(pipe)
    with pytest.raises(InputError, match="none, deep:INTERVAL"):
        apply_cache(pipe, "deeper:3")


def test_other_pipelines_are_told() -> None:
    with pytest.raises(InputError, match="a dict is no pipeline that is known; have StableDiffusionPipeline"):
        from_pipeline({})
