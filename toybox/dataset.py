"""Rendered data sets: resumable sharded rendering, and the reader that trainers use.

A shard is one compressed .npz of SHARD_GROUPS groups, written atomically and named by its number, so that an
interrupted job goes on where it was and every machine makes the same bytes. A group is four views of one object
90 degrees apart ("object"), eight of them 45 degrees apart ("orbit"), two frontal views of a scene or a pair, or four
eyes in a place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry.cameras import Camera
from ..utils.errors import InputError
from ..utils.files import atomic_path, read_json, write_json
from ..utils.processes import follow
from ..utils.progress import Progress
from ..utils.temporary import sweep
from .captions import caption, view_word
from .materials import srgb_from_linear
from .places import make_scene
from .programs import (
    KINDS,
    InteriorProgram,
    ObjectProgram,
    Program,
    RoomProgram,
    SceneProgram,
    StreetProgram,
    TableProgram,
    draw,
    stable_hash,
)
from .render import Renderer, Rendering
from .scenes import Scene
from .views import draw_interior_camera, draw_orbits, draw_room_camera, draw_street_camera, draw_table_camera

SHARD_GROUPS = 64
VIEWS = {"object": 4, "scene": 2, "pair": 2, "room": 4, "street": 4, "table": 4, "interior": 4, "orbit": 8}
PARTS = 64  # numbers set aside for the parts of one object
PLACES = {kind.__name__: kind for kind in (RoomProgram, StreetProgram, TableProgram, InteriorProgram)}


@dataclass(frozen=True)
class RenderJob:
    """What to render. The number of views is groups x 4 (object), x 8 (orbit), x 2 (scene, pair) or x 4 (places)."""

    kind: str = "object"
    split: str = "train"
    groups: int = 1024
    size: int = 64  # pixels, square
    geometry: bool = False  # also depth and normals
    first: int = 0  # index of the first group
    maps: bool = False  # geometry, and also coverage, albedo, roughness, metallic and which part is where

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r} is unknown; have {', '.join(KINDS)}")
        if self.groups < 1 or self.size < 8:
            raise InputError(f"groups={self.groups}, size={self.size}: need groups >= 1 and size >= 8")


def program_to_json(program: Program) -> dict[str, Any]:
    """A program as plain JSON with its kind."""
    return {"kind": type(program).__name__, **asdict(program)}


def program_from_json(data: dict[str, Any]) -> Program:
    """Inverse of program_to_json."""
    values = dict(data)
    kind = values.pop("kind")
    if kind == "ObjectProgram":
        return ObjectProgram(**values)
    values["members"] = tuple(ObjectProgram(**m) for m in values["members"])
    return (SceneProgram if kind == "SceneProgram" else PLACES[kind])(**values)


def group_cameras(
    split: str, kind: str, index: int, scene: Scene, size: int
) -> tuple[list[Camera], list[dict[str, Any]]]:
    """The cameras of a group, each a batch of one, and their orbit angles (empty in places); a pure function."""
    rng = np.random.default_rng(stable_hash("views", split, kind, index))
    if isinstance(scene.program, RoomProgram):
        drawn = {
            StreetProgram: draw_street_camera,
            TableProgram: draw_table_camera,
            InteriorProgram: draw_interior_camera,
        }
        eye = drawn.get(type(scene.program), draw_room_camera)
        cameras = [eye(rng, scene, (size, size)) for _ in range(VIEWS[kind])]
        return cameras, [{} for _ in cameras]
    orbits = draw_orbits(rng, VIEWS[kind])
    if isinstance(scene.program, SceneProgram):  # relations hold from the front
        turned = rng.uniform(-35, 35, len(orbits))
        orbits = [
            replace(o, azimuth_deg=float(t) % 360, elevation_deg=abs(o.elevation_deg) + 5)
            for o, t in zip(orbits, turned, strict=True)
        ]
    return [o.camera(size) for o in orbits], [asdict(o) for o in orbits]


def render_group(job: RenderJob, index: int, count: int | None = None) -> dict[str, Any]:
    """Renders one group or its first `count` views: arrays (n, ...) and one metadata record a view."""
    program = draw(job.split, index, job.kind)
    scene = make_scene(program, index)
    renderer = Renderer(scene)
    cameras, views = group_cameras(job.split, job.kind, index, scene, job.size)
    boxed = isinstance(program, SceneProgram) and bool(program.relation)
    out: list[dict[str, np.ndarray]] = []
    for camera, record in zip(cameras[:count], views[:count], strict=True):
        c2w, K = camera.c2w[0].numpy(), camera.K[0].numpy()
        eye = (c2w.astype(float), K.astype(float), job.size)
        view = renderer.render(*eye, geometry=job.geometry or job.maps or boxed)
        columns = {"rgb": _bytes(view.rgb), "c2w": c2w, "K": K}
        if boxed:
            record["boxes"] = object_boxes(view, 2)
        if job.geometry or job.maps:
            assert view.depth_m is not None and view.normal is not None
            columns["depth_m"] = view.depth_m.astype(np.float16)
            columns["normal"] = np.round((view.normal @ c2w[:3, :3]) * 127).astype(np.int8)  # camera axes
        if job.maps:
            columns |= _materials(view, renderer.smooth_albedo(*eye))
        out.append(columns)
    records = [{"group": index, "program": program_to_json(program), **view} for view in views[:count]]
    arrays = {name: np.stack([columns[name] for columns in out]) for name in out[0]}
    if job.maps:  # numbered without gaps, so that 16 bits hold the fullest room
        present, numbers = np.unique(arrays["segment"], return_inverse=True)
        arrays["segment"] = (numbers.reshape(arrays["segment"].shape) + (present[0] > 0)).astype(np.uint16)
    return {**arrays, "records": records}


def object_boxes(view: Rendering, count: int) -> list[list[float]]:
    """Centre x and y, width and height, as fractions of the picture, of what is seen of the first `count` objects."""
    assert view.object_id is not None
    size, boxes = np.array(view.object_id.shape[::-1]), []
    for number in range(count):
        places = np.argwhere(view.object_id == number)[:, ::-1]  # (n, 2) x, y
        low, high = (places.min(0), places.max(0) + 1) if len(places) else (np.zeros(2), np.zeros(2))
        boxes.append([round(float(value), 4) for value in (*((low + high) / 2 / size), *((high - low) / size))])
    return boxes


def _materials(view: Rendering, albedo: np.ndarray) -> dict[str, np.ndarray]:
    """alpha (H, W), albedo (H, W, 3) sRGB and material (H, W, 2), roughness and metallic, as bytes; segment (H, W),
    0 where nothing is, else one number for each part of each object, the same in all views."""
    assert view.roughness is not None and view.metallic is not None
    assert view.object_id is not None and view.part_id is not None
    segment = np.where(view.object_id < 0, 0, 1 + view.object_id * PARTS + view.part_id % PARTS)
    return {
        "alpha": _bytes(view.alpha[..., 0]),
        "albedo": _bytes(srgb_from_linear(albedo)),
        "material": _bytes(np.stack([view.roughness, view.metallic], -1)),
        "segment": segment,
    }


def _bytes(unit: np.ndarray) -> np.ndarray:
    return np.round(unit * 255).astype(np.uint8)


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lives."""
    return folder / f"shard-{number:05d}.npz"


