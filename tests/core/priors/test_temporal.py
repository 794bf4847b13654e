"""Temporal blocks on a 2-D U-Net and the prior of orbits: exact checks of the SVD card."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers.models.resnet import AlphaBlender

from unproject.core.priors import from_pipeline, load_prior
from unproject.core.priors.multiview import inflate
from unproject.core.priors.orbits import ANGLES, OrbitPrior
from unproject.core.priors.planes import sharing
from unproject.core.priors.temporal import TemporalConfig, TemporalParts, TemporalUNet
from unproject.core.priors.video import TOKEN
from unproject.core.sampling import DDIM, Denoiser, Sampler
from unproject.geometry.cameras import orbit_pose, to_mvdream
from unproject.scripts.random_backbones import seeded, tiny_sd, tiny_unet
from unproject.utils.errors import InputError

WIDE = {"block_out_channels": (32, 64)}


def loud(module, seed=1):
    """Random numbers in place of the zeros that a fresh module begins with."""
    random = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not bool(parameter.any()):
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return module


def inflated(twins=True):
    plain = seeded(lambda: tiny_unet(**WIDE)).requires_grad_(False)
    parts = seeded(lambda: TemporalParts(plain, 4, 3, TemporalConfig()), 2).requires_grad_(False)
    return plain, TemporalUNet(sharing(plain), loud(parts) if twins else parts)


@pytest.fixture
def asked():
    random = torch.Generator().manual_seed(6)
    told = {"x": (6, 4, 8, 8), "text": (6, 5, 32), "token": (6, 1, 32), "concat": (6, 4, 8, 8), "numbers": (6, 3)}
    drawn = {name: torch.randn(shape, generator=random) for name, shape in told.items()}
    drawn["token"] = drawn["token"][::3].repeat_interleave(3, 0)
    return {**drawn, "time": torch.tensor([30.0, 700.0]).repeat_interleave(3)}


def test_still_pictures_are_the_2d_network_bit_for_bit(asked):
    """(1) Whatever has been learnt, and after a clip too."""
    plain, whole = inflated()
    wanted = plain(asked["x"], asked["time"], asked["text"]).sample
    clip = whole(**asked, frames=3)
    assert not torch.allclose(clip, wanted, atol=1e-2)
    assert torch.equal(whole(asked["x"], asked["time"], asked["text"], still=True), wanted)
    assert torch.equal(plain(asked["x"], asked["time"], asked["text"]).sample, wanted)


def test_a_mix_factor_of_infinity_is_the_spatial_network_bit_for_bit(asked):
    """(1) AlphaBlender multiplies the spatial branch by sigmoid(mix): at 1 no twin is heard, at 0 only they are."""
    _, whole = inflated()
    mixers = [module for module in whole.modules() if isinstance(module, AlphaBlender)]
    for mixer in mixers:
        mixer.mix_factor.data.fill_(math.inf)
    spatial = whole(**asked, frames=3)
    alone = [whole(**{name: value[i : i + 1] for name, value in asked.items()}, frames=1) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), spatial, rtol=1e-4, atol=1e-5)
    for parts in (whole.parts.convs, whole.parts.attentions):
        for twin in parts:
            twin.register_forward_hook(
                lambda _, args, out: pytest.fail("heard") if not torch.equal(out, args[0]) else out
            )
    assert torch.equal(whole(**asked, frames=3), spatial)
    assert len(mixers) == len(whole.parts.convs) + len(whole.parts.attentions)


def test_a_fresh_network_is_the_2d_one(asked):
    """Twins, angles, concat and adapters add nothing at first; the token alone is read."""
    plain, whole = inflated(twins=False)
    told = plain(asked["x"], asked["time"], torch.cat([asked["text"], asked["token"]], 1)).sample
    torch.testing.assert_close(whole(**asked, frames=3), told, rtol=1e-4, atol=1e-5)


def test_frames_of_one_object_see_each_other_and_no_others(asked):
    _, whole = inflated()
    before = whole(**asked, frames=3)
    moved = {**asked, "x": asked["x"].clone()}
    moved["x"][1] += 1
    changed = (whole(**moved, frames=3) - before).abs().flatten(1).amax(1)
    assert bool((changed[:3] > 1e-3).all()) and float(changed[3:].max()) == 0


def test_temporal_attention_is_per_pixel_and_convolutions_reach_one_frame():
    _, whole = inflated()
    x = torch.randn(5, 64, 32, generator=torch.Generator().manual_seed(0))  # one object of 5 frames, 8 x 8 pixels
    twin, context = whole.parts.attentions[0], torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(1))
    moved = x.clone()
    moved[3, 17] += 1
    changed = (twin(moved, context, 5) - twin(x, context, 5)).abs().amax(-1)
    assert bool((changed[:, 17] > 0).all()) and float(changed.sum() - changed[:, 17].sum()) == 0
    other = context.clone()
    other[2] += 1  # the context of the first frame counts
    assert torch.equal(twin(x, other, 5), twin(x, context, 5))
    order = torch.tensor([1, 0, 2, 3, 4])
    assert not torch.allclose(twin(x[order], context, 5)[order], twin(x, context, 5), atol=1e-4)  # told its number
    convs, temb = whole.parts.convs[0].block, torch.zeros(1, 5, 128)
    picture = torch.randn(1, 32, 5, 4, 4, generator=torch.Generator().manual_seed(2))
    taps = convs.conv1(picture)
    picture[:, :, 4, 1, 2] += 1
    reach = (convs.conv1(picture) - taps).abs().amax((0, 1))
    assert bool((reach[3:, 1, 2] > 0).all()) and float(reach[:3].max()) == 0 and float(reach[3:].sum((1, 2))[0]) > 0
    assert convs(picture, temb).shape == picture.shape


def test_a_fresh_joint_network_with_poses_is_the_multi_view_one(asked):
    """Spatial attention over all frames, frames told where they look from: MVDream's network, by another way."""
    plain = seeded(lambda: tiny_unet(**WIDE)).requires_grad_(False)
    config = TemporalConfig(joint=True, cameras=True)
    parts = seeded(lambda: TemporalParts(plain, 4, 3, config), 2).requires_grad_(False)
    whole = TemporalUNet(sharing(plain), parts)
    twin = inflate(sharing(plain))
    loud(twin.camera_embedding)
    parts.cameras.load_state_dict(twin.camera_embedding.state_dict())
    _, elevation, azimuth = asked["numbers"].unbind(1)
    cameras = to_mvdream(orbit_pose(azimuth, elevation, torch.tensor(7.0)))  # of any distance
    text = torch.cat([asked["text"], asked["token"]], 1)
    wanted = twin(asked["x"], asked["time"], text, cameras, frames=3)
    answer = whole(**asked, frames=3)
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(answer, inflated(twins=False)[1](**asked, frames=3), atol=1e-3)
    still = plain(asked["x"], asked["time"], asked["text"]).sample
    assert torch.equal(whole(asked["x"], asked["time"], asked["text"], frames=3, still=True), still)


