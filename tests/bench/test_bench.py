"""The frame of the experiments: records, prompts, kept pictures, and tables made from JSON."""

from __future__ import annotations

import pytest
import torch

from unproject.bench import intervals, runner, tables
from unproject.bench.fingerprints import fingerprints
from unproject.bench.geometry_heads import real_summary
from unproject.bench.judge import rows_of
from unproject.bench.text_to_mesh import AZIMUTHS, MeshBench, Wanted, judge_views, kept_views, prompts, true_views
from unproject.scripts import make_docs
from unproject.toybox.judge import Verdict
from unproject.toybox.programs import is_heldout_pair
from unproject.utils.errors import InputError
from unproject.utils.files import read_json, write_json
from unproject.utils.pictures import grid, save_image


def test_an_experiment_leaves_a_whole_record(tmp_path, monkeypatch):
    class Module:
        @staticmethod
        def run(context):
            return {
                "config": {"quick": context.quick, "on": context.prior},
                "seeds": [context.seed],
                "table": [{"setting": "test prompts" if context.name == "embedded-prior" else "plain"}],
            }

    monkeypatch.setattr(runner.importlib, "import_module", lambda name, package: Module)
    runner.run_experiment("embedded-prior", tmp_path, seed=7, quick=True)
    record = read_json(tmp_path / "embedded-prior.json")
    assert record["seeds"] == [7] and record["config"] == {"quick": True, "on": "toybox"} and record["quick"] is True
    assert runner.run_experiment("regions", tmp_path)["prior"] == "toybox-dit"
    assert runner.run_experiment("regions", tmp_path, "folder")["config"]["on"] == "folder"
    assert record["versions"]["torch"] == torch.__version__ and record["seconds"] >= 0
    assert record["threads"] == record["machine"]["threads"] == 1
    assert record["rests_on"] == fingerprints("embedded-prior")
    with pytest.raises(InputError, match=r"unknown experiment 'jugde'; have .*judge"):
        runner.run_experiment("jugde", tmp_path)


def test_judge_rows_add_objects_and_scenes():
    objects = {"accuracy": {"noun": 0.75}, "counts": {"noun": 8}, "azimuth_median_deg": 3.0}
    scenes = {"accuracy": {"noun": 0.5, "second_noun": 1.0}, "counts": {"noun": 4, "second_noun": 3}}
    noun, second, azimuth = rows_of("test", {"object": objects, "scene": {**scenes, "azimuth_median_deg": None}})
    assert (noun["objects"]["value"], noun["scenes"]["value"]) == (0.75, 0.5)
    assert noun["together"]["value"] == pytest.approx(8 / 12, abs=1e-4) and noun["together"]["n"] == 12
    assert "objects" not in second and second["together"]["n"] == 3 and azimuth["median_error_deg"] == 3.0


def test_real_frames_are_summed_up():
    errors = [(0.3, 0.2, 0.1, 0.1), (0.3, 0.2, 0.25, 0.1), (0.3, 0.4, 0.29, 0.2), (0.1, 0.4, 0.2, 0.3)]
    names = ("constant", "plane", "head", "head, ensemble 5")
    cells = [{name: {"abs_rel": e, "delta1": 1 - e} for name, e in zip(names, row, strict=True)} for row in errors]
    constant, plane, head, ensemble = real_summary([{"frame": "a", "valid_share": 1.0, **row} for row in cells])
    assert constant["abs_rel"]["mean"] == pytest.approx(0.25) and head["delta1"]["n"] == 4
    assert "beats_constant_and_plane" not in plane and ensemble["method"] == "head, ensemble 5, real frames"
    assert head["beats_constant_and_plane"]["value"] == 0.5
    assert ensemble["beats_constant_and_plane"]["value"] == 0.75
    assert real_summary([]) == []


def test_mesh_prompts_are_distinct_nouns_and_unseen_pairs():
    wanted = prompts(MeshBench())
    test, heldout = wanted[:48], wanted[48:]
    assert len({w.noun for w in test}) == 48 and not any(is_heldout_pair(w.noun, w.colour) for w in test)
    assert len(heldout) == 16 and all(w.heldout and is_heldout_pair(w.noun, w.colour) for w in heldout)
    assert [w.index for w in wanted] == list(range(64)) and wanted[0].prompt.endswith(wanted[0].noun)


