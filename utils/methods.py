"""The registry of implemented methods, configs/methods.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from .configs import load_config


@dataclass(frozen=True)
class Method:
    """One method of the literature and where it lives here."""

    title: str
    paper: str
    year: int
    kind: str
    where: str
    """module, relative to the package"""
    page: str
    """docs/methods/PAGE.md"""
    bench: tuple[str, ...] = ()
    """names of the experiments that measure it"""


@dataclass(frozen=True)
class Methods:
    """The file's content."""

    methods: dict[str, Method]


def load_methods() -> dict[str, Method]:
    """All methods by name."""
    return load_config(Methods, "methods").methods
