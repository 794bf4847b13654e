"""Metres told by picture and camera: the published computation, what a camera changes, files, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.camera_image import pixel_tangents
from unproject.tasks.codecs import CameraCodec
from unproject.tasks.codecs.metric import MetresCodec
from unproject.tasks.data import CameraColumns, GeometryData
from unproject.tasks.geometry_head import GeometryHead
from unproject.tasks.heads import load_head
from unproject.tasks.metric_head import MetricConfig, MetricHead, MetricObjective
from unproject.tasks.published import Loading, dm_calib_metres, load_metric
from unproject.tasks.train import LossConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SMALL = MetricConfig(MetresCodec(5.0), processing_resolution=32)


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=generator(3))


def cameras(*focal: float) -> torch.Tensor:
    K = torch.eye(3).repeat(len(focal), 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = torch.tensor(focal)
    K[:, :2, 2] = 16
    return K


@pytest.fixture
def head(tiny_prior) -> MetricHead:
    return MetricHead(tiny_prior, SMALL)


def opened(head: MetricHead) -> MetricHead:
    """With a first convolution that looks at the camera."""
    with torch.no_grad():
        kernel = head.unet.conv_in.weight
        kernel[:, 4:] = 0.2 * torch.randn(kernel[:, 4:].shape, generator=generator(4))
    return head


def test_metres_become_pictures_and_come_back() -> None:
    for codec in (MetresCodec(4.0), MetresCodec(4.0, wide=True)):
        depth = torch.tensor([[[[0.5, 1.0, 3.9, 7.0, 0.0]]]])
        valid = depth > 0
        picture, _ = codec.encode(depth, valid)
        back = codec.decode(picture)
        assert back.flatten().tolist() == pytest.approx([0.5, 1.0, 3.9, 4.0, 4.0], abs=1e-5)
        assert float(picture.max()) == (10 if codec.wide else 1)
        worse = codec.loss(picture + (1 if codec.wide else 0.1), depth, valid)
        assert float(worse["metres"]) == pytest.approx(0.1, abs=1e-5)
        assert float(worse["relative"]) == pytest.approx(0.2 * (1 / 0.5 + 1 / 1.0 + 1 / 3.9) / 3, rel=1e-4)
    assert float(codec.metrics(2 * depth, depth, valid)["abs_rel"]) == pytest.approx(1.0, abs=1e-5)  # nothing aligned
    with pytest.raises(InputError, match="far_m=0"):
        MetresCodec(0)


def test_the_published_network_and_decoder_give_the_published_metres(tiny_prior, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_CACHE", str(tmp_path / "cache"))
    tiny_prior.save(tmp_path / "stable-diffusion-2-1")
    folder = tmp_path / "dm"
    like = opened(MetricHead(tiny_prior, SMALL))
    like.unet.save_pretrained(folder / "depth")
    like.unet.save_pretrained(folder / "calib" / "unet")  # by which the layout is known
    with torch.no_grad():
        like.decoder.conv_out.bias.add_(0.7)
    torch.save(like.decoder, folder / "depth" / "vae_decoder.pth")
    head, images, K = dm_calib_metres(folder, Loading(), "outdoor"), pictures(), cameras(30.0, 60.0)
    vae, encoder, tokenizer = tiny_prior.vae, tiny_prior.pipe.text_encoder, tiny_prior.pipe.tokenizer
    codec, everywhere = CameraCodec(), torch.ones(2, 1, 32, 32, dtype=torch.bool)
    camera, _ = codec.encode(codec.beside(pixel_tangents(K, 32, 32), images), everywhere)
    with torch.no_grad():
        z, c = (vae.config.scaling_factor * vae.encode(x).latent_dist.mean for x in (2 * images - 1, camera.float()))
        words = encoder(tokenizer("outdoor geometry", truncation=True, return_tensors="pt").input_ids)[0].expand(
            2, -1, -1
        )
        told = torch.tensor([1000, 1000])
        out = like.unet(torch.cat([z, c], 1), told, words).sample / vae.config.scaling_factor
        picture = like.decoder(vae.post_quant_conv(out)).mean(1, keepdim=True)
    wanted = (picture.clamp(-10, 10) / 10 + 1) / 2 * 150
    torch.testing.assert_close(head.metres(images, K), wanted, rtol=1e-3, atol=1e-2)
    assert load_metric(folder).codec.far_m == 50
    with pytest.raises(InputError, match="domain='moon'"):
        dm_calib_metres(folder, Loading(), "moon")


def test_a_fresh_head_does_not_look_at_the_camera_yet(head) -> None:
    images = pictures()
    short, long = head.metres(images, cameras(30.0, 30.0)), head.metres(images, cameras(60.0, 60.0))
    assert torch.equal(short, long) and head.nfe == 4 and short.shape == (2, 1, 32, 32)
    opened(head)
    assert not torch.allclose(head.metres(images, cameras(30.0, 30.0)), head.metres(images, cameras(60.0, 60.0)))
    one = head.metres(images[1:], cameras(30.0, 60.0)[1:])
    torch.testing.assert_close(head.metres(images, cameras(30.0, 60.0))[1:], one, rtol=1e-4, atol=1e-4)
    blind = opened(MetricHead(head.prior, MetricConfig(SMALL.codec, camera=False)))
    assert torch.equal(blind.metres(images, cameras(30.0, 30.0)), blind.metres(images, cameras(60.0, 60.0)))
    with pytest.raises(InputError, match=r"K has shape \(1, 3, 3\)"):
        head.metres(images, cameras(30.0))


def test_files_hold_what_learns(head_folder) -> None:
    head = opened(MetricHead(load_head(head_folder).prior, SMALL))
    folder = head.save(head_folder.parent / "metres", "tiny")
    back, images, K = load_metric(folder), pictures(), cameras(30.0, 60.0)
    torch.testing.assert_close(back.metres(images, K), head.metres(images, K), rtol=0.02, atol=0.05)  # fp16
    with pytest.raises(InputError, match="no head of metres"):
        load_metric(head_folder)
    assert isinstance(load_head(head_folder), GeometryHead)
    with pytest.raises(InputError, match="base=None"):
        head.save(folder)


def test_training_reaches_network_and_decoder_through_the_camera(head, planes) -> None:
    views = planes(4)
    views.columns["K"] = cameras(30.0, 40.0, 50.0, 60.0).numpy()
    data = GeometryData([CameraColumns(views)], columns=[CameraCodec.column, head.codec.column])
    objective = MetricObjective(LossConfig(), head, data)
    batch = data.batch(np.arange(4), None)
    one = objective.loss(batch, generator(0), 0)
    assert torch.equal(one.loss, objective.loss(batch, generator(1), 0).loss)
    one.loss.backward()
    assert float(head.unet.conv_in.weight.grad[:, 4:].abs().sum()) > 0  # the camera's kernel
    assert float(head.decoder.conv_in.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in head.prior.vae.parameters())
    assert set(objective.validate()) == {"abs_rel", "delta1"}
