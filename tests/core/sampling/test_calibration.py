"""Calibration artefacts: round trip, what a fingerprint notices and what it does not, hostile files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, StableDiffusionPrior
from unproject.core.sampling.calibration import Calibration, fingerprint
from unproject.core.sampling.dpm_v3_estimation import estimate_statistics
from unproject.core.sampling.flair import error_curve
from unproject.core.sampling.guidance import ClassifierFree
from unproject.core.sampling.noiseshift import (
    RemapSearch,
    TimeRemap,
    apply_time_remap,
    calibrate_time_remap,
    remove_time_remap,
)
from unproject.core.sampling.quantise import fake_quantized
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator, sample_noise


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
        (fingerprint(prior(), guidance=ClassifierFree(1.0, 0.5)), "rescale 0.5"),
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


def test_text_encoders_and_what_hooks_change_are_told_apart(tiny_folders):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["sd"], safety_checker=None)
    real = StableDiffusionPrior(pipe)
    plain = fingerprint(real)
    assert plain.changes == "none" and fingerprint(prior()).text == "none"
    with fake_quantized(real.network, 8):
        rounded = fingerprint(real)
    with fake_quantized(real.network, 8, 8) as errors:
        (found,) = rounded.differences(fingerprint(real))
        assert found == f"changes of the network: none (now {len(errors)} x input rounded to 8 bits)"
    tables = [TimeRemap(torch.tensor([0.0, 999.0]), torch.tensor([0.0, end])) for end in (900.0, 950.0)]
    marks = []
    for remap in tables:
        apply_time_remap(real, remap)
        marks.append(fingerprint(real))
        remove_time_remap(real)
    assert len({plain.changes, *(mark.changes for mark in marks)}) == 3
    assert fingerprint(real) == plain
    pipe.text_encoder.final_layer_norm.weight.data += 1
    assert [line.split(" ")[0] for line in plain.differences(fingerprint(real))] == ["text"]


def test_a_negative_prompt_belongs_to_the_guidance_that_uses_it():
    plain = fingerprint(prior(), guidance=3)
    assert fingerprint(prior(), guidance=3, negative=["", ""]) == plain
    assert fingerprint(prior(), guidance=3, negative=["b", "a", "b"]).guidance == "3 against 'a | b'"
    assert fingerprint(prior(), guidance=1, negative="blurry").guidance == "1"
    with pytest.raises(InputError, match=r"guidance 3 \(now 3 against 'blurry'\)"):
        Calibration("curve", {}, plain).check(fingerprint(prior(), guidance=3, negative="blurry"))


@pytest.mark.parametrize(
    "measure",
    [
        lambda p, x, text: estimate_statistics(p, x, text, count=1, seed=4, chunk=64),
        lambda p, x, text: error_curve(p, x, text, 1.0, levels=3, seed=4),
        lambda p, x, text: calibrate_time_remap(p, x, text, RemapSearch(3, 0.1, (0.1,)), seed=4),
    ],
)
def test_measurements_draw_other_noise_than_the_samples_began_from(measure):
    """A sample of seed s keeps traces of the noise of seed s, which a measurement must not noise it with."""
    one, rows = prior(config=FLOW_SCHEDULE), 64
    begun = sample_noise((2, 3, 3), [generator(4 + i) for i in range(rows)], rows)
    asked = []

    class Recording(GaussianMixturePrior):
        def _forward(self, x, time, rows):
            asked.append(x.clone())
            return super()._forward(x, time, rows)

    seen = Recording(torch.zeros(1, 2, 3, 3), torch.tensor([0.5]), scheduler_config=FLOW_SCHEDULE)
    measure(seen, torch.zeros(rows, 2, 3, 3), one.encode_text(""))
    for x in asked:
        if float(x.std()) > 0:
            pair = torch.stack([x.flatten(), begun.flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.12  # 1152 numbers: four standard deviations
    assert any(float(x.std()) > 0 for x in asked)


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
    broken = {"kind": "curve", "version": "2", "fingerprint": json.dumps({"network": 1}), "settings": "{}"}
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
