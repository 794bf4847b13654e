"""Rasterisers of other packages: stand-ins that do what the packages document find the faces that rays find."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry import rasterisers
from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.rasterisers import RASTERISERS, rasteriser_of
from unproject.geometry.raycast import RayMesh
from unproject.geometry.shapes import Tetrahedra, TetrahedraConfig, TriangleConfig, Triangles
from unproject.geometry.silhouettes import draw_mesh
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def weights_at(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """True weights over w (F, P, 3) of corners (F, 3, 3), each (x w, y w, w), at points (P,): Olano and Greer 1997."""
    singular = torch.linalg.det(corners).abs() < 1e-14
    safe = torch.where(singular[:, None, None], torch.eye(3).to(corners), corners)
    found = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ torch.linalg.inv(safe)
    return torch.where(singular[:, None, None], -torch.ones_like(found), found)


def nearest(found: Tensor, order: Tensor, allowed: Tensor) -> Tensor:
    """Of F faces, the one (P,) of least order (F, P) among those allowed that hold the point; F where there is none."""
    inside = (found >= 0).all(-1) & (found.sum(-1) > 0) & allowed
    best, face = torch.where(inside, order, torch.inf).min(dim=0)
    return torch.where(best < torch.inf, face, len(found))


class Context:
    """RasterizeCudaContext."""

    def __init__(self, device: torch.device) -> None:
        self.device = device


def rasterize(
    glctx: Context, pos: Tensor, tri: Tensor, resolution: tuple[int, int], ranges: None = None, grad_db: bool = True
) -> tuple[Tensor, Tensor]:
    """nvdiffrast.torch.rasterize in instanced mode: (u, v, z/w, id + 1), lowest row of clip space first."""
    assert isinstance(glctx, Context) and glctx.device == pos.device
    assert pos.dtype == torch.float32 and tri.dtype == torch.int32 and pos.is_contiguous() and tri.is_contiguous()
    (height, width), views = resolution, len(pos)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = ((2 * row_or + 1.0) / n - 1 for row_or, n in ((column.flatten(), width), (row.flatten(), height)))
    drawn = torch.zeros(views, height * width, 4)
    for view in range(views):
        corners = pos[view].double()[tri.long()]  # (F, 3, 4)
        found = weights_at(corners[..., [0, 1, 3]], x.double(), y.double())
        share = found / found.sum(-1, keepdim=True)
        z, w = ((share * corners[:, None, :, i]).sum(-1) for i in (2, 3))
        face = nearest(found, z / w, z.abs() <= w)
        hit, point = face < len(found), torch.arange(len(face))
        told = torch.cat([share[..., :2], (z / w)[..., None]], dim=-1)[face.clamp_max(len(found) - 1), point]
        drawn[view] = torch.cat([told, face[:, None] + 1.0], dim=-1).float() * hit[:, None]
    return drawn.view(views, height, width, 4), torch.empty(views, height, width, 0)


class Meshes:
    """pytorch3d.structures.Meshes: faces of all meshes are counted through in its packed form."""

    def __init__(self, verts: Sequence[Tensor], faces: Sequence[Tensor]) -> None:
        assert len(verts) == len(faces) and all(f.dtype == torch.int64 for f in faces)
        self.verts, self.faces = verts, faces


def rasterize_meshes(
    meshes: Meshes,
    image_size: tuple[int, int] = (256, 256),
    blur_radius: float = 0.0,
    faces_per_pixel: int = 8,
    perspective_correct: bool = False,
    cull_backfaces: bool = False,
    z_clip_value: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Its first picture row is at y = +1, its first column at x = +1; the longer side reaches further than 1."""
    assert blur_radius == 0 and faces_per_pixel == 1 and not cull_backfaces
    (height, width), first, shown, depths, bary = image_size, 0, [], [], []
    size = min(height, width)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = ((n - 2 * i.flatten() - 1.0).double() / size for i, n in ((row, height), (column, width)))
    for verts, faces in zip(meshes.verts, meshes.faces, strict=True):
        corners = verts.double()[faces]
        scale = corners[..., 2:] if perspective_correct else torch.ones_like(corners[..., 2:])
        found = weights_at(torch.cat([corners[..., :2] * scale, scale], dim=-1), x, y)
        share = found / found.sum(-1, keepdim=True)
        z = (share * corners[:, None, :, 2]).sum(-1)
        face = nearest(found, z, z >= (0.0 if z_clip_value is None else z_clip_value))
        hit, point, last = face < len(found), torch.arange(len(face)), len(found) - 1
        shown.append(torch.where(hit, face + first, -1))
        depths.append(torch.where(hit, z[face.clamp_max(last), point], -1.0).float())
        bary.append(torch.where(hit[:, None], share[face.clamp_max(last), point], -1.0).float())
        first += len(faces)
    form = (len(shown), height, width, 1)
    told = torch.stack(depths).view(form)
    return torch.stack(shown).view(form), told, torch.stack(bary).view(*form, 3), torch.full_like(told, -1)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages, on the CPU."""
    told: dict[str, dict[str, Any]] = {
        "nvdiffrast": {},
        "nvdiffrast.torch": {"RasterizeCudaContext": Context, "rasterize": rasterize},
        "pytorch3d.structures": {"Meshes": Meshes},
        RASTERISERS["pytorch3d"].module: {"rasterize_meshes": rasterize_meshes},
    }
    parts = RASTERISERS["pytorch3d"].module.split(".")
    for name in {".".join(parts[:i]) for i in range(1, len(parts) + 1)} | set(told):
        module = ModuleType(name)
        vars(module).update(told.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(RASTERISERS, "nvdiffrast", replace(RASTERISERS["nvdiffrast"], devices=("cpu", "cuda")))
    monkeypatch.setattr(rasterisers, "missing", rasterisers.missing.__wrapped__)
    monkeypatch.setattr(rasterisers, "_context", rasterisers._context.__wrapped__)


def scene() -> Mesh:
    """A dented ball and a leaning triangle that hides a part of it: no symmetry, both sides of faces to be seen."""
    ball = trimesh.creation.icosphere(1, 0.5)
    bent = torch.from_numpy(ball.vertices).float() * torch.tensor([1.0, 0.7, 1.3])
    bent = bent + 0.04 * torch.randn(bent.shape, generator=generator(3)) + torch.tensor([0.1, -0.05, 0.12])
    leaf = torch.tensor([[0.9, -0.6, -0.2], [0.7, 0.5, 0.1], [0.8, -0.1, 0.8]])
    faces = torch.cat([torch.from_numpy(ball.faces), torch.tensor([[0, 1, 2]]) + len(bent)])
    vertices = torch.cat([bent, leaf])
    return Mesh(vertices, faces, vertex_colors=torch.rand(vertices.shape, generator=generator(4)))


def views(model: str = "pinhole", **planes: Any) -> Camera:
    """Three wide pictures, off centre, with pixels that are neither square nor upright."""
    made = Camera.orbit([20.0, 140.0, 255.0], [15.0, -40.0, 60.0], 2.6, 40.0, 42, 30)
    K = torch.tensor([[55.0, 2.0, 19.0], [0.0, 44.0, 17.0], [0.0, 0.0, 1.0]])
    if model == "ortho":
        K = torch.tensor([[20.0, 1.0, 19.0], [0.0, 16.0, 17.0], [0.0, 0.0, 1.0]])
    return replace(made, K=K.expand(3, 3, 3), model=model, **planes)


CAMERAS = {
    "pinhole": views(),
    "tall": replace(views(), width=30, height=42),
    "ortho": views("ortho"),
    "near": views(near=2.3),  # cuts faces
    "far": views(far=2.5),
    "each its own": views(near=torch.tensor([0.01, 2.2, 2.5]), far=torch.tensor([2.4, 2.6, 9.0])),
    "endless": views(near=1e-6, far=float("inf")),
    "ortho cut": views("ortho", near=2.4, far=2.8),
    "inside": Camera.orbit([20.0, 140.0], [15.0, -40.0], 0.05, 80.0, 40, 30),  # faces behind, and across, the eye
}


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("name", RASTERISERS)
@pytest.mark.usefixtures("stand_ins")
def test_rasterisers_see_the_faces_that_rays_hit(name: Any, camera: str) -> None:
    mesh, view = scene(), CAMERAS[camera]
    wanted, found = RayMesh(mesh).visible_faces(view), RayMesh(mesh, name).visible_faces(view)
    assert found.shape == wanted.shape and found.dtype == torch.int64
    assert float((found != wanted).float().mean()) < 2e-3  # pixel centres on edges
    shown = (wanted >= 0).float().mean(dim=(1, 2))
    assert bool((shown > 0.05).all()) and len(wanted.unique()) > 30
    if camera != "inside":
        assert bool((shown < 0.9).all())


@pytest.mark.parametrize("name", RASTERISERS)
@pytest.mark.usefixtures("stand_ins")
def test_pictures_and_gradients_are_those_of_rays(name: Any) -> None:
    """Depth in metres, normals, colours, background, outlines; gradients to vertices and the pose."""
    mesh, view = scene(), views()
    pull = torch.randn(3, 30, 42, 8, generator=generator(5))

    def drawn(renderer: Any) -> tuple[Tensor, list[Tensor]]:
        vertices, pose = mesh.vertices.clone().requires_grad_(), view.c2w.clone().requires_grad_()
        shape = replace(mesh, vertices=vertices).with_smooth_normals()
        seen = draw_mesh(shape, replace(view, c2w=pose), background=torch.tensor([0.1, 0.5, 0.9]), renderer=renderer)
        maps = torch.cat([seen.rgb, seen.alpha, seen.depth, seen.normal], dim=-1)
        return maps.detach(), list(torch.autograd.grad((maps * pull).sum(), (vertices, pose)))

    wanted, ours = drawn("raycast")
    found, theirs = drawn(name)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", RASTERISERS)
@pytest.mark.usefixtures("stand_ins")
def test_shapes_are_drawn_by_what_their_config_names(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = RASTERISERS[name], []
    monkeypatch.setitem(RASTERISERS, name, replace(made, faces=lambda *a: asked.append(name) or made.faces(*a)))
    for shape in (
        Triangles(TriangleConfig(subdivisions=1, renderer=name)),
        Tetrahedra(TetrahedraConfig(resolution=6, renderer=name)),
    ):
        seen = shape.render(views())
        asked.append(float(seen.alpha.detach().max()))
    assert asked == [name, 1.0, name, 1.0]


def test_ids_of_very_many_faces() -> None:
    """Up to 2^24 as floats, above as the bits 0x4a800000 + id."""
    ids = torch.tensor([0, 1, 77, 1 << 24, (1 << 24) + 1, 20_000_003, 800_000_000], dtype=torch.int32)
    told = torch.where(ids <= 1 << 24, ids.float(), (ids + 0x4A800000).view(torch.float32))
    package = ModuleType("package")
    drawn = torch.stack([torch.full((7,), 0.25)] * 3 + [told], dim=-1).view(1, 1, 7, 4)
    vars(package).update(RasterizeCudaContext=Context, rasterize=lambda *_, **__: (drawn, None))
    triangle = torch.tensor([[0, 1, 2]])
    found = RASTERISERS["nvdiffrast"].faces(package, torch.eye(3), triangle, views()[0])
    assert found.flatten().tolist() == [int(i) - 1 for i in ids]


def test_without_the_packages_rays_are_cast() -> None:
    for package in RASTERISERS:
        if rasterisers.missing(RASTERISERS[package].module) == "":
            pytest.skip(f"{package} is installed")
    assert rasteriser_of("auto", views(), CUDA) is None and rasteriser_of("raycast", views(), CUDA) is None
    with pytest.raises(InputError, match=r"nvdiffrast cannot be imported \(No module named .*pip install git\+https"):
        rasteriser_of("nvdiffrast", views(), CUDA)
    with pytest.raises(InputError, match=r"facebookresearch/pytorch3d.*or take renderer='raycast'"):
        draw_mesh(scene(), views(), renderer="pytorch3d")


@pytest.mark.usefixtures("stand_ins")
def test_what_is_installed_draws_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {name: RASTERISERS[name] for name in RASTERISERS}
    monkeypatch.setitem(RASTERISERS, "nvdiffrast", replace(theirs["nvdiffrast"], devices=("cuda",)))
    nvdiffrast, pytorch3d = RASTERISERS.values()
    assert rasteriser_of("auto", views(), CPU) is None
    assert rasteriser_of("auto", views(), torch.device("mps")) is None
    assert rasteriser_of("auto", views(), CUDA) is nvdiffrast
    assert rasteriser_of("pytorch3d", views(), CUDA) is rasteriser_of("pytorch3d", views(), CPU) is pytorch3d
    fisheye = replace(views(), model="fisheye")
    assert rasteriser_of("auto", fisheye, CUDA) is None
    with pytest.raises(InputError, match="a fisheye camera bends edges"):
        rasteriser_of("nvdiffrast", fisheye, CUDA)

    class Loose:
        """Rays without order."""

        def rays(self) -> tuple[Tensor, Tensor]:
            return views().rays()

    assert rasteriser_of("auto", Loose(), CUDA) is None
    with pytest.raises(InputError, match="these rays are no camera"):
        draw_mesh(scene(), Loose(), renderer="pytorch3d")
    with pytest.raises(InputError, match="renderer='nvdiffrast' draws on cuda, and this mesh is on cpu"):
        draw_mesh(scene(), views(), renderer="nvdiffrast")
    with pytest.raises(InputError, match="renderer='opengl' is unknown; have auto, raycast, nvdiffrast, pytorch3d"):
        draw_mesh(scene(), views(), renderer="opengl")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"renderer=\['raycast'\] is unknown"):
        draw_mesh(scene(), views(), renderer=["raycast"])  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", None)
    monkeypatch.setattr(rasterisers, "find_spec", lambda name: name)
    with pytest.warns(UserWarning, match="nvdiffrast is installed and cannot be imported"):
        assert rasteriser_of("auto", views(), CUDA) is pytorch3d
