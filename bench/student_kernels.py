"""Whether layers of few bits are quicker than float32 where this runs: integers, rounded floats, torch's own kernels.

Times are of the processor, medians of runs that alternate between the ways; a ratio below 1 is quicker than float32.
`reference` rounds in floating point, `int8` multiplies integers (`core/distillation/integer.py`), both with weights of
4 and inputs of 8 bits. `weights_int8` and `weights_int4` are torch's linear maps with packed weights and inputs in
bfloat16 (`_weight_int8pack_mm`, `_weight_int4pack_mm_for_cpu`), where torch has them: their inputs are not rounded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..core.distillation.integer import IntegerLayer, with_kernels
from ..core.distillation.quantised import Clock, QuantLayer
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import Denoiser, NoiseSchedule
from ..utils.seeds import generator
from .intervals import digits
from .kept import Row

GROUP = 32  # weights of a row that share a scale in torch's 4-bit kernel
NETWORK = "the whole network"
MIDDLE = 500  # train index at which whole networks are asked


class Shape(NamedTuple):
    """A layer as a network has it."""

    of: str
    layer: str  # "conv" of 3 x 3, or "linear"
    inputs: int
    outputs: int
    places: int  # a side of the map, or tokens

    def made(self) -> nn.Conv2d | nn.Linear:
        """It, with weights of its initialisation."""
        if self.layer == "conv":
            return nn.Conv2d(self.inputs, self.outputs, 3, padding=1)
        return nn.Linear(self.inputs, self.outputs)

    def input(self, batch: int) -> Tensor:
        """Unit noise of its form."""
        places = (self.inputs, self.places, self.places) if self.layer == "conv" else (self.places, self.inputs)
        return torch.randn(batch, *places, generator=generator(self.inputs))


TOYBOX = (
    Shape("toybox", "conv", 64, 64, 16),
    Shape("toybox", "conv", 128, 128, 4),
    Shape("toybox", "linear", 64, 512, 256),
    Shape("toybox", "linear", 128, 64, 77),
)
STABLE_DIFFUSION = (
    Shape("sd 1.5", "conv", 320, 320, 64),
    Shape("sd 1.5", "conv", 640, 640, 32),
    Shape("sd 1.5", "conv", 1280, 1280, 8),
    Shape("sd 1.5", "linear", 320, 320, 4096),
    Shape("sd 1.5", "linear", 640, 5120, 1024),
    Shape("sd 1.5", "linear", 768, 320, 77),
)
Way = Callable[[], object]


@torch.no_grad()
def kernel_rows(shapes: Sequence[Shape], batches: Sequence[int], repeats: int) -> list[Row]:
    """A row for each layer and batch."""
    rows = []
    for shape in shapes:
        layer = shape.made()
        for batch in batches:
            x = shape.input(batch)
            told = {"of": shape.of, "layer": f"{shape.layer} {shape.inputs} to {shape.outputs} at {shape.places}"}
            rows.append({**told, "batch": batch, **compared(ways_of(layer, x), repeats)})
    return rows


def ways_of(layer: nn.Conv2d | nn.Linear, x: Tensor) -> dict[str, Way]:
    """What computes a layer, by name; torch's packed linear maps where they run."""
    clock = Clock(torch.zeros(1))
    clock.rows = torch.zeros(1, dtype=torch.long)
    few = QuantLayer(copy.deepcopy(layer), 4, 8, clock, shrinks=1)
    few.calibrate(0, x)
    whole = IntegerLayer(few)
    ways: dict[str, Way] = {"float32": lambda: layer(x), "reference": lambda: few(x), "int8": lambda: whole(x)}
    return ways if isinstance(layer, nn.Conv2d) else {**ways, **packed_ways(layer, x)}


def packed_ways(layer: nn.Linear, x: Tensor) -> dict[str, Way]:
    """Torch's own products with packed weights, of those that this torch has for the layer."""
    half, (outputs, inputs) = x.flatten(0, -2).bfloat16(), layer.weight.shape
    whole = torch.zeros(outputs, inputs, dtype=torch.int8)
    scale = torch.ones(outputs, dtype=torch.bfloat16)
    ways: dict[str, Way] = {"weights_int8": lambda: torch.ops.aten._weight_int8pack_mm(half, whole, scale)}
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.int(), 1)
        scales = torch.ones(inputs // GROUP, outputs, 2, dtype=torch.bfloat16)
        ways["weights_int4"] = lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(half, packed, GROUP, scales)
    except (AttributeError, RuntimeError):
        pass  # a torch that packs no 4 bits for processors
    return {name: way for name, way in ways.items() if _runs(way)}


def _runs(way: Way) -> bool:
    try:
        way()
    except (AttributeError, RuntimeError):
        return False
    return True


def compared(ways: Mapping[str, Way], repeats: int) -> Row:
    """Milliseconds of float32, the ratios of the others to it, and whether integers are quicker."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):  # the first is not counted
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                taken[name].append(time.process_time() - began)
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    plain = medians.pop("float32")
    ratios = {f"{name}_ratio": digits(value / plain, 3) for name, value in medians.items()}
    return {"float32_ms": digits(1000 * plain, 3), **ratios, "int8_quicker": medians["int8"] < plain}


@torch.no_grad()
def network_rows(prior: DiffusersPrior, student: DiffusersPrior, batches: Sequence[int], repeats: int) -> list[Row]:
    """A row for each batch of the whole network: the prior, its student of few bits, and that with integers."""
    whole = student.with_network(copy.deepcopy(student.network), student.prediction_type)
    with_kernels(whole.freeze(), "int8")
    level = NoiseSchedule.from_config(prior.scheduler_config).at_index(MIDDLE)
    rows = []
    for batch in batches:
        x = torch.randn(batch, *prior.latent_shape, generator=generator(batch))
        condition = prior.encode_text(["a red chair"] * batch)
        asked = {"float32": prior, "reference": student, "int8": whole}
        ways: dict[str, Way] = {name: partial(Denoiser(one, condition), x, level) for name, one in asked.items()}
        rows.append({"of": "toybox", "layer": NETWORK, "batch": batch, **compared(ways, repeats)})
    return rows
