"""A head that reads a frozen prior: parity with a plain implementation, the linear probe in it, files, training."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unproject.core.sampling.preimage import Preimage
from unproject.pipelines.image_to_geometry import ImageToDepth
from unproject.tasks.alternatives import load_alternative
from unproject.tasks.data import GeometryData
from unproject.tasks.geometry_head import HeadConfig
from unproject.tasks.heads import load_head
from unproject.tasks.preimage_head import PreimageConfig, PreimageHead
from unproject.tasks.refine_train import PreimageObjective
from unproject.tasks.refiner import RefinerConfig, Stage, Widths
from unproject.tasks.train import LossConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SMALL = PreimageConfig(refiner=RefinerConfig(out_channels=8))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture
def head(tiny_prior):
    return PreimageHead(tiny_prior, SMALL)


def stirred(head: PreimageHead) -> PreimageHead:
    """With a last convolution that says something."""
    with torch.no_grad():
        head.refiner.last.weight.copy_(0.1 * noise(*head.refiner.last.weight.shape, seed=9))
    return head


def test_the_refiner_is_the_papers_recursion(head):
    """r_{k+1} = R_k([r_k, C_merge([C_feat(h_k), C_attn(a_k)])]), written out with the stages' own weights."""
    z = noise(2, 4, 8, 8)
    seen, time, words = head.seen(z), noise(2, 64, seed=1), head.text["cond"]["text"].expand(2, -1, -1)
    stirred(head)
    r = None
    for stage, h, a in zip(head.refiner.stages, seen.features, seen.attention, strict=True):
        f = F.conv2d(h, stage.features.weight, stage.features.bias)
        if stage.attention is not None:
            f = torch.cat([f, F.conv2d(a, stage.attention.weight, stage.attention.bias)], 1)
        m = F.conv2d(f, stage.merge.weight, stage.merge.bias)
        if r is not None:
            if r.shape[2] != m.shape[2]:
                r = r.repeat_interleave(2, 2).repeat_interleave(2, 3)
            m = torch.cat([r, m], 1)
        r = stage.block(m, time)
        if stage.transformer is not None:
            r = stage.transformer(r, words).sample
    wanted = F.conv2d(F.silu(head.refiner.norm(r)), head.refiner.last.weight, head.refiner.last.bias, padding=1)
    torch.testing.assert_close(head.refiner(seen, time, words, (8, 8)), wanted, rtol=1e-4, atol=1e-5)


def test_widths_are_half_of_the_decoders_and_attention_is_read_where_there_is_some(head):
    widths = [stage.block.out_channels for stage in head.refiner.stages]
    assert widths == [16, 16, 8, 8]
    assert [stage.attention is not None for stage in head.refiner.stages] == [True, True, True, False]
    plain = PreimageHead(head.prior, PreimageConfig(refiner=RefinerConfig(out_channels=8, attention=False)))
    assert not any(stage.attention for stage in plain.refiner.stages)


