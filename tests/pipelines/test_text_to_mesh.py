"""Text to mesh with a prior that knows the answer: a coloured box seen from the camera of each row."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.core.distillation.score import DivergedError, image_loss
from unproject.core.priors import SD_SCHEDULE, Condition, Prior, Rows, load_prior
from unproject.core.sampling import NoiseSchedule
from unproject.generate.guides import ViewTextGuide, make_guide
from unproject.generate.health import CollapsedError, Health, HealthConfig
from unproject.generate.held_targets import FitConfig, HeldTargets, RayBatch, exchanged
from unproject.generate.optimise import Optimisation
from unproject.generate.views import ViewConfig, draw_backgrounds, draw_cameras, view_classes
from unproject.geometry.cameras import Camera, opencv_from_opengl
from unproject.geometry.meshes import Mesh
from unproject.geometry.raycast import RayMesh
from unproject.pipelines import shortcuts
from unproject.pipelines.direct25_mesh import Direct25TextToMesh
from unproject.pipelines.text_to_mesh import MeshRecipe, TextToMesh, load_recipe
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SIZE, FOV = 24, 34.0
EXTENTS = (0.9, 0.6, 1.1)
RECIPE = {
    "score": {"guidance": 1.0, "rescale": 0.0, "window": {"low": [0.02], "high": [0.98]}},
    "optimise": {
        "steps": 40,
        "sizes": [[0, SIZE]],
        "guided_px": SIZE,
        "lr": [0, 2.0, 0.4, 1],
        "checkpoint_every": 4,
        "views": {
            "fov_y_deg": [FOV, FOV],
            "elevation_deg": [-45.0, 45.0],
            "margin": [1.0, 1.0],
            "grey": [1.0, 1.0],
            "grey_share": 1.0,
        },
        "shape": {
            "volume": {
                "occupancy_every": 5,
                "occupancy_from": 0.125,
                "rays": {"step": 0.05, "cells": 16},
                "field": {
                    "head": {"beta": [0, 0.1, 0.03, 0.75]},
                    "grid": {"sides": [9, 17, 33], "starts": [0, 0, 0], "geometry_lr": 0.02},
                },
            }
        },
        "losses": {"smooth": [1.0]},
    },
    "mesh": {"resolution": 40, "faces": 800, "texture": 96, "depth_samples": 4, "visibility_views": 24},
    "preview_every": 20,
}
HELD = {"score.space": "image", "optimise.fit": {"steps": 8, "rays": 1024, "sets": 2}, "optimise.health.patience": 3}


def box() -> Mesh:
    """A box, red with a blue top."""
    shape = trimesh.creation.box(EXTENTS).subdivide().subdivide()
    mesh = Mesh.from_trimesh(shape)
    top = mesh.vertices[:, 2:] > 0.99 * EXTENTS[2] / 2
    return replace(mesh, vertex_colors=torch.where(top, torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.9, 0.15, 0.1])))


class BoxPrior(Prior):
    """Pixels as latents; the posterior mean is the box from the row's camera, whatever the noise."""

    name, scheduler_config, image_size, latent_shape = "box", SD_SCHEDULE, SIZE, (3, SIZE, SIZE)
    frames, recipe, reads = 4, "toybox", frozenset({"text", "cameras"})

    def __init__(self) -> None:
        self.scene, self.schedule = RayMesh(box()), NoiseSchedule.from_config(SD_SCHEDULE)

    def modules(self):
        return {}

    def unknown_words(self, prompt):
        return [("wombat", ["cat"])] if "wombat" in prompt else []

    def encode_text(self, prompts, negative=None):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        empty = Rows({"text": torch.zeros(len(prompts), 1, 1)})
        return Condition({"cond": empty, "null": empty}, list(prompts))

    def encode(self, images, sample=False, generator=None):
        return 2 * images - 1

    def decode(self, latents, clamp=True):
        return (latents + 1) / 2

    def target(self, cameras: Tensor) -> Tensor:
        pose = opencv_from_opengl(cameras.view(-1, 4, 4)).clone()
        pose[:, :3, 3] /= math.sin(math.radians(FOV / 2))
        like = Camera.orbit(0.0, 0.0, 1.0, FOV, SIZE)
        view = Camera(pose, like.K.expand(len(pose), 3, 3), SIZE, SIZE)
        return self.encode(self.scene.render(view).rgb.permute(0, 3, 1, 2))

    def _forward(self, x, time, rows):
        level = self.schedule.at_index(time)
        alpha, sigma = level.coefficients(x)
        return (x - alpha * self.target(rows["cameras"])) / sigma


