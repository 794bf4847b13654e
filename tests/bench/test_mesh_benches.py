"""The experiments on meshes: what counts as a solid, and the table of fused maps, at toy sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from unproject.bench import direct25, direct25_text, solids, triplane_turbo
from unproject.bench.records import refuse_vacuous
from unproject.bench.registry import experiment
from unproject.bench.runner import Context
from unproject.generate.fuse import FuseConfig
from unproject.geometry.bake import bake
from unproject.geometry.extract import extract_surface, grid_points
from unproject.geometry.meshes import Mesh, join_meshes
from unproject.geometry.raycast import RayMesh
from unproject.geometry.solid import solid_surface
from unproject.geometry.unwrap import unwrap
from unproject.scripts.turbo_recipe import TurboRecipe
from unproject.utils.configs import CONFIGS, load_config, read_yaml
from unproject.utils.errors import InputError, UnprojectError


def box(at: tuple[float, float, float] = (0.0, 0.0, 0.0), side: float = 1.0) -> Mesh:
    mesh = Mesh.from_trimesh(trimesh.creation.box((side, side, side)))
    return replace(mesh, vertices=mesh.vertices + torch.tensor(at))


FAULTY = {
    "edge_manifold": replace(box(), faces=box().faces[1:]),
    "vertex_manifold": join_meshes([box(), box((1.0, 1.0, 1.0))]),
    "no_self_intersection": join_meshes([box(), box((0.3, 0.4, 0.45))]),
    "winding": replace(box(), faces=box().faces.flip(1)),
    "no_crumbs": join_meshes([box(), box((2.0, 0.0, 0.0), 0.05)]),
    "no_hidden_shells": join_meshes([box(), box((0.05, 0.0, 0.0), 0.3)]),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_each_measure_finds_its_fault(fault: str) -> None:
    found = solids.measures(FAULTY[fault], 0.02, 100, fault)
    assert not found[fault] and found["within_faces"]
    assert solids.summary(fault, [found])["solid"]["value"] == 0.0


def test_a_box_passes_all_and_budgets_count() -> None:
    whole = solids.measures(box(), 0.02, 12, "box")
    assert all(whole[measure] for measure in solids.MEASURES if measure in whole)
    assert not solids.measures(box(), 0.02, 11, "box")["within_faces"]
    row = solids.summary("boxes", [whole, {**whole, "open3d": False}])
    assert row["solid"]["value"] == 0.5 and row["open3d"]["value"] == 0.5 and row["trimesh"]["value"] == 1.0


def test_others_read_the_same_solid_from_a_textured_file() -> None:
    """Seams split vertices in the file; trimesh, Open3D and the validator still find the tangle's solid in it."""
    noise = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(4))
    points = grid_points(24, 1.0).float()
    values = torch.nn.functional.interpolate(noise, size=(24, 24, 24), mode="trilinear")[0, 0]
    lattice = extract_surface(torch.maximum(0.3 * values, points.norm(dim=-1) - 0.9), 0.0, sign=-1, keep="all")
    mesh = bake(unwrap(solid_surface(lattice, 0.02, 900), 256), lambda p, n: 0.5 + 0.5 * p.clamp(-1, 1), 256)
    split = mesh.split_seams()[0]
    assert len(split) > len(mesh.vertices) and mesh.check().euler < 0
    assert all(solids.as_others_read(mesh).values())
    found = solids.measures(mesh, 0.02, 900, "tangle")
    assert all(found[measure] for measure in solids.MEASURES if measure in found)


def test_prompts_are_drawn_once_and_alike_every_time() -> None:
    asked = solids.fresh_prompts(21)
    assert len({one.split()[-1] for one in asked}) == 21 and asked == solids.fresh_prompts(40)[:21]


def test_the_table_of_fused_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = FuseConfig(hull=20, steps=3, edge=(0.1, 0.3), faces=2000)
    monkeypatch.setattr(direct25, "QUICK", direct25.Direct25Bench(1, 24, (4,), fuse, 500, 1))
    result = direct25.run(Context("direct25", quick=True, out=tmp_path))
    ways = [row["way"] for row in result["table"]]
    assert ways == [direct25.HULL, direct25.POISSON, direct25.FUSED]
    assert result["table"][0]["of_hull_chamfer"] == 1.0 and (tmp_path / "direct25.png").exists()
    refuse_vacuous({"experiment": "direct25", "quick": True, **result}, experiment("direct25"))


