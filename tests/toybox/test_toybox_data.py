"""Samples are pure functions, sets resume bit for bit and refuse other jobs, sheets are written."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unproject.toybox import dataset, sample, write_noun_sheet, write_sheet
from unproject.toybox.captions import meaning_of, parse, view_word
from unproject.toybox.dataset import RenderedSet, RenderJob, render_group, render_set, shard_path
from unproject.toybox.programs import RELATIONS, ObjectProgram, RoomProgram, SceneProgram, draw
from unproject.utils import temporary
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image

DIGEST = """
import hashlib
from unproject.toybox import sample
for index in (5, 2):
    one = sample('val', index, 'object', 16)
    print(one.caption, hashlib.sha256(one.renderings[1].rgb.tobytes()).hexdigest())
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> RenderJob:
    """Two shards of one and two groups, rendered by threads."""
    monkeypatch.setattr(dataset, "SHARD_GROUPS", 2)
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", ThreadPoolExecutor)
    return RenderJob("object", "val", 3, 16, geometry=True, first=7)


def test_samples_do_not_depend_on_order_or_process() -> None:
    here = []
    for index in (2, 5):
        one = sample("val", index, "object", 16)
        here.append(f"{one.caption} {hashlib.sha256(one.renderings[1].rgb.tobytes()).hexdigest()}")
    finder = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", finder + DIGEST], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == here[::-1]


@pytest.mark.parametrize(
    ("kind", "views"),
    [("object", 4), ("scene", 2), ("pair", 2), ("room", 4), ("street", 4), ("table", 4), ("interior", 4)],
)
def test_sample_is_what_a_set_holds(kind: str, views: int) -> None:
    one = sample("test", 3, kind, 16)
    group = render_group(RenderJob(kind, "test", 1, 16, True), 3)
    assert len(one.renderings) == len(group["rgb"]) == one.cameras.batch == views
    np.testing.assert_array_equal(one.cameras.c2w.numpy(), group["c2w"])
    for view, picture in zip(one.renderings, group["rgb"], strict=True):
        np.testing.assert_array_equal(np.round(view.rgb * 255).astype(np.uint8), picture)
    if kind not in ("object", "scene", "pair"):
        assert isinstance(one.program, RoomProgram) and one.meaning is None
    else:
        assert parse(one.caption) == one.meaning


def test_pairs_are_always_in_a_relation() -> None:
    programs = [draw("val", index, "pair") for index in range(30)]
    assert all(isinstance(p, SceneProgram) and len(p.members) == 2 and p.count == 1 for p in programs)
    assert {p.relation for p in programs if isinstance(p, SceneProgram)} == set(RELATIONS)


def test_four_views_stand_a_quarter_turn_apart() -> None:
    records = render_group(RenderJob("object", "train", 1, 8), 0)["records"]
    turns = np.diff([r["azimuth_deg"] for r in records]) % 360
    np.testing.assert_allclose(turns, 90, atol=1e-9)
    assert len({(r["elevation_deg"], r["distance"], r["fov_y_deg"]) for r in records}) == 1