def test_poses_begin_as_those_of_a_prior_of_several_views():
    from unproject.scripts.orbit_recipe import begin_with_poses

    prior = OrbitPrior(load_prior("toybox"), TemporalConfig(joint=True, cameras=True))
    begin_with_poses(prior, "toybox-mv")
    given = load_prior("toybox-mv").modules()["camera_embedding"].state_dict()
    assert all(torch.equal(value, given[name]) for name, value in prior.parts.cameras.state_dict().items())
    with pytest.raises(InputError, match="cameras=toybox is no prior of several views"):
        begin_with_poses(prior, "toybox")
    with pytest.raises(InputError, match="no poses are told"):
        begin_with_poses(OrbitPrior(load_prior("toybox")), "toybox-mv")


def test_what_does_not_fit_is_named(asked):
    _, whole = inflated()
    with pytest.raises(InputError, match="6 rows does not hold whole groups of frames=4"):
        whole(**asked, frames=4)
    with pytest.raises(InputError, match="told their picture"):
        whole(asked["x"], asked["time"], asked["text"], frames=3)
    with pytest.raises(InputError, match="multiples of 32 channels, this network has 16"):
        TemporalParts(seeded(tiny_unet), 4, 3, TemporalConfig())
    with pytest.raises(InputError, match="share=0"):
        TemporalConfig(share=0.0)


