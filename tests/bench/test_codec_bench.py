"""The codec's experiment on codecs and denoisers whose losses are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unproject.bench import codec
from unproject.bench.codec import CodecBench
from unproject.bench.toy_latents import Renders
from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import NoiseSchedule
from unproject.toybox.captions import Meaning, Phrase
from unproject.toybox.maps import MAPS

MEAN, STD = 0.4, 0.3


@pytest.fixture
def prior():
    return GaussianMixturePrior(torch.full((1, 3, 8, 8), MEAN), torch.tensor([STD]), scheduler_config=SD_SCHEDULE)


def test_a_codec_that_keeps_everything_loses_nothing(prior, monkeypatch):
    monkeypatch.setattr(codec, "through", lambda _, images: images)
    rows = codec.round_trips(prior, CodecBench(groups=1))
    assert [(row["world"], row["kind"]) for row in rows] == [(w, k) for w in ("object", "room") for k in MAPS]
    assert all(row["psnr"]["mean"] > 60 and row["edges"]["mean"] == pytest.approx(1.0) for row in rows)
    normals = [row for row in rows if "normal" in row["kind"]]
    assert len(normals) == 4 and all(max(row["degrees_median"], row["degrees"]) < 0.5 for row in normals)
    assert all(row["abs_rel_median"] < 0.01 for row in rows if row["kind"] in ("depth map", "disparity map"))


def test_losses_of_a_perfect_denoiser_are_those_of_the_posterior(prior, monkeypatch):
    def renders(split, count, views):
        noise = torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(len(split)))
        return Renders(MEAN + STD * noise, [Meaning((Phrase("chair"),))] * count)

    monkeypatch.setattr(codec, "renders", renders)
    monkeypatch.setattr(codec, "encoded", lambda _, images: images)
    levels = (100, 500, 900)
    rows = codec.losses(prior, CodecBench(level_images=70, levels=levels), seed=3)
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    for row, t in zip(rows, levels, strict=True):
        alpha, sigma = (float(v) for v in schedule.at_index(float(t)).coefficients(torch.zeros(1)))
        assert row["t"] == t and row["snr"] == pytest.approx((alpha / sigma) ** 2, rel=1e-4)
        expected = 1 / (1 / STD**2 + (alpha / sigma) ** 2)  # variance of x0 given x
        for split in ("train", "val"):
            assert row[split]["mean"] == pytest.approx(expected, rel=0.1) and row[split]["n"] == 70
    assert rows[0]["train"]["mean"] != rows[0]["val"]["mean"]


def test_rows_say_means_and_medians():
    found = {"picture/psnr": np.array([30.0, 40.0]), "normal map/degrees": np.array([1.0, 2.0, 9.0])}
    row = codec._row(found)
    assert row["psnr"]["mean"] == 35.0 and row["degrees"] == 4.0 and row["degrees_median"] == 2.0
    assert math.isfinite(row["psnr"]["low"]) and "psnr_median" not in row
