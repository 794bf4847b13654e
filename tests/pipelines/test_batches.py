"""Many drawings in parts that fit: by what is free, and by halves after memory ran out, with the same pictures."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from unproject.core.priors import GaussianMixturePrior, Rows
from unproject.pipelines import TextToImage, batches
from unproject.pipelines.batches import Batches, fitting_rows
from unproject.utils import device_memory
from unproject.utils.errors import UnprojectError
from unproject.utils.seeds import generator

SIDE, ROW, PIXEL = 4, 1000, 10


class Tight(GaussianMixturePrior):
    """Runs out of memory with more than `most` rows of the network, or more than `shown` pictures to decode."""

    def __init__(self, most: int = 99, shown: int = 99) -> None:
        super().__init__(torch.tensor([[[[-0.5]]], [[[0.4]]]]), torch.tensor([0.3, 0.2]), names=("x", "y"))
        self.latent_shape = (1, SIDE, SIDE)
        self.most, self.shown = most, shown
        self.asked: list[int] = []
        self.decoded: list[int] = []

    def row_bytes(self, height: int, width: int) -> int:
        return ROW

    def decode_bytes(self, height: int, width: int) -> int:
        return PIXEL * height * width

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        self.asked.append(len(x))
        if len(x) > self.most and len(self.asked) % 3 == 0:  # in the middle of a run
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return super()._forward(x, time, rows)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        self.decoded.append(len(latents))
        if len(latents) > self.shown:
            raise RuntimeError("out of memory")
        return super().decode(latents, clamp)


DRAW: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt"}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("one", [False, True])
def test_what_does_not_fit_is_drawn_again_in_halves(eta: float, one: bool) -> None:
    """Seeds and generators are where they were: also of a solver that draws noise, where parts share a generator."""
    asked = {**DRAW, "solver": "ddim", "eta": eta, "num_images_per_prompt": 7}
    wanted = TextToImage(Tight())("x", **({"generator": generator(3)} if one else {"seed": 5}), **asked)
    prior = Tight(most=2, shown=1)
    with pytest.warns(UserWarning, match="out of memory with 7 pictures at once; they are made again 3 at a time"):
        made = TextToImage(prior)("x", **({"generator": generator(3)} if one else {"seed": 5}), **asked)
    if not (one and eta):  # one generator for parts gives other noise to all but the first
        torch.testing.assert_close(made.images, wanted.images, rtol=0, atol=1e-6)
    assert made.images.shape == (7, 1, SIDE, SIDE) and prior.decoded[-7:] == [1] * 7
    assert max(prior.asked[3:]) == 3 and prior.asked[-1] == 1


def test_a_generator_for_all_is_set_back_with_the_part_that_failed() -> None:
    asked = {**DRAW, "solver": "ddim", "eta": 1.0, "num_images_per_prompt": 4}
    wanted = TextToImage(Tight())("x", generator=generator(3), batch_size=2, **asked).images
    with pytest.warns(UserWarning, match="2 at a time"):
        made = TextToImage(Tight(most=2))("x", generator=generator(3), **asked).images
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6)


def test_parts_are_as_large_as_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Tight()
    for free, rows in ((10_000, 4), (100_000, 40), (10, 1), (None, None)):
        monkeypatch.setattr(batches, "free_bytes", lambda device, free=free: free)
        assert fitting_rows(prior, (SIDE, SIDE), 2) == rows, free
    monkeypatch.setattr(batches, "free_bytes", lambda device: 10_000)
    assert fitting_rows(prior, (20, 40), 1) == 1, "a picture's pixels need more than its row"
    assert [Batches(prior, 9, (4, 4), 2, largest).at_once for largest in (None, 3, 8)] == [4, 3, 4]
    assert [Batches(prior, 8, (4, 4), 1, largest, frames=4).at_once for largest in (None, 6, 2)] == [8, 4, 4]
    made = TextToImage(Tight())("x", seed=0, num_images_per_prompt=9, **DRAW)
    assert made.images.shape[0] == 9


def test_a_single_picture_that_does_not_fit_ends_with_the_next_setting() -> None:
    told = r"with one picture at a time \(CUDA out of memory.*use smaller renders"
    with warnings.catch_warnings(), pytest.raises(UnprojectError, match=told):
        warnings.simplefilter("ignore")
        TextToImage(Tight(most=0))("x", seed=0, num_images_per_prompt=2, **DRAW)


def test_other_failures_are_not_tried_again() -> None:
    prior = Tight()
    calls: list[slice] = []

    def do(rows: slice) -> None:
        calls.append(rows)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Batches(prior, 4, (4, 4), 1).each(do)
    assert len(calls) == 1


def test_memory_is_asked_of_the_device_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    host = device_memory.free_bytes(torch.device("cpu"))
    assert host is None or host > 1e6
    assert device_memory.free_bytes(torch.device("meta")) is None

    class Cuda:
        mem_get_info = staticmethod(lambda device: (100, 1000))
        memory_reserved = staticmethod(lambda device: 50)
        memory_allocated = staticmethod(lambda device: 20)

    monkeypatch.setattr(device_memory, "_cuda", lambda: Cuda)
    assert device_memory.free_bytes(torch.device("cuda:0")) == 130
