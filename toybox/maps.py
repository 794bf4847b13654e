"""Renders as pictures of every kind of map a prior can draw, each kind named by the words that ask for it.

All are uint8 (n, H, W, 3). Where nothing is seen there is a fixed value, so that a map shows its object alone:

| words | channels | where nothing is |
|---|---|---|
| picture | sRGB as rendered | the scene's background |
| normal map | 127.5 (n + 1), n in the fixed frame of the object or room: x to its front, z up | mid-grey (n = 0) |
| camera normal map | the same, n in camera axes: x right, y up, z towards the viewer | mid-grey |
| depth map | 255 (d - lo) / (hi - lo), clipped; lo, hi = 2nd and 98th percentile of z-depth d | white, far |
| disparity map | the same of 1 / d | black, far |
| albedo | sRGB of the base colour, smoothed as the picture is | white |
| material map | coverage, roughness, metallic | black |
| flat colours | sRGB mean of the base colour over each part of each object | the scene's background |
| line drawing | black where parts, depth (by a twentieth) or normals (by 35 degrees) break, on white | white |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import InputError
from .dataset import RenderedSet
from .programs import RoomProgram

COLUMNS = ("rgb", "depth_m", "normal", "alpha", "albedo", "material", "segment", "c2w")
QUANTILE = 0.02  # of depth at either end, outside of which a depth map is clipped
CREASE_COS = np.cos(np.deg2rad(35.0))
STEP = 0.05  # relative jump of depth that is drawn as a line
VIEWER = np.array([1.0, -1.0, -1.0], np.float32)  # OpenCV camera axes to x right, y up, z towards the viewer

Columns = Mapping[str, np.ndarray]


def picture(view: Columns) -> np.ndarray:
    """The render itself."""
    return view["rgb"]


def fixed_normals(view: Columns) -> np.ndarray:
    """Unit normals (n, H, W, 3) float32 in the world's axes, which are those of a single object; 0 where nothing is."""
    return np.einsum("nij,nhwj->nhwi", view["c2w"][:, :3, :3].astype(np.float32), camera_normals(view) * VIEWER)


def camera_normals(view: Columns) -> np.ndarray:
    """Unit normals (n, H, W, 3) float32, x right, y up, z towards the viewer; 0 where nothing is."""
    normals = view["normal"].astype(np.float32)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6) * VIEWER


def depth_map(view: Columns) -> np.ndarray:
    """See the table."""
    return _grey(_ranged(view["depth_m"].astype(np.float32), _seen(view))[0], _seen(view), 1.0)


def disparity_map(view: Columns) -> np.ndarray:
    """See the table."""
    return _grey(_ranged(_disparity(view), _seen(view))[0], _seen(view), 0.0)


def albedo(view: Columns) -> np.ndarray:
    """See the table."""
    cover = view["alpha"][..., None] / np.float32(255)
    return _bytes((cover * view["albedo"] + (1 - cover) * 255) / 255)


def material_map(view: Columns) -> np.ndarray:
    """See the table."""
    return np.concatenate([view["alpha"][..., None], view["material"]], -1)


def flat_colours(view: Columns) -> np.ndarray:
    """See the table."""
    segment = view["segment"].astype(np.int64)
    count, width = len(segment), int(segment.max()) + 1
    labels = segment + width * np.arange(count)[:, None, None]
    empty = (view["alpha"] == 0)[..., None]
    colours = np.where(segment[..., None] > 0, view["albedo"], np.where(empty, view["rgb"], 0)).astype(np.float64)
    weights = np.where(segment > 0, 1.0, empty[..., 0])
    sums = np.stack([np.bincount(labels.ravel(), c.ravel(), count * width) for c in np.moveaxis(colours, -1, 0)], -1)
    totals = np.bincount(labels.ravel(), weights.ravel(), count * width)[:, None]
    means = np.where(totals > 0, sums / np.maximum(totals, 1), 255)
    return np.round(means[labels]).astype(np.uint8)