def test_a_fresh_head_says_the_same_of_every_picture_and_the_same_seed_the_same_head(head):
    one, two = head.predict(noise(2, 4, 8, 8), torch.empty(0))
    assert float(one.abs().max()) == float(two.abs().max()) == 0
    again = PreimageHead(head.prior, SMALL)
    for a, b in zip(head.refiner.parameters(), again.refiner.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_level_without_attention_is_a_linear_probe():
    """C_merge C_feat alone on features reaches the closed form of least squares."""
    features, weight = noise(6, 10, 4, 4), noise(3, 10, seed=1)
    target = torch.einsum("oc,bchw->bohw", weight, features) + 0.1 * noise(6, 3, 4, 4, seed=2)
    stage = Stage(Widths(0, 10, 0, 3, 3, 3, 3), 8, 0)
    rows = torch.cat([features.movedim(1, -1).reshape(-1, 10), torch.ones(96, 1)], 1).double()
    solution = torch.linalg.lstsq(rows, target.movedim(1, -1).reshape(-1, 3).double()).solution  # (11, 3)
    with torch.no_grad():
        stage.features.weight.copy_(solution[:10].mT[..., None, None])
        stage.features.bias.copy_(solution[10])
        stage.merge.weight.copy_(torch.eye(3)[..., None, None])
        stage.merge.bias.zero_()
    found = stage.merge(stage.features(features))
    best = float((rows @ solution - target.movedim(1, -1).reshape(-1, 3)).square().mean())
    assert (found - target).square().mean().item() == pytest.approx(best, rel=1e-4)
    moved = (found + 0.01 - target).square().mean()
    assert moved.item() > best


def test_without_the_prior_the_latents_stand_at_every_position(tiny_prior):
    blind = PreimageHead(tiny_prior, replace(SMALL, sees="latents"))
    z, before = noise(1, 4, 8, 8), tiny_prior.nfe
    seen = blind.seen(z)
    assert tiny_prior.nfe == before and isinstance(seen, Preimage)
    assert [tuple(one.shape[1:]) for one in seen.features] == [(4, 4, 4)] * 2 + [(4, 8, 8)] * 2
    torch.testing.assert_close(seen.features[-1], z)


def test_it_is_a_head_for_every_pipeline_in_one_call(head):
    pipe = ImageToDepth(stirred(head))
    picture = torch.rand(3, 24, 32, generator=generator(3))
    made = pipe(picture)
    assert made.depth.shape == (1, 24, 32) and made.nfe == 1
    assert (pipe(picture).depth == made.depth).all()
    batch = pipe([picture, 1 - picture], output_type="pt").prediction
    torch.testing.assert_close(batch[1:], pipe(1 - picture, output_type="pt").prediction, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="one-step regressor"):
        pipe(picture, num_inference_steps=4)


def test_several_targets_and_samplers_are_refused():
    with pytest.raises(InputError, match="predicts one map"):
        PreimageConfig(head=HeadConfig())
    with pytest.raises(InputError, match="one-step regressor"):
        PreimageConfig(head=HeadConfig(targets=("depth",), start="noise"))
    with pytest.raises(InputError, match="ratio=0"):
        RefinerConfig(ratio=0)


def test_files_hold_what_learns_and_name_the_prior(head_folder):
    prior = load_head(head_folder).prior
    head = stirred(PreimageHead(prior, SMALL))
    folder = head.save(head_folder.parent / "prime", "tiny", validation={"abs_rel": 0.1})
    back = load_alternative(folder, "depth")
    z = noise(1, 4, 8, 8)
    torch.testing.assert_close(
        back.decode(back.predict(z, z))["depth"], head.decode(head.predict(z, z))["depth"], rtol=0, atol=0.02
    )
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    with pytest.raises(InputError, match="base=None"):
        head.save(folder)


def test_training_leaves_the_prior_to_the_bit_as_it_was(tiny_prior, planes):
    head = PreimageHead(tiny_prior, SMALL)
    data = GeometryData([planes(4)], columns=head.codec.columns())
    objective = PreimageObjective(LossConfig(), head, data)
    z, words = noise(1, 4, 8, 8), head.text["cond"]["text"]
    before, answer = copy.deepcopy(tiny_prior.network.state_dict()), tiny_prior.network(z, 5, words)[0]
    optimizer = torch.optim.SGD([p for m in objective.modules.values() for p in m.parameters()], 0.1)
    batch, losses = data.batch(np.arange(4), None), []
    for step in range(3):
        found = objective.loss(batch, generator(0), step)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        losses.append(found.loss.item())
    assert losses[2] != losses[0] and np.isfinite(losses).all()
    assert all(torch.equal(before[k], v) for k, v in tiny_prior.network.state_dict().items())
    assert torch.equal(tiny_prior.network(z, 5, words)[0], answer)
    assert all(p.grad is None for p in tiny_prior.parameters())
    assert {"abs_rel", "delta1"} <= set(objective.validate())
