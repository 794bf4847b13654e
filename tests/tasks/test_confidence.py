"""Confidence that holds: bounds cover, probabilities are frequencies, on scenes that were not fitted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from unproject.pipelines.calibrated import calibrate_head
from unproject.pipelines.geometry_maps import Made
from unproject.pipelines.image_to_geometry import ImageToDepth
from unproject.pipelines.sureness import add_confidence
from unproject.scripts import head_confidence
from unproject.tasks.confidence import ErrorModel, coverage, fit_error_model, pixel_features
from unproject.tasks.data import GeometryData
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.metrics import spearman
from unproject.tasks.outputs import GeometryOutput, TaskOutput
from unproject.utils.errors import InputError
from unproject.utils.files import read_json


def scenes(count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Errors whose size grows with the first feature, by a factor of each scene's own; the second says nothing."""
    rng = np.random.default_rng(seed)
    features = [rng.standard_normal((300, 2)) for _ in range(count)]
    errors = [
        np.abs(rng.standard_normal(300)) * np.exp(1.3 * f[:, 0] - 2 + 0.2 * rng.standard_normal()) for f in features
    ]
    return features, errors


def test_bounds_cover_as_often_as_they_say() -> None:
    model = fit_error_model(*scenes(80, 0), "relative", 0.1)
    features, errors = scenes(80, 1)
    for level in (0.5, 0.8, 0.9):
        assert coverage(model, features, errors, level) == pytest.approx(level, abs=0.04)
    assert model.weights[0] == pytest.approx(1.3, abs=0.1) and abs(model.weights[1]) < 0.05
    together = np.concatenate(features), np.concatenate(errors)
    assert spearman(torch.from_numpy(model.sigma(together[0])), torch.from_numpy(together[1])) > 0.6
    with pytest.raises(InputError, match="level=1"):
        model.bound(features[0], 1.0)


def test_probabilities_are_frequencies() -> None:
    model = fit_error_model(*scenes(80, 0), "relative", 0.1)
    features, errors = (np.concatenate(part) for part in scenes(80, 2))
    sure, right = model.probability(features), errors <= 0.1
    for low in (0.05, 0.25, 0.45, 0.65, 0.8):
        among = (sure >= low) & (sure < low + 0.15)
        assert among.sum() > 300 and right[among].mean() == pytest.approx(sure[among].mean(), abs=0.05)


def test_scenes_count_alike_whatever_their_size() -> None:
    features, errors = scenes(40, 3)
    many = [np.repeat(features[-1], 50, 0), *features[:-1]], [np.repeat(1e3 * errors[-1], 50), *errors[:-1]]
    model = fit_error_model([*many[0][1:], many[0][0]], [*many[1][1:], many[1][0]], "relative", 0.1)
    assert 0.75 < coverage(model, features[:-1], errors[:-1], 0.8) < 0.93  # by pixels the wild scene would be 70 %
    with pytest.raises(InputError, match="3 scenes"):
        fit_error_model(features[:3], errors[:3], "relative", 0.1)
    with pytest.raises(InputError, match="do not fall"):
        ErrorModel("deg", 1.0, (1.0,), tuple(np.linspace(2, 1, 99)))


