"""Offloading, storage in fewer bits, slices, compiling: on tiny models, with the pictures they had."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from unproject.core.priors import load_prior
from unproject.core.priors.placement import Placement, channels_last, compile_blocks, execution_device, text_encoders
from unproject.core.priors.quantised import shrink
from unproject.utils.errors import InputError, MissingExtraError

FAMILIES = ("sd", "sdxl", "sd3", "flux")


def answers(prior: Any) -> list[torch.Tensor]:
    """A prediction, a latent and a picture."""
    condition = prior.encode_text(["a red chair"])["cond"]
    state = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0))[..., :8, :8]
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return [prior.predict(state, 500.0, condition), prior.encode(picture), prior.decode(state)]


@pytest.mark.parametrize("offload", ["text", "model", "sequential"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_priors_answer_as_others_do(tiny_folders, family, offload):
    """The device is the CPU here, so that every hook runs and nothing has to move."""
    expected = answers(load_prior(tiny_folders[family]))
    prior = load_prior(tiny_folders[family], placement=Placement(offload=offload))
    torch.testing.assert_close(answers(prior), expected)
    assert prior.device.type == "cpu" and prior.dtype == torch.float32
    with pytest.raises(InputError, match=f"offload='{offload}'.*load it again"):
        prior.to(torch.device("cpu"))


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_text_encoders_leave_when_the_next_network_is_asked(tiny_folders, family):
    prior = load_prior(tiny_folders[family], placement=Placement(offload="text"))
    encoders = dict(text_encoders(prior))
    assert list(encoders) == ["text_encoder", "text_encoder_2"]
    followers = {name: part._hf_hook.prev_module_hook for name, part in encoders.items()}
    assert followers["text_encoder"] is None and followers["text_encoder_2"].model is encoders["text_encoder"]
    for part in (prior.network, prior.vae):
        assert part._hf_hook.prev_module_hook.model is encoders["text_encoder_2"]


def test_a_prior_says_where_it_computes_and_not_where_its_weights_wait():
    module = torch.nn.Linear(2, 2)
    assert execution_device(module) == torch.device("cpu")
    module._hf_hook = SimpleNamespace(execution_device="meta")
    assert execution_device(torch.nn.Sequential(module)) == torch.device("meta")


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_eight_bit_are_cast_as_they_are_used(tiny_folders, family):
    prior = load_prior(tiny_folders[family], placement=Placement(weights="float8"))
    stored = [p.dtype for p in prior.network.parameters()]
    assert stored.count(torch.float8_e4m3fn) > 0.3 * len(stored)
    assert prior.dtype == torch.float32
    expected, found = answers(load_prior(tiny_folders[family])), answers(prior)
    assert float((found[0] - expected[0]).norm() / expected[0].norm()) < 0.2
    torch.testing.assert_close(found[1:], expected[1:])


def torchao(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A stand-in for the library; what it was asked: (module, config, options of the config, options)."""
    done: list[tuple[Any, ...]] = []
    library, part = ModuleType("torchao"), ModuleType("torchao.quantization")
    for name in ("Int8WeightOnlyConfig", "Int4WeightOnlyConfig"):
        setattr(part, name, type(name, (SimpleNamespace,), {}))
    part.quantize_ = lambda module, how, **at: done.append((type(module).__name__, type(how).__name__, vars(how), at))
    library.quantization = part
    monkeypatch.setitem(sys.modules, "torchao", library)
    monkeypatch.setitem(sys.modules, "torchao.quantization", part)
    return done


def test_the_network_and_t5_are_quantised_by_torchao(tiny_folders, monkeypatch):
    done = torchao(monkeypatch)
    prior = load_prior(tiny_folders["flux"], placement=Placement(weights="int8"))
    large = ("FluxTransformer2DModel", "T5EncoderModel")
    assert done == [(name, "Int8WeightOnlyConfig", {}, {}) for name in large]
    done.clear()
    shrink(prior, text_encoders(prior), "int4", "meta")
    packed = {"int4_packing_format": "tile_packed_to_4d"}
    assert done == [(name, "Int4WeightOnlyConfig", packed, {"device": "meta"}) for name in large]