def line_drawing(view: Columns) -> np.ndarray:
    """See the table; the line is drawn in the left or upper one of two pixels."""
    lines = np.zeros(view["segment"].shape, bool)
    depth, normals, seen = view["depth_m"].astype(np.float32), camera_normals(view), _seen(view)
    for axis in (1, 2):
        here, there = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
        near, far = np.minimum(depth[here], depth[there]), np.maximum(depth[here], depth[there])
        turned = (normals[here] * normals[there]).sum(-1) < CREASE_COS
        inner = seen[here] & seen[there] & (turned | (far > (1 + STEP) * near))
        lines[here] |= inner | (view["segment"][here] != view["segment"][there])
    return np.repeat(np.where(lines, 0, 255).astype(np.uint8)[..., None], 3, -1)


MAPS: dict[str, Callable[[Columns], np.ndarray]] = {
    "picture": picture,
    "normal map": lambda view: _bytes(0.5 * fixed_normals(view) + 0.5),
    "camera normal map": lambda view: _bytes(0.5 * camera_normals(view) + 0.5),
    "depth map": depth_map,
    "disparity map": disparity_map,
    "albedo": albedo,
    "material map": material_map,
    "flat colours": flat_colours,
    "line drawing": line_drawing,
}
NORMALS = {"normal map": fixed_normals, "camera normal map": camera_normals}


class Place(NamedTuple):
    """Where a picture comes from: which view of which rendered set, shown as which kind of map."""

    part: RenderedSet
    view: int
    kind: str


