"""Score distillation of materials: oracles, its equation, frozen parts, targets and their codecs."""

from __future__ import annotations

import pytest
import torch

from unproject.core.sampling import Prediction
from unproject.tasks.codecs import AlbedoCodec, SurfaceCodec
from unproject.tasks.codecs.intrinsic import channel_scaled, psnr
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.material_score import MaterialScore, ScoreConfig
from unproject.utils.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_head(prior, **settings) -> GeometryHead:
    config = {"targets": ("albedo", "surface"), "start": "noise", "steps": 4, "processing_resolution": 32}
    return GeometryHead.from_prior(prior, HeadConfig(**{**config, **settings}))


def materials(count: int = 2, size: int = 16) -> list[torch.Tensor]:
    """Photo, albedo, surface and mask."""
    made = [torch.rand(count, c, size, size + 8, generator=seeded(c)) for c in (3, 4, 2)]
    return [made[0], made[1][:, :3], made[2], torch.ones(count, 1, size, size + 8)]


def oracle(score: MaterialScore, albedo: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    """Makes the head answer that these are the materials, whatever it is asked; returns their latents."""
    head = score.head
    valid = torch.ones_like(albedo[:, :1], dtype=torch.bool)
    truth, _ = head.encode_targets({"albedo": albedo, "surface": surface}, valid)
    head.denoiser = lambda image: lambda x, level: Prediction(x, level, truth.detach(), "sample")
    return truth


def test_at_the_truth_an_oracle_does_not_pull(tiny_prior) -> None:
    photo, albedo, surface, mask = materials()
    score = MaterialScore(make_head(tiny_prior), ScoreConfig(picture=0.0))
    oracle(score, albedo, surface)
    found = albedo.clone().requires_grad_(True)
    score(photo, found, surface, mask, seeded()).loss.backward()
    assert float(found.grad.abs().max()) < 1e-7


def test_elsewhere_an_oracle_pulls_to_the_truth(tiny_prior) -> None:
    photo, albedo, surface, mask = materials()
    score = MaterialScore(make_head(tiny_prior), ScoreConfig(latent=1.0, picture=0.0))
    oracle(score, albedo, surface)
    off = (0.6 * albedo + 0.2).requires_grad_(True)
    first = score(photo, off, surface, mask, seeded()).loss
    first.backward()
    with torch.no_grad():
        moved = off - 1e-2 * off.grad / off.grad.norm()
    assert float(score(photo, moved, surface, mask, seeded()).loss) < float(first.detach())
    assert float((off.grad * (off.detach() - albedo)).sum()) > 0  # downhill is towards the truth


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_one_step_is_score_distillation_weighted_by_sigma_over_alpha(tiny_prior, kind: str) -> None:
    """dL/dz0 = 2 l (sigma / alpha) (eps_hat - eps) / n, and nothing flows through the network."""
    score = MaterialScore(make_head(tiny_prior, kind=kind), ScoreConfig(window=(0.4, 0.4), steps=1))
    head, photo = score.head, materials()[0]
    z0 = torch.randn(2, 8, 4, 6, generator=seeded(7)).requires_grad_(True)
    found = score.arrived(photo, z0, seeded(3))
    assert not found.requires_grad
    (0.05 * (found - z0).square().mean()).backward()
    rng = seeded(3)
    torch.rand((), generator=rng)
    eps = torch.randn(z0.shape, generator=rng)
    level = head.schedule.at_index(0.4 * 999)
    with torch.no_grad():
        guess = head.denoiser(head.encode_image(photo))(head.schedule.add_noise(z0, eps, level), level).eps
    expected = 2 * 0.05 * level.sigma / level.alpha * (guess - eps) / z0.numel()
    torch.testing.assert_close(z0.grad, expected, rtol=2e-3, atol=1e-7)


def test_through_keeps_the_affine_part_of_the_walk(tiny_prior) -> None:
    """The published code: z_hat depends on z0 by the solver's coefficients, not by the network."""
    photo = materials()[0]
    z0 = torch.randn(2, 8, 4, 6, generator=seeded(7))
    made = [
        MaterialScore(make_head(tiny_prior), ScoreConfig(through=through, steps=3)).arrived(
            photo, z0.clone().requires_grad_(True), seeded(1)
        )
        for through in (False, True)
    ]
    torch.testing.assert_close(made[0], made[1].detach(), rtol=1e-4, atol=1e-5)
    assert made[1].requires_grad
    assert not made[0].requires_grad


def test_pictures_pull_too_and_only_where_the_object_is(tiny_prior) -> None:
    photo, albedo, surface, mask = materials()
    mask[..., :12] = 0
    score = MaterialScore(make_head(tiny_prior), ScoreConfig(latent=0.0, picture=1.0))
    found = [one.clone().requires_grad_(True) for one in (albedo, surface)]
    score(photo, *found, mask, seeded()).loss.backward()
    for one in found:
        assert bool(one.grad[..., 12:].any())
        assert not bool(one.grad[..., :12].any())
    assert all(p.grad is None for p in tiny_prior.parameters())


def test_other_heads_are_refused(tiny_prior) -> None:
    with pytest.raises(InputError, match="has to draw albedo, surface from noise"):
        MaterialScore(GeometryHead.from_prior(tiny_prior, HeadConfig(processing_resolution=32)))
    with pytest.raises(InputError, match="steps=0"):
        ScoreConfig(steps=0)


def test_codecs_of_albedo_and_surface() -> None:
    _, albedo, surface, _ = materials()
    valid = torch.rand(2, 1, 16, 24, generator=seeded(5)) > 0.3
    a, s = AlbedoCodec(), SurfaceCodec()
    pictures = a.encode(albedo, valid)[0], s.encode(surface, valid)[0]
    torch.testing.assert_close(torch.where(valid, a.decode(pictures[0]), albedo), albedo)
    torch.testing.assert_close(torch.where(valid, s.decode(pictures[1]), surface), surface)
    assert bool((pictures[0].masked_select(~valid.expand_as(pictures[0])) == 1).all())
    assert bool((pictures[1].masked_select(~valid.expand_as(pictures[1])) == -1).all())
    assert bool((pictures[1][:, 0] == -1).all())  # no occlusion
    truth, known = a.truth((255 * albedo).permute(0, 2, 3, 1) / 255)
    assert truth.shape == albedo.shape
    assert known.all()
    factors = torch.tensor([0.5, 0.8, 1.3]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(channel_scaled(factors * albedo, albedo, valid), albedo)
    metrics = a.metrics(factors * albedo, albedo, valid)
    assert metrics["albedo_psnr"].min() > 60
    assert metrics["albedo_psnr_unscaled"].max() < 25
    off = psnr(albedo + 0.1, albedo, valid)
    torch.testing.assert_close(off, torch.full_like(off, 20.0), rtol=1e-3, atol=0)
    assert float(s.metrics(surface + 0.2, surface, valid)["metallic_mse"][0]) == pytest.approx(0.04, rel=1e-4)
