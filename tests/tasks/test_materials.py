"""Material priors: codecs, limits of the stacked network, seeds, photographs, the critic, few steps, files."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from unproject.core.distillation.adversarial import Critical
from unproject.core.distillation.consistency import Consistent
from unproject.core.distillation.kinds import Told
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors.rows import COND, NULL
from unproject.core.training.config import TrainerConfig
from unproject.geometry.meshes import Mesh
from unproject.tasks.codecs.pbr import MaterialMaps, from_native, from_pictures, lifted, to_native, to_pictures
from unproject.tasks.formats import material_formats
from unproject.tasks.material_files import materialx, save_material, sphere
from unproject.tasks.material_train import MaterialConsistency, MaterialLoss, MaterialObjective
from unproject.tasks.materials import MaterialConfig, MaterialGenerator, MaterialPrior, load_materials
from unproject.utils.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(count: int = 2, size: int = 16, dtype: torch.dtype = torch.float32) -> MaterialMaps:
    rng = seeded()
    planes = [torch.rand(count, c, size, size + 8, generator=rng, dtype=dtype) for c in (3, 2, 1, 1, 1)]
    return MaterialMaps(planes[0], lifted(1.2 * planes[1] - 0.6), *planes[2:])


def batch(count: int = 2) -> dict:
    one = maps(count)
    found = {name: np.stack([one.arrays(i)[name] for i in range(count)]) for name in one.arrays(0)}
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(256, size=(count, 16, 24, 3), dtype=np.uint8) for name in ("photo", "textures")}
    return {**found, **pictures, "captions": ["red bricks"] * count, "texture_captions": ["blue waves"] * count}


@pytest.fixture
def prior(tiny_prior) -> MaterialPrior:
    return MaterialPrior.from_prior(tiny_prior)


@pytest.mark.parametrize(
    "there_and_back", [lambda m: from_pictures(to_pictures(m)), lambda m: from_native(to_native(m))]
)
def test_both_codecs_give_back_unit_normals_that_point_out(there_and_back) -> None:
    given = maps(dtype=torch.float64)
    back = there_and_back(given)
    for name in ("albedo", "normal", "height", "roughness", "metallic"):
        torch.testing.assert_close(getattr(back, name), getattr(given, name), rtol=0, atol=1e-12)


def test_normals_outside_the_disc_lie_down() -> None:
    xy = torch.tensor([[0.9, 0.9], [0.6, 0.0], [-1.5, 0.0]]).reshape(3, 2, 1, 1)
    found = lifted(xy)[..., 0, 0]
    torch.testing.assert_close(found[0], torch.tensor([0.5**0.5, 0.5**0.5, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([0.6, 0.0, 0.8]))  # not normalised of three: z follows
    torch.testing.assert_close(found[2], torch.tensor([-1.0, 0.0, 0.0]))


def test_native_channels_are_in_the_published_order() -> None:
    one = maps()
    channels = to_native(one)
    assert channels.shape[1] == 9
    torch.testing.assert_close(channels[:, 3:5], one.normal[:, :2])
    torch.testing.assert_close(channels[:, 5:8], 2 * torch.cat([one.height, one.roughness, one.metallic], 1) - 1)
    noisy = torch.cat([channels[:, :8], torch.randn_like(channels[:, 8:])], 1)
    torch.testing.assert_close(from_native(noisy).metallic, one.metallic)  # the ninth is not read
    with pytest.raises(InputError, match="normal has shape"):
        MaterialMaps(one.albedo, one.albedo[:, :2], one.height, one.roughness, one.metallic)


@torch.no_grad()
def test_untrained_it_draws_what_the_prior_draws_in_every_picture(tiny_prior, prior) -> None:
    z, time = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([20.0, 800.0])
    told = prior.encode_text(["red bricks", "tiles"])
    found = prior.predict(torch.cat([z] * 3, 1), time, told[COND])
    plain = tiny_prior.predict(z, time, tiny_prior.encode_text(["red bricks", "tiles"])[COND])
    torch.testing.assert_close(found, torch.cat([plain] * 3, 1), rtol=0, atol=2e-5)
    photo = prior.described(["red bricks", "tiles"], torch.rand(2, 3, 32, 32, generator=seeded()))
    torch.testing.assert_close(prior.predict(torch.cat([z] * 3, 1), time, photo[COND]), found, rtol=0, atol=1e-6)
    assert not bool(photo[NULL]["concat"].any())


def test_latents_are_three_groups_in_order(prior) -> None:
    one = maps()
    latents = prior.encode_maps(one)
    assert latents.shape == (2, 12, 4, 6)
    torch.testing.assert_close(latents[:, 4:8], prior.encode(one.normal / 2 + 0.5), rtol=0, atol=1e-5)
    found = prior.decode_maps(latents, tileable=True)
    assert found.albedo.shape == (2, 3, 16, 24)
    assert found.height.min() >= 0


@pytest.mark.parametrize("tileable", [True, False])
def test_a_batch_is_its_rows(prior, tileable: bool) -> None:
    make = MaterialGenerator(prior, MaterialConfig(steps=4, guidance=2.0))
    both = make(["red bricks", "tiles"], seed=[4, 9], tileable=tileable)
    assert both.nfe == 2 * 2 * 4
    for i, (text, seed) in enumerate((("red bricks", 4), ("tiles", 9))):
        alone = make(text, seed=seed, tileable=tileable)
        torch.testing.assert_close(alone.maps.albedo[0], both.maps.albedo[i], rtol=0, atol=1e-4)
    again = make(["red bricks", "tiles"], generator_of=[seeded(4), seeded(9)], tileable=tileable)
    assert torch.equal(again.maps.normal, both.maps.normal)
    plain = make("red bricks", seed=4, tileable=not tileable)
    assert not torch.equal(plain.maps.albedo[0], both.maps.albedo[0])
    steps: list[int] = []
    make("tiles", num_inference_steps=3, size=(16, 32), callback_on_step_end=lambda i, level, x: steps.append(i))
    assert steps == [0, 1, 2]


def test_a_photograph_is_seen_once_it_has_been_learnt(prior) -> None:
    with torch.no_grad():
        prior.network.conv_in.weight[:, :4] += 0.1
    make = MaterialGenerator(prior, MaterialConfig(steps=2))
    rng = np.random.default_rng(0)
    one, other = (make(image=rng.random((20, 30, 3)), seed=1).maps.albedo for _ in range(2))
    assert one.shape == (1, 3, 32, 32)
    assert not torch.allclose(one, other)


def test_messages_name_the_way_out(prior, tmp_path, monkeypatch) -> None:
    make = MaterialGenerator(prior, MaterialConfig(steps=2))
    with pytest.raises(InputError, match="prompt is empty and there is no image"):
        make("")
    with pytest.raises(InputError, match="multiples of 8 px"):
        make("tiles", size=(12, 16))
    with pytest.raises(InputError, match="between 1 and"):
        make("tiles", num_inference_steps=0)
    with pytest.raises(InputError, match="2 seeds or generators for 1"):
        make("tiles", seed=[1, 2])
    with pytest.raises(InputError, match="takes none"):
        MaterialGenerator(prior, MaterialConfig(distilled=True))
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="unproject train materials"):
        load_materials("toybox")
    with pytest.raises(InputError, match="the name of the materials is empty"):
        load_materials(" ")


def test_the_loss_reaches_the_network_alone(tiny_prior, prior) -> None:
    objective = MaterialObjective(prior, MaterialLoss(critic=None))
    found = objective.loss(batch(), seeded(), 0)
    found.loss.backward()
    assert all(p.grad is not None for p in prior.network.parameters())
    assert all(p.grad is None for p in tiny_prior.parameters())
    assert objective.loss(batch(), seeded(), 0).loss.item() == found.loss.item()
    assert [player.name for player in objective.players(TrainerConfig())] == ["unet"]


def test_the_critic_pulls_only_when_it_has_begun_and_sees_the_albedo_alone(prior) -> None:
    critical = Critical(weight=0.5, rank=2, start=3)
    objective = MaterialObjective(prior, MaterialLoss(critic=critical))
    plain = MaterialObjective(prior, MaterialLoss(critic=None))
    assert objective.loss(batch(), seeded(), 2).loss.item() == plain.loss(batch(), seeded(), 2).loss.item()
    pulled = objective.loss(batch(), seeded(), 3)
    assert pulled.loss.item() == pytest.approx(float(pulled.logs["error"]) - 0.5 * float(pulled.logs["realism"]))
    made, told = objective.drawn(batch(), seeded())
    assert made.shape == (2, 4, 4, 6)
    assert tuple(told.branches) == (COND,)
    prior.network.zero_grad()
    made.square().mean().backward()
    weight = prior.network.conv_out.weight.grad
    assert bool(weight[:4].any())
    assert not bool(weight[4:].any())
    prior.network.zero_grad()
    objective.critic_loss(batch(), seeded(), 5).loss.backward()
    assert any(p.grad is not None for p in objective.critic.heads.parameters())
    assert all(p.grad is None or not bool(p.grad.any()) for p in prior.network.parameters())
    players = objective.players(TrainerConfig())
    assert [(player.name, player.moves.after) for player in players] == [("unet", ""), ("critic", "unet")]


def test_four_steps_are_told_their_guidance(prior, tmp_path) -> None:
    prior.freeze()
    student = Student(prior, Told())
    objective = MaterialConsistency(student, Teacher(prior), Consistent(scale=(1.0, 4.0), grid=8), photo=1.0)
    objective.players(TrainerConfig())
    found = objective.loss(batch(), seeded(), 0)
    found.loss.backward()
    assert student.network.conv_in.weight.grad is not None
    assert bool(student.network.conv_in.weight.grad[:, :4].any())  # the photograph's kernel learns
    student.network.requires_grad_(False)
    make = MaterialGenerator(student.prior, MaterialConfig(4, 2.0, distilled=True, levels=8))
    drawn = make("tiles", seed=3)
    assert drawn.nfe == 4  # no second branch
    prior.base.save(tmp_path / "tiny")
    make.save(tmp_path / "fast", "tiny")
    again = load_materials(tmp_path / "fast")
    assert again.config == make.config
    torch.testing.assert_close(again("tiles", seed=3).maps.albedo, drawn.maps.albedo, rtol=0, atol=2e-2)
    with pytest.raises(InputError, match="no folder of a material prior"):
        make.save(tmp_path / "tiny", "tiny")


def test_files_hold_the_maps(tmp_path) -> None:
    arrays = maps(1).arrays(0)
    written = save_material(arrays, tmp_path / "m.1", ("npz", "glb", "mtlx"))
    assert all(path.is_file() for path in written)
    assert {path.name for path in written} >= {"m.1.npz", "m.1.glb", "m.1.mtlx", "m.1-albedo.png", "m.1-height.png"}
    height = np.asarray(Image.open(tmp_path / "m.1-height.png"))
    np.testing.assert_allclose(height / 65535, arrays["height"], atol=1e-5)
    normal = np.asarray(Image.open(tmp_path / "m.1-normal.png")) / 127.5 - 1
    np.testing.assert_allclose(normal, arrays["normal"], atol=0.01)
    mesh = Mesh.load(tmp_path / "m.1.glb")
    surface = mesh.textures["metallic_roughness"]
    np.testing.assert_allclose(surface[..., 1] / 255, arrays["roughness"], atol=0.01)
    np.testing.assert_allclose(surface[..., 2] / 255, arrays["metallic"], atol=0.01)
    with pytest.raises(InputError, match="materials are written as"):
        material_formats(["obj"])


def test_a_ball_is_closed_and_its_tiles_are_whole() -> None:
    ball = sphere(maps(1).arrays(0), rows=12)
    report = trimesh.Trimesh(ball.vertices.numpy(), ball.faces.numpy(), process=False)
    assert report.is_watertight
    assert report.is_winding_consistent
    assert report.volume == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.05)  # positive: it points outwards
    assert ball.uv is not None
    assert ball.uv.max(0).values.tolist() == [4.0, 2.0]
    assert float((ball.vertices.norm(dim=1) - 0.5).abs().max()) < 1e-6


def test_materialx_refers_to_every_map() -> None:
    root = ElementTree.fromstring(materialx("wall"))
    files = {node.get("value") for node in root.iter("input") if node.get("type") == "filename"}
    assert files == {f"wall-{name}.png" for name in ("albedo", "normal", "roughness", "metallic", "height")}
    names = {node.get("name") for node in root.iter()}
    for node in root.iter("input"):
        assert node.get("nodename") is None or node.get("nodename") in names
        assert node.get("output") is None or node.get("output") in names
    spaces = {node.get("value"): node.get("colorspace") for node in root.iter("input") if node.get("colorspace")}
    assert spaces == {"wall-albedo.png": "srgb_texture"}


def test_saved_manifest_says_what_it_is(prior, tmp_path) -> None:
    MaterialGenerator(prior).save(tmp_path / "m", "tiny", validation={"x0_error": 0.5})
    told = json.loads((tmp_path / "m" / "materials.json").read_text())
    assert told["base"] == "tiny"
    assert told["validation"] == {"x0_error": 0.5}
    assert told["config"]["steps"] == 50
