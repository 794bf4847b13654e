"""Recorded calls of a network: with a stand-in for CUDA's graphs that, like them, computes in fixed places only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unproject.core.priors import load_prior, replay
from unproject.core.priors.placement import Placement
from unproject.core.priors.replay import FORMS, Replayed
from unproject.pipelines import TextToImage
from unproject.utils.errors import InputError


class Recorder:
    """Records by keeping the tensors it was shown; every replay computes on them and answers in one place."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, function: Callable[..., Any], samples: tuple[Tensor, ...]) -> Callable[..., Any]:
        self.recorded += 1
        answers = tuple(answer.clone() for answer in function(*samples))

        def again(*tensors: Tensor) -> Any:
            self.replayed += 1
            for place, tensor in zip(samples, tensors, strict=True):
                place.copy_(tensor)
            for place, answer in zip(answers, function(*samples), strict=True):
                place.copy_(answer)
            return answers

        return again


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(replay, "recorder", lambda device: made)
    return made


class Twice(nn.Module):
    """(2 w x + y, ...) of named and nested arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        self.calls = 0

    def forward(self, x: Tensor, more: dict[str, Any], flag: bool = False) -> tuple[Tensor, ...]:
        self.calls += 1
        return (2 * self.layer(x) + more["y"][0] * (3 if flag else 1),)


def asked(network: nn.Module, x: Tensor, y: float = 1.0, flag: bool = False) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network(x, more={"y": [torch.full((1,), y), None]}, flag=flag)[0]
    return answer


def test_nothing_is_recorded_where_nothing_can_be() -> None:
    network = Twice()
    made = replay.replay(network)
    for _ in range(3):
        asked(network, torch.ones(2, 3))
    assert network.calls == 3 and not made.recorded
    assert replay.recorder(torch.device("cuda")) is not None and replay.recorder(torch.device("cpu")) is None


def test_a_form_is_recorded_when_it_comes_back(recording: Recorder) -> None:
    network, plain = Twice(), Twice()
    plain.load_state_dict(network.state_dict())
    replay.replay(network)
    given = [(torch.full((2, 3), float(i)), float(i), i % 3 == 2) for i in range(9)]
    answers = [asked(network, *one) for one in given]
    for one, answer in zip(given, answers, strict=True):  # none was overwritten by a later call
        torch.testing.assert_close(answer, asked(plain, *one), rtol=0, atol=0)
    assert (recording.recorded, recording.replayed) == (2, 7), "two forms, each computed once before"
    with torch.no_grad():
        network.layer.weight.mul_(3)
        plain.layer.weight.mul_(3)
    torch.testing.assert_close(asked(network, *given[1]), asked(plain, *given[1]), rtol=0, atol=0)


def test_only_some_forms_are_kept(recording: Recorder) -> None:
    network = Twice()
    made = replay.replay(network)
    for rows in [*range(1, FORMS + 3)] * 2:
        asked(network, torch.ones(rows, 3))
    assert recording.recorded == len(made.recorded) == FORMS
    made.forget()
    asked(network, torch.ones(1, 3))
    assert not made.recorded


def test_calls_that_a_graph_cannot_hold_are_computed(recording: Recorder) -> None:
    network = Twice()
    replay.replay(network)
    x = torch.ones(2, 3, requires_grad=True)
    for _ in range(3):
        network(x, more={"y": [torch.ones(1)]})[0].sum().backward()
    assert x.grad is not None
    seen: list[int] = []
    handle = network.layer.register_forward_pre_hook(lambda *_: seen.append(1))
    for _ in range(3):
        asked(network, torch.ones(2, 3))
    assert len(seen) == 3 and not recording.recorded
    handle.remove()
    for _ in range(3):
        asked(network, torch.ones(2, 3))
    assert recording.recorded == 1


def test_a_device_that_refuses_ends_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def refuses(function: Any, samples: Any) -> Any:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replay, "recorder", lambda device: refuses)
    network = Twice()
    replay.replay(network)
    with pytest.warns(UserWarning, match="computed one by one: operation not permitted when stream is capturing$"):
        answers = [asked(network, torch.ones(2, 3)) for _ in range(4)]
    assert len(tries) == 1 and len({tuple(answer.flatten().tolist()) for answer in answers}) == 1


def test_a_copy_records_for_itself(recording: Recorder) -> None:
    network = Twice()
    replay.replay(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.layer.weight.zero_()
    for _ in range(3):
        assert float(asked(other, torch.ones(2, 3)).sum()) == 6.0
    assert isinstance(other.forward, Replayed) and other.forward is not network.forward and network.calls == 0


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_pictures_are_the_same(tiny_folders: dict[str, Path], recording: Recorder, family: str) -> None:
    draw: dict[str, Any] = {"num_inference_steps": 8, "seed": 0, "height": 32, "width": 32, "output_type": "latent"}
    plain = load_prior(tiny_folders[family])
    wanted, cached = (TextToImage(plain)("a dog", cache=cache, **draw).latents for cache in (None, "inherit"))
    prior = load_prior(tiny_folders[family], placement=Placement(graphs=True))
    torch.testing.assert_close(TextToImage(prior)("a dog", **draw).latents, wanted, rtol=0, atol=0)
    assert (recording.recorded, recording.replayed) == (1, 7)
    torch.testing.assert_close(TextToImage(prior)("a dog", cache="inherit", **draw).latents, cached, rtol=0, atol=0)
    assert recording.replayed == 7, "a cache decides call by call"
    torch.testing.assert_close(TextToImage(prior)("a dog", **draw).latents, wanted, rtol=0, atol=0)
    assert recording.replayed == 15
    prior.to(torch.device("cpu"))
    assert isinstance(prior.network.forward, Replayed) and not prior.network.forward.recorded


def test_weights_that_move_are_refused() -> None:
    for given in ({"offload": "model"}, {"offload": "sequential"}, {"weights": "float8"}):
        with pytest.raises(InputError, match="graphs=True needs weights that stay where they are"):
            Placement(graphs=True, **given)
