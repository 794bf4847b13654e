"""The plugin of nerfstudio: its entry points lead somewhere; with nerfstudio, what it gives and how it grows."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.posed import PosedImages
from unproject.scripts.nerfstudio_run import capture

ROOT = Path(__file__).resolve().parents[2]


def pictures() -> PosedImages:
    cameras = Camera.orbit([0.0, 70, 140, 210, 280], [10.0, 30, -10, 50, 20], 2.5, 40.0, 24, 16)
    images = torch.randint(0, 256, (5, 16, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    alpha = torch.full((5, 16, 24, 1), 255, dtype=torch.uint8)
    alpha[:, :, :4] = 0
    return PosedImages(cameras, images, alpha)


def test_entry_points_lead_to_names_of_the_plugin() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.findall(
        r'^\[project\.entry-points\."nerfstudio\.(\w+)"\]\n[\w-]+ = "unproject\.([\w.]+):(\w+)"', text, re.M
    )
    assert [group for group, _, _ in found] == ["method_configs", "dataparser_configs"]
    for _, module, name in found:
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        named = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
        assert name in named


def test_the_dataparser_needs_nothing_that_waits_for_it() -> None:
    """nerfstudio loads dataparsers in the middle of listing its own; datamanagers and engine import that list."""
    tree = ast.parse((ROOT / "pipelines" / "nerfstudio_data.py").read_text())
    asked = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert {name for name in asked if name and name.startswith("nerfstudio")} == {
        "nerfstudio.data.dataparsers.base_dataparser",
        "nerfstudio.data.scene_box",
        "nerfstudio.plugins.registry_dataparser",
    }
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "nerfstudio_plugin"
    ]


def test_a_capture_is_read_as_it_was(tmp_path: Path) -> None:
    from unproject.geometry.posed_files import load_posed

    back = load_posed(capture(pictures(), tmp_path))
    assert torch.equal(back.images[:, :, 4:], pictures().images[:, :, 4:]) and torch.equal(back.alpha, pictures().alpha)
    torch.testing.assert_close(back.cameras.c2w, pictures().cameras.c2w, atol=1e-6, rtol=0)


def test_the_dataparser_gives_the_same_rays_in_its_own_world(tmp_path: Path) -> None:
    pytest.importorskip("nerfstudio")
    from unproject.geometry.interop import from_nerfstudio_cameras
    from unproject.pipelines.nerfstudio_data import UnprojectDataParserConfig

    parser = UnprojectDataParserConfig(data=capture(pictures(), tmp_path), held_out=5).setup()
    told = parser.get_dataparser_outputs("train")
    back = told.transform_poses_to_original_space(told.cameras.camera_to_worlds, "opengl")
    full = torch.eye(4).repeat(4, 1, 1)
    full[:, :3] = back
    told.cameras.camera_to_worlds = full[:, :3]
    torch.testing.assert_close(from_nerfstudio_cameras(told.cameras).c2w, pictures().cameras.c2w[1:], atol=1e-5, rtol=0)
    assert len(told.image_filenames) == 4 and len(parser.get_dataparser_outputs("val").image_filenames) == 1


def test_the_method_grows_with_its_optimisers() -> None:
    pytest.importorskip("nerfstudio")
    from unproject.pipelines.nerfstudio_plugin import GROWN, UnprojectSplats
    from unproject.utils.ramps import Moment
    from unproject.utils.regrown import Regrown

    model = UnprojectSplats.__new__(UnprojectSplats)
    shape = SimpleNamespace(**{name: torch.nn.Parameter(torch.arange(6.0).view(3, 2)) for name in GROWN})
    optimizers = {name: torch.optim.Adam([getattr(shape, name)], 0.1) for name in GROWN}
    for name, optimizer in optimizers.items():
        getattr(shape, name).square().sum().backward()
        optimizer.step()
    rows = torch.tensor([2, 0])

    def grow(now: Moment) -> Regrown:
        for name in GROWN:
            setattr(shape, name, torch.nn.Parameter(getattr(shape, name).detach()[[2, 0, 1]]))
        return Regrown(rows, cloned=torch.tensor([1]))

    shape.after_backward, shape.after_step = lambda now: None, grow
    object.__setattr__(model, "shape", shape)
    model.grow(Moment(3, 10), optimizers)
    for name, optimizer in optimizers.items():
        (held,) = optimizer.param_groups[0]["params"]
        assert held is getattr(shape, name)
        assert optimizer.state[held]["exp_avg"].abs().sum(1).tolist()[2] == 0
        assert float(optimizer.state[held]["exp_avg"][0].abs().sum()) > float(
            optimizer.state[held]["exp_avg"][1].abs().sum()
        )
