"""Posed pictures: backgrounds, holding out, sizes, what cameras look at, and files with bent lenses."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.camera_files import load_nerfstudio, save_colmap, save_nerfstudio
from unproject.geometry.cameras import Camera
from unproject.geometry.distortion import bend, check_bent, straightened
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.geometry.posed import PosedImages, around, moved, orbit_like, photographed, pose_errors
from unproject.geometry.posed_files import load_posed
from unproject.geometry.upright import upright
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


def posed(views: int = 5, alpha: bool = True) -> PosedImages:
    rng = generator(2)
    cameras = Camera.orbit([20.0 + 70 * i for i in range(views)], [12.0 + 3 * i for i in range(views)], 2.5, 40, 9, 7)
    coverage = torch.rand(views, 7, 9, 1, generator=rng) if alpha else None
    return PosedImages.from_floats(cameras, torch.rand(views, 7, 9, 3, generator=rng), coverage)


def test_pictures_lie_over_backgrounds() -> None:
    given = posed()
    assert given.alpha is not None
    alpha, rgb = given.alpha[[3]].float() / 255, given.images[[3]].float() / 255
    torch.testing.assert_close(given.picture([3], 0.0), rgb * alpha)
    back = torch.tensor([[0.1, 0.5, 0.9]])
    torch.testing.assert_close(given.picture([3], back), rgb * alpha + (1 - alpha) * back)
    torch.testing.assert_close(
        posed(alpha=False).picture([1, 2], back[0]), posed(alpha=False).images[1:3].float() / 255
    )


def test_every_eighth_is_held_out() -> None:
    given = posed(11)
    left, held = given.split()
    assert len(held) == 2 and len(left) == 9
    assert torch.equal(held.images, given.images[[0, 8]]) and torch.equal(left.cameras.c2w[0], given.cameras.c2w[1])
    assert len(given.split(0)[1]) == 0
    with pytest.raises(InputError, match="none is left to learn from"):
        given[[0]].split(2)


def test_smaller_pictures_are_means_and_their_cameras_follow() -> None:
    """A picture of half transparent halves: colours are weighted by what they cover."""
    images = torch.zeros(1, 8, 12, 3)
    images[..., 0] = 1.0
    alpha = torch.ones(1, 8, 12, 1)
    images[:, :, 1::2], alpha[:, :, 1::2] = torch.tensor([0.0, 1.0, 0.0]), 0.0
    small = PosedImages.from_floats(Camera.orbit(0.0, 0.0, 2.0, 40.0, 12, 8), images, alpha).resized(0.5)
    assert small.images.shape == (1, 4, 6, 3) and small.alpha is not None
    assert small.images[0, 1:3, 1:5, 0].min() > 240 and small.images[..., 1].max() < 15
    assert abs(float(small.alpha[0, 1:3, 2:4].float().mean()) - 127) < 12
    assert small.cameras.K[0, 0, 2] == 3 and small.cameras.height == 4


def test_what_cameras_look_at() -> None:
    shift = torch.tensor([0.4, -0.7, 0.2])
    given = posed(6)
    c2w = given.cameras.c2w.clone()
    c2w[:, :3, 3] += shift
    other = PosedImages(Camera(c2w, given.cameras.K, 9, 7), given.images)
    torch.testing.assert_close(other.middle, shift, atol=1e-4, rtol=0)
    assert other.extent == pytest.approx(given.extent, rel=1e-5)
    centres = given.cameras.centres
    assert given.extent == pytest.approx(1.1 * float((centres - centres.mean(0)).norm(dim=-1).max()))
    single = given[[2]]
    ahead = single.cameras.centres[0] + single.cameras.c2w[0, :3, 2]
    torch.testing.assert_close(single.middle, ahead)  # one metre ahead
    assert single.extent == pytest.approx(1.1, rel=1e-4)


def test_an_orbit_like_the_cameras() -> None:
    """As far, as high, level and looking at the middle, in a world whose up is not z."""
    turn = upright("-y")
    assert turn is not None
    cameras = Camera.orbit([10.0 * i for i in range(36)], 25.0, 2.0, 40.0, 9, 7)
    pose = turn.float().inverse() @ cameras.c2w  # z up becomes -y up
    path = orbit_like(PosedImages(Camera(pose, cameras.K, 9, 7), torch.zeros(36, 7, 9, 3, dtype=torch.uint8)), 8)
    torch.testing.assert_close(path.centres.norm(dim=-1), torch.full((8,), 2.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(-path.centres[:, 1] / 2.0, torch.full((8,), 0.4226), atol=1e-3, rtol=0)
    torch.testing.assert_close(path.c2w[:, :3, 2], -path.centres / 2.0, atol=1e-3, rtol=0)
    assert float(path.c2w[:, 1, 0].abs().max()) < 1e-5  # right is level
    torch.testing.assert_close(path.c2w[0], pose[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.linalg.det(path.c2w[:, :3, :3]), torch.ones(8))


@pytest.mark.parametrize("up", ["+x", "-x", "+y", "-y", "-z"])
def test_what_is_up_becomes_z(up: str) -> None:
    turn = upright(up)
    assert turn is not None
    source = torch.zeros(3, dtype=torch.float64)
    source["xyz".index(up[1])] = 1.0 if up[0] == "+" else -1.0
    torch.testing.assert_close(turn[:3, :3] @ source, torch.tensor([0, 0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(turn[:3, :3] @ turn[:3, :3].mT, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(turn)) == pytest.approx(1) and upright("+z") is None
    with pytest.raises(InputError, match="no axis"):
        upright("up")


def test_steps_of_poses() -> None:
    """A shift is along the camera's own axes, a turn by its angle; errors are what was done."""
    cameras = posed(3).cameras
    steps = torch.zeros(3, 6)
    steps[0, 4], steps[1, 2], steps[2, :3] = 0.3, 0.2, torch.tensor([0.1, -0.2, 0.2])
    other = moved(cameras, steps)
    torch.testing.assert_close(other.centres[0], cameras.centres[0] + 0.3 * cameras.c2w[0, :3, 1])
    angle, shift = pose_errors(other, cameras)
    torch.testing.assert_close(angle, torch.tensor([0.0, 0.2, 0.3]), atol=2e-3, rtol=0)
    torch.testing.assert_close(shift, torch.tensor([0.3, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_a_mesh_is_photographed_where_it_stands() -> None:
    box = Mesh(
        torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]) + 5,
        torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
    )
    shot = photographed(box, 6, 24, 34.0)
    torch.testing.assert_close(shot.middle, torch.full((3,), 5.5), atol=1e-3, rtol=0)
    assert shot.alpha is not None and bool((shot.alpha.flatten(1).float().mean(1) > 10).all())
    assert not shot.alpha[:, [0, -1]].any()


def write_scene(folder: Path, cameras: Camera, names: list[str]) -> torch.Tensor:
    """Smooth pictures without symmetry."""
    v, u = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pictures = []
    for index, name in enumerate(names):
        picture = torch.stack([u * 3.0 + 10 * index, v * 4.0, 200 - u - v], dim=-1).clamp(0, 255).byte()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(folder / name)
        pictures.append(picture)
    return torch.stack(pictures)


def test_transforms_with_pictures_points_and_gaps(tmp_path: Path) -> None:
    cameras = Camera.orbit([0.0, 50.0, 120.0], 20.0, 3.0, 40.0, 32, 24)
    names = ["images/a.png", "images/gone.png", "images/c.png"]
    pictures = write_scene(tmp_path, cameras, names)
    (tmp_path / names[1]).unlink()
    PointCloud(torch.randn(5, 3), torch.rand(5, 3)).save(tmp_path / "points.ply")
    save_nerfstudio(tmp_path / "transforms.json", cameras, names, "points.ply")
    with pytest.warns(UserWarning, match="1 of 3 pictures are not there"):
        found = load_posed(tmp_path)
    assert found.names == ("images/a.png", "images/c.png") and found.points is not None and len(found.points) == 5
    assert torch.equal(found.images, pictures[[0, 2]]) and found.alpha is None and found.valid is None
    torch.testing.assert_close(found.cameras.c2w, cameras.c2w[[0, 2]], atol=1e-6, rtol=0)
    with pytest.warns(UserWarning, match="not there"):
        half = load_posed(tmp_path / "transforms.json", downscale=2)
    assert half.images.shape == (2, 12, 16, 3) and float(half.cameras.K[0, 0, 0]) == pytest.approx(
        float(cameras.K[0, 0, 0]) / 2
    )
    assert int((half.images[0, 3, 3].int() - pictures[0, 6:8, 6:8].float().mean((0, 1)).int()).abs().max()) <= 2
    with pytest.raises(InputError, match=r"none of the 3 pictures is there, such as .*elsewhere"):
        load_posed(tmp_path, images=tmp_path / "elsewhere")


def test_points_of_transforms_lie_in_the_world_of_the_cameras(tmp_path: Path) -> None:
    """applied_transform and applied_scale moved both; both are moved back."""
    cameras = Camera.orbit([0.0, 50.0], 20.0, 3.0, 40.0, 32, 24)
    write_scene(tmp_path, cameras, ["a.png", "b.png"])
    point = cameras.centres[:1] + 2.0 * cameras.c2w[:1, :3, 2]  # in the middle of the first picture
    applied = torch.tensor([[1.0, 0, 0, 0.3], [0, 0, 1, -0.2], [0, -1, 0, 0.1]])
    save_nerfstudio(tmp_path / "transforms.json", cameras, ["a.png", "b.png"], "p.ply")
    document = json.loads((tmp_path / "transforms.json").read_text())
    for frame in document["frames"]:
        pose = torch.tensor(frame["transform_matrix"])
        pose[:3] = applied @ pose
        pose[:3, 3] *= 2.0
        frame["transform_matrix"] = pose.tolist()
    document |= {"applied_transform": applied.tolist(), "applied_scale": 2.0}
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    PointCloud(2.0 * (point @ applied[:, :3].mT + applied[:, 3])).save(tmp_path / "p.ply")
    found = load_posed(tmp_path)
    assert found.points is not None
    torch.testing.assert_close(found.points.points, point, atol=1e-5, rtol=0)
    pixel, _ = found.cameras.project(found.points.points)
    torch.testing.assert_close(pixel[0, 0], torch.tensor([16.0, 12.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("binary", [False, True])
def test_a_colmap_folder_with_points(tmp_path: Path, binary: bool) -> None:
    cameras = Camera.orbit([0.0, 50.0], 20.0, 3.0, 40.0, 32, 24)
    pictures = write_scene(tmp_path / "images", cameras, ["a.png", "sub/b.png"])
    points = PointCloud(torch.tensor([[0.1, 0.2, 0.3], [-1, 2, 4.0]]), torch.tensor([[1.0, 0, 0.2], [0, 0.4, 0]]))
    model = save_colmap(tmp_path / "sparse" / "0", cameras, ["a.png", "sub/b.png"], points)
    if binary:
        (model / "points3D.txt").unlink()
        rows = zip(points.points.tolist(), [(255, 0, 51), (0, 102, 0)], strict=True)
        packed = [
            struct.pack("<Q3d3Bd", i, *xyz, *rgb, 0.5) + struct.pack("<Q4i", 2, 1, 7, 2, 9)
            for i, (xyz, rgb) in enumerate(rows)
        ]
        (model / "points3D.bin").write_bytes(struct.pack("<Q", 2) + b"".join(packed))
    found = load_posed(tmp_path)
    assert torch.equal(found.images, pictures) and found.points is not None
    torch.testing.assert_close(found.points.points, points.points)
    torch.testing.assert_close(found.points.colors, points.colors, atol=0.002, rtol=0)
    torch.testing.assert_close(found.cameras.c2w, cameras.c2w, atol=1e-5, rtol=0)
    if binary:
        (model / "points3D.bin").write_bytes(struct.pack("<Q", 3) + b"".join(packed))
        with pytest.raises(InputError, match=r"no usable points3D\.bin"):
            load_posed(tmp_path)


BENT = {"k1": 0.08, "k2": -0.05, "p1": 0.004, "p2": -0.003, "k3": 0.01}


def test_lenses_bend_as_opencv_says() -> None:
    """The formula of OpenCV's documentation, written out for one point."""
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + 0.08 * r2 - 0.05 * r2**2 + 0.01 * r2**3
    wanted = (
        x * radial + 2 * 0.004 * x * y - 0.003 * (r2 + 2 * x * x),
        y * radial + 0.004 * (r2 + 2 * y * y) - 0.006 * x * y,
    )
    torch.testing.assert_close(bend(torch.tensor([x, y]), BENT), torch.tensor(wanted))
    with pytest.raises(InputError, match="coefficients k4"):
        check_bent({"k4": 0.1}, "pinhole", "a")
    with pytest.raises(InputError, match="bent fisheye"):
        check_bent({"k1": 0.1}, "fisheye", "a")


def test_bent_pictures_become_straight(tmp_path: Path) -> None:
    """A scene whose colour is its direction, seen through a bent lens, is as a pinhole shows it."""
    K = torch.tensor([[40.0, 0, 25.0], [0, 44.0, 19.0], [0, 0, 1]])
    v, u = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    pixel = torch.stack([u, v], dim=-1)
    plane = (pixel - K[:2, 2]) / torch.tensor([40.0, 44.0])
    seen = plane.clone()  # the direction that each bent pixel shows, by fixed-point iteration
    for _ in range(30):
        seen = seen + plane - bend(seen, BENT)
    color = torch.cat([0.5 + 0.4 * seen, 0.5 * torch.ones(40, 50, 1)], dim=-1)
    straight, told = straightened(color, K, BENT)
    wanted = torch.cat([0.5 + 0.4 * plane, 0.5 * torch.ones(40, 50, 1)], dim=-1)
    torch.testing.assert_close(straight[2:-2, 2:-2], wanted[2:-2, 2:-2], atol=2e-3, rtol=0)
    assert not bool(told.all()) and bool(told[5:-5, 5:-5].all())
    Image.fromarray((color * 255).round().byte().numpy()).save(tmp_path / "a.png")
    frame = {"file_path": "a.png", "transform_matrix": torch.eye(4).tolist()}
    lens = {"fl_x": 40, "fl_y": 44, "cx": 25, "cy": 19, "w": 50, "h": 40, **BENT}
    (tmp_path / "transforms.json").write_text(json.dumps({**lens, "frames": [frame]}))
    found = load_posed(tmp_path)
    assert (
        found.valid is not None
        and int((found.images[0, 5:-5, 5:-5].float() - 255 * wanted[5:-5, 5:-5]).abs().max()) <= 2
    )
    with pytest.raises(InputError, match=r"lens distortion \{'k1': 0.08.*undistort"):
        load_nerfstudio(tmp_path / "transforms.json")


def test_pictures_of_another_shape_than_their_camera_are_refused(tmp_path: Path) -> None:
    cameras = Camera.orbit([0.0], 20.0, 3.0, 40.0, 32, 24)
    save_nerfstudio(tmp_path / "transforms.json", cameras, ["a.png"])
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="32 x 32 px and its camera 32 x 24"):
        load_posed(tmp_path)
    Image.fromarray(np.zeros((48, 64, 4), np.uint8)).save(tmp_path / "a.png")
    assert load_posed(tmp_path).images.shape == (1, 24, 32, 3) and load_posed(tmp_path).alpha is not None
    with pytest.raises(InputError, match=r"neither a transforms\.json nor a COLMAP model"):
        load_posed(tmp_path / "none")


def test_a_spiral_looks_from_everywhere() -> None:
    cameras = around(64, 16, 3.0, 34.0)
    directions = cameras.centres / 3.0
    held = directions[::8]
    turned = torch.rad2deg(torch.atan2(held[:, 1], held[:, 0])).sort().values
    assert float(turned.diff().max()) < 120 and float(held[:, 2].max() - held[:, 2].min()) > 0.6
    nearest = (directions @ directions.mT - 2 * torch.eye(64)).max(dim=1).values
    assert float(nearest.min()) > 0.9 and float(nearest.max()) < 0.985  # neighbours are 10 to 25 degrees apart
    assert float(directions[:, 2].max()) > 0.9 and float(directions[:, 2].min()) < -0.3
    assert abs(float(directions[:, :2].mean())) < 0.05
