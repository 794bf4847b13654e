"""How much a mesh of drawn normal maps costs: the settings of configs/mesh-quality.yaml."""

from __future__ import annotations

from dataclasses import replace

from .direct25_mesh import Direct25Config
from .mesh_quality import Drawn, check_quality, spending


def drawn_at_quality(config: Direct25Config, quality: str) -> Direct25Config:
    """The settings with what a quality changes. Raises InputError for unknown names."""
    check_quality(quality)
    return drawn_with(config, getattr(spending().drawn, quality))


def drawn_with(config: Direct25Config, drawn: Drawn) -> Direct25Config:
    """The settings with others of both drawings, of the fusion and of the second ring."""
    told = {"steps": drawn.steps, "solver": drawn.solver, "cache": drawn.cache}
    normals = replace(config.normals, plan=config.normals.plan.changed(**told))
    ring = config.paint.second_deg if drawn.second_ring is None else drawn.second_ring
    paint = replace(config.paint, plan=config.paint.plan.changed(**told), second_deg=ring)
    mesh = config.mesh if drawn.fusion is None else replace(config.mesh, steps=drawn.fusion)
    return replace(config, normals=normals, paint=paint, mesh=mesh)
