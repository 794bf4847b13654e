"""The mean of two heads: between them at a share, one of them at the ends, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unproject.scripts.average_heads import average, main, mix_into
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.toybox.dataset import RenderJob, render_set
from unproject.utils.errors import InputError


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    job = RenderJob("room", "val", 1, 32, geometry=True)
    return str(render_set(job, tmp_path_factory.mktemp("rooms"), workers=1))


def _head(folder: Path, prior, seed: int, **settings) -> str:
    head = GeometryHead.from_prior(prior, HeadConfig(processing_resolution=32, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.unet.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    prior.save(folder.parent / "tiny")
    return str(head.save(folder, "tiny"))


def test_a_mean_lies_between(tiny_prior, rooms: str, tmp_path: Path) -> None:
    first, second = _head(tmp_path / "a", tiny_prior, 1), _head(tmp_path / "b", tiny_prior, 2)
    errors = average(first, second, 0.25, [rooms], str(tmp_path / "mean"))
    assert 0 <= errors["delta1"] <= 1 and 0 < errors["normals_mean"] < 180
    mean, a, b = (GeometryHead.load(folder).unet.state_dict() for folder in (tmp_path / "mean", first, second))
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.75 * a[name] + 0.25 * b[name], atol=2e-3, rtol=2e-3)  # stored in fp16


def test_the_ends_are_the_heads() -> None:
    for share in (0.0, 1.0):
        a, b = nn.Linear(3, 2), nn.Linear(3, 2)
        wanted = (b if share else a).weight.clone()
        mix_into(a, b, share)
        assert torch.equal(a.weight, wanted)


def test_what_has_no_mean_is_refused(tiny_prior, rooms: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="share=1"):
        mix_into(nn.Linear(3, 2), nn.Linear(3, 2), 1.5)
    with pytest.raises(InputError, match="different shapes"):
        mix_into(nn.Linear(3, 2), nn.Linear(2, 2), 0.5)
    first, other = _head(tmp_path / "a", tiny_prior, 1), _head(tmp_path / "b", tiny_prior, 2, targets=("depth",))
    code = main([first, other, "--share", "0.5", "--val", rooms, "--out", str(tmp_path / "mean")])
    assert code == 2 and "differ in their settings" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
