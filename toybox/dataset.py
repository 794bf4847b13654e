"""Rendered data sets: resumable sharded rendering, and the reader that trainers use.

A shard is one compressed .npz of SHARD_GROUPS groups, written atomically and named by its number, so that an
interrupted job goes on where it was and every machine makes the same bytes. A group is four views of one object
90 degrees apart ("object"), two frontal views of a scene or four eyes in a place.
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
from ..utils.progress import Progress
from .captions import caption, view_word
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
from .render import Renderer
from .scenes import Scene
from .views import draw_interior_camera, draw_orbits, draw_room_camera, draw_street_camera, draw_table_camera

SHARD_GROUPS = 64
VIEWS = {"object": 4, "scene": 2, "room": 4, "street": 4, "table": 4, "interior": 4}
PLACES = {kind.__name__: kind for kind in (RoomProgram, StreetProgram, TableProgram, InteriorProgram)}


@dataclass(frozen=True)
class RenderJob:
    """What to render. The number of views is groups x 4 (object), x 2 (scene) or x 4 (places)."""

    kind: str = "object"
    split: str = "train"
    groups: int = 1024
    size: int = 64  # pixels, square
    geometry: bool = False  # also depth and normals
    first: int = 0  # index of the first group

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
) -> tuple[list[Camera], list[dict[str, float]]]:
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
    out: dict[str, list[np.ndarray]] = {"rgb": [], "depth_m": [], "normal": [], "c2w": [], "K": []}
    for camera in cameras[:count]:
        c2w, K = camera.c2w[0].numpy(), camera.K[0].numpy()
        view = renderer.render(c2w.astype(float), K.astype(float), job.size, geometry=job.geometry)
        out["rgb"].append(np.round(view.rgb * 255).astype(np.uint8))
        out["c2w"].append(c2w)
        out["K"].append(K)
        if job.geometry:
            assert view.depth_m is not None and view.normal is not None
            out["depth_m"].append(view.depth_m.astype(np.float16))
            out["normal"].append(np.round((view.normal @ c2w[:3, :3]) * 127).astype(np.int8))  # camera axes
    records = [{"group": index, "program": program_to_json(program), **view} for view in views[:count]]
    return {**{k: np.stack(v) for k, v in out.items() if v}, "records": records}


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
    if manifest.exists():
        present = read_json(manifest)
        different = [k for k in wanted if present.get(k) != wanted[k] and k != "groups"]
        if different:
            raise InputError(f"{folder} holds another data set (different {', '.join(different)}); choose a new folder")
        if present["groups"] > job.groups:
            raise InputError(f"{folder} holds {present['groups']} groups; groups={job.groups} would leave a part out")
    write_json(manifest, wanted)
    for leftover in folder.glob(".*.tmp.npz"):
        leftover.unlink(missing_ok=True)
    numbers = range((job.groups + SHARD_GROUPS - 1) // SHARD_GROUPS)
    bar = Progress(total=job.groups * VIEWS[job.kind], label=f"rendering {job.kind} {job.split}")
    with bar, ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for views in pool.map(render_shard, [job] * len(numbers), [str(folder)] * len(numbers), numbers):
            bar.advance(views)
    return folder


class RenderedSet:
    """One or several rendered folders as one set, held in memory as uint8. Half-finished sets give what is there."""

    def __init__(self, folders: str | Path | Sequence[str | Path]) -> None:
        self.folders = [Path(f) for f in ([folders] if isinstance(folders, (str, Path)) else folders)]
        columns: dict[str, list[np.ndarray]] = {}
        self.records: list[dict[str, Any]] = []
        self._groups: list[np.ndarray] = []
        for folder in self.folders:
            if not (folder / "job.json").exists():
                raise InputError(f"{folder} is not a rendered toybox set; make one with `unproject toybox --render`")
            for path in sorted(folder.glob("shard-*.npz")):
                self._read(path, columns)
        if not self.records:
            raise InputError(f"{', '.join(map(str, self.folders))} holds no shard yet")
        self._columns = {k: np.concatenate(v) for k, v in columns.items() if sum(map(len, v)) == len(self.records)}
        self._programs = [program_from_json(r["program"]) for r in self.records]

    def _read(self, path: Path, columns: dict[str, list[np.ndarray]]) -> None:
        with np.load(path) as shard:
            start = len(self.records)
            self.records += json.loads(shard["records"].tobytes())
            for name in shard.files:
                if name != "records":
                    columns.setdefault(name, []).append(shard[name])
            if self.records[start]["program"]["kind"] == "ObjectProgram":
                self._groups.append(np.arange(start, len(self.records)).reshape(-1, 4))

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 sRGB (n, H, W, 3)."""
        return self._columns["rgb"][indices]

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Any stored channel: rgb, depth_m (float16 metres), normal (int8, camera axes x 127), c2w, K."""
        if name not in self._columns:
            raise InputError(f"these renders hold no {name!r}; have {', '.join(self._columns)}")
        return self._columns[name][indices]

    def program(self, index: int) -> Program:
        """The program of view `index`."""
        return self._programs[index]

    def captions(self, indices: Iterable[int], rng: np.random.Generator | None = None) -> list[str]:
        """One caption a view: complete and canonical, or with rng a thinned paraphrase that may name the view."""
        texts = []
        for i in indices:
            record = self.records[i]
            orbit = "azimuth_deg" in record
            alone = isinstance(self._programs[i], ObjectProgram)
            view = view_word(record["azimuth_deg"], record["elevation_deg"]) if orbit and alone else None
            texts.append(caption(self._programs[i], view, rng))
        return texts

    def groups(self) -> np.ndarray:
        """Indices (G, 4) of the four-view groups, azimuths +90 degrees apart."""
        return np.concatenate(self._groups) if self._groups else np.zeros((0, 4), np.int64)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (n, 4, 4) OpenCV axes and K (n, 3, 3) pixels, float32."""
        return self._columns["c2w"][indices], self._columns["K"][indices]