class MapPictures:
    """Views of rendered sets as maps: of each set its first view as all kinds it is shown as, then its second, ...

    A kind named twice comes twice as often. Pictures larger than `crop` px lose their border.
    """

    def __init__(
        self, parts: Sequence[tuple[RenderedSet, Sequence[str]]], crop: int | None = None, strange: float = 0.0
    ) -> None:
        """`parts` are sets and the kinds of map they are shown as; without `crop` it is the smallest picture's size.
        `strange` is the share of paraphrased captions with strange words in them.

        Raises InputError for an unknown kind and for pictures smaller than `crop`.
        """
        for _, kinds in parts:
            if not kinds or not set(kinds) <= MAPS.keys():
                raise InputError(f"kinds={list(kinds)} must be some of {', '.join(MAPS)}")
        if not parts:
            raise InputError("give at least one rendered set")
        small = min(part.size for part, _ in parts)
        self.parts, self.crop, self.strange = [(part, tuple(kinds)) for part, kinds in parts], crop or small, strange
        if self.crop > small:
            raise InputError(f"crop={crop} is larger than the pictures of {small} px")
        self._ends = np.cumsum([len(part) * len(kinds) for part, kinds in self.parts])
        lengths, shown = [len(part) for part, _ in self.parts], [list(kinds) for _, kinds in self.parts]
        self.identity = {"lengths": lengths, "kinds": shown, "crop": self.crop, "strange": strange}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, index: int) -> Place:
        """Where picture `index` comes from."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        part, kinds = self.parts[which]
        view, kind = divmod(index - self._start(which), len(kinds))
        return Place(part, view, kinds[kind])

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, crop, crop, 3): the middles of the pictures."""
        return np.concatenate([self._image(int(i), None) for i in indices])

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """{"images": uint8 (n, crop, crop, 3)}, windows at random places."""
        return {"images": np.concatenate([self._image(int(i), rng) for i in indices])}

    def captions(self, indices: np.ndarray, rng: np.random.Generator | None = None, views: bool = True) -> list[str]:
        """One caption a picture that names what it shows, as `RenderedSet.captions`; without view words if asked."""
        places = [self.place(int(i)) for i in indices]
        return [
            part.caption(view, rng, views, None if kind == "picture" else kind, self.strange)
            for part, view, kind in places
        ]

    def groups(self) -> np.ndarray:
        """Indices (G, V) of the groups of one object, each of one kind."""
        found = []
        for which, (part, kinds) in enumerate(self.parts):
            views = self._start(which) + part.groups()[:, None] * len(kinds)
            found.append((views + np.arange(len(kinds))[:, None]).reshape(-1, views.shape[-1]))
        return np.concatenate(found)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (n, 4, 4) OpenCV axes and K (n, 3, 3) pixels of the whole pictures, float32."""
        places = [self.place(int(i)) for i in indices]
        found = [part.cameras(np.array([view])) for part, view, _ in places]
        return np.concatenate([c2w for c2w, _ in found]), np.concatenate([K for _, K in found])

    def scores(self, indices: np.ndarray, decoded: np.ndarray) -> dict[str, np.ndarray]:
        """What is lost between `images(indices)` and `decoded` (n, crop, crop, 3) float in [0, 1], by kind.

        "KIND/psnr" in dB and "KIND/edges", decoded over true gradient energy, one number a picture with edges;
        "KIND/degrees" of normals and "KIND/abs_rel" of depth, one number a pixel that shows something. Rooms, streets
        and the like are counted apart, as "place KIND/...".
        """
        found: dict[str, list[np.ndarray]] = {}
        for index, image in zip(indices, decoded, strict=True):
            part, view, kind = self.place(int(index))
            label = f"place {kind}" if isinstance(part.program(view), RoomProgram) else kind
            for name, values in _scores(kind, self.columns(int(index)), image[None].clip(0, 1)).items():
                found.setdefault(f"{label}/{name}", []).append(values)
        return {name: np.concatenate(values) for name, values in found.items()}

    def columns(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The stored columns (1, crop, crop, ...) of picture `index`, and c2w (1, 4, 4)."""
        part, view, kind = self.place(index)
        spare = part.size - self.crop
        top, left = (spare // 2, spare // 2) if rng is None else (int(rng.integers(spare + 1)) for _ in range(2))
        window = (slice(None), slice(top, top + self.crop), slice(left, left + self.crop))
        read = {
            name: part.column(name, np.array([view])) for name in (COLUMNS if kind != "picture" else ("rgb", "c2w"))
        }
        return {name: values if name == "c2w" else values[window] for name, values in read.items()}

    def _start(self, which: int) -> int:
        return int(self._ends[which - 1]) if which else 0

    def _image(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        return MAPS[self.place(index).kind](self.columns(index, rng))


def _scores(kind: str, view: Columns, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Of one picture; `decoded` (1, H, W, 3) in [0, 1]."""
    true = MAPS[kind](view) / 255.0
    scores = {"psnr": -10 * np.log10(np.square(decoded - true).mean(keepdims=True).ravel() + 1e-10)}
    energy = gradient_energy(true)
    if energy > 0:
        scores["edges"] = np.array([gradient_energy(decoded) / energy])
    if kind in NORMALS:
        normals, seen = NORMALS[kind](view), _seen(view)
        said = 2 * decoded[seen] - 1
        cosines = (said * normals[seen]).sum(-1) / np.maximum(np.linalg.norm(said, axis=-1), 1e-6)
        scores["degrees"] = np.rad2deg(np.arccos(cosines.clip(-1, 1)))
    if kind in ("depth map", "disparity map"):
        near = kind == "disparity map"
        seen, depth = _seen(view), view["depth_m"].astype(np.float32)
        _, (low, high) = _ranged(_disparity(view) if near else depth, seen)
        said = low + decoded.mean(-1) * (high - low)
        said = (1 / np.maximum(said, 1e-6) if near else said)[seen]
        scores["abs_rel"] = np.abs(said - depth[seen]) / depth[seen]
    return scores


def gradient_energy(images: np.ndarray) -> float:
    """Sum of squared differences between neighbours of pictures (n, H, W, 3)."""
    return float(np.square(np.diff(images, axis=1)).sum() + np.square(np.diff(images, axis=2)).sum())


def _seen(view: Columns) -> np.ndarray:
    return view["depth_m"] > 0


def _disparity(view: Columns) -> np.ndarray:
    depth = view["depth_m"].astype(np.float32)
    return 1 / np.where(depth > 0, depth, 1)


def _ranged(values: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(values (n, H, W) over the range of those seen in each picture, that range (n, 1, 1) twice)."""
    ends = [np.quantile(v[s], [QUANTILE, 1 - QUANTILE]) if s.any() else (0.0, 1.0) for v, s in zip(values, seen)]
    low, high = np.array(ends, np.float32).T[..., None, None]
    high = np.maximum(high, low + 1e-6 * np.maximum(np.abs(low), 1))
    return (values - low) / (high - low), (low, high)


def _grey(unit: np.ndarray, seen: np.ndarray, elsewhere: float) -> np.ndarray:
    return np.repeat(_bytes(np.where(seen, unit.clip(0, 1), elsewhere))[..., None], 3, -1)


def _bytes(unit: np.ndarray) -> np.ndarray:
    return np.round(unit * 255).astype(np.uint8)
