"""A target is one file: a third one goes everywhere, and nothing outside the codecs asks for a target's name."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import unproject.tasks.heads
from unproject.cli.maps import map_command
from unproject.cli.outputs import Target
from unproject.pipelines.image_to_geometry import ImageToGeometry, ImageToMap
from unproject.tasks.codecs import CODECS, Column, Invariance, TargetCodec
from unproject.tasks.data import AugmentConfig, GeometryData
from unproject.tasks.ensemble import Alignment, Ensembled
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.metrics import masked_mean
from unproject.tasks.table import TaskConfig, TaskSchedule, task_table
from unproject.tasks.train import HeadObjective, LossConfig
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image, save_image
from unproject.utils.runs import RunRecord

ROOT = Path(unproject.tasks.heads.__file__).resolve().parents[1]
FREE = ("tasks", "pipelines", "cli", "bench", "scripts")  # of the names of targets, but for tasks/codecs


@dataclass(frozen=True)
class RaysCodec(TargetCodec):
    """Where each pixel looks: azimuth and elevation in radians; azimuth changes its sign in a mirror."""

    name: ClassVar[str] = "rays"
    channels: ClassVar[int] = 2
    column: ClassVar[Column] = Column("rays_mrad", "rays", 1000, (-1.0, 1.0))
    unit: ClassVar[str] = "rad"
    frame: ClassVar[str] = "opencv"
    weights: ClassVar[Mapping[str, float]] = {"rays": 2.0}
    summary: ClassVar[tuple[str, ...]] = ("rays_deg",)
    span: float = 1.0
    """radians that +-1 of the picture stands for"""

    @property
    def invariance(self) -> Invariance:
        return "none"

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        rays = values.permute(0, 3, 1, 2)
        return rays, torch.isfinite(rays).all(1, keepdim=True)

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, None]:
        return torch.cat([target, target[:, :1]], 1) / self.span, None

    def decode(self, pictures: Tensor, state: Any = None) -> Tensor:
        return self.span * pictures[:, :2]

    def reduce(self, members: Tensor, alignment: Alignment, sampled: bool) -> Ensembled:
        return Ensembled(members.mean(0, keepdim=True), members.std(0, keepdim=True).mean(1, keepdim=True))

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        return (maps - target).norm(dim=1)

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        mean = masked_mean(self.error(maps, target, valid), valid[:, 0])
        return {"rays_deg": torch.rad2deg(mean), "rays_rad": mean}

    def levels(self, maps: np.ndarray) -> np.ndarray:
        return np.concatenate([maps / self.span, np.zeros_like(maps[..., :1])], -1).clip(-1, 1) / 2 + 0.5


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "rays", RaysCodec)


@pytest.fixture
def head(tiny_prior) -> GeometryHead:
    config = HeadConfig(targets=("depth", "rays"), processing_resolution=32, codecs={"rays": {"span": 0.5}})
    return GeometryHead.from_prior(tiny_prior, config)


def pictures(count: int = 1, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_an_ensemble_of_a_mirror_pair_mirrors_the_third_target(head: GeometryHead) -> None:
    pipe = ImageToGeometry(head)
    made, other = (pipe(x, ensemble_size=2, output_type="pt") for x in (pictures(), pictures().flip(3)))
    rays, seen = made["rays"].prediction, other["rays"].prediction
    torch.testing.assert_close(seen, torch.cat([-rays[:, :1], rays[:, 1:]], 1).flip(3), rtol=0, atol=1e-4)
    assert rays.shape == (1, 2, 32, 32) and float(rays.abs().max()) > 1e-3
    assert made["rays"].uncertainty.max() > 0
    assert made.depth is made["depth"] and made.normals is None
    with pytest.raises(KeyError):
        made["normals"]


def test_tiles_and_files_of_the_third_target(head: GeometryHead, tmp_path: Path) -> None:
    made = ImageToGeometry(head)(pictures(2, 48), ensemble_size=2, tiles=2)
    written = [path.name for path in made.save(tmp_path / "room")]
    assert written[4:8] == [f"room-depth-001{end}" for end in (".npz", "-16bit.png", "-uncertainty.png", ".png")]
    assert written[8] == "room-rays-000.npz" and len(written) == 16
    rays = made["rays"].maps()[0]
    stored = np.load(tmp_path / "room-rays-000.npz")
    np.testing.assert_array_equal(stored["rays"], rays)
    facts = {name: str(stored[name]) for name in ("invariance", "unit", "frame")}
    assert facts == {"invariance": "none", "unit": "rad", "frame": "opencv"}
    shown = np.asarray(Image.open(tmp_path / "room-rays-000.png"), np.float32)
    np.testing.assert_allclose(shown[..., :2], 255 * (rays.clip(-0.5, 0.5) / 0.5 + 1) / 2, atol=0.51)


def test_the_third_target_is_learnt(head: GeometryHead, planes, tmp_path: Path) -> None:
    rooms = planes(4)
    x, y = np.meshgrid(*(np.linspace(-400, 400, 32),) * 2)
    rooms.columns["rays_mrad"] = np.broadcast_to(np.stack([x, y / 2], -1), (4, 32, 32, 2)).astype(np.int16)
    data = GeometryData([rooms], AugmentConfig(flip=True), head.codec.columns())
    rng = np.random.default_rng(0)
    batch = data.batch(np.arange(4), rng)
    assert set(batch) == {"images", "depth_m", "rays"}
    np.testing.assert_allclose(batch["rays"], data.batch(np.arange(4), None)["rays"], atol=1e-6)  # a pinhole, mirrored
    objective = HeadObjective(LossConfig(weights={"depth": 0.5}, validation_images=4), head, data)
    parameters = list(objective.modules["unet"].parameters())
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for step in range(8):
        out = objective.loss(data.batch(np.arange(4), None), torch.Generator(), step)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.logs["rays"]))
        parts = {"depth": 0.5, "relative": 0.0, "anchor": 0.5, "edges": 0.5, "rays": 2.0}
        assert out.loss.item() == pytest.approx(sum(w * float(out.logs[k]) for k, w in parts.items()), rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert set(objective.validate()) == {"upright", "abs_rel", "delta1", "silog", "rays_deg"}
    (sheet,) = objective.preview(3, tmp_path)
    assert load_image(sheet).shape[1] == 5 * (32 + 2) + 2
    with pytest.raises(InputError, match="the loss of depth, rays has no part 'normals'; have depth, relative"):
        HeadObjective(LossConfig(weights={"normals": 1.0}), head)


def test_the_command_of_the_third_target(head: GeometryHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unproject.tasks.heads, "load_head", lambda name, targets, **_: head)
    command = map_command("look", TaskConfig("Estimate where pixels look.", "rays"))
    assert (command.name, command.__doc__) == ("look", "Estimate where pixels look.")
    photo = save_image(tmp_path / "photo.png", pictures()[0])
    made = command(image=(photo,))
    pipe = made.load()
    assert isinstance(pipe, ImageToMap)
    made.one(pipe, photo, load_image(photo), RunRecord("look"), Target(tmp_path, "photo-look"))
    assert "rays" in np.load(tmp_path / "photo-look.npz")
    with pytest.raises(InputError, match="predicts depth, rays, not normals"):
        ImageToMap(head, "normals")


def test_settings_of_a_head_are_its_codecs() -> None:
    config = HeadConfig(targets=("rays",), codecs={"rays": {"span": 2.0}})
    assert config.codec().parts["rays"] == RaysCodec(span=2.0)
    with pytest.raises(InputError, match="spam"):
        HeadConfig(targets=("rays",), codecs={"rays": {"spam": 2.0}}).codec()
    with pytest.raises(InputError, match="codecs names depth, but the targets are rays"):
        HeadConfig(targets=("rays",), codecs={"depth": {}})


def test_heads_of_earlier_files_keep_their_settings() -> None:
    """head.json before codecs had arguments of their own."""
    earlier = {"depth_space": "log", "shift_invariant": False, "full_z_range": False, "steps": 1}
    both = HeadConfig.read({**earlier, "targets": ["depth", "normals"]}, alignment="published")
    depth, normals = both.codec().parts.values()
    assert (depth.space, depth.invariance, normals.full_z_range, both.alignment) == ("log", "scale", False, "published")
    assert HeadConfig.read({**earlier, "targets": ["normals"]}).codecs == {"normals": {"full_z_range": False}}
    again = HeadConfig.read({**earlier, "alignment": "consensus"}, alignment="published")
    assert again.alignment == "consensus"


def test_tasks_are_described_by_files() -> None:
    table = task_table()
    assert {name: task.codec for name, task in table.items() if task.map} == {"depth": "depth", "normals": "normals"}
    assert table["calibrate"].codec == "camera" and not table["calibrate"].map
    assert all(task.codec in CODECS and task.summary for task in table.values())
    assert table["depth"].pipeline == "MarigoldDepthPipeline"
    with pytest.raises(InputError, match="steps=0"):
        TaskSchedule(steps=0)
    with pytest.raises(InputError, match="unknown key 'codecs'"):
        load_config(TaskConfig, {"summary": "", "codec": "depth", "codecs": "telepathy"})


def is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def asked(tree: ast.AST) -> list[int]:
    """Lines that decide by a target's name or its codec's class."""
    names = {"depth", "normals", "camera", "gravity"}
    classes = {"DepthCodec", "NormalCodec", "CameraCodec", "GravityCodec", "DepthOutput", "NormalsOutput"}
    conditions: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
            conditions.append(node.test)
        elif isinstance(node, ast.comprehension):
            conditions += node.ifs
        elif isinstance(node, (ast.Compare, ast.MatchValue)) or is_call(node, "isinstance"):
            conditions.append(node)
    return [
        part.lineno
        for condition in conditions
        for part in ast.walk(condition)
        if (isinstance(part, ast.Constant) and part.value in names)
        or (isinstance(part, ast.Name) and part.id in classes)
    ]


@pytest.mark.parametrize(
    "text",
    [
        'if name == "depth": pass',
        'x = 1 if "normals" in maps else 2',
        "assert isinstance(codec, DepthCodec)",
        '[n for n in names if n != "depth"]',
        'match name:\n    case "normals": pass',
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert asked(ast.parse(text))


def test_only_codecs_know_targets_by_name() -> None:
    files = [path for folder in FREE for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if "codecs" not in path.relative_to(ROOT).parts
        for line in asked(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_angles_of_the_test_codec() -> None:
    """The oracle of this file: a constant offset in azimuth is that many degrees."""
    truth = torch.zeros(1, 2, 4, 4)
    moved = truth + torch.tensor([math.radians(3), 0.0]).reshape(2, 1, 1)
    assert RaysCodec().metrics(moved, truth, truth[:, :1] == 0)["rays_deg"].item() == pytest.approx(3, rel=1e-5)
