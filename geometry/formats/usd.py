"""Universal Scene Description out: meshes with a preview surface, and points; y up, metres, as AR viewers want it.

Written by the package usd-core (pxr), which is an extra. `.usda` is text, `.usdc` and `.usd` binary, `.usdz` a package
with its textures inside; beside the others they lie as PNG.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...utils.errors import UnprojectError, need_extra
from ...utils.files import atomic_path
from ..cameras import to_gltf_points
from ..colors import linear_from_srgb
from ..stored import NO_ORIGIN, TEXTURES, Origin, StoredMesh, StoredPoints
from .border import picture_name

USD_SUFFIXES = (".usd", ".usda", ".usdc", ".usdz")
ROOT, SHAPE, MATERIAL = "/Object", "/Object/Shape", "/Object/Surface"
SLOTS = {  # texture: ((input of the surface, channel), ...), whether its values are colours
    "base_color": ((("diffuseColor", "rgb"),), True),
    "metallic_roughness": ((("roughness", "g"), ("metallic", "b")), False),
    "normal": ((("normal", "rgb"),), False),
}


def need_usd() -> Any:
    """The package pxr. Raises MissingExtraError without it."""
    try:
        import pxr.Usd
        import pxr.UsdGeom
        import pxr.UsdShade
        import pxr.UsdUtils
    except ImportError:
        need_extra("usd-core", "usd")
    return pxr


def write_usd_points(cloud: StoredPoints, path: Path) -> None:
    """A cloud as UsdGeom.Points, wide enough to close the gaps between neighbours."""
    pxr = need_usd()
    stage, _ = _stage(pxr, cloud.origin)
    shape = pxr.UsdGeom.Points.Define(stage, SHAPE)
    places = _vectors(pxr, to_gltf_points(cloud.points))
    shape.CreatePointsAttr(places)
    size = float((cloud.points.amax(dim=0) - cloud.points.amin(dim=0)).norm())
    shape.CreateWidthsAttr([size / math.sqrt(len(cloud.points)) or 1.0])
    shape.SetWidthsInterpolation(pxr.UsdGeom.Tokens.constant)
    shape.CreateExtentAttr(pxr.UsdGeom.PointBased.ComputeExtent(places))
    if cloud.normals is not None:
        shape.CreateNormalsAttr(_vectors(pxr, to_gltf_points(cloud.normals)))
    if cloud.colors is not None:
        _colors(pxr, shape, cloud.colors)
    _save(pxr, stage, path, path, {})


def write_usd_mesh(mesh: StoredMesh, path: Path, named: Path) -> None:
    """A mesh as UsdGeom.Mesh; `named` is what the file will be called, for the names of its textures."""
    pxr = need_usd()
    stage, _ = _stage(pxr, mesh.origin)
    shape = pxr.UsdGeom.Mesh.Define(stage, SHAPE)
    places = _vectors(pxr, to_gltf_points(mesh.vertices))
    shape.CreatePointsAttr(places)
    shape.CreateExtentAttr(pxr.UsdGeom.PointBased.ComputeExtent(places))
    shape.CreateFaceVertexCountsAttr(_whole(pxr, torch.full((len(mesh.faces),), 3)))
    shape.CreateFaceVertexIndicesAttr(_whole(pxr, mesh.faces))
    shape.CreateSubdivisionSchemeAttr(pxr.UsdGeom.Tokens.none)
    if mesh.vertex_normals is not None:
        shape.CreateNormalsAttr(_vectors(pxr, to_gltf_points(mesh.vertex_normals)))
        shape.SetNormalsInterpolation(pxr.UsdGeom.Tokens.vertex)
    textures = mesh.textures if mesh.uv is not None else {}
    if textures and mesh.uv is not None and mesh.uv_faces is not None:
        kinds = pxr.Sdf.ValueTypeNames
        st = pxr.UsdGeom.PrimvarsAPI(shape).CreatePrimvar("st", kinds.TexCoord2fArray, pxr.UsdGeom.Tokens.faceVarying)
        st.Set(pxr.Vt.Vec2fArray.FromNumpy(_array(mesh.uv)))
        st.SetIndices(_whole(pxr, mesh.uv_faces))
    elif mesh.vertex_colors is not None:
        _colors(pxr, shape, mesh.vertex_colors)
    names = {name: picture_name(named, name) for name in TEXTURES if name in textures}
    _material(pxr, stage, shape, names)
    _save(pxr, stage, path, named, {names[name]: textures[name] for name in names})


def check_usd(path: Path, points: int, faces: int | None) -> bool:
    """Whether a file that was just written opens and holds so many points and triangles."""
    pxr = need_usd()
    stage = pxr.Usd.Stage.Open(str(path))
    shape = stage.GetPrimAtPath(SHAPE)
    found = pxr.UsdGeom.PointBased(shape).GetPointsAttr().Get()
    counts = None if faces is None else pxr.UsdGeom.Mesh(shape).GetFaceVertexCountsAttr().Get()
    return len(found) == points and (counts is None or len(counts) == faces)


def _stage(pxr: Any, origin: Origin) -> tuple[Any, Any]:
    """An empty scene in memory: y up, metres, moved by an origin in double precision."""
    stage = pxr.Usd.Stage.CreateInMemory()
    pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
    pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = pxr.UsdGeom.Xform.Define(stage, ROOT)
    stage.SetDefaultPrim(root.GetPrim())
    if origin != NO_ORIGIN:
        x, y, z = origin
        root.AddTranslateOp(pxr.UsdGeom.XformOp.PrecisionDouble).Set(pxr.Gf.Vec3d(y, z, x))
    return stage, root


def _material(pxr: Any, stage: Any, shape: Any, names: dict[str, str]) -> None:
    """A preview surface, dull where no texture says otherwise, with the textures by their file names."""
    types = pxr.Sdf.ValueTypeNames
    material = pxr.UsdShade.Material.Define(stage, MATERIAL)
    surface = pxr.UsdShade.Shader.Define(stage, f"{MATERIAL}/Preview")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("roughness", types.Float).Set(1.0)
    surface.CreateInput("metallic", types.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    reader = pxr.UsdShade.Shader.Define(stage, f"{MATERIAL}/Coordinates")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", types.String).Set("st")
    for name, file in names.items():
        slots, colours = SLOTS[name]
        texture = pxr.UsdShade.Shader.Define(stage, f"{MATERIAL}/{name}")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", types.Asset).Set(f"./{file}")
        texture.CreateInput("sourceColorSpace", types.Token).Set("sRGB" if colours else "raw")
        for side in ("wrapS", "wrapT"):
            texture.CreateInput(side, types.Token).Set("repeat")
        if name == "normal":
            texture.CreateInput("scale", types.Float4).Set(pxr.Gf.Vec4f(2, 2, 2, 1))
            texture.CreateInput("bias", types.Float4).Set(pxr.Gf.Vec4f(-1, -1, -1, 0))
        texture.CreateInput("st", types.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        for slot, channel in slots:
            kind = types.Float if len(channel) == 1 else types.Normal3f if slot == "normal" else types.Color3f
            surface.CreateInput(slot, kind).ConnectToSource(texture.ConnectableAPI(), channel)
    pxr.UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)


def _save(pxr: Any, stage: Any, path: Path, named: Path, pictures: dict[str, NDArray[np.uint8]]) -> None:
    """Writes the layer and its pictures, for .usdz into one package."""
    if path.suffix.lower() != ".usdz":
        for name, pixels in pictures.items():
            with atomic_path(named.with_name(name)) as temporary:
                Image.fromarray(pixels).save(temporary)
        _export(stage, path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".usdz-") as folder:
        layer = Path(folder, "object.usdc")
        for name, pixels in pictures.items():
            Image.fromarray(pixels).save(Path(folder, name))
        _export(stage, layer)
        if not pxr.UsdUtils.CreateNewUsdzPackage(pxr.Sdf.AssetPath(str(layer)), str(path)):
            raise UnprojectError(f"the USD package for {named} could not be made")


def _export(stage: Any, path: Path) -> None:
    if not stage.GetRootLayer().Export(str(path)):
        raise UnprojectError(f"the USD layer {path} could not be written")


def _colors(pxr: Any, shape: Any, srgb: Tensor) -> None:
    """displayColor, linear, one a point."""
    colors = linear_from_srgb(srgb.float().clamp(0, 1))
    shape.CreateDisplayColorPrimvar(pxr.UsdGeom.Tokens.vertex).Set(_vectors(pxr, colors))


def _vectors(pxr: Any, values: Tensor) -> Any:
    return pxr.Vt.Vec3fArray.FromNumpy(_array(values))


def _whole(pxr: Any, values: Tensor) -> Any:
    return pxr.Vt.IntArray.FromNumpy(values.detach().cpu().int().reshape(-1).contiguous().numpy())


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().cpu().float().numpy())
