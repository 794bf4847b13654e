"""`unproject convert` and `unproject inspect`: files in, files out, facts."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from codecs import BOM_UTF8
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.files import read_json
from ..utils.runs import RunRecord
from .camera_sets import camera_files, check_cameras, convert_cameras, silent_set
from .common import Writer, check_range
from .folders import MESH_KINDS, POINT_KINDS
from .outputs import Target, check_new, check_places, need_format, size_text
from .showing import Shown, Table
from .splat_files import SPLATS, Wanted, check_splats, convert_splats, holds_splats, inspect_splats

MESHES = (".glb", ".gltf", ".obj", ".stl", ".ply", ".off")
READS = (*MESHES, ".xyz")


@dataclass(frozen=True, kw_only=True)
class Convert(Writer):
    """Turn a mesh, splats, a point cloud or a set of cameras into another format; the suffixes decide which."""

    name: ClassVar[str] = "convert"

    source: tyro.conf.Positional[Path]
    """Mesh (.glb .gltf .obj .stl .ply .off), splats (.ply .compressed.ply .splat .spz .glb), points (.ply .glb .obj
    .xyz), transforms.json, or a COLMAP folder."""
    destination: tyro.conf.Positional[Path]
    """.glb, .obj, .stl, .ply or .usdz for meshes; .ply, .compressed.ply, .splat, .spz or .glb for splats; .ply, .glb,
    .obj, .xyz or .usdz for points; .json or a folder (COLMAP text) for cameras."""
    faces: int = 0
    """Simplify a mesh to this many triangles at most; its colours are carried over (0 = leave it)."""
    undistort: bool = False
    """Take the distortion of the lenses out of the pictures beside the cameras; pinholes remain. The straight pictures
    go to NAME-images beside a .json, to images in a folder."""
    to: Wanted = "same"
    """What splats become: splats, points at their centres, or a mesh of their surface."""

    def check(self) -> None:
        """Paths and suffixes."""
        check_range("--faces", self.faces, 0, 10**9)
        if self.out is not None:
            raise InputError(f"--out {self.out}: convert takes the output as its second argument; leave --out away")
        if not self.source.exists():
            raise InputError(f"{self.source} does not exist")
        if self.source.resolve() == self.destination.resolve():
            raise InputError(f"source and destination are the same file {self.source}")
        source, wanted = self.source.suffix.lower(), self.destination.suffix.lower()
        if self._cameras:
            check_cameras(self.source, self.destination, self.undistort)
        elif holds_splats(self.source):
            check_splats(self.source, self.destination, self.to)
        elif source in (".spz", ".splat"):
            raise InputError(f"{self.source} is no file; give one of splats")
        elif source not in READS:
            raise InputError(f"cannot read {self.source}; use {', '.join(READS)}, transforms.json or a COLMAP folder")
        else:
            self._check_geometry(wanted)
        if self.undistort and not self._cameras:
            raise InputError(f"--undistort is of cameras and {self.source} holds none; leave it out")
        if self.to != "same" and not self._splats:
            raise InputError(f"--to {self.to} is of splats and {self.source} holds none; leave it out")
        if self.faces and (self._cameras or (self.to != "mesh" if self._splats else is_point_cloud(self.source))):
            raise InputError(f"--faces {self.faces} simplifies meshes and {self.source} is none; leave it out")

    def _check_geometry(self, wanted: str) -> None:
        points = is_point_cloud(self.source)
        known = POINT_KINDS if points else MESH_KINDS
        if wanted not in known:
            what = f"{self.source} holds points without triangles; they" if points else "a mesh"
            raise InputError(f"cannot write {self.destination}: {what} can become {', '.join(known)}")
        need_format(self.destination)

    @property
    def _cameras(self) -> bool:
        return self.source.is_dir() or self.source.suffix.lower() == ".json"

    @property
    def _splats(self) -> bool:
        return holds_splats(self.source)

    @property
    def textured(self) -> bool:
        """See Command.textured."""
        return not self._cameras and (self.to == "mesh" if self._splats else not is_point_cloud(self.source))

    @property
    def choice(self) -> str:
        """See Command.choice."""
        return "destination"

    def written(self, target: Target) -> list[Path]:
        """See Command.written; a folder of cameras holds files of fixed names."""
        if self._splats:
            return [self.destination]
        if self._cameras:
            return camera_files(self.destination, silent_set(self.source) if self.undistort else None)
        reports = [] if is_point_cloud(self.source) else [target.report(target.suffix)]
        return [self.destination, *reports]

    def target(self) -> Target:
        """The destination decides."""
        if self.destination.suffix:
            return Target(self.destination.parent, self.destination.stem, self.destination.suffix)
        return Target(self.destination, self.destination.name)

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would convert {self.source} to {self.destination}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Reads, converts, writes."""
        if self._cameras:
            return convert_cameras(self.source, self.destination, self.undistort, record)
        if self._splats:
            return convert_splats(self.source, self.destination, self.to, self.faces, record)
        if is_point_cloud(self.source):
            return self._convert_points(record)
        from ..geometry.bake import carry_colors
        from ..geometry.budget import check_written
        from ..geometry.extract import decimate
        from ..geometry.inspection import write_report
        from ..geometry.meshes import Mesh

        mesh = Mesh.load(self.source)
        if 0 < self.faces < len(mesh.faces):
            mesh = carry_colors(mesh, decimate(mesh, self.faces))
        record.keep(mesh.save, self.destination)
        record.keep(lambda path: write_report(mesh, path), self.destination)
        if self.faces and not record.rescued:
            check_written(self.destination, self.faces)
        counts = {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
        return Shown([f"{counts['vertices']} vertices, {counts['faces']} triangles"], data=counts)

    def _convert_points(self, record: RunRecord) -> Shown:
        from ..geometry.points import PointCloud

        cloud = PointCloud.load(self.source)
        record.keep(cloud.save, self.destination)
        return Shown([f"{len(cloud)} points"], data={"points": len(cloud)})


@dataclass(frozen=True, kw_only=True)
class Inspect(Writer):
    """Tell what is in a mesh, splats, a point cloud, picture, array file, JSON record or model folder."""

    name: ClassVar[str] = "inspect"
    kinds: ClassVar[tuple[str, ...]] = (".json",)

    path: tyro.conf.Positional[Path]
    """The file or folder."""
    strict: bool = False
    """Exit code 1 for a mesh that is not a solid."""
    repair: Path | None = None
    """Write a solid of the same shape and colours to this mesh file; exit code 2, and why, where none can be made."""

    @property
    def leaves_files(self) -> bool:
        """It only tells something."""
        return False

    def check(self) -> None:
        """It has to be there."""
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist")
        if self.repair is not None and self.repair.suffix.lower() not in MESH_KINDS:
            raise InputError(f"--repair {self.repair}: cannot write that; use {', '.join(MESH_KINDS)}")
        if self.repair is not None and self.repair.resolve() == self.path.resolve():
            raise InputError(f"--repair {self.repair} is the file itself; name another one")

    def check_places(self, target: Target) -> None:
        """See Command.check_places; and the solid does not overwrite another file unasked."""
        if self.repair is not None:
            if not self.overwrite:
                check_new([self.repair], name="--repair")
            check_places([self.repair])
        super().check_places(target)

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Chooses by suffix."""
        facts = inspect_path(self.path)
        if (self.strict or self.repair) and facts.get("kind") != "mesh":
            raise InputError(f"--strict and --repair ask about meshes and {self.path} is none; leave them out")
        lines, solid = [], bool(facts.get("solid"))
        if self.repair is not None:
            steps = repair_file(self.path, self.repair)
            record.output(self.repair)
            lines = [f"{self.repair}: {', '.join(steps) or 'a solid already, written as it is'}"]
            facts, solid = {**facts, "repaired": str(self.repair), "steps": steps}, True
        rows = [(key, _short(value)) for key, value in flat(facts)]
        table = Table(("property", "value"), rows, str(self.path))
        return Shown(lines, [table], facts, exit_code=1 if self.strict and not solid else 0)


def only_points(path: Path) -> bool:
    """Whether a GLB or OBJ draws points alone; False for what cannot be read, which its reader will tell."""
    from ..geometry.formats.gltf_data import split_chunks
    from ..geometry.formats.point_clouds import has_only_points

    if path.suffix.lower() == ".glb":
        with contextlib.suppress(InputError, AttributeError, TypeError):
            return has_only_points(split_chunks(path.read_bytes())[0])
        return False
    keys = {line.split(None, 1)[0] for line in path.read_bytes().removeprefix(BOM_UTF8).splitlines() if line.strip()}
    return b"v" in keys and not keys & {b"f", b"fo", b"curv", b"curv2", b"surf", b"l"}


def is_point_cloud(path: Path) -> bool:
    """Whether a file holds points and no triangles: a PLY by its header, a GLB by its modes, an OBJ by its lines."""
    kind = path.suffix.lower()
    if kind != ".ply":
        return kind == ".xyz" or (kind in (".glb", ".obj") and only_points(path))
    from ..geometry.formats.ply_data import read_header

    try:
        elements = {element.name: element.length for element in read_header(path).elements}
    except InputError as error:
        raise InputError(f"{path}: {error}; it is no PLY file") from error
    return not any(elements.get(name) for name in ("face", "tristrips"))


def inspect_path(path: Path) -> dict[str, Any]:
    """Facts about a file or a folder. Raises InputError for a kind nobody knows."""
    from ..utils.pictures import READ_SUFFIXES

    suffix = path.suffix.lower()
    if path.is_dir():
        return _inspect_folder(path)
    size = {"file": str(path), "size": size_text(path)}
    if holds_splats(path):
        return {**size, **inspect_splats(path)}
    if suffix in READS:
        return {**size, **(_inspect_points(path) if is_point_cloud(path) else _inspect_mesh(path))}
    if suffix in READ_SUFFIXES:
        return {**size, **_inspect_image(path)}
    if suffix in (".npz", ".npy"):
        return {**size, **_inspect_arrays(path)}
    if suffix == ".json":
        value = read_json(path)
        return {**size, **(value if isinstance(value, dict) else {"entries": len(value)})}
    known = ", ".join(dict.fromkeys((*READS, *SPLATS, *READ_SUFFIXES, ".npz", ".npy", ".json")))
    raise InputError(f"cannot inspect {path}: known are {known} and model folders")


def repair_file(source: Path, destination: Path) -> list[str]:
    """Writes a solid of the mesh in `source`; what was done to it. Raises InputError where none can be made."""
    from ..geometry.bake import carry_colors
    from ..geometry.inspection import write_report
    from ..geometry.meshes import Mesh
    from ..geometry.solid import make_solid

    mesh = Mesh.load(source)
    try:
        solid, steps = make_solid(mesh)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    solid = carry_colors(mesh, solid.with_smooth_normals()) if steps else solid
    write_report(solid, destination)
    solid.save(destination)  # last: what is there is whole
    return steps


def flat(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """Rows of nested facts: "bounds.size" for what stands under size in bounds."""
    rows: list[tuple[str, Any]] = []
    for key, value in facts.items():
        inner = flat(value) if isinstance(value, dict) else [("", value)]
        rows += [(f"{key}.{name}" if name else key, item) for name, item in inner]
    return rows


def _inspect_mesh(path: Path) -> dict[str, Any]:
    from ..geometry.inspection import inspect_mesh
    from ..geometry.meshes import Mesh

    mesh = Mesh.load(path)
    return {
        "kind": "mesh",
        **inspect_mesh(mesh, path.suffix),
        **({"origin": list(mesh.origin)} if any(mesh.origin) else {}),
        "vertex_colors": mesh.vertex_colors is not None,
        **_validated(path),
    }


def _validated(path: Path) -> dict[str, Any]:
    """What the Khronos validator says about a GLB, nothing when it is not installed."""
    from ..geometry.validate import validate_glb

    found = validate_glb(path) if path.suffix.lower() == ".glb" else None
    return {} if found is None else {"gltf_errors": found["errors"], "gltf_warnings": found["warnings"]}


def _splat_columns(path: Path) -> bool:
    """Whether a PLY has columns of splats, if not all of them."""
    from ..geometry.formats.ply import is_splat
    from ..geometry.formats.ply_data import read_header

    return any(element.name == "vertex" and is_splat(element) for element in read_header(path).elements)


def _inspect_points(path: Path) -> dict[str, Any]:
    import torch

    from ..geometry.points import PointCloud

    cloud, splats = PointCloud.load(path), path.suffix.lower() == ".ply" and _splat_columns(path)
    origin = torch.tensor(cloud.origin, dtype=torch.float64)
    return {
        "kind": "Gaussian splats" if splats else "point cloud",
        "points": len(cloud),
        "bounds_low": (cloud.points.amin(0).double() + origin).tolist(),
        "bounds_high": (cloud.points.amax(0).double() + origin).tolist(),
        **({"origin": list(cloud.origin)} if any(cloud.origin) else {}),
        "colors": cloud.colors is not None,
        "normals": cloud.normals is not None,
    }


def _inspect_image(path: Path) -> dict[str, Any]:
    from ..utils.pictures import load_image

    image = load_image(path, min_side=1)
    height, width, _ = image.shape
    return {"kind": "picture", "width": width, "height": height, "mean_srgb": image.mean((0, 1)).round(4).tolist()}


def _inspect_arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    with path.open("rb") as file:
        begins = file.read(6)
    if not begins.startswith((b"PK", b"\x93NUMPY")):
        raise InputError(f"{path} {'is no array file' if begins else 'is empty'}; NPZ or NPY is what numpy saves")
    try:
        loaded = np.load(path, allow_pickle=False)
        single = isinstance(loaded, np.ndarray)
        arrays = {"array": loaded} if single else {name: np.asarray(loaded[name]) for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    facts: dict[str, Any] = {"kind": "arrays"}
    for name, array in arrays.items():
        text = f"{array.dtype} {tuple(array.shape)}"
        if array.size and np.issubdtype(array.dtype, np.number):
            finite = array[np.isfinite(array)]
            text += f", {finite.min():.6g} to {finite.max():.6g}" if finite.size else ", nothing finite"
        facts[name] = text
    return facts


def _inspect_folder(path: Path) -> dict[str, Any]:
    names = ("model_index.json", "mv.json", "run.json")
    records = (path / name for name in names if (path / name).is_file())
    found = next(records, next(iter(sorted(path.glob("*.run.json"))), None))
    if found is None:
        raise InputError(f"{path} is neither a model folder nor that of a run; {_held(path)}")
    files = [file for file in path.rglob("*") if file.is_file()]
    return {
        "kind": "run" if found.name.endswith("run.json") else "model",
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        **read_json(found),
    }


def _held(path: Path) -> str:
    """What a folder holds instead, and what can be done with that."""
    from ..utils.pictures import READ_SUFFIXES

    counts = Counter(file.suffix.lower() or "no suffix" for file in path.iterdir() if file.is_file())
    if not counts:
        return "it holds no files"
    told = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
    if counts.keys() & set(READ_SUFFIXES):
        return f"it holds pictures ({told}): inspect one of them, or give the folder to depth, normals or pointcloud"
    if counts.keys() & set(MESHES):
        return f"it holds {told}: inspect one of the files"
    if {"cameras.txt", "cameras.bin"} & {file.name for file in path.iterdir()}:
        return "it holds a COLMAP model: unproject convert turns it into transforms.json"
    return f"it holds {told}; inspect one of the files"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return "  ".join(f"{item:.4g}" for item in value)
    return str(value)
