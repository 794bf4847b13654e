"""The judge: labels, folding, files, verdicts against meanings, and that its training learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.toybox.captions import meaning_of
from unproject.toybox.dataset import RenderedSet, RenderJob
from unproject.toybox.judge import (
    ABSENT,
    Judge,
    Verdict,
    head_sizes,
    in_order,
    labels_of,
    questions,
    save_judge,
)
from unproject.toybox.judge_augment import Augment
from unproject.toybox.judge_eval import evaluate_judge
from unproject.toybox.judge_net import JudgeShape, build_net, folded
from unproject.toybox.judge_train import FIRST_INDEX, JudgeConfig, JudgeObjective, LabelledViews, mirrored
from unproject.toybox.programs import ObjectProgram, RoomProgram, SceneProgram
from unproject.utils.configs import config_path, load_config, read_yaml
from unproject.utils.errors import InputError

TINY = JudgeShape((8, 12, 16, 16), (1, 1, 1, 1), 24, 32)
CAR, DOG = ObjectProgram("car", "red", "striped"), ObjectProgram("dog", "blue")


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> LabelledViews:
    """16 views of four objects."""
    from unproject.toybox.dataset import render_shard
    from unproject.utils.files import write_json

    folder = tmp_path_factory.mktemp("judge")
    job = RenderJob("object", "train", 4, 32, first=10_000_000)
    render_shard(job, str(folder), 0)
    write_json(folder / "job.json", vars(job))
    return LabelledViews(RenderedSet(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved judge with random weights."""
    return save_judge(build_net(TINY, head_sizes(questions()), 3), tmp_path_factory.mktemp("weights") / "judge")


def truth(*programs: ObjectProgram | SceneProgram, azimuth: float = 0.0) -> Verdict:
    """The verdict of a judge that is always right."""
    answers, labels = questions(), [labels_of(p) for p in programs]
    probs = {q: torch.stack([torch.eye(len(words))[max(row[q], 0)] for row in labels]) for q, words in answers.items()}
    ones = torch.ones(len(programs))
    return Verdict(answers, probs, ones, azimuth * ones)


def test_labels_read_a_relation_from_one_side() -> None:
    assert in_order("a", "right of", "b") == ("b", "left of", "a")
    assert in_order("a", "behind", "b") == ("b", "in front of", "a")
    assert in_order("a", "on top of", "b") == ("a", "on top of", "b")
    one = labels_of(SceneProgram((CAR, DOG), "right of"))
    assert one == labels_of(SceneProgram((DOG, CAR), "left of"))
    answers = questions()
    assert answers["noun"][one["noun"]] == "dog" and answers["noun"][one["second_noun"]] == "car"
    assert one["count"] == ABSENT
    alone = labels_of(CAR)
    assert alone["second_noun"] == alone["second_colour"] == ABSENT
    assert (alone["relation"], alone["count"], answers["pattern"][alone["pattern"]]) == (0, 0, "striped")
    assert labels_of(SceneProgram((CAR,), "", 3))["count"] == 2
    with pytest.raises(InputError, match="rooms"):
        labels_of(RoomProgram((CAR,)))


def test_verdict_agrees_with_what_is_said() -> None:
    programs = [CAR, SceneProgram((CAR, DOG), "behind"), SceneProgram((DOG,), "", 2)]
    verdict = truth(*programs)
    meanings = [meaning_of(p) for p in programs]
    assert all(flags.all() for flags in verdict.agrees(meanings).values())
    other = [meaning_of(replace(CAR, colour="green")), meaning_of(SceneProgram((CAR, DOG), "in front of")), meanings[0]]
    flags = verdict.agrees(other)
    assert flags["colour"].tolist() == [False, False, False]
    assert flags["noun"].tolist() == [True, False, False]
    assert flags["relation"].tolist() == [True, True, True]  # the same order, with the members exchanged
    assert flags["count"].tolist() == [True, True, False]
    assert not flags["all"].any()
    assert truth(CAR, azimuth=170.0).agrees([meaning_of(CAR, "front")])["view"].tolist() == [False]
    assert truth(CAR, azimuth=330.0).agrees([meaning_of(CAR, "front")])["view"].tolist() == [True]
    assert verdict.nouns == ["car", "dog", "dog"] and verdict.colours == ["red", "blue", "blue"]
    with pytest.raises(InputError, match="2 meanings for 3"):
        verdict.agrees(meanings[:2])