@pytest.fixture(scope="module")
def base():
    return from_pipeline(tiny_sd("v_prediction", **WIDE))


def drawn(prior, condition, noise, guidance=None):
    denoiser = Denoiser(prior, condition, guidance)
    return Sampler(DDIM()).run(denoiser, noise, denoiser.schedule.grid(3))


def test_one_still_frame_is_single_image_sampling(base):
    """(5) The orbit prior asked for still pictures draws what its base draws of the empty prompt."""

    class Still(OrbitPrior):
        def _forward(self, x, time, rows):
            return self.network(x, time, rows["text"], frames=rows.frames, still=True)

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    prior = Still(base)
    loud(prior.parts)
    condition = prior.encode_picture(torch.rand(2, 3, 32, 32), torch.Generator(), frames=1)
    assert torch.equal(drawn(prior, condition, noise), drawn(base, base.encode_text(["", ""]), noise))


def test_the_condition_of_an_orbit(base):
    prior = OrbitPrior(base, frames=4)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    condition = prior.encode_picture(images, torch.Generator(), elevation_deg=30, cond_aug=0.0)
    cond, null = condition["cond"], condition["null"]
    latents = base.vae.encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(cond["concat"], latents.repeat_interleave(4, 0))  # not scaled
    assert not null["concat"].any() and not null[TOKEN].any() and torch.equal(null[ANGLES], cond[ANGLES])
    wanted = [[0.0, math.pi / 6, k * math.pi / 2] for k in range(4)]
    torch.testing.assert_close(cond[ANGLES], torch.tensor(wanted * 2))
    torch.testing.assert_close(cond["text"], base.encode_text("")["cond"]["text"].expand(8, -1, -1))
    dropped = prior.told(latents, cond[ANGLES], 4, torch.tensor([1.0, 0.0]))["cond"]
    assert torch.equal(dropped["concat"][:4], cond["concat"][:4]) and not dropped["concat"][4:].any()
    assert torch.equal(dropped[TOKEN][:4], cond[TOKEN][:4]) and not dropped[TOKEN][4:].any()


def test_an_adapter_comes_back_and_knows_its_prior(base, tmp_path):
    prior = OrbitPrior(base, TemporalConfig(rank=2), 4)
    loud(prior.parts)
    prior.save(tmp_path / "orbit")
    back = load_prior(tmp_path / "orbit")
    assert isinstance(back, OrbitPrior) and back.frames == 4 and back.temporal == TemporalConfig(rank=2)
    condition = prior.encode_picture(torch.rand(1, 3, 32, 32), torch.Generator())
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        drawn(back, condition, noise, 1.5), drawn(prior, condition, noise, 1.5), rtol=2e-2, atol=2e-2
    )
    other = from_pipeline(seeded(lambda: tiny_sd("v_prediction", **WIDE)))
    other.network.conv_out.bias.data += 0.1
    with pytest.raises(InputError, match=r"other weights.*unproject train orbits"):
        OrbitPrior(other, TemporalConfig(rank=2), 4).take(tmp_path / "orbit")
    about = json.loads((tmp_path / "orbit" / "orbit.json").read_text())
    (tmp_path / "orbit" / "orbit.json").write_text(json.dumps({**about, "frames": "four"}))
    with pytest.raises(InputError, match="must name base, base_hash, frames, config"):
        load_prior(tmp_path / "orbit")
    with pytest.raises(InputError, match="single images"):
        OrbitPrior(prior)


def test_only_the_adapter_learns(base):
    prior = OrbitPrior(base, frames=2)
    prior.parts.requires_grad_(True)
    condition = prior.told(torch.randn(1, 4, 8, 8), torch.zeros(2, 3), 2)
    Denoiser(prior, condition)(
        torch.randn(2, 4, 8, 8), Denoiser(prior, condition).schedule.at_index(500)
    ).x0.sum().backward()
    assert all(parameter.grad is None for parameter in base.network.parameters())
    heard = [name for name, parameter in prior.parts.named_parameters() if parameter.grad is not None]
    assert any(name.startswith("convs") for name in heard) and any(name.startswith("lowrank") for name in heard)
