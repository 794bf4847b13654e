"""The concat head: expansion identity, regressor, sampler, files; the objective: gradients, masks, learning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from unproject.core.priors import load_prior
from unproject.core.sampling import Prediction
from unproject.tasks.codecs import DepthCodec
from unproject.tasks.data import AugmentConfig, GeometryData, noise_pattern, zoomed
from unproject.tasks.geometry_head import GeometryHead, HeadConfig, expanded_unet
from unproject.tasks.heads import head_table, load_head, marigold_head
from unproject.tasks.metrics import edge_error
from unproject.tasks.train import HeadObjective, LossConfig, latent_mask, random_unet_like
from unproject.utils.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_head(prior, **config) -> GeometryHead:
    return GeometryHead.from_prior(prior, HeadConfig(processing_resolution=32, **config))


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_expanded_unet_repeats_the_prior_when_every_group_is_the_image(tiny_prior, targets: int) -> None:
    z, t = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([10.0, 900.0])
    text = torch.randn(2, 8, 32, generator=seeded(1))
    original = tiny_prior.network(z, t, text, return_dict=False)[0]
    grown = expanded_unet(tiny_prior.network, targets).eval()
    out = grown(torch.cat([z] * (1 + targets), 1), t, text, return_dict=False)[0]
    torch.testing.assert_close(out, original.repeat(1, targets, 1, 1), rtol=0, atol=2e-5)


def test_a_low_timestep_asks_the_prior_about_a_clean_picture(tiny_prior) -> None:
    """Untrained, such a head answers every target with the prior's own output for the picture at that time."""
    head = make_head(tiny_prior, kind="sample", timestep=20)
    z = torch.randn(2, 4, 8, 8, generator=seeded())
    told = torch.full((2,), 20.0)
    text = head.empty_prompt().expand(2, -1, -1)
    original = tiny_prior.network(z, told, text, return_dict=False)[0]
    with torch.no_grad():
        found = head.predict(z, torch.zeros(2, *head.shape(z)))
    torch.testing.assert_close(found, original.repeat(1, 2, 1, 1), rtol=0, atol=2e-5)
    with pytest.raises(InputError, match='timestep=20 needs start "zeros" and kind "sample"'):
        HeadConfig(timestep=20)
    for wrong in (-1, 1000):
        with pytest.raises(InputError, match=f"timestep={wrong} must lie in 0 to 999"):
            make_head(tiny_prior, kind="sample", timestep=wrong)


def test_first_level_is_the_noisiest_and_trailing_starts_there(tiny_prior) -> None:
    head = make_head(tiny_prior, start="noise", steps=4)
    assert head.first_level().index == 999
    assert head.levels(1)[0].index == 999
    assert head.levels(1, "leading")[0].index == 1  # the published bug: pure noise asked at the clean end
    assert head.levels(4)[-1].sigma == 0


def test_zero_signal_schedules_start_from_exactly_pure_noise(marigold) -> None:
    head = marigold_head(marigold("depth"))
    assert (head.first_level().alpha, head.first_level().sigma) == (0.0, 1.0)


def test_one_step_is_the_predicted_clean_latent(tiny_prior) -> None:
    head = make_head(tiny_prior)
    condition = torch.randn(1, 4, 8, 8, generator=seeded())
    start = torch.zeros(1, 8, 8, 8)
    with torch.no_grad():
        prediction: Prediction = head.denoiser(condition)(start, head.first_level())
    torch.testing.assert_close(head.predict(condition, start), prediction.x0, rtol=0, atol=0)
    level = head.first_level()
    torch.testing.assert_close(prediction.x0, -level.sigma * prediction.raw, rtol=0, atol=1e-6)  # v with z = 0


def test_calls_are_counted(tiny_prior) -> None:
    head = make_head(tiny_prior, start="noise", steps=3)
    head.predict(torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8, 8))
    assert head.nfe == 6


