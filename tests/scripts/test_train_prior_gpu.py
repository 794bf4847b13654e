"""Packing a prior's training to travel: what is chosen, texts, a tiny run, and the weights that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file

from unproject.core.priors.multiview import MultiViewUNet
from unproject.core.training.latents import UNIT, LatentSet, ViewGroups, encode_latents
from unproject.core.training.objectives.diffusion import DiffusionConfig, DiffusionObjective
from unproject.core.training.objectives.tokenizer import build_tokenizer
from unproject.core.training.objectives.vae import VAEConfig, build_vae
from unproject.core.training.packed import PackedLatents, PackedPictures, pack, pack_pictures
from unproject.geometry.cameras import Camera
from unproject.scripts import train_prior_gpu
from unproject.toybox.captions import vocabulary
from unproject.toybox.dataset import RenderedSet, RenderJob, render_set
from unproject.toybox.maps import MapPictures
from unproject.utils.errors import InputError
from unproject.utils.files import write_json


class Renders:
    """Three groups of four views and five pictures of their own."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return 17

    def images(self, indices):
        return self.pixels[indices]

    def captions(self, indices, rng=None):
        return [f"a red chair {i}" + ("" if rng is None else f" {rng.integers(9)}") for i in indices]

    def groups(self):
        return np.arange(2, 14).reshape(3, 4)

    def cameras(self, indices):
        orbit = Camera.orbit(torch.as_tensor(indices) * 10.0, 20.0, 3.0, 40.0, 8, 8)
        return orbit.c2w.numpy(), orbit.K.numpy()


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    vae = build_vae(VAEConfig(widths=(8, 8), norm_groups=4, image_size=8), seed=0).requires_grad_(False)
    return LatentSet(encode_latents(vae, Renders(), tmp_path_factory.mktemp("latents"), packed=True), Renders())


@pytest.fixture(scope="module")
def packed(latents, tmp_path_factory):
    """A pack of everything, beside a tiny base pipeline."""
    folder = tmp_path_factory.mktemp("pack")
    for name in ("train", "val"):
        pack(latents, Renders(), folder / f"{name}.npz", texts=2)
    shape = DiffusionConfig(
        (8, 8, 16), transformer_layers=1, heads=(1, 1, 2), norm_groups=4, latent_size=4, text_width=8, text_layers=1,
        text_heads=2,
    )  # fmt: skip
    vae = build_vae(VAEConfig(widths=(8, 8), norm_groups=4, image_size=8), seed=0)
    DiffusionObjective(shape, build_tokenizer(vocabulary()), vae).save_pipeline(folder / "base")
    model = {"train_text": True, "noise": {"prediction": "v_prediction", "validation_samples": 8}}
    write_json(folder / "pack.json", {"kind": "multiview", "single_share": 0.5, "base_name": "toybox", "model": model})
    return folder


def test_a_pack_holds_whole_groups_and_others_with_their_texts(latents, tmp_path):
    path = tmp_path / "all.npz"
    size = pack(latents, Renders(), path, texts=3)
    found = PackedLatents(path)
    assert (size.pictures, size.groups, len(found)) == (17, 3, 17)
    np.testing.assert_array_equal(found.groups(), np.arange(12).reshape(3, 4))
    order = [*range(2, 14), 0, 1, 14, 15, 16]
    np.testing.assert_allclose(found.rows(np.arange(17)), latents.rows(np.array(order)))
    assert found.rows(np.arange(2)).dtype == np.float32 and found.latents.dtype == np.int8
    np.testing.assert_allclose(found.cameras(np.arange(12))[0], Renders().cameras(np.arange(2, 14))[0], rtol=1e-6)
    rng = np.random.default_rng(0)
    texts = {found.batch(np.array([12]), rng)["captions"][0] for _ in range(60)}
    assert 1 < len(texts) <= 3 and all(text.startswith("a red chair 0 ") for text in texts)
    assert found.phrases.captions(np.array([4, 8]))[1].startswith("a red chair 10 ")
    views = ViewGroups(found, found.phrases, 0.0).batch(np.array([1]), rng)
    assert views["frames"] == 4 and views["captions"][0].startswith("a red chair 6 ")
    np.testing.assert_allclose(views["latents"], latents.rows(np.arange(6, 10)))