def render_shard(job: RenderJob, folder: str, number: int) -> int:
    """Renders one shard unless it is there already, whole; returns its number of views."""
    path = shard_path(Path(folder), number)
    start = number * SHARD_GROUPS
    groups = range(job.first + start, job.first + min(start + SHARD_GROUPS, job.groups))
    if _shard_views(path) != len(groups) * VIEWS[job.kind]:
        parts = [render_group(job, g) for g in groups]
        arrays: dict[str, Any] = {k: np.concatenate([p[k] for p in parts]) for k in parts[0] if k != "records"}
        records = json.dumps([r for p in parts for r in p["records"]])
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, records=np.frombuffer(records.encode(), np.uint8), **arrays)
    return len(groups) * VIEWS[job.kind]


def _shard_views(path: Path) -> int:
    """Views in a shard, 0 when there is none; the last one of a smaller set is short."""
    if not path.exists():
        return 0
    with np.load(path, allow_pickle=False) as shard:
        return len(json.loads(shard["records"].tobytes()))


def render_set(job: RenderJob, folder: str | Path, workers: int | None = None) -> Path:
    """Renders a whole set, in parallel and resumable; a larger job extends the set that is there.

    Raises InputError when the folder holds another job or more groups.
    """
    folder = Path(folder)
    manifest = folder / "job.json"
    wanted = asdict(job)
    present = read_json(manifest) if manifest.exists() else None
    if present is not None:
        different = [k for k in wanted if present.get(k, False) != wanted[k] and k != "groups"]
        if different:
            raise InputError(f"{folder} holds another data set (different {', '.join(different)}); choose a new folder")
        if present["groups"] > job.groups:
            raise InputError(f"{folder} holds {present['groups']} groups; groups={job.groups} would leave a part out")
    if present != wanted:
        write_json(manifest, wanted)
    numbers = range((job.groups + SHARD_GROUPS - 1) // SHARD_GROUPS)
    for number in numbers:
        sweep(shard_path(folder, number))
    bar = Progress(total=job.groups * VIEWS[job.kind], label=f"rendering {job.kind} {job.split}")
    pool = ProcessPoolExecutor(workers or os.cpu_count(), initializer=follow, initargs=(os.getpid(),))
    with bar, pool:
        for views in pool.map(render_shard, [job] * len(numbers), [str(folder)] * len(numbers), numbers):
            bar.advance(views)
    return folder


class RenderedSet:
    """One or several rendered folders as one set, held in memory as uint8. Half-finished sets give what is there."""

    def __init__(self, folders: str | Path | Sequence[str | Path], columns: Sequence[str] | None = None) -> None:
        """`columns` are those to read besides the cameras; None: all. Raises InputError for what is no rendered set."""
        self._wanted = None if columns is None else {"c2w", "K", *columns}
        self.folders = [Path(f) for f in ([folders] if isinstance(folders, (str, Path)) else folders)]
        read: dict[str, list[np.ndarray]] = {}
        self.records: list[dict[str, Any]] = []
        self._groups: list[np.ndarray] = []
        for folder in self.folders:
            if not (folder / "job.json").exists():
                raise InputError(f"{folder} is not a rendered toybox set; make one with `unproject toybox --render`")
            for path in sorted(folder.glob("shard-*.npz")):
                self._read(path, read)
        self.size = int(read_json(self.folders[0] / "job.json")["size"])
        if not self.records:
            raise InputError(f"{', '.join(map(str, self.folders))} holds no shard yet")
        self._columns = {k: np.concatenate(v) for k, v in read.items() if sum(map(len, v)) == len(self.records)}
        self._programs = [program_from_json(r["program"]) for r in self.records]

    def _read(self, path: Path, columns: dict[str, list[np.ndarray]]) -> None:
        with np.load(path) as shard:
            start = len(self.records)
            self.records += json.loads(shard["records"].tobytes())
            for name in shard.files:
                if name != "records" and (self._wanted is None or name in self._wanted):
                    columns.setdefault(name, []).append(shard[name])
            if self.records[start]["program"]["kind"] == "ObjectProgram":
                views = VIEWS[str(read_json(path.parent / "job.json").get("kind", "object"))]
                self._groups.append(np.arange(start, len(self.records)).reshape(-1, views))

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 sRGB (n, H, W, 3)."""
        return self._columns["rgb"][indices]

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Any stored channel: rgb, c2w, K; depth_m (float16 metres), normal (int8, camera axes x 127); alpha, albedo,
        material, segment (see `_materials`). Raises InputError for one that was not rendered."""
        if name not in self._columns:
            raise InputError(f"{', '.join(map(str, self.folders))} holds no {name}; render it with --maps, and read it")
        return self._columns[name][indices]

    def program(self, index: int) -> Program:
        """The program of view `index`."""
        return self._programs[index]

    def captions(self, indices: Iterable[int], rng: np.random.Generator | None = None) -> list[str]:
        """One caption a view: complete and canonical, or with rng a thinned paraphrase that may name the view."""
        return [self.caption(int(i), rng) for i in indices]

    def caption(
        self,
        index: int,
        rng: np.random.Generator | None = None,
        views: bool = True,
        shows: str | None = None,
        strange: float = 0.0,
    ) -> str:
        """The caption of view `index`: what kind of map it `shows`, and the view where `views` asks for it."""
        record, program = self.records[index], self._programs[index]
        named = views and "azimuth_deg" in record and isinstance(program, ObjectProgram)
        view = view_word(record["azimuth_deg"], record["elevation_deg"]) if named else None
        return caption(program, view, rng, shows, strange)

    def groups(self) -> np.ndarray:
        """Indices (G, V) of the groups of one object, azimuths 360 / V degrees apart: V = 4, or 8 of orbits. Raises
        InputError for sets of both."""
        if len({group.shape[1] for group in self._groups}) > 1:
            raise InputError(f"{', '.join(map(str, self.folders))} hold objects and orbits; read one kind of set")
        return np.concatenate(self._groups) if self._groups else np.zeros((0, 4), np.int64)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (n, 4, 4) OpenCV axes and K (n, 3, 3) pixels, float32."""
        return self._columns["c2w"][indices], self._columns["K"][indices]
