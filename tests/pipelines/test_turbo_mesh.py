"""Text to mesh by planes: a whole call, refining, and what is said where weights are missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unproject.core.priors import GaussianMixturePrior, StableDiffusionPrior
from unproject.generate.turbo import TriplaneTurbo, TurboConfig
from unproject.geometry.fields import DualConfig, FieldConfig, HeadConfig
from unproject.geometry.meshes import Mesh
from unproject.pipelines import drawn_mesh
from unproject.pipelines.text_to_mesh import MeshRecipe
from unproject.pipelines.turbo_mesh import TurboTextToMesh
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError

FIELD = FieldConfig("dual", head=HeadConfig("neus", inverse_std=(20.0,)), dual=DualConfig(features=4, width=8))
SMALL = replace(drawn_mesh.FINISH, resolution=17, faces=200, texture=32)
SIDE = 8
REFINED = {
    "score": {"guidance": 1.0},
    "optimise": {"sizes": [[0, SIDE]], "guided_px": SIDE, "checkpoint_every": 0},
    "mesh": {"resolution": 16, "faces": 100, "texture": 16, "visibility_views": 0},
    "preview_every": 0,
}


@pytest.fixture(scope="module")
def turbo() -> TriplaneTurbo:
    made = TriplaneTurbo(StableDiffusionPrior(tiny_sd(), "tiny"), TurboConfig(2, 2, FIELD))
    with torch.no_grad():
        made.shape.planes.heads.sdf_network.layers[4].weight.mul_(0.05)  # nearly a ball
    return made


def test_a_prompt_becomes_a_closed_textured_mesh(turbo, tmp_path):
    pipe = TurboTextToMesh(turbo, SMALL)
    made = pipe("a red chair", seed=3)
    assert made.report.watertight and 4 <= len(made.mesh.faces) <= 200 and "base_color" in made.mesh.textures
    assert made.nfe == 2 * 6 and made.history == [] and made.seconds.keys() == {"draw", "mesh"}
    assert len(Mesh.load(made.mesh.save(tmp_path / "chair.glb")).faces) == len(made.mesh.faces)
    other = pipe("a red chair", seed=4, faces=60, texture=48)
    assert len(other.mesh.faces) <= 60
    assert [m.mesh.textures["base_color"].shape[0] for m in (made, other)] == [32, 48]
    with pytest.raises(InputError, match="texture=8 must be at least 16"):
        pipe("a red chair", texture=8)
    assert torch.equal(turbo.draw(["a red chair"], [3])[0], made.shape.planes.planes)
    assert not torch.equal(other.shape.planes.planes, made.shape.planes.planes)


def test_refining_goes_on_from_the_planes(turbo, monkeypatch):
    guide = GaussianMixturePrior(torch.full((1, 3, SIDE, SIDE), 0.2), torch.tensor([0.5]))
    monkeypatch.setattr(drawn_mesh, "load_recipe", lambda *given: load_config(MeshRecipe, REFINED))
    pipe = TurboTextToMesh(turbo, SMALL, guide)
    first = []

    def watch(pipe, step, log, inside):
        first.append(inside["optimisation"].shape.planes.planes.detach().clone())

    made = pipe("a red chair", seed=3, refine=2, callback_on_step_end=watch)
    drawn = turbo.draw(["a red chair"], [3])[0]
    rate = 2 * 0.02 * 1.01  # of two steps of Adam
    assert len(first) == 2 and 0 < float((first[-1] - drawn).abs().max()) <= rate
    assert made.nfe > 12 and made.config.refined is not None and made.config.refined.optimise.steps == 2
    assert made.shape.kind == "dual" and made.seconds.keys() == {"optimise", "mesh", "draw"}


def test_missing_weights_say_how_to_make_some(tmp_path, turbo):
    with pytest.raises(InputError, match="unproject train triplane-turbo"):
        TurboTextToMesh.find_weights("other", None)
    with pytest.raises(InputError, match="do not exist"):
        TurboTextToMesh.find_weights("toybox", tmp_path / "none")
    assert TurboTextToMesh.find_weights("toybox", turbo.save(tmp_path / "made")) == tmp_path / "made"


def test_what_cannot_be_is_refused(turbo):
    pipe = TurboTextToMesh(turbo, SMALL)
    with pytest.raises(InputError, match="prompt is empty"):
        pipe(" ")
    with pytest.raises(InputError, match="negative_prompt is for refining"):
        pipe("a cup", "fog")
    with pytest.raises(InputError, match="refine"):
        pipe("a cup", refine=-1)