def test_a_pack_keeps_to_its_size(latents, tmp_path):
    row = latents.latents[0].nbytes + 8 * 2
    size = pack(latents, Renders(), tmp_path / "small.npz", megabytes=12.2 * row / 1e6, texts=2)
    assert (size.pictures, size.groups) == (12, 2)
    with pytest.raises(InputError, match="a group needs four"):
        pack(latents, Renders(), tmp_path / "none.npz", megabytes=3 * row / 1e6, texts=2)
    loose = LatentSet(encode_latents(build_vae(VAEConfig((8, 8), norm_groups=4), 0), Renders(), tmp_path), Renders())
    with pytest.raises(InputError, match="encoded with --pack"):
        pack(loose, Renders(), tmp_path / "loose.npz")
    with pytest.raises(InputError, match="holds nothing packed"):
        PackedLatents(tmp_path / "loose.npz")


def test_training_there_and_unpacking_here(packed, tmp_path, capsys):
    out, export = tmp_path / "out", tmp_path / "export"
    arguments = ["train", "--pack", str(packed), "--out", str(out), "--steps", "2", "--batch", "1", "--device", "cpu"]
    assert train_prior_gpu.main([*arguments, "--precision", "no"]) == 0
    assert {path.name for path in out.iterdir()} == {"run", "validation.json", "weights-0.safetensors"}
    unpacking = ["unpack", "--pack", str(packed), "--weights", str(out), "--out", str(export)]
    assert train_prior_gpu.main(unpacking) == 0
    sent = load_file(out / "weights-0.safetensors")
    network = MultiViewUNet.load(export / "toybox-mv")
    for name, value in network.state_dict().items():
        assert torch.equal(value, sent[f"unet.{name}"].float()), name
    pipe = StableDiffusionPipeline.from_pretrained(export / "toybox")
    assert torch.equal(pipe.unet.conv_in.weight, sent["unet.unet.conv_in.weight"].float())
    base = StableDiffusionPipeline.from_pretrained(packed / "base")
    assert not torch.equal(pipe.unet.conv_in.weight, base.unet.conv_in.weight)
    (out / "weights-0.safetensors").unlink()
    assert train_prior_gpu.main(unpacking) == 2
    assert "does not fit" in capsys.readouterr().err


def test_a_codec_travels_too(tmp_path, monkeypatch):
    folder = render_set(RenderJob("object", "val", 2, 16, maps=True), tmp_path / "set", workers=1)
    recipe = tmp_path / "codec.yaml"
    model = "{widths: [8, 8], norm_groups: 4, validation_images: 4, image_size: 16, gradient: 0.5}"
    lines = [f"train: [{folder}]", f"val: [{folder}]", "kinds: [picture, normal map]", f"model: {model}"]
    recipe.write_text("\n".join(["objective: vae", *lines, "trainer: {steps: 2, batch: 2}"]) + "\n")
    packed, out = tmp_path / "pack", tmp_path / "out"
    assert train_prior_gpu.main(["pack", "--recipe", str(recipe), "--out", str(packed)]) == 0
    pictures = PackedPictures(packed / "train.npz")
    whole = MapPictures([(RenderedSet(folder), ("picture", "normal map"))])
    np.testing.assert_array_equal(pictures.images(np.arange(16)), whole.images(np.arange(16)))
    small = pack_pictures(whole, tmp_path / "small.npz", megabytes=0.001)
    assert 1 <= small.pictures < 16 and small.megabytes < 0.01
    arguments = ["train", "--pack", str(packed), "--out", str(out), "--steps", "2", "--batch", "4", "--device", "cpu"]
    assert train_prior_gpu.main([*arguments, "--precision", "no"]) == 0
    unpacking = ["unpack", "--pack", str(packed), "--weights", str(out), "--out", str(tmp_path / "export")]
    assert train_prior_gpu.main(unpacking) == 0
    codec, sent = AutoencoderKL.from_pretrained(tmp_path / "export"), load_file(out / "weights-0.safetensors")
    assert torch.equal(codec.encoder.conv_in.weight, sent["vae.encoder.conv_in.weight"].float())
    assert codec.config.scaling_factor == 1.0


def test_weights_travel_in_parts_of_limited_size(monkeypatch):
    monkeypatch.setattr(train_prior_gpu, "PART_BYTES", 100)
    named = {str(i): torch.zeros(n, dtype=torch.float16) for i, n in enumerate((20, 20, 20, 70, 5))}
    parts = train_prior_gpu._parts(named)
    assert [list(part) for part in parts] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_a_unit_is_the_step_of_a_byte(latents):
    steps = latents.rows(np.arange(17)) / UNIT
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)


def test_what_cannot_be_packed_is_told(tmp_path, capsys):
    base: list[str] = ["pack", "--out", str(tmp_path), "--set", f"base={Path(tmp_path)}"]
    assert train_prior_gpu.main(base) == 2
    assert "is not a pipeline folder" in capsys.readouterr().err