def test_targets_survive_the_latent_layout(tiny_prior) -> None:
    head = make_head(tiny_prior)
    depth = torch.rand(2, 1, 32, 32, generator=seeded()) + 1
    normals = torch.zeros(2, 3, 32, 32)
    normals[:, 2] = 1
    latents, states = head.encode_targets(
        {"depth": depth, "normals": normals}, torch.ones_like(depth, dtype=torch.bool)
    )
    assert latents.shape == (2, 8, 8, 8)
    assert states["depth"].low.shape == (2, 1, 1, 1)
    alone = head.prior.encode(head.codec.parts["normals"].encode(normals, depth > 0)[0] / 2 + 0.5)
    torch.testing.assert_close(latents[:, 4:], alone, rtol=0, atol=1e-5)  # normals are the second group
    assert head.decode_pictures(latents).shape == (2, 2, 3, 32, 32)


def test_saved_head_loads_beside_its_prior(head_folder) -> None:
    head = GeometryHead.load(head_folder)
    assert head.config == HeadConfig(processing_resolution=32)
    assert head.prior.name == "tiny"
    manifest = json.loads((head_folder / "head.json").read_text())
    assert manifest["base"] == "tiny"
    assert "torch" in manifest["versions"]
    assert not any(p.requires_grad for p in head.unet.parameters())


def test_weights_survive_saving_in_half_precision(tiny_prior, head_folder) -> None:
    saved = GeometryHead.load(head_folder).unet.state_dict()
    for name, value in make_head(tiny_prior).unet.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-4)


def test_prior_folder_leads_to_the_head_beside_it(head_folder) -> None:
    assert load_head(head_folder.parent / "tiny").config.targets == ("depth", "normals")


def test_messages_name_the_way_out(tiny_prior, head_folder, marigold, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="toybox-geometry"):
        load_head("toybox")
    with pytest.raises(InputError, match="neither a name nor a folder"):
        load_head("nonsense")
    with pytest.raises(InputError, match="no geometry head"):
        load_head(tmp_path)
    marigold("depth").save_pretrained(tmp_path / "marigold")
    with pytest.raises(InputError, match="predicts depth, not normals"):
        load_head(tmp_path / "marigold", ("normals",))
    with pytest.raises(InputError, match="input and 8"):
        GeometryHead(tiny_prior, tiny_prior.network, HeadConfig())
    with pytest.raises(InputError, match="one-step regressor"):
        HeadConfig(steps=4)
    with pytest.raises(InputError, match="distinct names"):
        HeadConfig(targets=("depth", "depth"))


def test_published_heads_are_listed_with_their_start() -> None:
    table = head_table()
    assert table["marigold-depth"].start == "noise"
    assert (table["e2e-ft-depth"].start, table["e2e-ft-depth"].steps) == ("zeros", 1)


@pytest.mark.parametrize("loss", ["end_to_end", "regression", "latent"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_reaches_the_unet_and_nothing_else(tiny_prior, planes, loss: str, kind: str) -> None:
    head = make_head(tiny_prior, kind=kind)
    objective = HeadObjective(LossConfig(loss=loss), head)
    batch = GeometryData([planes()]).batch(np.arange(2), np.random.default_rng(0))
    out = objective.loss(batch, seeded(), 0)
    out.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.modules["unet"].parameters())
    assert all(p.grad is None for p in objective.frozen["vae"].parameters())
    again = objective.loss(batch, seeded(), 0)
    assert out.loss.item() == again.loss.item()


def test_the_relative_part_of_the_loss_is_what_validation_counts(tiny_prior, planes) -> None:
    """Without clipped ends the two differ only by the ridge of the fit, which keeps constant predictions finite."""
    objective = HeadObjective(LossConfig(weights={"relative": 1.0}), make_head(tiny_prior))
    for codec in objective.head.codec.parts.values():
        if isinstance(codec, DepthCodec):
            object.__setattr__(codec, "quantile", 0.0)
    _, targets, valid = objective.tensors(GeometryData([planes(2)]).batch(np.arange(2), None))
    coded, _ = objective.head.codec.parts["depth"].encode(targets["depth"], valid)
    made = (coded + 0.3 * torch.randn(coded.shape, generator=seeded()))[:, None].expand(-1, 2, -1, -1, -1)
    objective.predict_pictures = lambda condition: made
    found = objective._end_to_end_loss(torch.zeros(2), targets, valid).logs["relative"]
    errors = objective.head.codec.metrics({"depth": made[:, 0].mean(1, keepdim=True)}, targets, valid)
    assert float(found) == pytest.approx(float(errors["abs_rel"].mean()), rel=0.01)


def test_images_without_valid_pixels_cost_nothing_and_keep_gradients_finite(tiny_prior, planes) -> None:
    pictures = planes(2)
    pictures.columns["depth_m"][0] = 0
    objective = HeadObjective(LossConfig(), make_head(tiny_prior))
    objective.loss(GeometryData([pictures]).batch(np.arange(2), None), seeded(), 0).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.modules["unet"].parameters())


