"""Calibration artefacts: round trip, what a fingerprint notices and what it does not, hostile files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, StableDiffusionPrior
from unproject.core.sampling.calibration import Calibration, fingerprint
from unproject.core.sampling.guidance import Guidance
from unproject.utils.errors import InputError


def prior(mean: float = 0.0, config=SD_SCHEDULE) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 2, 3, 3), mean), torch.tensor([0.5]), scheduler_config=config)


def test_round_trip(tmp_path):
    tensors = {"table": torch.arange(6, dtype=torch.float64).reshape(2, 3).mT, "flag": torch.tensor([1])}
    made = Calibration("curve", tensors, fingerprint(prior(), guidance=3), {"samples": 4, "name": "é"})
    back = Calibration.load(made.save(tmp_path / "deep" / "c.safetensors"), "curve", fingerprint(prior(), guidance=3))
    assert back.fingerprint == made.fingerprint
    assert back.settings == made.settings
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(back.tensors[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (fingerprint(prior(1.0)), "network weights"),
        (fingerprint(prior(config=FLOW_SCHEDULE)), "noise path"),
        (fingerprint(prior(), (2, 4, 4)), r"latent shape \(2, 3, 3\) \(now \(2, 4, 4\)\)"),
        (fingerprint(prior(), guidance=7.5), r"guidance 1 \(now 7\.5\)"),
        (fingerprint(prior(), guidance=Guidance(1.0, 0.5)), "rescale 0.5"),
    ],
)
def test_a_mismatch_says_what_differs(tmp_path, other, words):
    path = Calibration("curve", {"x": torch.zeros(1)}, fingerprint(prior())).save(tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=words):
        Calibration.load(path, "curve", other)


def test_fields_can_be_ignored():
    made = Calibration("curve", {}, fingerprint(prior()))
    made.check(fingerprint(prior(), guidance=5), ignore=("guidance",))
    with pytest.raises(InputError, match="latent shape"):
        made.check(fingerprint(prior(), (1, 1, 1), 5), ignore=("guidance",))


def test_a_network_is_its_weights_not_its_precision(tiny_folders):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["sd"], safety_checker=None)
    whole = fingerprint(StableDiffusionPrior(pipe))
    pipe.vae.post_quant_conv.weight.data += 1
    assert fingerprint(StableDiffusionPrior(pipe)) == whole, "the codec is not asked during sampling"
    pipe.unet.half()
    assert fingerprint(StableDiffusionPrior(pipe)) == whole
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] += 0.5
    assert fingerprint(StableDiffusionPrior(pipe)).network != whole.network


def test_hostile_files_are_named(tmp_path):
    mark = fingerprint(prior())
    with pytest.raises(InputError, match="does not exist"):
        Calibration.load(tmp_path / "absent.safetensors", "curve")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"{}")
    with pytest.raises(InputError, match="not a safetensors file"):
        Calibration.load(torn, "curve")
    path = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(1)}, str(path))
    with pytest.raises(InputError, match="version none"):
        Calibration.load(path, "curve")
    broken = {"kind": "curve", "version": "1", "fingerprint": json.dumps({"network": 1}), "settings": "{}"}
    save_file({"x": torch.zeros(1)}, str(path), metadata=broken)
    with pytest.raises(InputError, match="damaged metadata"):
        Calibration.load(path, "curve")
    Calibration("other", {"x": torch.zeros(1)}, mark).save(path)
    with pytest.raises(InputError, match="holds a other calibration, expected curve"):
        Calibration.load(path, "curve")
    with pytest.raises(InputError, match="plain finite values"):
        Calibration("curve", {}, mark, {"x": float("nan")}).save(path)
    with pytest.raises(InputError, match="latent_shape"):
        fingerprint(prior(), (1, 2))
