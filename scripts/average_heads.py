"""The mean of two heads' weights: python -m unproject.scripts.average_heads A B --share 0.4 --val FOLDER --out FOLDER.

Heads trained on from the same weights lie in one valley of the loss, where the mean can be better than both (Wortsman
et al. 2022, model soups).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tasks.data import GeometryData
from ..tasks.geometry_head import GeometryHead
from ..tasks.train import HeadObjective, LossConfig
from ..toybox.dataset import RenderedSet
from ..utils.errors import InputError, UnprojectError


@torch.no_grad()
def mix_into(network: nn.Module, other: nn.Module, share: float) -> None:
    """Sets the weights to (1 - share) network + share other. Raises InputError when the networks differ in shape."""
    if not 0 <= share <= 1:
        raise InputError(f"share={share} of the second head must lie in [0, 1]")
    mine, theirs = network.state_dict(), other.state_dict()
    if shapes_of(mine) != shapes_of(theirs):
        raise InputError("the two heads have networks of different shapes; average heads of one prior and targets")
    network.load_state_dict({name: torch.lerp(value, theirs[name], share) for name, value in mine.items()})


def shapes_of(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Shape of each tensor by name."""
    return {name: value.shape for name, value in state.items()}


def average(first: str, second: str, share: float, val: Sequence[str], out: str) -> dict[str, float]:
    """Writes the mean of two head folders; returns its errors on rendered validation rooms."""
    head, other = GeometryHead.load(first), GeometryHead.load(second)
    if head.config != other.config:
        raise InputError(f"{first} and {second} differ in their settings; only heads of one kind have a mean")
    mix_into(head.unet, other.unet, share)
    held_out = GeometryData([RenderedSet(folder) for folder in val], columns=head.codec.columns())
    errors = HeadObjective(LossConfig(), head, held_out).validate()
    head.save(out, validation=errors)
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="average_heads", description=__doc__.splitlines()[0])
    parser.add_argument("heads", nargs=2, help="two head folders")
    parser.add_argument("--share", type=float, required=True, help="weight of the second, in [0, 1]")
    parser.add_argument("--val", required=True, nargs="+", help="rendered folders of validation rooms")
    parser.add_argument("--out", required=True, help="folder of the mean")
    options = parser.parse_args(arguments)
    try:
        first, second = options.heads
        errors = average(first, second, options.share, options.val, options.out)
    except UnprojectError as error:
        print(f"average_heads: {error}", file=sys.stderr)
        return error.exit_code
    print(", ".join(f"{name} {value:.4g}" for name, value in errors.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