def test_a_few_steps_lower_the_loss(tiny_prior, planes) -> None:
    objective = HeadObjective(LossConfig(), make_head(tiny_prior))
    data = GeometryData([planes(4)])
    optimizer = torch.optim.AdamW(objective.modules["unet"].parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        out = objective.loss(data.batch(np.arange(4), None), seeded(step), step)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_regression_is_the_distance_of_the_one_step_latents(tiny_prior, planes) -> None:
    head = make_head(tiny_prior)
    objective = HeadObjective(LossConfig(loss="regression"), head)
    batch = GeometryData([planes(2)]).batch(np.arange(2), None)
    images, targets, valid = objective.tensors(batch)
    condition = head.encode_image(images)
    with torch.no_grad():
        made = head.predict(condition, condition.new_zeros((2, *head.shape(condition))))
        clean, _ = head.encode_targets(targets, valid)
    assert bool(valid.all())
    assert objective.loss(batch, seeded(), 0).loss.item() == pytest.approx(float((made - clean).square().mean()))


def test_validation_and_preview(tiny_prior, planes, tmp_path) -> None:
    objective = HeadObjective(LossConfig(validation_images=4), make_head(tiny_prior), GeometryData([planes(6)]))
    found = objective.validate()
    assert set(found) == {"abs_rel", "delta1", "silog", "upright", "normals_mean", "normals_below_30"}
    assert all(np.isfinite(value) for value in found.values())
    objective.preview(3, tmp_path)
    assert (tmp_path / "geometry-0000003.png").is_file()


def test_random_network_has_the_same_shape_and_depends_on_the_seed_only(tiny_prior) -> None:
    unet = make_head(tiny_prior).unet
    one, same, other = (random_unet_like(unet, seed).state_dict() for seed in (0, 0, 1))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in unet.state_dict().items()}
    torch.testing.assert_close(one["conv_in.weight"], same["conv_in.weight"], rtol=0, atol=0)
    assert not torch.equal(one["conv_in.weight"], other["conv_in.weight"])


def test_mirroring_keeps_normals_consistent_with_depth(planes) -> None:
    """On a plane z = 2 + a x + b y the OpenCV normal is along (a, b, -1): so it must be after augmentation."""
    data = GeometryData([planes(4)], AugmentConfig(crop=24))
    rng = np.random.default_rng(0)
    batch = data.batch(np.array([0, 1, 2, 3] * 4), rng)
    assert batch["images"].shape == (16, 24, 24, 3)
    slope = np.gradient(batch["depth_m"], 2 / 31, axis=2).mean((1, 2))
    from_normals = (-batch["normals"][..., 0] / batch["normals"][..., 2]).mean((1, 2))
    np.testing.assert_allclose(from_normals, slope, atol=0.02)


def test_a_longer_lens_keeps_normals_and_flattens_the_slope(planes) -> None:
    """A centred window of half the sides, at the old size, halves the slope of depth and turns no normal."""
    plane = planes(1, 64)
    image, depth, normals = plane.rgb[0], plane.columns["depth_m"][0].astype(np.float32), plane.columns["normal"][0]
    near, (far, turned) = zoomed(image, (depth, normals), 0.5)
    assert near.shape == image.shape
    np.testing.assert_array_equal(turned, normals)
    np.testing.assert_array_equal(far[0::2, 0::2], depth[16:48, 16:48])
    np.testing.assert_allclose(np.diff(far[:, 0::2]).mean(), np.diff(depth).mean(), rtol=1e-2)
    same, maps = zoomed(image, (depth, normals), 1.0)
    for found, wanted in zip((same, *maps), (image, depth, normals), strict=True):
        np.testing.assert_array_equal(found, wanted)
    near, (far, turned) = zoomed(image, (depth, normals), 1.0, (32, 16))
    assert near.shape == (16, 32, 3) and turned.shape == (16, 32, 3)
    np.testing.assert_array_equal(far, depth[17:49:2, 1::2])  # the middle half of the rows, every second pixel
    with pytest.raises(InputError, match="zoom=0"):
        AugmentConfig(zoom=0)
    with pytest.raises(InputError, match="grey=2"):
        AugmentConfig(grey=2)


