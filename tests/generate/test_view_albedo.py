"""Light taken out of a base colour: exact where the prior knows the albedo, details stay, and who cannot is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from unproject.core.priors import load_prior
from unproject.generate.finish import write_pictures
from unproject.generate.view_albedo import AlbedoConfig, check_knows_albedo, lost_light, without_shading
from unproject.geometry.bake import rasterise_uv
from unproject.geometry.colors import linear_from_srgb, srgb_from_linear
from unproject.geometry.meshes import Mesh
from unproject.geometry.unwrap import unwrap
from unproject.pipelines.mesh_albedo import take_out_shading
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image
from unproject.utils.seeds import generator

WORDS = ("a", "red", "egg", "albedo")


def painted(priors: ModuleType, colours: np.ndarray) -> Mesh:
    """An egg with a base colour (T, T, 3) in [0, 1]."""
    bare = unwrap(Mesh(priors.egg().vertices, priors.egg().faces).with_smooth_normals(), len(colours))
    return replace(bare, textures={"base_color": (colours * 255).round().astype(np.uint8)})


def test_the_ratio_is_of_linear_light_and_knows_no_background() -> None:
    rng = torch.Generator().manual_seed(0)
    lit = torch.rand((2, 24, 24, 3), generator=rng) * 0.5 + 0.2
    alpha = torch.zeros(2, 24, 24, 1)
    alpha[0, 3:20, 5:15], alpha[1, 8:11, 2:22] = 1, 1
    brighter = srgb_from_linear(2 * (linear_from_srgb(lit) + 0.02) - 0.02)  # a stop more, dark included
    outside = torch.where(alpha > 0, brighter, torch.rand(lit.shape, generator=rng))
    stops = lost_light(lit, outside, alpha, 0.1)
    assert torch.allclose(stops[alpha[..., 0] > 0], torch.ones(()), atol=1e-4)
    assert float(lost_light(lit, lit, alpha, 0.1).abs().max()) == 0


def test_a_flat_light_goes_and_what_was_painted_stays(view_priors: ModuleType) -> None:
    """Stripes, and a prior that draws a grey twice as bright as their mean: texels get the ratio of the means."""
    stripes = np.zeros((128, 128, 3), np.float32)
    stripes[...] = np.where(np.arange(128)[:, None, None] % 16 < 8, [0.4, 0.3, 0.2], [0.25, 0.3, 0.4])
    mesh = painted(view_priors, stripes)
    seen = view_priors.RayMesh(mesh).render(view_priors.Ring(elevation_deg=15.0).camera(4, 32), ("rgb",), supersample=2)
    mean = linear_from_srgb(seen.rgb)[seen.alpha[..., 0] > 0.99].mean(0)
    light = 2 * mean.mean()
    prior = view_priors.KnownViews(view_priors.egg(), paints=float(srgb_from_linear(light)), words=WORDS)
    made = without_shading(mesh, prior, "a red egg", generator(0), AlbedoConfig(redrawn=1.0, smooth=10.0))
    new, old = (linear_from_srgb(torch.from_numpy(m.textures["base_color"] / 255)) for m in (made, mesh))
    ratio = (new / old)[rasterise_uv(mesh, 128).mask]
    assert torch.allclose(ratio.mean(0).float(), (light + 0.02) / (mean + 0.02), rtol=0.03)
    assert float(ratio.std(0).max()) < 0.1  # of the stripes nothing is lost
    assert torch.equal(made.vertices, mesh.vertices) and made.notes["albedo"] == 1


def test_who_cannot_take_light_out_is_told_why(view_priors: ModuleType) -> None:
    egg = view_priors.egg()
    with pytest.raises(InputError, match="never seen 'albedo'"):
        check_knows_albedo(view_priors.KnownViews(egg, words=("a", "red", "egg")))
    with pytest.raises(InputError, match="draws single images"):
        check_knows_albedo(load_prior("toybox"))
    with pytest.raises(InputError, match="no base colour"):
        without_shading(egg, view_priors.KnownViews(egg, words=WORDS), "a red egg", generator(0))
    for wrong in ({"redrawn": 0.0}, {"smooth": 0.0}, {"background": 1.5}):
        with pytest.raises(InputError, match="albedo: "):
            AlbedoConfig(**wrong)
    check_knows_albedo(load_prior("toybox-mv"))


def test_an_output_counts_what_it_cost_and_is_lit_in_pictures(view_priors: ModuleType, tmp_path: Path) -> None:
    mesh = painted(view_priors, np.full((64, 64, 3), 0.4, np.float32))
    prior = view_priors.KnownViews(view_priors.egg(), paints=0.4, words=WORDS)
    told = {"mesh": mesh, "seed": 3, "prompt": "a red egg", "negative_prompt": None, "report": None, "config": None}
    made = take_out_shading(SimpleNamespace(**told, nfe=5, seconds={"mesh": 1.0}), prior)  # type: ignore[type-var]
    assert made.nfe == 5 + prior.nfe > 5 and set(made.seconds) == {"mesh", "albedo"}
    assert made.report is not None and made.mesh.notes["albedo"] == 1
    pictures = {}
    for name, shown in (("lit", made.mesh), ("plain", replace(made.mesh, notes={}))):
        (tmp_path / name).mkdir()
        pictures[name] = load_image(write_pictures(shown, (tmp_path / name).joinpath, 0, 64)[0])
    assert not np.array_equal(pictures["lit"], pictures["plain"])
