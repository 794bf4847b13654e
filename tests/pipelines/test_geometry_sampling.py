"""Depth and normals by sampling: seeds of images and members, callbacks, other devices and dtypes, tiles."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.pipelines.geometry_maps import Made, merged
from unproject.pipelines.image_to_geometry import ImageToDepth, ImageToGeometry
from unproject.tasks.codecs import DepthCodec
from unproject.tasks.ensemble import CONSENSUS
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.heads import marigold_head
from unproject.tasks.tiling import tile_boxes
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

HELPERS = runpy.run_path(str(Path(__file__).parents[1] / "tasks" / "conftest.py"))
PICTURES = torch.rand(2, 3, 64, 64, generator=generator(0))


@pytest.fixture(scope="module")
def sampler() -> ImageToDepth:
    return ImageToDepth(marigold_head(HELPERS["tiny_marigold"]("depth")))


@pytest.fixture
def regressor() -> ImageToGeometry:
    return ImageToGeometry(GeometryHead.from_prior(HELPERS["tiny_sd_prior"](), HeadConfig(processing_resolution=32)))


@pytest.mark.parametrize("options", [{}, {"ensemble_size": 3}, {"tiles": 2}, {"tiles": 2, "ensemble_size": 2}])
def test_a_list_equals_its_pictures_one_by_one(sampler: ImageToDepth, options: dict[str, Any]) -> None:
    """By consensus: the published solver answers the last bits in which batches differ with hundredths."""
    options = {**options, "alignment": CONSENSUS}
    together = sampler(PICTURES, seed=5, **options)
    given = sampler(PICTURES, generator=[generator(5), generator(6)], **options)
    np.testing.assert_array_equal(given.prediction, together.prediction)
    for i in range(2):
        alone = sampler(PICTURES[i : i + 1], seed=5 + i, **options)
        np.testing.assert_allclose(together.prediction[i], alone.prediction[0], atol=1e-4)


def test_a_fresh_seed_is_reported(sampler: ImageToDepth, regressor: ImageToGeometry) -> None:
    first, second = (sampler(PICTURES[:1]) for _ in range(2))
    assert first.seed != second.seed
    np.testing.assert_array_equal(sampler(PICTURES[:1], seed=first.seed).prediction, first.prediction)
    assert regressor(PICTURES[:1]).seed is None  # nothing is drawn


def test_generators_are_for_images_or_members(sampler: ImageToDepth) -> None:
    each = [generator(seed) for seed in (1, 2, 3, 4)]
    sampler(PICTURES, ensemble_size=2, generator=each)
    with pytest.raises(InputError, match="got 3 generators for 2 images of 2 members; give one, one per image, or"):
        sampler(PICTURES, ensemble_size=2, generator=each[:3])


def test_a_callback_sees_and_changes_latents(sampler: ImageToDepth, regressor: ImageToGeometry) -> None:
    seen: list[tuple[int, float]] = []

    def keep(owner: Any, call: int, timestep: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert owner is sampler
        seen.append((call, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])}

    made = sampler(PICTURES, 2, seed=0, batch_size=1, output_latent=True, callback_on_step_end=keep)
    assert seen == [(0, 999), (1, 499)] * 2
    assert made.latent is not None and float(made.latent.abs().max()) == 0
    calls: list[int] = []
    regressor(PICTURES, ensemble_size=2, callback_on_step_end=lambda pipe, call, time, tensors: calls.append(call))
    assert calls == [0, 0]


def test_a_pipeline_moves_with_its_head(regressor: ImageToGeometry) -> None:
    plain = regressor(PICTURES).depth.prediction
    assert regressor.to("cpu", torch.float64) is regressor
    head = regressor.head
    assert {head.unet.dtype, head.prior.dtype, head.prior.vae.dtype, head.empty_prompt().dtype} == {torch.float64}
    np.testing.assert_allclose(regressor(PICTURES).depth.prediction, plain, atol=1e-4)


def test_diffusers_name_of_the_dtype(tmp_path: Path) -> None:
    HELPERS["tiny_marigold"]("depth").save_pretrained(tmp_path / "head")
    assert ImageToDepth.from_pretrained(tmp_path / "head", torch_dtype=torch.float64).head.unet.dtype == torch.float64


def test_uncertainty_follows_the_scale_of_its_tile() -> None:
    """Tiles whose depth was divided by some factor have an uncertainty that was, too."""
    rng = generator(0)
    truth = torch.rand(2, 1, 40, 40, generator=rng)
    boxes = tile_boxes(40, 40, 24, 8)
    parts = []
    for box in boxes:
        factor = 0.5 + torch.rand(2, 1, 1, 1, generator=rng)
        tile = box.of(truth)
        parts.append(Made({"depth": tile / factor - 0.1}, {"depth": torch.full_like(tile, 0.03) / factor}, None))
    found = merged(Made({"depth": truth}, {"depth": truth}, None), parts, boxes, (40, 40), {"depth": DepthCodec()})
    torch.testing.assert_close(found.maps["depth"], truth, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.spread["depth"], torch.full_like(truth, 0.03), rtol=1e-3, atol=0)
