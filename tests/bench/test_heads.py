"""The table of heads: equal budgets, what is kept, what is remembered, damages and claims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.bench import head_lab, heads
from unproject.bench.head_claims import claims
from unproject.bench.head_lab import COLOURS, PRIOR, QUICK, RANDOM, SOURCES, Lab, recorded
from unproject.bench.head_trials import CAMERA, MEASURES, METRES, REFINED, cameras, depth, fields, matrices
from unproject.bench.head_trials_drawn import (
    INVERSE,
    MATCH,
    MATERIALS,
    OTHER_MEASURES,
    SENSOR,
    halves,
    shuffled,
    stacked,
)
from unproject.bench.match_pairs import Pair
from unproject.bench.pixel_head import PixelObjective
from unproject.bench.preimage_depth import GRAIN, HAZE, TINT, fog, grain, tinted
from unproject.bench.remembered import Memory, Remembered, once_encoded
from unproject.bench.runner import Context
from unproject.core.priors import load_prior
from unproject.geometry.camera_image import pixel_tangents
from unproject.pipelines.picture_inputs import DEFAULT_FOV_DEG
from unproject.tasks.codecs import NormalCodec
from unproject.toybox.pbr_set import PbrSet
from unproject.utils.errors import UnprojectError
from unproject.utils.seeds import generator

KEYS = {
    REFINED: {"variance": 2.0, "variance_of_sampler": 8.0, "calls_of_ensemble": 600.0, "calls": 12.0},
    CAMERA: {"constant": 10.0},
    METRES: {"predicted_camera": 0.5, "no_camera": 0.4},
    MATCH: {"second_encoder": 0.2, "fused": 0.3},
    MATERIALS: {"seams": 1.2},
    INVERSE: {"albedo_psnr": 22.0, "relit_psnr": 20.5},
}


def synthetic() -> list[dict[str, Any]]:
    """Errors of .25 with the prior, .5 with random weights and 1 from colours, of two seeds that differ by .1."""
    found = []
    for head in MEASURES | OTHER_MEASURES:
        for source, error in zip(SOURCES, (0.25, 0.5, 1.0), strict=True):
            for seed in (0, 1):
                record = {"head": head, "source": source, "seed": seed, "error": error + 0.1 * (seed - 0.5)}
                more = KEYS.get(head, {}) if source == PRIOR else {}
                if (head, source) == (INVERSE, COLOURS):
                    more = {"albedo_psnr": 20.0, "relit_psnr": 20.0}
                learnt = {} if head == MATCH else {"updates": 7, "batch": 3}
                found.append({**record, "calls": 1.0, "picture_s": 0.1, "fog": 2.0, **learnt, **more})
    return found


def test_what_was_said_of_a_picture_is_said_again_only_while_something_learns() -> None:
    asked: list[int] = []

    def call(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(rows))
        return 2 * rows, rows.sum((1, 2))

    memory = Memory()
    known, rows = Remembered(call, memory), torch.randn(3, 2, 5, generator=generator(0))
    memory.on = True
    for chosen, new in (([0, 1, 0], 2), ([1, 2, 2], 1), ([2, 0, 1], 0)):
        asked.clear()
        twice, sums = known(rows[chosen].requires_grad_())
        torch.testing.assert_close(twice, 2 * rows[chosen], rtol=0, atol=0)
        torch.testing.assert_close(sums, rows[chosen].sum((1, 2)), rtol=0, atol=0)
        assert sum(asked) == new and not twice.requires_grad
    assert known(rows.reshape(3, 5, 2))[0].shape == (3, 5, 2)  # the same numbers of another shape
    memory.on = False
    asked.clear()
    known(rows)
    assert asked == [3]


def test_a_prior_that_encodes_once_still_gives_gradients_and_draws() -> None:
    class Codec:
        calls = 0

        def encode(self, images: torch.Tensor, sample: bool = False, generator: Any = None) -> torch.Tensor:
            Codec.calls += 1
            return images.square() + (torch.randn(images.shape, generator=generator) if sample else 0)

    images = torch.rand(2, 3, 4, 6, generator=generator(1))
    prior = once_encoded(Codec(), Memory(True))  # type: ignore[arg-type]
    for _ in range(2):
        torch.testing.assert_close(prior.encode(images), images.square(), rtol=0, atol=0)
    assert Codec.calls == 1
    moving = images.clone().requires_grad_()
    prior.encode(moving).sum().backward()
    torch.testing.assert_close(moving.grad, 2 * images)
    assert not torch.equal(prior.encode(images, True, generator(0)), prior.encode(images, True, generator(1)))


def test_damage_in_closed_form() -> None:
    images = np.full((2, 40, 50, 3), 120, np.uint8)
    even = np.full(images.shape[:3], 3.0)
    np.testing.assert_allclose(fog(images, even), np.rint((1 - HAZE) * 120 + HAZE * 200), atol=0.5)
    np.testing.assert_allclose(tinted(images, even)[0, 0, 0], np.rint(120 * np.array(TINT)), atol=0.5)
    noisy = grain(images, even).astype(float) - 120
    assert noisy.std() == pytest.approx(255 * GRAIN, rel=0.03) and abs(noisy.mean()) < 0.5


def test_an_error_is_compared_with_itself_under_damage_and_calls_are_counted() -> None:
    images, asked = np.full((3, 4, 5, 3), 100, np.uint8), 0

    def error(shown: np.ndarray) -> float:
        nonlocal asked
        asked += 2 * len(shown)
        return float(shown[..., 0].astype(float).mean())

    found = recorded(error, lambda: asked, images, np.ones((3, 4, 5)))
    assert found["error"] == 100 and found["calls"] == 2
    assert found["fog"] == pytest.approx(1.6) and found["colour"] == pytest.approx(1.25)  # 160 and 125 of 100


def test_pictures_of_pairs_come_back_from_a_stack() -> None:
    rng = np.random.default_rng(0)
    points = (np.zeros((1, 2)), np.zeros((1, 2)))
    pictures = [np.round(rng.random((2, 6, 7, 3)) * 255).astype(np.float32) / 255 for _ in range(3)]
    pairs = [Pair(str(i), (one[0], one[1]), points, 3.0) for i, one in enumerate(pictures)]
    first, second = halves(stacked(pairs))
    np.testing.assert_array_equal(first, np.stack([one[0] for one in pictures]))
    np.testing.assert_array_equal(second, np.stack([one[1] for one in pictures]))


def test_cameras_of_rays_and_the_usual_one_where_none_fits() -> None:
    K = torch.tensor([[[30.0, 0, 17], [0, 26, 11], [0, 0, 1]]])
    rays = pixel_tangents(K.double(), 32, 24)
    found = matrices(torch.cat([rays, torch.full_like(rays, torch.nan)]).float())
    torch.testing.assert_close(found[:1], K, rtol=1e-4, atol=1e-3)
    assert fields(found, 24) == pytest.approx([np.rad2deg(2 * np.arctan(12 / 26)), DEFAULT_FOV_DEG], rel=1e-4)


def test_colours_alone_keep_the_colours_of_a_surface_of_the_same_words() -> None:
    data = PbrSet("train", 5, 8)
    batch = data.batch(np.arange(5), None)
    made = shuffled(data, [batch["captions"][3]] * 2, 0)
    same = [i for i, caption in enumerate(batch["captions"]) if caption == batch["captions"][3]]
    for one in made:
        pixels = np.sort(one.permute(1, 2, 0).numpy().reshape(-1, 3), axis=0)
        assert any(np.allclose(pixels, np.sort(batch["albedo"][i].reshape(-1, 3), axis=0), atol=1e-6) for i in same)
    assert not torch.equal(made[0], made[1])


def test_a_network_of_pixels_learns_the_codecs_own_loss_and_takes_pictures_alone() -> None:
    objective, other = (PixelObjective(NormalCodec(), seed, (8, 16)) for seed in (0, 1))
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    batch = {"images": rng.integers(0, 256, (3, 16, 16, 3), np.uint8), "normals": normals}
    images = head_lab.tensor(batch["images"])
    target, valid = NormalCodec().truth(torch.from_numpy(normals))
    parts = NormalCodec().loss(objective.pictures(images), target, valid)
    wanted = sum(NormalCodec.weights[name] * value for name, value in parts.items())
    torch.testing.assert_close(objective.loss(batch, generator(0), 0).loss, wanted)
    assert not torch.equal(objective.pictures(images), other.pictures(images))
    torch.testing.assert_close(objective.predict(images)[1:2], objective.predict(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Two rooms of 32 px and the embedded prior."""
    return Lab(replace(QUICK, groups=(1, 1)), load_prior("toybox"), tmp_path_factory.mktemp("heads"))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("trial", [depth, cameras])