def test_killed_job_resumes_bit_for_bit(small: RenderJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = render_set(small, tmp_path / "set", workers=1)
    shards = {p.name: p.read_bytes() for p in folder.glob("shard-*.npz")}
    assert len(shards) == 2
    shard_path(folder, 1).unlink()
    (folder / ".shard-00001-deadbeef.tmp.npz").write_bytes(b"half")
    assert len(RenderedSet(folder)) == 8
    monkeypatch.setattr(temporary, "_LEFT", {})  # as in a new process
    render_set(small, folder, workers=1)
    kept = {p.name: np.load(p) for p in folder.glob("*.npz")}
    assert not list(folder.glob(".*.tmp.npz"))
    for name, data in shards.items():
        (tmp_path / "before.npz").write_bytes(data)
        before = np.load(tmp_path / "before.npz")
        assert before.files == kept[name].files
        for column in before.files:
            np.testing.assert_array_equal(before[column], kept[name][column])


def test_a_set_can_grow_past_a_short_shard(small: RenderJob, tmp_path: Path) -> None:
    render_set(replace(small, groups=1), tmp_path / "grown", workers=1)
    grown = RenderedSet(render_set(small, tmp_path / "grown", workers=1))
    whole = RenderedSet(render_set(small, tmp_path / "whole", workers=1))
    assert grown.records == whole.records
    np.testing.assert_array_equal(grown.images(np.arange(len(grown))), whole.images(np.arange(len(whole))))
    with pytest.raises(InputError, match="holds 3 groups"):
        render_set(replace(small, groups=2), tmp_path / "grown", workers=1)


def test_other_job_in_the_folder_is_refused(small: RenderJob, tmp_path: Path) -> None:
    render_set(replace(small, groups=1), tmp_path, workers=1)
    with pytest.raises(InputError, match="different size"):
        render_set(replace(small, size=24), tmp_path, workers=1)
    with pytest.raises(InputError, match="different split"):
        render_set(replace(small, split="test"), tmp_path, workers=1)
    with pytest.raises(InputError, match="not a rendered toybox set"):
        RenderedSet(tmp_path / "nowhere")


def test_columns_of_a_set(small: RenderJob, tmp_path: Path) -> None:
    rendered = RenderedSet(render_set(small, tmp_path, workers=1))
    assert len(rendered) == 12
    every = np.arange(12)
    assert rendered.images(every).shape == (12, 16, 16, 3)
    assert rendered.images(every).dtype == np.uint8
    depth, normal = rendered.column("depth_m", every), rendered.column("normal", every)
    assert depth.dtype == np.float16 and normal.dtype == np.int8
    inside = depth > 0
    assert 0.05 < inside.mean() < 0.9
    np.testing.assert_allclose(np.linalg.norm(normal[inside] / 127.0, axis=-1), 1, atol=0.02)
    assert (normal[~inside] == 0).all()
    assert (normal[inside][:, 2] < 25).all(), "visible surfaces face the camera, which looks along +z"
    with pytest.raises(InputError, match="holds no albedo; render it with --maps"):
        rendered.column("albedo", every)
    c2w, K = rendered.cameras(every)
    assert c2w.shape == (12, 4, 4) and K.shape == (12, 3, 3)
    assert rendered.groups().tolist() == np.arange(12).reshape(3, 4).tolist()
    assert isinstance(rendered.program(5), ObjectProgram)
    assert rendered.program(4) == rendered.program(7) != rendered.program(8)
    for index, text in enumerate(rendered.captions(every)):
        record = rendered.records[index]
        view = view_word(record["azimuth_deg"], record["elevation_deg"])
        assert parse(text) == meaning_of(rendered.program(index), view)
    assert rendered.captions([3], np.random.default_rng(1)) == rendered.captions([3], np.random.default_rng(1))


def test_relations_are_true_in_the_picture() -> None:
    """The first member lies where the relation says, as the camera of a scene sees it."""
    found = set()
    for index in range(40):
        one_program = sample_program(index)
        if not isinstance(one_program, SceneProgram) or not one_program.relation or one_program.relation in found:
            continue
        found.add(one_program.relation)
        one = sample("train", index, "scene", 8)
        centres = np.stack([p.matrix[:3, 3] for p in one.scene.objects])
        seen = [(centres - c[:3, 3]) @ c[:3, :3] for c in one.cameras.c2w.numpy()]
        for x, y, z in (s[0] - s[1] for s in seen):
            wanted = {"left of": -x, "right of": x, "behind": z, "in front of": -z, "on top of": -y}
            assert wanted[one_program.relation] > 0, (index, one_program.relation)
    assert len(found) == 5


def sample_program(index: int) -> object:
    from unproject.toybox import draw

    return draw("train", index, "scene")


def test_sheets(tmp_path: Path) -> None:
    sheet = load_image(write_sheet(tmp_path / "looks.png", ("cube", "ring"), size=48))
    sides = load_image(write_noun_sheet(tmp_path / "nouns.png", ("cube", "ring", "cone"), size=32, columns=2))
    assert sheet.shape[1] >= 8 * 48 and sheet.std() > 0.05
    assert sides.shape[1] >= 2 * 4 * 32 and sides.std() > 0.05
    with pytest.raises(InputError, match="dragon"):
        write_noun_sheet(tmp_path / "no.png", ("dragon",))


def test_lazy_names_exist() -> None:
    from unproject import toybox

    assert sorted(toybox._HOMES) == sorted(toybox.__all__)
    for name in toybox.__all__:
        assert getattr(toybox, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        toybox.nonsense  # noqa: B018
