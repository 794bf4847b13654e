"""The experiments on ways from words to meshes: design, measures, rows, at toy sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trimesh

from unproject.bench import amortised, drawn_quality, kept_shapes, mesh_quality, text_to_3d, text_to_mesh
from unproject.bench.text_to_mesh import Drawn, MeshBench, Wanted, cameras, true_looks
from unproject.geometry.meshes import Mesh, join_meshes
from unproject.geometry.raycast import RayMesh
from unproject.pipelines.direct25_mesh import Direct25Config
from unproject.pipelines.image_to_mesh import ImageToMesh
from unproject.pipelines.mesh_quality import Spent, spending
from unproject.pipelines.text_to_shape import MeshRecipe
from unproject.toybox.materials import COLOURS_SRGB
from unproject.toybox.objects import build
from unproject.toybox.programs import ObjectProgram
from unproject.toybox.reading import read_picture
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError, UnprojectError

CONFIG = text_to_3d.Text3dBench(MeshBench(2, 1, 6, view_size=24, references=1), 1, 2, 2)
CHAIR = Wanted(0, "chair", "red", False)


def ball(x: float = 0.0, radius: float = 0.4) -> Mesh:
    mesh = Mesh.from_trimesh(trimesh.creation.icosphere(2, radius))
    return replace(mesh, vertices=mesh.vertices + torch.tensor([x, 0.0, 0.0]))


def test_held_out_pairs_have_known_nouns_and_known_colours():
    known, kept = amortised.pairs(amortised.AmortisedBench())
    assert len(known) >= 64 and len(known) + len(kept) == 8 * len(COLOURS_SRGB) and not set(known) & set(kept)
    assert {noun for noun, _ in known} == {noun for noun, _ in kept}
    assert {colour for _, colour in known} == {colour for _, colour in kept} == set(COLOURS_SRGB)


def test_every_rule_is_taught_by_the_multi_view_prior_alone():
    for rule, (kind, guidance) in amortised.RULES.items():
        model = amortised.recipe_of(rule, amortised.QUICK).model
        assert [name for name, one in model.teachers.items() if one.prior] == ["joint"]
        assert model.joint.score.rule == kind and model.joint.score.guidance == guidance
        assert model.render_px == 16 and model.generator.network.width == 96


def test_rows_of_an_update_count_the_twin_and_its_lesson():
    class Counted:
        nfe = 0

        def losses(self):
            def asks(rows):
                def loss(batch, rng, step):
                    self.nfe += rows * len(batch["captions"])

                return loss

            return {"shape": asks(12), "twin_joint": asks(4)}

    assert amortised.rows_of_an_update(Counted(), ["a", "b"], 3) == 48


def test_collapse_variation_and_accuracy_of_a_rule(tmp_path):
    lines = [{"step": 1, "shape/grad_norm": 1.0}, {"step": 2, "val_opacity": 0.5}, {"step": 3, "grad_norm": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    norms = amortised.gradient_norms(tmp_path)
    assert norms == [1.0, 3.0] and amortised.gradient_norms(tmp_path / "none") == []
    runs = [{"norms": norms, "updates": 5, "rows": 60, "failed": "", "train_seconds": 1.0}]
    opacities = ((False, 0.3, True), (False, 0.002, False), (True, 0.999, True), (True, 0.5, True))
    records = [{"heldout": h, "opacity": o, "noun_right": right, "colour_right": True} for h, o, right in opacities]
    row = amortised.summary("asd", records, runs)
    assert row["collapsed"]["value"] == 0.5 and row["gradient_variation"]["value"] == 0.5
    assert row["trained"]["value"] == 0.5 and row["heldout"]["value"] == 1.0 and row["rows"] == 60


def test_ways_without_weights_wait_and_say_for_what(tmp_path, monkeypatch):
    from unproject.pipelines import drawn_mesh

    monkeypatch.setattr(drawn_mesh, "beside_weights", lambda name, kind: tmp_path / kind)
    reasons = {name: text_to_3d.waits_for(name, "toybox", CONFIG) for name in ("turbo", "amortised")}
    text_to_3d._loaded.cache_clear()
    assert reasons["turbo"].endswith("unproject train triplane-turbo --out runs/triplane-turbo")
    assert reasons["amortised"].startswith("no weights of amortised come with the prior 'toybox' yet")
    assert list(text_to_3d.ways(CONFIG))[:2] == [text_to_3d.REAL, text_to_3d.OPTIMISED]


def test_a_picture_of_the_instance_itself_is_what_image_to_mesh_is_given(monkeypatch):
    given = []

    class Stub:
        def __call__(self, picture, mask, seed, elevation_deg):
            given.append((picture, mask, seed, elevation_deg))
            return SimpleNamespace(mesh=ball(), nfe={"orbit": 3, "normals": 4})

    monkeypatch.setattr(
        ImageToMesh, "from_pretrained", lambda prior, reader: Stub() if reader is read_picture else None
    )
    drawn = text_to_3d.pictured(CONFIG.meshes)("toybox")(CHAIR, 5)
    real = text_to_3d.instances(CONFIG.meshes)("toybox")(CHAIR, 5)
    ((picture, mask, seed, elevation),) = given
    assert drawn.calls == 7 and seed == 5 and elevation == CONFIG.meshes.elevation_deg and real.views is not None
    front = (255 * real.views[0].movedim(0, -1)).round().byte().numpy()
    assert (picture == front).all() and mask.shape == front.shape[:2]
    seen = RayMesh(real.mesh).render(cameras(CONFIG.meshes)[0], ("alpha",)).alpha[0, ..., 0].numpy() > 0.5
    assert ((mask > 127) != seen).mean() < 0.05


def test_some_prompts_are_made_with_several_seeds():
    found = text_to_3d.jobs(CONFIG, 7)
    assert [(one.index, seed) for one, seed in found] == [(0, 7), (1, 7), (2, 7), (0, 8)]


def test_a_texture_is_compared_in_the_light_that_suits_it():
    program = ObjectProgram("chair", "red", seed=0)
    toy = build(program)
    mesh = Mesh(torch.from_numpy(toy.vertices), torch.from_numpy(toy.faces))
    views = true_looks(program, 1, cameras(CONFIG.meshes))[0].movedim(-1, 1)
    same = text_to_3d.texture_psnr(views, mesh, CHAIR, 0, CONFIG)
    off = text_to_3d.texture_psnr(views + 0.1, mesh, CHAIR, 0, CONFIG)
    one_light = text_to_3d.texture_psnr(views, mesh, CHAIR, 0, replace(CONFIG, lights=1))
    assert same == pytest.approx(100, abs=0.1) and off == pytest.approx(20, abs=0.1) and one_light < 60
    assert text_to_3d.texture_psnr(views, ball(50.0), CHAIR, 0, CONFIG) == 0.0


def test_a_mesh_is_made_once_and_its_failure_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_mesh, "validate_glb", lambda path: None)
    monkeypatch.setattr(
        text_to_mesh, "nearest_reference", lambda *given: {"f_score": 0.5, "chamfer": 0.1, "nearest": 0}
    )
    made = []

    def make(wanted: Wanted, seed: int) -> Drawn:
        made.append(seed)
        if seed == 2:
            raise UnprojectError("nothing is left")
        return Drawn(join_meshes([ball(), ball(0.2)]) if seed == 1 else ball(), 5)

    monkeypatch.setattr(text_to_3d, "_loaded", lambda *given: make)
    records = []
    for seed in (0, 0, 1, 2):
        place = text_to_3d._place(tmp_path, "a way", CHAIR, seed)
        records.append(text_to_3d.make_one("a way", CHAIR, seed, "toybox", CONFIG, str(place)))
    assert made == [0, 1, 2] and records[0] == records[1]
    assert records[0]["solid"] and not records[2]["solid"] and records[3]["failed"] == "nothing is left"
    assert records[0]["forwards"] == 5 and records[0]["texture_psnr"] > 0
    config = replace(CONFIG, meshes=replace(CONFIG.meshes, test_prompts=1, heldout_prompts=0))
    monkeypatch.setattr(text_to_3d, "jobs", lambda config, seed: [(CHAIR, one) for one in (0, 1, 2)])
    monkeypatch.setattr(text_to_3d, "diversity", lambda judge, views, true: float(len(views)))
    monkeypatch.setattr(text_to_3d, "prompts", lambda config: [CHAIR])
    judged = {"judged_noun": "chair", "judged_colour": "blue", "two_fronts": False}
    monkeypatch.setattr(text_to_3d, "judge_views", lambda *given: dict(judged))
    row = text_to_3d.row_of("a way", [records[0], *records[2:]], None, config, 0, tmp_path)  # type: ignore[arg-type]
    assert row["noun"]["value"] == pytest.approx(2 / 3, abs=1e-3) and row["colour"]["value"] == 0 and row["failed"] == 1
    assert row["solid"]["value"] == pytest.approx(1 / 3, abs=1e-3) and row["diversity"]["mean"] == 2.0
    text_to_3d.save_sheet(Path(tmp_path) / "sheet.png", ["a way"], config, 0, tmp_path)
    assert (tmp_path / "sheet.png").exists()


def test_a_shape_that_is_kept_has_the_same_silhouettes_pieces_and_handles():
    two = join_meshes([ball(), ball(0.7, 0.2)])
    same, more = kept_shapes.kept(two, two, 2000, 32), kept_shapes.kept(ball(), two, 2000, 32)
    assert same["iou"] == 1.0 and same["pieces"] == same["euler"] == 0 and same["chamfer"] < 0.05
    assert 0.5 < more["iou"] < 1 and more["pieces"] == 1 and more["euler"] == 2 and more["chamfer"] > same["chamfer"]
    assert kept_shapes.kept(None, two, 2000, 32)["iou"] == 0
    boxes = [torch.zeros(2, 4, 4, dtype=torch.bool) for _ in range(2)]
    boxes[0][:, :2], boxes[1][:, 1:3] = True, True
    assert kept_shapes.overlap(*boxes) == pytest.approx(1 / 3)


def test_settings_of_the_recipe_and_its_caches():
    recipe = load_config(MeshRecipe, "text-to-mesh/toybox")
    named = mesh_quality.settings()
    assert mesh_quality.at_setting(recipe, named[mesh_quality.REFERENCE], 1.0).score == recipe.score
    assert mesh_quality.at_setting(recipe, named["half the looks"], 1.0).optimise.steps == 22
    assert mesh_quality.at_setting(recipe, named["16 steps a look, deep:2"], 0.2).score.target_steps == 16
    assert mesh_quality.at_setting(recipe, named["4 steps a look"], 0.2).optimise.steps == 9
    assert named["fast"].spent == spending().fast and Spent() == spending().balanced
    asked = []

    def failing(*given):
        asked.append(given)
        raise InputError("no")

    with pytest.raises(InputError), pytest.MonkeyPatch.context() as patched:
        patched.setattr(mesh_quality, "apply_cache", lambda *given: asked.append(given))
        patched.setattr(mesh_quality, "remove_cache", lambda prior: asked.append("removed"))
        patched.setattr(mesh_quality, "made", failing)
        mesh_quality.made_at(recipe, None, named["16 steps a look, deep:2"], "a cup", 0, 1.0)  # type: ignore[arg-type]
    assert asked[0] == (None, "deep:2", 16) and asked[-1] == "removed"


def test_drawn_settings_are_compared_with_what_the_packaged_one_makes_of_a_seed(monkeypatch):
    asked = []

    class Stub:
        config = Direct25Config()

        def __call__(self, prompt, seed, num_inference_steps):
            asked.append((prompt, seed, self.config))
            if self.config.mesh.steps == spending().drawn.fast.fusion:
                raise UnprojectError("nothing")
            return SimpleNamespace(mesh=ball() if seed < 1000 else ball(0.2, 0.3), nfe=seed % 7)

    drawers = []

    def load(name, student="auto"):
        drawers.append(student)
        return Stub()

    monkeypatch.setattr(drawn_quality.Direct25TextToMesh, "from_pretrained", load)
    seen = {"judged_noun": "x", "judged_colour": "y"}
    monkeypatch.setattr(drawn_quality, "judge_views", lambda judge, views, one: seen)
    table = drawn_quality.drawn_table(drawn_quality.DrawnBench(2, 2000, 32), None, 3)
    rows = {row["setting"]: row for row in table}
    assert list(rows) == list(drawn_quality.settings())
    assert rows[drawn_quality.REFERENCE]["iou"]["mean"] == rows["deep:3"]["iou"]["mean"] == 1
    assert rows[drawn_quality.OTHER_SEED]["iou"]["mean"] < 0.9 and rows["fast"]["iou"]["mean"] == 0
    assert drawers == [None]  # the steps that are asked about are the prior's
    assert asked[0][1:] == (3, Direct25Config()) and asked[2][1] == 1003
    plans = {id(c): c for _, _, c in asked}.values()
    assert {c.normals.plan.solver for c in plans} >= {"unipc", None} and {c.paint.second_deg for c in plans} == {
        None,
        30.0,
    }