def test_views_come_back_as_they_were_kept(tmp_path):
    views = torch.rand(len(AZIMUTHS), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_image(tmp_path / "views.png", grid([v.permute(1, 2, 0).numpy() for v in views], columns=len(AZIMUTHS), pad=0))
    torch.testing.assert_close(kept_views(tmp_path), views, atol=0.51 / 255, rtol=0)


def test_a_front_on_two_opposite_sides_is_seen():
    class Reader:
        azimuths = (0.0, 40.0, 90.0, 130.0, 180.0, 230.0, 270.0, 310.0)

        def __call__(self, views):
            ones = torch.ones(8)
            probs = {"noun": torch.tensor([[0.0, 1.0]]).repeat(8, 1), "colour": torch.tensor([[1.0]]).repeat(8, 1)}
            return Verdict({"noun": ("dog", "car"), "colour": ("red",)}, probs, ones, torch.tensor(self.azimuths))

    wanted = Wanted(0, "car", "red", False)
    found = judge_views(Reader(), torch.zeros(8, 3, 4, 4), wanted)
    assert found["front_quadrants"] == [0] and not found["two_fronts"]
    assert (found["judged_noun"], found["noun_views"], found["colour_views"]) == ("car", 1.0, 1.0)
    Reader.azimuths = (0.0, 40.0, 90.0, 130.0, 350.0, 230.0, 270.0, 310.0)
    assert judge_views(Reader(), torch.zeros(8, 3, 4, 4), wanted)["two_fronts"]


def test_true_views_are_read_from_the_same_sides():
    views = true_views(Wanted(0, "car", "red", False), MeshBench(view_size=24), 0)
    assert views.shape == (8, 3, 24, 24) and views.min() >= 0 and views.max() <= 1
    assert (views[0] - views[4]).abs().mean() > 0.02  # front and back of a car differ


def test_tables_are_made_from_results(tmp_path):
    rows = [{"setting": "x", "noun": intervals.share([True] * 3 + [False]), "seconds": 1.23456, "ok": True, "no": None}]
    write_json(tmp_path / "judge.json", {"table": rows})
    page = "a\n<!-- table:judge:setting,noun,seconds,ok,no -->\nold\n<!-- /table -->\nb\n"
    made = make_docs.fill(page, tmp_path)
    assert "| x | 75.0 % (30-95, n=4) | 1.235 | yes |  |" in made and "old" not in made
    assert make_docs.fill(made, tmp_path) == made
    rows = [{"solver": s, "nfe": n, "mse": m} for s, n, m in (("a", 5, 0.5), ("a", 9, 0.25), ("b", 9, 0.125))]
    write_json(tmp_path / "judge.json", {"table": [*rows, {"solver": "c", "nfe": 7}]})
    made = make_docs.fill("<!-- table:judge:solver,nfe=mse -->\n<!-- /table -->", tmp_path)
    assert made.split("\n")[1] == "| solver | mse at nfe 5 | mse at nfe 9 |"
    assert made.split("\n")[3:5] == ["| a | 0.5 | 0.25 |", "| b |  | 0.125 |"]
    write_json(tmp_path / "judge.json", {"table": rows, "edits": [{"method": "x", "n": 2}]})
    made = make_docs.fill("<!-- table:judge/edits:n,method -->\n<!-- /table -->", tmp_path)
    assert made.split("\n")[3] == "| 2 | x |"
    with pytest.raises(InputError, match=r"the list 'edit' of judge\.json, which holds table, edits"):
        make_docs.fill("<!-- table:judge/edit -->\n<!-- /table -->", tmp_path)
    write_json(tmp_path / "judge.json", {"table": [{"size": 64, "at 0.5": 1, "fid.all": 2.5}]})
    made = make_docs.fill("<!-- table:judge:size,fid.all -->\n<!-- /table -->", tmp_path)
    assert made.split("\n")[1:4] == ["| size | fid.all |", "| --- | --- |", "| 64 | 2.5 |"]
    for odd in ("<!-- table:judge:at 0.5 -->\n<!-- /table -->", "<!-- table:Judge -->\n<!-- /table -->"):
        with pytest.raises(InputError, match=r"<!-- table:.* begins no table"):
            make_docs.fill(odd, tmp_path)
    with pytest.raises(InputError, match="never closed"):
        make_docs.fill("<!-- table:judge:size -->\n<!-- table:judge:size -->\n<!-- /table -->", tmp_path)
    assert tables.cell({"fid": 54.045, "floor": 31.24}) == "54.05 (floor 31.2)"
    assert tables.cell({"kid": 0.0123, "low": -0.4, "high": 1.5}) == "0.0123 (-0.4 to 1.5)"
    assert tables.cell({"ratio": 0.5, "low": 0.25, "high": 1}) == "0.500 (0.250-1.000)"
    assert tables.cell({"value": 0.74098}) == "0.741"
    with pytest.raises(InputError, match=r"sampling\.json is missing; run unproject bench sampling"):
        make_docs.fill(page.replace("judge", "sampling"), tmp_path)
