"""The judge's reader of two objects: boxes, windows, mirrored labels, and a judge that stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.core.training.objectives.base import fixed_init
from unproject.toybox.captions import meaning_of
from unproject.toybox.dataset import RenderedSet, RenderJob, group_cameras, object_boxes, render_group, render_set
from unproject.toybox.judge import ORDERED_RELATIONS, Judge, head_sizes, labels_of, questions, save_judge
from unproject.toybox.judge_augment import Augment
from unproject.toybox.judge_eval import evaluate_judge
from unproject.toybox.judge_net import JudgeShape, build_net, folded
from unproject.toybox.judge_pairs import MARGIN, PairReader, PairShape, enlarged, load_pairs, overlap, save_pairs
from unproject.toybox.judge_pairs_train import PairConfig, PairObjective, PairViews, mirrored
from unproject.toybox.places import make_scene
from unproject.toybox.programs import ObjectProgram, SceneProgram, draw
from unproject.toybox.render import Renderer, Rendering
from unproject.utils.errors import InputError

TINY = JudgeShape(widths=(4, 8, 8, 8), blocks=(1, 1, 1, 1), features=8, image_size=32)
PAIR = PairShape(width=8, layers=1, heads=2)
LEFT = ORDERED_RELATIONS.index("left of")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(folded(build_net(TINY, head_sizes(questions()), 3)), questions())


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> PairViews:
    folder = render_set(RenderJob("pair", "val", 4, 32), tmp_path_factory.mktemp("pairs"), workers=1)
    return PairViews(RenderedSet(folder, ("rgb",)))


def reader_of(judge: Judge) -> PairReader:
    with fixed_init(0):
        return PairReader(judge.net, PAIR)


def test_boxes_hold_what_is_seen_of_each_object() -> None:
    seen = np.full((10, 20), -1, np.int32)
    seen[2:5, 4:10] = 1
    seen[9, 19] = 0
    view = Rendering(np.zeros((10, 20, 3)), np.zeros((10, 20, 1)), object_id=seen)
    assert object_boxes(view, 3) == [[0.975, 0.95, 0.05, 0.1], [0.35, 0.35, 0.3, 0.3], [0, 0, 0, 0]]


def test_rendered_pairs_record_their_boxes() -> None:
    program = draw("val", 2, "pair")
    scene = make_scene(program, 2)
    cameras, _ = group_cameras("val", "pair", 2, scene, 32)
    group = render_group(RenderJob("pair", "val", 1, 32), 2)
    for camera, record in zip(cameras, group["records"], strict=True):
        eye = (camera.c2w[0].numpy().astype(float), camera.K[0].numpy().astype(float))
        assert record["boxes"] == object_boxes(Renderer(scene).render(*eye, 32), 2)
        assert all(0.1 < size < 1 for box in record["boxes"] for size in box[2:])
    assert all("boxes" not in record for record in render_group(RenderJob("object", "val", 1, 8), 0)["records"])


def test_windows_of_a_ramp() -> None:
    centres = (torch.arange(32) + 0.5) / 32
    ramp = torch.stack([centres.expand(32, 32), centres[:, None].expand(32, 32), torch.zeros(32, 32)])[None]
    boxes = torch.tensor([[[0.5, 0.4, 0.2, 0.3], [0.55, 0.5, 0.4, 0.1]]])
    windows = enlarged(ramp, boxes)
    assert windows.shape == (1, 2, 3, 32, 32)
    for window, (x, y, side) in zip(windows[0], [(0.5, 0.4, 0.3), (0.55, 0.5, 0.4)], strict=True):
        torch.testing.assert_close(window[0, 7], x + MARGIN * side * (centres - 0.5))
        torch.testing.assert_close(window[1, :, 7], y + MARGIN * side * (centres - 0.5))


def test_overlap_of_boxes() -> None:
    a = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    b = torch.tensor([[0.7, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2]])
    torch.testing.assert_close(overlap(a, b), torch.tensor([1 / 3, 1.0, 0.0]))


def test_mirrored_pairs_keep_what_is_true() -> None:
    images = torch.arange(2 * 3 * 4.0).reshape(2, 3, 1, 4).repeat(4, 1, 1, 1)
    labels = {
        "noun": torch.tensor([[1, 2], [3, 4]] * 4),
        "colour": torch.tensor([[5, 6], [7, 8]] * 4),
        "boxes": torch.rand((8, 2, 4), generator=torch.Generator().manual_seed(0)),
        "relation": torch.tensor([LEFT, LEFT + 1] * 4),
    }
    turned_images, turned = mirrored(images, labels, torch.Generator().manual_seed(1))
    flags = [bool((turned_images[i] != images[i]).any()) for i in range(8)]
    assert any(flags[::2]) and any(flags[1::2]) and not all(flags)
    for i, flag in enumerate(flags):
        swap = flag and i % 2 == 0
        order = [1, 0] if swap else [0, 1]
        assert torch.equal(turned_images[i], images[i].flip(-1) if flag else images[i])
        assert torch.equal(turned["noun"][i], labels["noun"][i, order])
        assert torch.equal(turned["colour"][i], labels["colour"][i, order])
        boxes = labels["boxes"][i, order].clone()
        boxes[:, 0] = 1 - boxes[:, 0] if flag else boxes[:, 0]
        torch.testing.assert_close(turned["boxes"][i], boxes)


def test_labels_are_in_the_order_of_the_relation(views: PairViews) -> None:
    for i in range(len(views)):
        program, record = views.pictures.program(i), views.pictures.records[i]
        said = labels_of(program)
        batch = views.batch(np.array([i]), np.random.default_rng(0))
        assert batch["noun"][0].tolist() == [said["noun"], said["second_noun"]]
        turned = program.relation in ("right of", "behind")
        assert batch["boxes"][0].tolist() == (record["boxes"][::-1] if turned else record["boxes"])
    assert {"behind", "in front of"} <= {views.pictures.program(i).relation for i in range(len(views))}
    lefts = views.labels["boxes"][views.labels["relation"] == LEFT]
    assert (lefts[:, 0, 0] < lefts[:, 1, 0]).all()


def test_the_two_parts_of_the_judge_are_the_whole(judge: Judge) -> None:
    images = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    late = judge.net.late_part()
    torch.testing.assert_close(late(judge.net.early(images)), judge.net.features(images), rtol=0, atol=0)
    assert all(a is not b for a, b in zip(late.parameters(), judge.net.parameters(), strict=False))


def test_a_fresh_reader_reads_a_window_as_the_judge_does(judge: Judge) -> None:
    images = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0.4, 0.5, 0.3, 0.2], [0.7, 0.3, 0.2, 0.2]]]).repeat(2, 1, 1)
    with torch.no_grad():
        logits = reader_of(judge)(judge.net, images, boxes)
        near = judge.net(enlarged(images, boxes).flatten(0, 1))
    torch.testing.assert_close(logits.noun.flatten(0, 1), near["noun"])
    torch.testing.assert_close(logits.colour.flatten(0, 1), near["colour"])
    assert ((logits.boxes > 0) & (logits.boxes < 1)).all() and logits.relation.shape == (2, 4)


def test_the_embedded_judge_has_its_reader_in_a_folder_of_its_own(monkeypatch, judge: Judge, tmp_path: Path) -> None:
    save_judge(build_net(TINY, head_sizes(questions()), 3), tmp_path / "judge")
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    assert Judge.from_pretrained().pairs is None
    save_pairs(reader_of(Judge.from_pretrained()), tmp_path / "judge-pairs")
    assert Judge.from_pretrained().pairs is not None and Judge.from_pretrained(tmp_path / "judge").pairs is None


def test_the_reader_travels_beside_its_judge_and_changes_no_other_answer(judge: Judge, tmp_path: Path) -> None:
    save_judge(build_net(TINY, head_sizes(questions()), 3), tmp_path)
    images = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    plain = Judge.from_pretrained(tmp_path)
    assert load_pairs(plain.net, tmp_path) is None
    with pytest.raises(InputError, match=r"no pairs\.safetensors"):
        plain(images, pairs=True)
    reader = reader_of(plain)
    save_pairs(reader, tmp_path)
    both = Judge.from_pretrained(tmp_path)
    before, after, two = plain(images), both(images), both(images, pairs=True)
    for name in questions():
        assert torch.equal(before.probs[name], after.probs[name])
    found = reader(plain.net, images)
    torch.testing.assert_close(two.probs["noun"], found.noun[:, 0].softmax(-1), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(two.probs["second_colour"], found.colour[:, 1].softmax(-1), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(two.probs["relation"], found.relation.softmax(-1), rtol=2e-2, atol=2e-3)
    assert torch.equal(two.probs["count"], before.probs["count"])
    program = SceneProgram((ObjectProgram("chair", "red"), ObjectProgram("car", "blue")), "behind")
    assert two.agrees([meaning_of(program)] * 3)["all"].shape == (3,)


def test_both_objects_are_right_when_all_that_is_said_of_them_is(judge: Judge) -> None:
    reading = Judge(judge.net, judge.answers, reader_of(judge))
    result = evaluate_judge(reading, "test", groups=3, kinds=("pair",))
    wrong = {(e["group"], e["view"]) for e in result["errors"] if e["question"] in ("noun", "second_noun")}
    assert result["counts"]["both_nouns"] == result["counts"]["both"] == 6
    assert result["accuracy"]["both_nouns"] == pytest.approx(1 - len(wrong) / 6, abs=1e-5)
    assert result["accuracy"]["both"] <= result["accuracy"]["both_nouns"]
    plain = evaluate_judge(judge, "test", groups=4, kinds=("scene",))
    assert plain["counts"]["both"] == plain["counts"]["second_noun"] < plain["counts"]["noun"]


def test_the_loss_trains_the_reader_alone(judge: Judge, views: PairViews) -> None:
    objective = PairObjective(PairConfig(shape=PAIR), judge, views, seed=1)
    before = copy.deepcopy(judge.net.state_dict())
    batch = views.batch(np.arange(6), np.random.default_rng(0))
    losses = [objective.loss(batch, torch.Generator().manual_seed(s), 0).loss for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.reader.parameters())
    assert all(p.grad is None for p in judge.net.parameters())
    assert all(torch.equal(before[k], v) for k, v in judge.net.state_dict().items())
    found = objective.validate()
    assert found.keys() == {"relation", "noun", "colour", "nouns", "all", "overlap"}
    assert found["nouns"] <= found["noun"] and found["all"] <= found["nouns"]


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    folder = render_set(RenderJob("object", "val", 1, 8), tmp_path, workers=1)
    with pytest.raises(InputError, match="kind pair alone"):
        PairViews(RenderedSet(folder))
    with pytest.raises(InputError, match=r"augment\.move=0\.7"):
        PairConfig(augment=Augment())
