"""What is said of fits: rows by recipe, baseline first, meshes scored, wrong poses measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unproject.bench import fit
from unproject.bench.runner import Context
from unproject.toybox.orbits import toy, true_mesh
from unproject.utils.errors import InputError


def test_rows_compare_relocation_with_density_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(fit.QUICK, views=9, size=24, steps=2, resolution=10, fused=(3, 16), samples=100, poses=True)
    monkeypatch.setattr(fit, "QUICK", small)
    found = fit.run(Context("fit", quick=True, out=tmp_path))
    assert [row["fit"] for row in found["table"][:2]] == ["default", "mcmc"]
    assert {"psnr", "ssim", "splats", "seconds", "f_score_tsdf", "solid_levels"} <= found["table"][0].keys()
    plain, refined = found["table"][2:]
    assert plain["degrees_off"] > 0.3 and plain["metres_off"] > 0.01 and refined["degrees_off"] != plain["degrees_off"]
    assert (tmp_path / "fit.png").is_file() and found["fits"]["mcmc"][0]["steps"] == 2


def test_toys_are_named_in_words() -> None:
    scene = toy("a red chair", 3)
    mesh = true_mesh(scene)
    assert float(mesh.vertices.norm(dim=-1).max()) == pytest.approx(0.85, rel=1e-3)
    assert not torch.equal(true_mesh(toy("a red chair", 4)).vertices[:8], mesh.vertices[:8])
    with pytest.raises(InputError, match="more than one object"):
        toy("two red chairs")