def recipe(**changes) -> MeshRecipe:
    return load_config(MeshRecipe, RECIPE, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("box")
    return TextToMesh(BoxPrior(), recipe())("a box", seed=3, out=folder), folder


@pytest.fixture(scope="module")
def followed():
    """The box by held targets: a quarter of the looks."""
    begun = {"optimise.lr": [0, 2.0, 1.6, 1], "optimise.shape.volume.occupancy_from": 0.5}  # the first quarter
    begun["optimise.shape.volume.field.head.beta"] = [0, 0.1, 0.1 - 0.07 / 3, 1]
    return TextToMesh(BoxPrior(), recipe(**HELD, **begun, **{"optimise.steps": 10}))("a box", seed=3)


@pytest.mark.parametrize("way", ["pulled", "held"])
def test_recovers_a_closed_box_of_the_right_size(way, made, followed):
    output = made[0] if way == "pulled" else followed
    report = output.report
    assert report.watertight and report.winding_consistent and report.components == 1 and report.euler == 2
    assert report.faces <= 800
    assert report.signed_volume == pytest.approx(math.prod(EXTENTS), rel=0.12)
    size = output.mesh.bounds[1] - output.mesh.bounds[0]
    torch.testing.assert_close(size, torch.tensor(EXTENTS), atol=0.12, rtol=0)


def test_held_targets_need_fewer_looks(followed):
    assert followed.nfe == 10 * 4 and len(followed.history) == 10 and "fit" in followed.history[-1]
    with pytest.raises(InputError, match=r'fit\.steps needs targets as images; set score\.space to "image"'):
        TextToMesh(BoxPrior(), recipe(**{"optimise.fit": {"steps": 1}, "optimise.steps": 1}))("a box")


def test_rays_of_a_held_set_estimate_the_image_loss():
    camera = draw_cameras(ViewConfig(views=2), 6, generator(1))
    target, rgb = torch.rand(2, 2, 3, 6, 6, generator=generator(2))
    held = HeldTargets(FitConfig(steps=1, rays=200_000, sets=1))
    for scale in (9.0, 1.0):  # the first set is dropped
        held.add(camera, torch.tensor([[0.2] * 3, [0.7] * 3]), target * scale, torch.tensor([1.0, 3.0]))
    batch = held.draw(generator(0))
    origins, directions = (x.reshape(-1, 3) for x in camera.rays())
    row = torch.cdist(batch.directions, directions).argmin(dim=1)
    torch.testing.assert_close(batch.origins, origins[row])
    torch.testing.assert_close(batch.background[:, 0], torch.where(row < 36, 0.2, 0.7))
    torch.testing.assert_close(batch.weight[:, 0], torch.where(row < 36, 1.0, 3.0))
    seen = rgb.permute(0, 2, 3, 1).reshape(-1, 3)[row]
    expected = image_loss(rgb, target, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(held.loss(seen, batch), expected, rtol=0.02, atol=0)


def test_targets_that_grow_replace_the_smaller_ones():
    """Renders that go to the prior as they are grow with the schedule; equal ones are held together."""
    held = HeldTargets(FitConfig(steps=1, rays=16, sets=3))
    camera = draw_cameras(ViewConfig(views=2), 6, generator(1))
    for size, sets in ((4, 1), (4, 2), (6, 1), (6, 2)):
        held.add(camera, torch.zeros(2, 3), torch.rand(2, 3, size, size, generator=generator(size)), torch.ones(2))
        assert (len(held.sets), held.pixels) == (sets, size * size)
        assert held.draw(generator(0)).target.shape == (16, 3)
    rows = torch.stack(held.sets).flatten(0, 1)
    index = torch.randint(2 * 2 * 36, (16,), generator=generator(0))
    assert torch.equal(held.draw(generator(0)).target, rows[index][:, 9:12])


def test_texture_has_the_colours_of_the_box(made):
    colors = made[0].mesh.with_vertex_colors()
    top = colors.vertices[:, 2] > 0.95 * colors.vertices[:, 2].max()
    side = colors.vertices[:, 2].abs() < 0.3
    torch.testing.assert_close(colors.vertex_colors[top].median(0)[0], torch.tensor([0.1, 0.2, 0.9]), atol=0.15, rtol=0)
    torch.testing.assert_close(
        colors.vertex_colors[side].median(0)[0], torch.tensor([0.9, 0.15, 0.1]), atol=0.15, rtol=0
    )


def test_cost_and_history_are_reported(made):
    output, folder = made
    assert output.nfe == 40 * 4 and len(output.history) == 40 and output.history[-1]["step"] == 40
    assert output.seconds["optimise"] > 0 and (folder / "preview.png").is_file()


def test_output_folder_holds_everything(made, tmp_path):
    names = {path.name for path in made[0].save(tmp_path, frames=2, size=32)}
    assert names == {"mesh.glb", "mesh.report.json", "turntable.gif", "turntable.mp4", "sheet.png", "run.json"}
    assert json.loads((tmp_path / "mesh.report.json").read_text())["solid"] is True
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["nfe"] == {"denoiser": 160} and record["notes"]["mesh"]["watertight"] is True
    assert Mesh.load(tmp_path / "mesh.glb").textures["base_color"].shape == (96, 96, 3)


@pytest.mark.parametrize("changes", [{}, HELD], ids=["pulled", "held"])
def test_resumed_run_is_equal_to_the_bit(changes, tmp_path):
    changed = recipe(**{**changes, "optimise.steps": 7, "optimise.shape.volume.occupancy_every": 3})
    config, guide = changed.optimise, make_guide(changed.score, BoxPrior(), "a box")
    whole = Optimisation(config, guide, seed=5)
    whole.run()
    first = Optimisation(config, guide, seed=5)

    def stop(work, step, log):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path, stop)
    second = Optimisation(config, guide, seed=5)
    assert second.resume(tmp_path) and second.step == 4
    assert 0 < second.shape.occupancy.share < 1, "cells of step 3 are known at step 4"
    second.run(tmp_path)
    for name, value in whole.shape.state_dict().items():
        assert torch.equal(value, second.shape.state_dict()[name]), name
    assert second.nfe == whole.nfe == 7 * 4 and second.history == whole.history
    with pytest.raises(InputError, match="seed"):
        Optimisation(config, guide, seed=6).resume(tmp_path)
    with pytest.raises(InputError, match="another lr"):
        Optimisation(replace(config, lr=(1.0,)), guide, seed=5).resume(tmp_path)


def test_collapse_is_noticed_early_and_names_the_remedy():
    empty = recipe(**{"optimise.losses": {"opacity": [1e6]}, "optimise.steps": 200, "optimise.lr": [20.0]})
    with pytest.raises(CollapsedError, match=r"vanished.*losses\.opacity"):
        TextToMesh(BoxPrior(), empty)("a box")


def test_health_notices_full_volumes_and_wild_numbers():
    work = Optimisation(recipe().optimise, make_guide(recipe().score, BoxPrior(), "a box"), 0)
    health = Health(HealthConfig(full=0.1, patience=2), 0.95)
    camera = draw_cameras(ViewConfig(), 12, generator(0))
    seen = work.picture(camera)
    health.check(0, work.shape, seen, camera, 1.0)
    with pytest.raises(CollapsedError, match="filled up"):
        health.check(1, work.shape, seen, camera, 1.0)
    with pytest.raises(DivergedError, match="step 3: the loss is not finite"):
        Health(HealthConfig(), 0.95).check(3, work.shape, seen, camera, float("nan"))
    with torch.no_grad():
        work.shape.field.geometry[0].fill_(1e9)
    with pytest.raises(DivergedError, match=r"geometry\.0 reached"):
        Health(HealthConfig(), 0.95).check(10, work.shape, seen, camera, 1.0)


def test_unknown_words_warn_and_empty_prompts_raise():
    short = recipe(**{"optimise.steps": 1, "mesh.texture": 16})
    with pytest.warns(UserWarning, match=r"'wombat' \(did you mean cat\?\).*sd15"):
        TextToMesh(BoxPrior(), short)("a wombat")
    with pytest.raises(InputError, match="empty"):
        TextToMesh(BoxPrior(), short)("  ")
    with pytest.raises(InputError, match="prompt=None must be one text"):
        TextToMesh(BoxPrior(), short)(None)


@pytest.mark.parametrize(
    "ask",
    [
        TextToMesh.from_pretrained,
        Direct25TextToMesh.from_pretrained,
        load_prior,
        lambda prior: shortcuts.text_to_mesh("a red chair", prior=prior),
        lambda prior: shortcuts.text_to_image("a red chair", prior=prior),
        lambda prior: shortcuts.depth("photo.jpg", prior=prior),
    ],
)
def test_a_list_is_no_name_of_a_prior(ask):
    with pytest.raises(InputError, match=r"prior.* is \['toybox'\], which is no text"):
        ask(["toybox"])


def test_a_prompt_is_looked_at_before_networks_are_loaded(monkeypatch):
    monkeypatch.setattr(shortcuts, "_maker", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="prompt=None must be one text"):
        shortcuts.text_to_mesh(None)
    monkeypatch.setattr(shortcuts, "_painter", lambda *_: pytest.fail("loaded"))
    for wrong in (None, [], ["a red chair", None]):
        with pytest.raises(InputError, match="must be one text"):
            shortcuts.text_to_image(wrong)


def test_pictures_in_one_line(monkeypatch):
    asked = []
    monkeypatch.setattr(shortcuts, "_painter", lambda *named: lambda *said, **options: asked.append((*named, *said)))
    shortcuts.text_to_image(["a red chair", "a blue car"], prior="toybox-dit", seed=3)
    shortcuts.text_to_image("a red chair")
    assert asked == [("toybox-dit", "cpu", ["a red chair", "a blue car"]), ("toybox", "cpu", "a red chair")]


def test_steps_change_nothing_else():
    pipe = TextToMesh(BoxPrior(), recipe())
    changed = pipe._adjusted(steps=80, guidance=2.0, faces=100, texture=2048)
    assert changed.mesh == replace(pipe.recipe.mesh, faces=100, texture=2048)
    assert changed.optimise == replace(pipe.recipe.optimise, steps=80)
    assert changed.score == replace(pipe.recipe.score, guidance=2.0) and changed.mesh.faces == 100
    with pytest.raises(InputError, match="num_inference_steps=0"):
        pipe._adjusted(steps=0, guidance=None, faces=None)


def test_recipe_follows_the_prior():
    assert load_recipe("default", BoxPrior()) == load_recipe("toybox", BoxPrior())
    with pytest.raises(InputError, match="toybox"):
        load_recipe("toybix", BoxPrior())


@pytest.mark.parametrize("side", [512, 768, 1024])
def test_a_prior_of_single_images_is_shown_its_own_size(side):
    prior = BoxPrior()
    prior.frames, prior.recipe, prior.image_size = 1, "stable-diffusion", side
    assert load_recipe("default", prior).optimise.guided_px == load_recipe(None, prior).optimise.guided_px == side
    assert load_recipe("stable-diffusion-single-view", prior).optimise.guided_px == 512


def test_the_backdrop_is_what_the_border_shows():
    camera = draw_cameras(ViewConfig(views=2), 8, generator(0))
    target = torch.full((2, 3, 8, 8), 0.3)
    target[1] = 0.6
    target[:, :, 2:6, 3:] = 0.9  # an object that touches the edge
    for backdrop, expected in (("given", (0.1, 0.1)), ("border", (0.3, 0.6))):
        held = HeldTargets(FitConfig(steps=1, backdrop=backdrop))
        held.add(camera, torch.full((2, 3), 0.1), target, torch.ones(2))
        seen = held.sets[0][:, 6:9].view(2, 64, 3)
        torch.testing.assert_close(seen, torch.tensor(expected)[:, None, None].expand(2, 64, 3))


def test_an_exchanged_backdrop_tells_gaps_from_surfaces_of_its_colour():
    """A gap shows the new backdrop, an object its own colour; only a painted backdrop is wrong before the new one."""
    behind, red = torch.tensor([0.6, 0.6, 0.6]), torch.tensor([0.8, 0.1, 0.1])
    gap = torch.arange(2000) % 2 == 0
    target = torch.where(gap[:, None], behind, red)
    batch = RayBatch(
        torch.zeros(2000, 3), torch.zeros(2000, 3), behind.expand(2000, 3), target, *torch.ones(2, 2000, 1)
    )
    seen = exchanged(batch, 0.2, generator(0))
    torch.testing.assert_close(seen.target[gap], seen.background[gap])
    torch.testing.assert_close(seen.target[~gap], target[~gap])
    assert seen.background.std(0).sub(12**-0.5).abs().max() < 0.02  # uniform in [0, 1]
    for batch_of, right in ((batch, True), (seen, False)):
        painted = (behind - batch_of.target)[gap].square().mean()
        assert (painted < 1e-9) == right
    with pytest.raises(InputError, match=r"fit\.matte=-1"):
        FitConfig(matte=-1)


def test_camera_groups_are_ninety_degrees_apart_and_share_the_rest():
    config = ViewConfig(groups=2)
    camera = draw_cameras(config, 32, generator(4))
    azimuth = torch.rad2deg(torch.atan2(camera.centres[:, 1], camera.centres[:, 0])).view(2, 4)
    steps = (azimuth[:, 1:] - azimuth[:, :-1]) % 360
    torch.testing.assert_close(steps, torch.full_like(steps, 90.0), atol=1e-3, rtol=0)
    height = camera.centres[:, 2].view(2, 4)
    torch.testing.assert_close(height, height[:, :1].expand(2, 4))
    radius = camera.centres.norm(dim=-1) * torch.sin(camera.fov_y_rad / 2)
    assert radius.min() > 0.919 and radius.max() < 1.081
    background = draw_backgrounds(config, generator(0))
    assert background.shape == (8, 3) and torch.equal(background[0], background[3])


def test_view_words_follow_the_camera():
    camera = Camera.orbit([0, 44, 90, 136, 180, 270, 10], [0, 0, 0, 0, 10, 0, 70], 3.0, 30.0, 8)
    assert view_classes(camera) == ["front", "front", "side", "back", "back", "side", "top"]

    class Words(BoxPrior):
        def encode_text(self, prompts, negative=None):
            self.texts = list(prompts)
            numbers = Rows({"text": torch.arange(len(prompts)).float()[:, None, None]})
            return Condition({"cond": numbers, "null": numbers}, self.texts)

        def predict(self, x, time, rows):
            self.asked = [self.texts[int(number)] for number in rows["text"].flatten()]
            return torch.zeros_like(x)

    model = Words()
    guide = ViewTextGuide(recipe().score, model, "a box")
    guide(torch.zeros(7, 3, SIZE, SIZE), camera, 0, generator(0))
    assert model.asked[3:] == ["a box, back view", "a box, back view", "a box, side view", "a box, top view"]