def test_text_rows_compare_both_ways_and_count_what_failed(
    monkeypatch: pytest.MonkeyPatch, view_priors: ModuleType
) -> None:
    """On a prior that draws one egg: no diversity, exact agreement of seeds, and a seed that draws nothing."""
    egg, config = view_priors.egg(), direct25_text.TextBench(1, 3, None, 1, 500, 1)
    wanted = direct25_text.Wanted(0, "chair", "red", False)
    monkeypatch.setattr(direct25_text, "nearest_reference", lambda mesh, one, count: {"f_score": 0.5, "chamfer": 0.1})
    monkeypatch.setattr(direct25_text, "judged_views", lambda mesh, config: None)
    seen = {"judged_noun": "nothing", "judged_colour": wanted.colour, "two_fronts": True}
    monkeypatch.setattr(direct25_text, "judge_views", lambda judge, views, one: seen)
    made = SimpleNamespace(mesh=egg, nfe=16)

    def make(words: str, seed: int) -> SimpleNamespace:
        if seed == 2:
            raise UnprojectError("nothing there")
        return made

    records = [[direct25_text.measured(make, wanted, seed, config, SimpleNamespace()) for seed in range(3)]]
    row = direct25_text.summary(records, config, 0)
    assert row["failed"] == 1 and row["nfe"]["mean"] == 16 and row["solid"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert (
        row["colour"]["value"] == pytest.approx(2 / 3, abs=1e-3)
        and row["noun"]["value"] == 0
        and row["two_fronts"]["value"] == 1
    )
    assert row["diversity"]["n"] == 1 and row["diversity"]["mean"] < 0.2  # of the same mesh, by samples
    apart = [{"mesh": egg}, {"mesh": replace(egg, vertices=egg.vertices + torch.tensor([3.0, 0.0, 0.0]))}]
    assert direct25_text.between(apart, 500, 0)[0] > 1.5
    with pytest.raises(UnprojectError, match="no mesh came out of 1 runs: nothing there"):
        direct25_text.summary([[records[0][2]]], config, 0)
    assert direct25_text.pictured(None).min() == 1.0 and direct25_text.pictured(egg, 16).shape == (16, 16, 3)


def test_text_rows_wait_for_a_prior_with_normal_maps(monkeypatch: pytest.MonkeyPatch, view_priors: ModuleType) -> None:
    blind = view_priors.KnownViews(view_priors.egg(), words=("a",))
    monkeypatch.setattr(direct25_text, "load_prior", lambda name: blind)
    with pytest.raises(InputError, match=r"direct25-text wait for a prior that draws normal maps.*train multiview"):
        direct25_text.drawer("toybox")


def test_exact_maps_belong_to_the_object_that_is_compared() -> None:
    seen = direct25.look(direct25.chosen_programs(1)[0], 3, 32)
    points = seen.camera.unproject(seen.depth)[seen.depth > 0]
    scene = RayMesh(seen.truth)
    face, weights = scene.closest(points)
    nearest = (seen.truth.vertices[seen.truth.faces[face]] * weights[..., None]).sum(1)
    assert float((nearest - points).norm(dim=-1).max()) < 1e-3
    agree = (seen.truth.face_normals()[face] * seen.normals[seen.depth > 0]).sum(-1)
    assert np.median(agree.numpy()) > 0.95


def test_settings_of_triplane_turbo_differ_in_what_they_are_named_after() -> None:
    values = read_yaml(CONFIGS / "train" / "triplane-turbo.yaml")
    values.pop("objective")
    model = load_config(TurboRecipe, values).model
    made = triplane_turbo.settings(model, triplane_turbo.TurboBench(updates=7, scored=5))
    full, updates = made[triplane_turbo.FULL_K]
    assert (full.turbo.steps, full.taught, full.fresh, full.start.updates, updates) == (4, 0, True, 7, 7)
    one, own = made[triplane_turbo.ONE][0], made[triplane_turbo.OWN][0]
    assert replace(one, turbo=full.turbo) == full and one.turbo.steps == 1
    assert replace(own, fresh=True) == full and not own.fresh
    scored, lonely = made[triplane_turbo.SCORED], made[triplane_turbo.LONELY]
    assert scored[1] == lonely[1] == 5 and made[triplane_turbo.SHIPPED] == (scored[0], 0)
    assert set(scored[0].teachers) == {"single", "joint", "normals"} and scored[0].joint.prior == "toybox-mv"
    assert lonely[0].single == scored[0].single and not lonely[0].joint.prior and not lonely[0].normals.prior
    assert not scored[0].start.updates and not lonely[0].start.updates