def test_every_source_has_the_same_budget(
    lab: Lab, source: str, trial: heads.Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[tuple[Any, int]] = []

    @contextmanager
    def untrained(objective: Any, data: Any, settings: Any) -> Iterator[None]:
        assert lab.memory.on
        budgets.append((settings, id(data)))
        yield

    monkeypatch.setattr(head_lab, "trained", untrained)
    lab.sheets = source == COLOURS
    made = trial(lab, source, 4)
    assert set(budgets) == {(lab.settings(4), id(lab.train))} and not lab.memory.on
    for record in made.values():
        assert (record["updates"], record["batch"], record["calls"]) == (QUICK.updates, QUICK.batch, 1)
        assert np.isfinite([record[name] for name in ("error", "fog", "noise", "colour")]).all()
    assert lab.settings(4) == replace(lab.settings(5), seed=4)
    assert (lab.place / "depth, RGB only.png").exists() == (lab.sheets or trial is cameras)


def test_kept_trials_are_not_made_again(tmp_path: Path) -> None:
    made: list[tuple[str, int]] = []

    def trial(lab: Lab, source: str, seed: int) -> dict[str, Any]:
        made.append((source, seed))
        return {"depth": {"error": 1.0 + seed}}

    lab = Lab(replace(QUICK, seeds=(0,)), None, tmp_path)  # type: ignore[arg-type]
    first = heads.tried(lab, {"depth": trial})
    assert [source for source, _ in made] == list(SOURCES) and first[0] == {
        "head": "depth", "source": PRIOR, "seed": 0, "error": 1.0,
    }  # fmt: skip
    made.clear()
    again = heads.tried(replace(lab, config=replace(QUICK, seeds=(0, 1))), {"depth": trial})
    assert again[:3] == first and made == [(source, 1) for source in SOURCES]


def test_trials_of_other_sizes_or_other_code_and_weights_are_kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "fingerprints", lambda name, prior: {"weights": {prior: "digest"}})
    context = Context("heads")
    places = [
        heads.place_of(context, QUICK),
        heads.place_of(context, replace(QUICK, updates=3)),
        heads.place_of(replace(context, prior="another"), QUICK),
    ]
    assert len(set(places)) == 3 and heads.place_of(context, QUICK) == places[0]


