"""Normal maps drawn from all around: their code, the ball a run begins with, cameras, and priors that know no maps."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from unproject.core.distillation.score import DivergedError
from unproject.core.priors import MultiViewPrior, inflate
from unproject.core.sampling.caches import cache_of
from unproject.core.sampling.caches.hooks import network_of
from unproject.core.sampling.levels import NoiseSchedule
from unproject.core.sampling.plan import SamplingPlan
from unproject.generate.view_normals import (
    NormalCode,
    NormalsDraw,
    Ring,
    agreement,
    blob_pictures,
    draw_normals,
    draw_views,
)
from unproject.generate.view_texture import NormalTexture, TextureConfig
from unproject.geometry.cameras import to_mvdream
from unproject.geometry.meshes import Mesh
from unproject.geometry.raycast import RayMesh
from unproject.pipelines.text_to_image import TextToImage
from unproject.scripts.random_backbones import seeded, tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator, sample_noise


def directions(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator(0)), dim=-1)


@pytest.mark.parametrize("code", [NormalCode(), NormalCode((2, 1, 0)), NormalCode((1, 2, 0), 0.0, apart=0.05)])
def test_pictures_of_normals_read_back(code: NormalCode) -> None:
    normals, whole = directions(2, 5, 4), torch.ones(2, 5, 4, 1)
    back, masks = code.decode(code.encode(normals, whole))
    torch.testing.assert_close(back, normals, rtol=0, atol=1e-5)
    assert bool((masks == 1).all())
    _, nothing = code.decode(code.encode(normals, 0 * whole))
    assert bool((nothing == 0).all())


def test_channels_are_axes_in_their_order_and_coverage_is_a_length() -> None:
    front, half = torch.tensor([1.0, 0, 0]).expand(1, 1, 1, 3), torch.full((1, 1, 1, 1), 0.5)
    assert NormalCode().encode(front, 2 * half)[0, :, 0, 0].tolist() == [1.0, 0.5, 0.5]
    assert NormalCode((2, 1, 0)).encode(front, 2 * half)[0, :, 0, 0].tolist() == [0.5, 0.5, 1.0]
    back, mask = NormalCode().decode(NormalCode().encode(front, half))
    assert float(mask) == pytest.approx(0.5) and back[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(InputError, match="hold 0, 1 and 2"):
        NormalCode((0, 0, 2))
    with pytest.raises(InputError, match="no normal of length 0"):
        NormalCode(background=0.0)


def test_the_published_colours_mean_what_the_published_driver_makes_of_them() -> None:
    """It rotates decoded normals by M into a world whose z axis is ours turned around: its pictures are bottom-up."""
    colours = directions(1, 3, 3)
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    theirs = colours @ turn.T
    ours, _ = NormalCode((2, 1, 0), 0.0, apart=0.05).decode((0.5 * colours + 0.5).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours, theirs * torch.tensor([1.0, 1, -1]), rtol=0, atol=1e-5)


def test_the_ball_has_the_size_that_its_scale_says() -> None:
    ring, size = Ring(60.0, 1.5 * 0.5 / math.tan(math.radians(30))), 128
    assert ring.reach == pytest.approx(0.75, rel=1e-5)
    pictures = blob_pictures(ring.camera(4, size), 0.4, NormalCode())
    normals, masks = NormalCode().decode(pictures)
    radius_px = 0.5 * size / math.tan(math.radians(30)) * 0.4 / math.sqrt(ring.distance**2 - 0.4**2)
    assert masks.sum((1, 2)).tolist() == pytest.approx([math.pi * radius_px**2] * 4, rel=0.02)
    middle = normals[:, size // 2, size // 2]
    torch.testing.assert_close(
        middle, torch.nn.functional.normalize(ring.camera(4, 8).centres, dim=-1), atol=0.05, rtol=0
    )


def test_a_run_begins_at_the_noised_ball_and_ends_at_the_normals_of_the_object(view_priors: ModuleType) -> None:
    prior = view_priors.KnownViews(view_priors.egg())
    config = NormalsDraw()
    normals, masks, camera = draw_normals(prior, "a red egg", config, generator(3))
    first = NoiseSchedule.from_config(prior.scheduler_config).grid(2)[0]
    ball = blob_pictures(camera, 0.8 / 1.5 * config.ring.reach, config.code)
    noise = torch.randn(1, 4, *prior.latent_shape, generator=generator(3))[0]
    alpha, sigma = first.coefficients(noise)
    torch.testing.assert_close(prior.states[0][:4], alpha * prior.encode(ball) + sigma * noise)
    found = agreement(view_priors.egg(), normals, masks, camera)
    assert found["angle_deg"] < 1 and found["iou"] > 0.97
    assert bool((prior.asked[0]["text"] == 1).all()) and prior.asked[0].frames == 4 and prior.nfe == 2 * 8
    again = draw_normals(view_priors.KnownViews(view_priors.egg()), "a red egg", config, generator(3))
    assert torch.equal(again[0], normals)


def test_agreement_is_that_of_the_same_pose(view_priors: ModuleType) -> None:
    egg, ring = view_priors.egg(), Ring().camera(4, 32)
    seen = RayMesh(egg).render(ring, ("normal",))
    turned = Mesh(egg.vertices[:, [1, 0, 2]] * torch.tensor([-1.0, 1, 1]), egg.faces).with_smooth_normals()
    found = agreement(turned, seen.normal, seen.alpha[..., 0], ring)
    assert found["angle_deg"] > 10 and found["iou"] < 0.9


def test_priors_that_draw_no_normal_maps_are_refused_by_name(view_priors: ModuleType) -> None:
    blind = view_priors.KnownViews(view_priors.egg(), words=("a", "red", "egg"))
    with pytest.raises(InputError, match=r"'known' knows no normal maps: it has never seen 'normal'.*train multiview"):
        draw_normals(blind, "a red egg", NormalsDraw(), generator(0))
    single = view_priors.KnownViews(view_priors.egg())
    single.frames = 1
    with pytest.raises(InputError, match="'known' draws single images"):
        draw_normals(single, "a red egg", NormalsDraw(), generator(0))


def test_a_view_that_shows_nothing_is_a_failed_run(view_priors: ModuleType) -> None:
    prior = view_priors.KnownViews(view_priors.egg())
    far = Mesh(
        view_priors.egg().vertices + torch.tensor([0.0, 9.0, 0.0]), view_priors.egg().faces
    ).with_smooth_normals()
    prior.mesh = RayMesh(far)
    with pytest.raises(DivergedError, match=r"no object in view 0 of 4; try another seed"):
        draw_normals(prior, "a red egg", NormalsDraw(), generator(0))


def tiny_views() -> MultiViewPrior:
    pipe = tiny_sd()
    return seeded(lambda: MultiViewPrior(pipe, inflate(pipe.unet), "tiny-mv"))


def test_a_cache_of_the_plan_holds_features_of_all_views_together() -> None:
    """As text-to-image draws them with the same noise; a batch of objects is each of them; nothing stays behind."""
    prior = tiny_views()
    camera, plan = Ring().camera(4, prior.image_size), SamplingPlan(steps=9, guidance=3.0)

    def drawn(cache: str | None) -> torch.Tensor:
        return draw_views(prior, "a cat", camera, plan.changed(cache=cache), generator(5))

    plain, held = drawn(None), drawn("deep:3")
    assert torch.equal(drawn("deep:1"), plain) and not torch.allclose(held, plain, atol=1e-4)
    assert cache_of(network_of(prior)) is None and torch.equal(drawn(None), plain)
    noise = sample_noise((4, *prior.latent_shape), generator(5), 1)[0]
    pipe, how = TextToImage(prior, "native"), {"cameras": to_mvdream(camera.c2w), "output_type": "pt"}
    cached = plan.changed(cache="deep:3")
    theirs = pipe("a cat", plan=cached, latents=noise, **how).images
    torch.testing.assert_close(torch.as_tensor(theirs), held, atol=1e-5, rtol=0)
    both = pipe(["a cat", "a dog"], plan=cached, latents=torch.cat([noise.flip(0), noise]), **how).images
    one = pipe("a dog", plan=cached, latents=noise, **how).images
    torch.testing.assert_close(both[4:], one, atol=1e-5, rtol=0)


def test_priors_that_read_maps_are_cached_on_the_network_that_is_asked() -> None:
    texture = NormalTexture(tiny_views(), TextureConfig(2))
    camera, maps = Ring().camera(4, texture.asked.image_size), torch.randn(4, 4, 8, 8, generator=generator(1))

    def drawn(cache: str | None) -> torch.Tensor:
        plan = SamplingPlan(steps=9, guidance=3.0, cache=cache)
        return draw_views(texture.asked, "a cat", camera, plan, generator(5), maps=maps)

    assert not torch.allclose(drawn("deep:3"), drawn(None), atol=1e-4)
    with pytest.raises(InputError, match="inverts its steps exactly"):
        draw_views(texture.asked, "a cat", camera, SamplingPlan(solver="edict", steps=9, cache="deep:3"), generator(0))