def test_folding_changes_nothing() -> None:
    net = build_net(TINY, {"noun": 5})
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    net.train()
    net(images)  # statistics other than the initial ones
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(net)(images), net(images), atol=1e-5, rtol=1e-4)


def test_files_give_the_judge_back(folder: Path) -> None:
    judge = Judge.from_pretrained(folder)
    net = build_net(TINY, head_sizes(questions()), 3).eval()
    images = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    verdict = judge(images)
    with torch.no_grad():
        torch.testing.assert_close(verdict.noun_probs, net(images)["noun"].softmax(1), atol=2e-3, rtol=0)
    assert verdict.probs["relation"].shape == (3, 4) and verdict.front_visible.shape == (3,)
    assert ((verdict.azimuth_deg >= 0) & (verdict.azimuth_deg < 360)).all()
    assert judge.features(images).shape == (3, 24)
    torch.testing.assert_close(judge.front_visible(images), verdict.front_visible)
    torch.testing.assert_close(judge(images[1:2]).noun_probs, verdict.noun_probs[1:2], atol=1e-5, rtol=1e-4)
    larger = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    torch.testing.assert_close(judge.features(larger), judge.features(images), atol=1e-5, rtol=1e-4)


def test_missing_weights_and_wrong_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no judge"):
        Judge.from_pretrained(tmp_path)
    judge = Judge.from_pretrained(folder)
    with pytest.raises(InputError, match="expected floats"):
        judge(torch.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match="expected floats"):
        judge(torch.zeros((1, 3, 32, 32), dtype=torch.uint8))


def test_augment_is_seeded_and_keeps_the_range(views: LabelledViews) -> None:
    images = torch.from_numpy(views.pictures.images(np.arange(8))).permute(0, 3, 1, 2).float() / 255
    first, again = (Augment()(images, torch.Generator().manual_seed(4)) for _ in range(2))
    torch.testing.assert_close(first, again)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1
    none = Augment(background=0, move=0, soften=0, noise=0, contrast=0)
    torch.testing.assert_close(none(images, torch.Generator().manual_seed(4)), images, atol=1e-5, rtol=0)


def test_background_change_leaves_the_object_alone() -> None:
    images = torch.full((1, 3, 32, 32), 0.6)
    images[:, :, 8:24, 8:24] = 0.1
    only = Augment(background=1, move=0, soften=0, noise=0, contrast=0)
    changed = only(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed[:, :, 8:24, 8:24], images[:, :, 8:24, 8:24], atol=1e-5, rtol=0)
    assert (changed[:, :, :8] - 0.6).abs().mean() > 0.02
    white = torch.where(images > 0.5, 1.0, images)
    torch.testing.assert_close(only(white, torch.Generator().manual_seed(0)), white, atol=1e-5, rtol=0)


def test_mirrored_pictures_keep_their_meaning() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand((64, 3, 4, 4), generator=rng)
    relation = np.arange(64) % 4
    batch = {"relation": relation, "azimuth_deg": np.where(relation == 0, np.arange(64.0), np.nan), "noun": relation}
    seen, labels = mirrored(images, batch, rng)
    turned = (seen != images).flatten(1).any(1)
    torch.testing.assert_close(seen[turned], images[turned].flip(-1), atol=0, rtol=0)
    side_by_side = torch.from_numpy(relation == questions()["relation"].index("left of"))
    assert not turned[side_by_side].any() and 10 < int(turned.sum()) < 38
    expected = np.where(turned, -batch["azimuth_deg"], batch["azimuth_deg"])
    np.testing.assert_array_equal(labels["azimuth_deg"], expected)
    assert labels["noun"] is batch["noun"]


