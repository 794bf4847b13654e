"""Text to mesh in one pass: a whole call, refining, missing weights, and what qualities spend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unproject.core.priors import GaussianMixturePrior, StableDiffusionPrior
from unproject.generate.amortised import Amortised, AmortisedConfig
from unproject.generate.field_networks import NetworkConfig
from unproject.geometry.fields import FieldConfig, HeadConfig, TriplaneConfig
from unproject.geometry.shapes.volume import VolumeShapeConfig
from unproject.geometry.volume import VolumeConfig
from unproject.pipelines import drawn_mesh
from unproject.pipelines.amortised_mesh import AmortisedTextToMesh
from unproject.pipelines.mesh_quality import Spent, at_quality, spent
from unproject.pipelines.text_to_mesh import MeshRecipe
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError

SMALL = replace(drawn_mesh.FINISH, resolution=17, faces=200, texture=32)
SIDE = 8
REFINED = {
    "score": {"guidance": 1.0},
    "optimise": {"sizes": [[0, SIDE]], "guided_px": SIDE, "checkpoint_every": 0},
    "mesh": {"resolution": 16, "faces": 100, "texture": 16, "visibility_views": 0},
    "preview_every": 0,
}


@pytest.fixture(scope="module")
def amortised() -> Amortised:
    field = FieldConfig("triplane", head=HeadConfig("sdf", beta=(0.08,)), triplane=TriplaneConfig(8, 4, 8))
    network = NetworkConfig(width=16, layers=1, heads=2, tokens=2, style=3)
    volume = VolumeShapeConfig(field, VolumeConfig(step=0.2, cells=8))
    return Amortised(StableDiffusionPrior(tiny_sd(), "tiny"), AmortisedConfig(network, volume))


def test_a_prompt_becomes_a_closed_textured_mesh_without_asking_the_prior(amortised, tmp_path):
    pipe, rows = AmortisedTextToMesh(amortised, SMALL), amortised.prior.nfe
    made = pipe("a red chair", seed=3)
    assert made.report.watertight and 4 <= len(made.mesh.faces) <= 200 and "base_color" in made.mesh.textures
    assert made.nfe == 1 and amortised.prior.nfe == rows and made.seconds.keys() == {"draw", "mesh"}
    planes = amortised.draw(["a red chair"], [3])["planes"][0]
    assert torch.equal(made.shape.field.planes, planes)


def test_refining_goes_on_from_the_field(amortised, monkeypatch):
    guide = GaussianMixturePrior(torch.full((1, 3, SIDE, SIDE), 0.2), torch.tensor([0.5]))
    monkeypatch.setattr(drawn_mesh, "load_recipe", lambda *given: load_config(MeshRecipe, REFINED))
    made = AmortisedTextToMesh(amortised, SMALL, guide)("a red chair", seed=3, refine=1)
    planes = amortised.draw(["a red chair"], [3])["planes"][0]
    assert 0 < float((made.shape.field.planes.detach() - planes).abs().max()) <= 0.02 * 1.01  # a step of Adam
    assert made.nfe > 1 and made.config.refined is not None and made.shape.kind == "volume"


def test_missing_weights_say_how_to_make_some(amortised, tmp_path, monkeypatch):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"unproject train amortised --out runs/amortised\nand give --amortised"):
        AmortisedTextToMesh.from_pretrained("toybox")
    amortised.save(tmp_path / "toybox-amortised")
    assert AmortisedTextToMesh.find_weights("toybox", None) == tmp_path / "toybox-amortised"


def test_qualities_change_looks_and_never_lengthen_walks():
    recipe = load_config(MeshRecipe, "text-to-mesh/toybox")
    assert at_quality(recipe, "balanced") == recipe
    fast, best = at_quality(recipe, "fast"), at_quality(recipe, "best")
    assert fast.optimise.steps < recipe.optimise.steps < best.optimise.steps
    assert fast.score.target_steps == recipe.score.target_steps == best.score.target_steps
    assert spent(recipe, Spent(walk=4)).score.target_steps == 4
    changed = spent(recipe, Spent(looks=0.2, walk=100))
    assert changed.optimise.steps == 9 and changed.score.target_steps == 8
    with pytest.raises(InputError, match="have fast, balanced, best"):
        at_quality(recipe, "draft")
