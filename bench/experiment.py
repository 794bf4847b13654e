"""What an experiment is by name, and the weights and code that several rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DIT = "toybox-dit"
HEAD = "toybox-geometry"
JUDGE = "judge"
DRAWN = ("toybox-direct25", "toybox-lcm")  # what paints a mesh of drawn maps, and what draws them
PAIRS = "judge-pairs"  # reads two objects in a picture
SOLVERS = "core/sampling/solvers"
CACHES = "core/sampling/caches"
FAMILY = ("generate", "core/distillation", "core/distillation/rules", "geometry/splats", "geometry/shapes")


@dataclass(frozen=True)
class Experiment:
    """A named experiment; `module` holds its `run`."""

    title: str
    module: str
    baseline: tuple[str, Any]
    """key and value of the rows that the others are compared with; ("", None) when the table compares nothing"""
    prior: str = "toybox"
    """measured unless another one is asked for; empty: none is used"""
    entry: str = "run"
    """the function of the module"""
    weights: tuple[str, ...] | None = (JUDGE,)
    """folders of weights besides the prior's; None: its numbers are the same with any weights"""
    method: tuple[str, ...] = ()
    """files and folders of the package that its method is made of, besides those that its modules import from"""

    def rests_on(self, prior: str) -> tuple[str, ...]:
        """Names or folders of all weights its numbers depend on."""
        own = (prior,) if self.prior else ()
        return () if self.weights is None else tuple(dict.fromkeys((*own, *self.weights)))