def test_training_learns_a_few_pictures(views: LabelledViews, tmp_path: Path) -> None:
    """Fifty updates on views and their mirror images more than halve the loss; the saved judge knows their nouns."""
    still = Augment(background=0, move=0, soften=0, noise=0, contrast=0)
    config = JudgeConfig(TINY, still, validation_images=16, calibration_batches=2)
    objective = JudgeObjective(config, views, views)
    step = torch.optim.Adam(objective.net.parameters(), 5e-3)
    batch = views.batch(np.arange(16), np.random.default_rng(0))
    losses = []
    for number in range(50):
        out = objective.loss(batch, torch.Generator().manual_seed(number), number)
        step.zero_grad()
        out.loss.backward()
        step.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    scores = objective.validate()
    assert scores["noun"] == 1.0 and scores["colour"] == 1.0
    assert {"front", "azimuth_deg", "relation"} <= set(scores)
    judge = Judge.from_pretrained(objective.save(tmp_path / "judge"))
    images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).float() / 255
    wanted = [views.pictures.program(i).noun for i in range(16)]  # type: ignore[union-attr]
    assert judge(images).nouns == wanted


def test_an_exported_judge_learns_on_in_a_deeper_network(views: LabelledViews, folder: Path) -> None:
    """What it says is the same at first, in training mode too; the added blocks can learn."""
    deeper = replace(TINY, blocks=(1, 2, 3, 1))
    objective = JudgeObjective(JudgeConfig(deeper, calibration_batches=2), views, views)
    judge = Judge.from_pretrained(folder)
    objective.begin_with(judge)
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = judge.net(images)
        for name, logits in objective.net.eval()(images).items():
            torch.testing.assert_close(logits, expected[name], atol=1e-4, rtol=1e-3)
    objective.calibrate()
    with torch.no_grad():
        for name, logits in objective.net(images).items():
            torch.testing.assert_close(logits, expected[name], atol=1e-3, rtol=1e-2)
    objective.loss(views.batch(np.arange(4), np.random.default_rng(0)), torch.Generator(), 0).loss.backward()
    assert objective.net.stages[2].second_norm.weight.grad.abs().max() > 0  # type: ignore[union-attr]
    fewer = JudgeObjective(JudgeConfig(replace(TINY, widths=(8, 12, 16, 24))), views, views)
    with pytest.raises(InputError, match="only blocks may be added"):
        fewer.begin_with(judge)


def test_loss_ignores_questions_a_picture_does_not_answer(views: LabelledViews) -> None:
    objective = JudgeObjective(JudgeConfig(TINY), views, views)
    batch = views.batch(np.arange(4), np.random.default_rng(0))
    out = objective.loss(batch, torch.Generator().manual_seed(0), 0)
    assert out.logs["second_noun"] == 0 and out.logs["noun"] > 0
    batch["azimuth_deg"] = np.full(4, np.nan)
    out = objective.loss(batch, torch.Generator().manual_seed(0), 0)
    assert out.logs["front"] == out.logs["azimuth"] == 0
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.net.parameters() if p.grad is not None)
    with pytest.raises(InputError, match="shade"):
        JudgeObjective(JudgeConfig(TINY, weights={"shade": 1.0}), views, views)


def test_evaluation_counts_and_lists_errors(folder: Path) -> None:
    result = evaluate_judge(Judge.from_pretrained(folder), "test", groups=2)
    assert result["views"] == 2 * 4 + 2 * 2
    assert result["counts"]["noun"] == 12
    wrong = sum(n for _, _, n in result["confusions"].get("noun", []))
    assert result["accuracy"]["noun"] == pytest.approx(1 - wrong / 12, abs=1e-5)
    assert sum(e["question"] == "noun" for e in result["errors"]) == wrong
    assert 0 <= result["azimuth_median_deg"] <= 180


def test_recipe_is_the_config_and_uses_indices_of_its_own() -> None:
    recipe = read_yaml(config_path("train/judge"))
    assert load_config(JudgeConfig, recipe["model"]) == JudgeConfig()
    text = config_path("train/judge").read_text()
    assert f"--index {FIRST_INDEX}" in text
    assert FIRST_INDEX == 10_000_000