def test_a_row_for_each_head_and_source_over_the_seeds() -> None:
    rows = heads.table(synthetic())
    assert [(row["head"], row["source"]) for row in rows[:3]] == [("depth", source) for source in SOURCES]
    assert len(rows) == 3 * len(MEASURES | OTHER_MEASURES) and all(row["measure"] for row in rows)
    assert rows[1]["error"] == {"mean": 0.5, "std": 0.05, "median": 0.5, "n": 2} and rows[1]["fog"]["mean"] == 2
    assert "noise" not in rows[0] and (rows[0]["updates"], rows[0]["batch"]) == (7, 3)
    odd = synthetic()
    odd[3]["updates"] = 8
    with pytest.raises(UnprojectError, match="different budgets"):
        heads.table(odd)


def test_claims_by_hand() -> None:
    found = claims(synthetic())
    told = {(row["head"], row["claim"]): (row["measured"]["value"], row["holds"]) for row in found}
    assert told["depth", f"error over that of {RANDOM}"] == (0.5, True)
    assert told["depth --head primedepth", f"error over that of {COLOURS}"] == (0.25, True)
    assert told[REFINED, "variance over that of a sampler"] == (0.25, True)
    assert told[REFINED, "times fewer calls than the sampler's ensemble"] == (50, True)
    assert told[CAMERA, "error over that of the usual field of view"] == (0.025, True)
    assert told[METRES, "error with the true camera over that with the predicted one"] == (0.5, True)
    assert told[METRES, "error with the predicted camera over that without one"] == (1.25, False)
    assert told[MATCH, "points of PCK above colours"] == (75, True)
    assert told[MATCH, "error of the fusion over that of its better part"] == (1.5, False)
    assert told[MATERIALS, "differences across the edges over those inside"] == (1.2, False)
    assert told[INVERSE, "dB of albedo above no prior"] == (2, True)
    assert told[INVERSE, "dB of other light above no prior"] == (0.5, False)
    assert told[SENSOR, "distance over that of hand-made noise, first stage"] == (0.25, True)
    assert {row["head"] for row in found} == set(MEASURES | OTHER_MEASURES)
