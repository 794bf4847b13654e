"""Text to mesh by normal maps: a whole call on a prior that draws a known solid, and what is said where parts lack."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unproject.core.distillation.score import DivergedError
from unproject.core.priors import MultiViewPrior, inflate
from unproject.generate.fuse import FuseConfig
from unproject.generate.view_paint import PaintConfig
from unproject.generate.view_texture import NormalTexture, TextureConfig
from unproject.geometry.extract import EmptySurfaceError
from unproject.geometry.metrics import compare_meshes
from unproject.pipelines import direct25_mesh
from unproject.pipelines.direct25_mesh import PUBLISHED, Direct25Config, Direct25TextToMesh, find_weights
from unproject.pipelines.mesh_albedo import paint_albedo, take_out_shading
from unproject.scripts.random_backbones import seeded, tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SMALL = Direct25Config(mesh=FuseConfig(hull=20, steps=12, edge=(0.08, 0.3), faces=900), paint=PaintConfig(texture=64))


def pipeline(priors: ModuleType, painter: bool = True) -> Direct25TextToMesh:
    egg = priors.egg()
    return Direct25TextToMesh(priors.KnownViews(egg), SMALL, painter=priors.KnownViews(egg) if painter else None)


def test_a_prompt_becomes_the_solid_that_the_prior_draws(view_priors: ModuleType, tmp_path: Path) -> None:
    pipe, losses = pipeline(view_priors), []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = pipe(
            "a red egg",
            seed=3,
            out=tmp_path,
            callback_on_step_end=lambda pipe, step, log, more: losses.append(log["loss"]),
        )
    assert made.report.watertight and "base_color" in made.mesh.textures and len(made.mesh.faces) <= 900
    near = compare_meshes(made.mesh, view_priors.egg(), 4000, generator(1))
    assert near["chamfer"] < 0.12 and made.agreement["iou"] > 0.9 and made.agreement["angle_deg"] < 20
    assert made.nfe == 4 * 2 * 2 * 2 and len(losses) == len(made.history) == 12 and losses[-1] < losses[0]
    assert made.seconds.keys() == {"normals", "fusion", "texture"} and made.radius == pytest.approx(1.04, abs=0.01)
    assert {path.name for path in tmp_path.iterdir()} == {"normals.png", "views.png"}
    assert made.views.shape == (4, 32, 32, 3) and made.normals.shape == (4, 32, 32, 3)


def test_settings_of_a_call_reach_both_drawings(view_priors: ModuleType) -> None:
    pipe = pipeline(view_priors)
    changed = pipe._adjusted(3, 1.5, 500, 30.0, 256)
    assert changed.paint.texture == 256
    for plan in (changed.normals.plan, changed.paint.plan):
        assert plan.steps == 3 and plan.guidance == 1.5
    assert changed.mesh.faces == 500 and changed.paint.second_deg == 30.0 and pipe.config == SMALL
    assert pipe._adjusted(None, None, None, None) == SMALL
    for wrong in (
        {"faces": 3},
        {"texture": 15},
        {"texture": 4097},
        {"num_inference_steps": 0},
        {"second_ring": 95.0},
        {"second_ring": "x"},
    ):
        with pytest.raises(InputError, match=r"faces|texture=(15|4097)|num_inference_steps|second_deg|second_ring"):
            pipe("a red egg", **wrong)
    with pytest.raises(InputError, match="the prompt is empty"):
        pipe(" ")


def test_a_prior_without_a_network_of_normals_says_how_to_train_one(view_priors: ModuleType) -> None:
    pipe = pipeline(view_priors, painter=False)
    pipe.config = replace(SMALL, mesh=replace(SMALL.mesh, steps=3))
    with pytest.warns(UserWarning, match="unproject train direct25-texture"):
        made = pipe("a red egg", seed=0)
    assert made.mesh.notes["unseen_share"] < 1 and made.nfe == 4 * 2 * 2 + 4 * 2  # one step of two is redrawn


def test_priors_without_normal_maps_are_refused_when_they_come(view_priors: ModuleType) -> None:
    with pytest.raises(InputError, match="knows no normal maps: it has never seen 'normal'"):
        Direct25TextToMesh(view_priors.KnownViews(view_priors.egg(), words=("a",)))


def test_maps_that_no_solid_has_are_a_failed_run(view_priors: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*given: Any) -> None:
        raise EmptySurfaceError("no point lies inside all masks")

    monkeypatch.setattr(direct25_mesh, "fuse_normals", empty)
    with pytest.raises(DivergedError, match=r"no point lies inside all masks.*try another seed"):
        pipeline(view_priors)("a red egg")


def tiny() -> MultiViewPrior:
    pipe = tiny_sd()
    return seeded(lambda: MultiViewPrior(pipe, inflate(pipe.unet), "tiny-mv"))


def test_weights_are_found_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = NormalTexture(tiny(), TextureConfig(2)).save(tmp_path / "export")
    assert find_weights("tiny", None) is None and find_weights("tiny", folder) == folder
    beside = folder.rename(tmp_path / "tiny-direct25")
    assert find_weights(tmp_path / "tiny-mv", None) == beside and find_weights(tmp_path / "other", None) is None
    folder = beside.rename(folder)
    with pytest.raises(InputError, match="do not exist"):
        find_weights("tiny", tmp_path / "none")
    with pytest.raises(InputError, match="holds neither"):
        find_weights("tiny", tmp_path)
    monkeypatch.setattr(direct25_mesh, "load_prior", lambda *given, **more: tiny())
    pipe = Direct25TextToMesh.from_pretrained("tiny", folder)
    assert pipe.texture is not None and pipe.painter is pipe.texture.asked and pipe.config == Direct25Config()
    assert Direct25TextToMesh.from_pretrained("tiny").painter is None


def test_published_networks_come_with_their_conventions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both: Any = (tiny(), tiny())
    monkeypatch.setattr(direct25_mesh, "load_prior", lambda *given, **more: tiny())
    monkeypatch.setattr(direct25_mesh, "find_networks", lambda folder: {"MVUNet2DConditionModel": folder})
    monkeypatch.setattr(direct25_mesh, "load_direct25", lambda folder, base: both)
    pipe = Direct25TextToMesh.from_pretrained("sd21-base", tmp_path)
    assert (pipe.prior, pipe.painter) == both and pipe.config == PUBLISHED
    camera = pipe.config.normals.ring.camera(4, 256)
    assert torch.linalg.norm(camera.centres, dim=-1).tolist() == pytest.approx([1.299] * 4, abs=1e-3)
    assert PUBLISHED.normals.code.background == 0 and PUBLISHED.paint.code.background == 0.5


def test_albedo_is_asked_for_when_it_paints_and_then_only_noted(
    view_priors: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    egg, said = view_priors.egg(), []
    words = (*view_priors.WORDS, "albedo")
    painter, drawer = (view_priors.KnownViews(egg, words=words) for _ in range(2))
    told = painter.encode_text
    monkeypatch.setattr(
        painter, "encode_text", lambda texts, negative=None: said.append(texts) or told(texts, negative)
    )
    small = replace(SMALL, mesh=replace(SMALL.mesh, steps=2))
    pipe = paint_albedo(paint_albedo(Direct25TextToMesh(drawer, small, painter=painter)))
    made = pipe("a red egg", seed=0)
    assert said == [["a red egg, albedo"]] and "albedo" not in made.mesh.notes
    spent, texture = drawer.nfe + painter.nfe, made.mesh.textures["base_color"].copy()
    noted = take_out_shading(made, drawer)
    assert noted.mesh.notes["albedo"] == 1 and drawer.nfe + painter.nfe == spent and "albedo" not in noted.seconds
    assert (noted.mesh.textures["base_color"] == texture).all()
    with pytest.raises(InputError, match="never seen 'albedo'"):
        paint_albedo(Direct25TextToMesh(view_priors.KnownViews(egg), SMALL))