def test_sets_one_after_the_other_are_fitted_and_calibrated_alike() -> None:
    """Kinds of scenes with errors of other sizes that no feature tells: bounds hold for both together."""

    def mixed(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        (easy, low), (hard, high) = scenes(40, seed), scenes(40, seed + 1)
        return [*easy, *hard], [*low, *(30 * e for e in high)]

    model = fit_error_model(*mixed(10), "relative", 0.1)
    for level in (0.5, 0.8):
        assert coverage(model, *mixed(20), level) == pytest.approx(level, abs=0.04)


def test_what_tells_scenes_apart_does_not_order_the_pixels_of_one() -> None:
    """A feature that goes with the scene's difficulty and is noise inside: the order stays that of the spread."""
    rng, features, errors = np.random.default_rng(5), [], []
    for _ in range(40):
        hard, spread = rng.standard_normal(), rng.standard_normal(300)
        features.append(np.stack([spread, hard + 0.3 * rng.standard_normal(300)], 1))
        errors.append(np.exp(0.7 * spread + 2 * hard + 0.5 * rng.standard_normal(300)))
    model = fit_error_model(features, errors, "deg", 1.0)

    def order(scores: list[np.ndarray]) -> float:
        pairs = zip(scores, errors, strict=True)
        return float(np.mean([spearman(torch.from_numpy(s), torch.from_numpy(e)) for s, e in pairs]))

    assert order([model.sigma(f) for f in features]) > order([f[:, 0] for f in features]) - 0.01
    alone = [f[:1] for f in features], [e[:1] for e in errors]  # of one row each, as cameras: scenes are all there is
    assert fit_error_model(*alone, "deg", 1.0).weights[1] == pytest.approx(1.8, abs=0.4)


def test_features_see_spread_and_edges() -> None:
    maps, images = torch.zeros(1, 1, 20, 24), torch.full((1, 3, 20, 24), 0.5)
    maps[..., 12:] = 1
    spread = torch.full_like(maps, 0.01)
    spread[..., 5, 5] = 0.5
    features = pixel_features(maps, spread, images)
    assert features.shape == (1, 20, 24, 8) and np.isfinite(features).all()
    assert features[0, 5, 5, 0] > features[0, 5, 6, 0]
    assert features[0, 3, 11, 1] > features[0, 3, 3, 1] and features[0, 3, 9, 2] > features[0, 3, 3, 2]
    assert features[0, 3, 9, 1] == features[0, 3, 3, 1]


def test_a_calibrated_head_is_sure_in_numbers(tiny_prior, planes, tmp_path) -> None:
    """From data to files: models are fitted, saved, read, and come with ensembles."""
    config = HeadConfig(targets=("depth", "normals"), processing_resolution=32)
    head = GeometryHead.from_prior(tiny_prior, config)
    data = GeometryData([planes(6)])
    calibrate_head(head, data, 6, 2)
    assert set(head.confidence) == {"depth", "normals"} and head.confidence["depth"].unit == "relative"
    tiny_prior.save(tmp_path / "tiny")
    again = GeometryHead.load(head.save(tmp_path / "tiny-geometry", "tiny"))
    assert again.confidence == head.confidence
    picture = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    made = ImageToDepth(again)(picture, ensemble_size=3)
    assert made.confidence.shape == (1, 40, 48, 1) and made.tolerance == 0.1
    assert 0.01 <= made.confidence.min() <= made.confidence.max() <= 0.99
    assert ImageToDepth(again)(picture).confidence is None  # of one member there is no spread
    made.save(tmp_path / "photo")
    stored = np.load(tmp_path / "photo.npz")
    np.testing.assert_array_equal(stored["confidence"], made.confidence[0, ..., 0])
    assert float(stored["tolerance"]) == 0.1


def test_new_error_models_leave_the_other_facts_of_a_head(tiny_prior, planes, tmp_path, monkeypatch) -> None:
    """In another folder and in the head's own: head.json differs by the confidence and where the base was found."""
    head = GeometryHead.from_prior(tiny_prior, HeadConfig(processing_resolution=32))
    tiny_prior.save(tmp_path / "tiny")
    folder = head.save(tmp_path / "own", "tiny", validation={"abs_rel": 0.25}, steps_trained=7)
    before = read_json(folder / "head.json")
    monkeypatch.setattr(head_confidence, "RenderedSet", lambda folder: planes(6))
    monkeypatch.setattr(head_confidence, "CameraColumns", lambda data: data)
    for out in (tmp_path / "other", folder):
        words = [str(folder), "--val", "renders", "--out", str(out), "--images", "4"]
        assert head_confidence.main(words) == 0
        after = read_json(out / "head.json")
        assert after.pop("confidence").keys() == {"depth", "normals"}
        assert {**after, "base": "tiny"} == before


def test_fewer_members_than_error_models_are_fitted_to_have_no_confidence() -> None:
    """One warning for all maps and no confidence of two members; of three and more it comes, and of one in silence."""
    picture = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    models = {name: ErrorModel("relative", 0.1, (0.0,) * 9, tuple(np.linspace(0.1, 9, 99))) for name in ("a", "b")}

    def sure(members: int) -> list[np.ndarray | None]:
        maps = dict.fromkeys(models, picture[:, :1])
        spread = {} if members == 1 else dict.fromkeys(models, 0.1 * picture[:, 1:2])
        result = GeometryOutput({name: TaskOutput(picture[:, :1]) for name in models})
        add_confidence(result, Made(maps, spread, None), picture, models, 0, "np", members)
        return [part.confidence for part in result.maps.values()]

    with pytest.warns(UserWarning, match=r"ensemble_size=3 \(--ensemble 3\)") as told:
        assert sure(2) == [None, None]
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sure(1) == [None, None]
        assert all(one is not None and one.shape == (1, 12, 16, 1) for members in (3, 4) for one in sure(members))


def test_a_pipeline_tells_how_many_members_there_are(tiny_prior) -> None:
    config = HeadConfig(targets=("depth", "normals"), processing_resolution=32)
    head = GeometryHead.from_prior(tiny_prior, config)
    head.confidence = {"depth": ErrorModel("relative", 0.1, (0.0,) * 9, tuple(np.linspace(0.1, 9, 99)))}
    picture = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="an ensemble of 2 has no confidence"):
        made = ImageToDepth(head)(picture, ensemble_size=2)
    assert made.confidence is None and made.tolerance is None and made.uncertainty is not None
    assert ImageToDepth(head)(picture, ensemble_size=4).confidence is not None