def test_batches_take_one_of_several_shapes(planes) -> None:
    """Each batch has one shape, all come up, and validation sees whole images."""
    shapes = ((32, 24), (24, 32), (32, 12))
    data = GeometryData([planes(2, 48)], AugmentConfig(shapes=shapes))
    seen = {data.batch(np.array([0, 1]), np.random.default_rng(k))["depth_m"].shape for k in range(20)}
    assert seen == {(2, height, width) for width, height in shapes}
    assert data.batch(np.array([0]), None)["images"].shape == (1, 48, 48, 3)
    with pytest.raises(InputError, match="shapes="):
        AugmentConfig(shapes=((32, 4),))


def test_painted_patterns_are_standard_noise_and_leave_the_geometry_alone(planes) -> None:
    pattern = noise_pattern((48, 64, 3), np.random.default_rng(0))
    assert abs(pattern.mean()) < 1e-5
    assert abs(pattern.std() - 1) < 1e-5
    plain, painted = (
        GeometryData([planes(2)], AugmentConfig(flip=False, gain=0, contrast=0, noise=0, **extra)).batch(
            np.array([0, 1]), np.random.default_rng(0)
        )
        for extra in ({}, {"texture": 0.3, "grey": 1.0})
    )
    np.testing.assert_array_equal(painted["depth_m"], plain["depth_m"])
    np.testing.assert_array_equal(painted["normals"], plain["normals"])
    assert np.ptp(painted["images"].astype(int), axis=-1).max() == 0
    assert np.abs(painted["images"].astype(int) - plain["images"]).max() > 10


def test_several_sets_are_one(planes) -> None:
    data = GeometryData([planes(3, 32, 0), planes(5, 48, 1)], AugmentConfig(crop=32))
    assert len(data) == 8
    np.testing.assert_array_equal(data.batch(np.array([3]), None)["images"][0], planes(5, 48, 1).rgb[0][8:40, 8:40])
    with pytest.raises(InputError, match="crop=64"):
        GeometryData([planes()], AugmentConfig(crop=64)).batch(np.array([0]), None)


def test_latent_mask_wants_whole_cells() -> None:
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[0, 0, 3, 3] = False
    assert latent_mask(valid, 4).flatten().tolist() == [False, True, True, True]


def test_edge_error_ignores_shifts_and_sees_steps() -> None:
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    assert edge_error(torch.full((1, 16, 16), 0.7), valid).item() == 0
    step = torch.zeros(1, 16, 16)
    step[..., 8:] = 1
    assert edge_error(step, valid).item() == pytest.approx((1 / 15 + 1 / 7 + 1 / 3) / 6, rel=1e-5)


def test_a_head_keeps_its_prompt_when_the_text_encoder_learns_more(tiny_prior, tmp_path) -> None:
    head = make_head(tiny_prior)
    wanted = head.empty_prompt().clone()
    head.save(tmp_path / "head", base=str(tiny_prior.save(tmp_path / "prior")))
    again = load_prior(tmp_path / "prior")
    with torch.no_grad():
        for p in again.pipe.text_encoder.parameters():
            p.add_(0.5)
    again.save(tmp_path / "prior")
    loaded = GeometryHead.load(tmp_path / "head")
    torch.testing.assert_close(loaded.empty_prompt(), wanted, atol=2e-3, rtol=0)
    loaded._empty = None
    assert float((loaded.empty_prompt() - wanted).abs().max()) > 0.1
    (tmp_path / "head" / "prompt.safetensors").unlink()
    with pytest.raises(InputError, match="is not a whole head"):
        GeometryHead.load(tmp_path / "head")
