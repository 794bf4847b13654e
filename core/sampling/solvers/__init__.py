"""Solvers behind one request/response protocol."""

from __future__ import annotations

from ....utils.errors import InputError
from ..prediction import Kind
from .base import Done, Request, Solver
from .ddim import DDIM
from .wrapped import RECIPES, WrappedSolver

SOLVERS = ("ddim", *RECIPES)  # the command line's names


def make_solver(name: str, flow: bool = False, kind: Kind = "epsilon", eta: float = 0.0) -> Solver:
    """The solver called `name` (ddim, dpm++, unipc, euler, heun) for a VP or flow prior of this prediction kind."""
    if name == "ddim":
        return DDIM(eta)
    if name not in RECIPES:
        raise InputError(f"solver {name!r} is unknown; have {', '.join(SOLVERS)}")
    if eta:
        raise InputError(f"eta={eta} only works with the ddim solver, not with {name}")
    return WrappedSolver(name, flow, kind)


__all__ = ["DDIM", "SOLVERS", "Done", "Request", "Solver", "WrappedSolver", "make_solver"]