def test_four_bits_are_not_packed_for_the_processor(monkeypatch):
    torchao(monkeypatch)
    with pytest.raises(InputError, match=r"int4.*not for the processor; give int8"):
        load_prior("nobody/nothing", placement=Placement(weights="int4"))


class Packed(torch.nn.Linear):
    """A linear layer as bitsandbytes makes them, that packs nothing."""

    def __init__(self, inside: int, outside: int, bias: bool = True, **options: Any) -> None:
        super().__init__(inside, outside, bias)
        self.options = options


@pytest.mark.parametrize("weights", ["bnb-int8", "bnb-nf4"])
def test_the_network_and_t5_are_packed_by_bitsandbytes(tiny_folders, monkeypatch, weights):
    library = ModuleType("bitsandbytes")
    library.nn = SimpleNamespace(
        Linear4bit=type("Linear4bit", (Packed,), {}),
        Linear8bitLt=type("Linear8bitLt", (Packed,), {}),
        Params4bit=lambda data, requires_grad, quant_type: torch.nn.Parameter(data, requires_grad),
        Int8Params=lambda data, requires_grad, has_fp16_weights: torch.nn.Parameter(data, requires_grad),
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    prior = load_prior(tiny_folders["flux"], placement=Placement(weights=weights))
    torch.testing.assert_close(answers(prior), answers(load_prior(tiny_folders["flux"])))
    kind = library.nn.Linear4bit if weights == "bnb-nf4" else library.nn.Linear8bitLt
    options = {"quant_type": "nf4", "compute_dtype": torch.float32} if "nf4" in weights else {"has_fp16_weights": False}
    for part, exact in ((prior.network, []), (prior.pipe.text_encoder_2, ["wo"])):
        layers = {name: m for name, m in part.named_modules() if isinstance(m, torch.nn.Linear)}
        plain = [name for name, layer in layers.items() if type(layer) is torch.nn.Linear]
        assert len(plain) < len(layers) and {name.split(".")[-1] for name in plain} == set(exact)
        assert all(type(m) is kind and m.options == options for name, m in layers.items() if name not in plain)
    assert not any(isinstance(m, Packed) for m in (*prior.pipe.text_encoder.modules(), *prior.vae.modules()))
    with pytest.raises(InputError, match="which decide its place"):
        prior.to(torch.device("cpu"))


def test_without_bitsandbytes_the_extra_is_named(tiny_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"unproject\[bnb\]"):
        load_prior("sd15", placement=Placement(weights="bnb-nf4"))


def test_without_torchao_the_extra_is_named(tiny_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"unproject\[quant\]"):
        load_prior("sd15", placement=Placement(weights="int8"))  # before anything is downloaded


@pytest.mark.parametrize("parts", ["slices", "tiles"])
def test_pictures_in_parts(tiny_folders, parts):
    prior, whole = load_prior(tiny_folders["sd"], placement=Placement(vae=parts)), load_prior(tiny_folders["sd"])
    assert prior.vae.use_slicing and prior.vae.use_tiling == (parts == "tiles")
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.decode(latents), whole.decode(latents))


def test_unknown_settings_are_named():
    with pytest.raises(InputError, match="offload='disk' is unknown; have none, text, model, sequential"):
        Placement(offload="disk")


def test_channels_last_changes_no_value(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    expected = answers(prior)
    channels_last(prior)
    assert prior.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(answers(prior), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_blocks_are_compiled_without_a_break(tiny_folders, family, monkeypatch):
    """Each is traced whole where it is called; the graph itself is run as it is, without a compiler."""
    graphs: list[int] = []

    def traced(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    prior = load_prior(tiny_folders[family])
    expected = answers(prior)
    compile_one = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_one(self, backend=traced, **options)
    )
    torch._dynamo.reset()
    count = compile_blocks(prior.network)
    torch.testing.assert_close(answers(prior), expected)
    assert 0 < len(graphs) <= count


def test_networks_without_such_blocks_are_refused():
    with pytest.raises(InputError, match="Linear has none of the blocks BasicTransformerBlock"):
        compile_blocks(torch.nn.Linear(1, 1))
