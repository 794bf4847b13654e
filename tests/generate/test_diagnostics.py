"""Diagnostics of score distillation: strips, targets by view, gradient norms."""

from __future__ import annotations

import json

import pytest
import torch

from unproject.core.distillation.score import ScoreConfig, ScoreDistillation
from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.generate.diagnostics import Diagnostics
from unproject.generate.views import ViewConfig, draw_cameras
from unproject.geometry.cameras import Camera
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image
from unproject.utils.seeds import generator

SIZE = 8


def prior() -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 3, SIZE, SIZE), 0.2), torch.tensor([0.5]), scheduler_config=SD_SCHEDULE)


def looks(diagnostics: Diagnostics, steps: int, camera: Camera) -> list[float]:
    """Watches so many looks at one random render; the gradient norms."""
    model, norms = prior(), []
    score = ScoreDistillation(ScoreConfig(guidance=1.0, rescale=0.0), model, model.encode_text("any"))
    watch = diagnostics.watching(model, steps)
    for step in range(steps):
        images = torch.rand(camera.batch, 3, SIZE, SIZE, generator=generator(step), dtype=torch.float64)
        out = score(images, step / steps, generator(step))
        norms.append(float(out.grad_norm))
        watch(step, images, camera, out)
    return norms


def test_strips_show_render_noised_target_and_their_difference(tmp_path):
    camera = draw_cameras(ViewConfig(views=2), SIZE, generator(0))
    looks(Diagnostics(tmp_path, strips=2), 3, camera)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["step-00000.png", "step-00002.png"]
    strip = torch.from_numpy(load_image(tmp_path / "step-00000.png")).double()
    edge = SIZE + 2
    tiles = [strip[2 + row * edge : 2 + row * edge + SIZE, 2 : 2 + SIZE] for row in range(4)]
    render = torch.rand(2, 3, SIZE, SIZE, generator=generator(0), dtype=torch.float64)[0].permute(1, 2, 0)
    torch.testing.assert_close(tiles[0], render, atol=3e-3, rtol=0)
    torch.testing.assert_close(tiles[3], (tiles[0] - tiles[2]).abs(), atol=1e-2, rtol=0)
    assert (tiles[1] - tiles[0]).abs().mean() > 0.1 and (tiles[2] - 0.6).abs().mean() < 0.2


def test_numbers_of_every_look_and_the_views_that_targets_show(tmp_path):
    camera = Camera.orbit([0.0, 90, 180, 270], 10.0, 3.0, 40.0, SIZE)
    told = Diagnostics(tmp_path, strips=0, view_of=lambda images: ["front"] * len(images))
    norms = looks(told, 3, camera)
    record = json.loads((tmp_path / "diagnostics.json").read_text())
    assert record["targets_by_view"] == {"back": {"front": 3}, "front": {"front": 3}, "side": {"front": 6}}
    assert [look["grad"] for look in record["looks"]] == pytest.approx(norms)
    assert record["gradient_norm"]["mean"] == pytest.approx(sum(norms) / 3)
    assert record["gradient_norm"]["coefficient_of_variation"] > 0 and not list(tmp_path.glob("*.png"))
    with pytest.raises(InputError, match="strips=-1"):
        Diagnostics(tmp_path, strips=-1)
