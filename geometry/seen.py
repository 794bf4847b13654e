"""What views show of a surface: how much each of them says about a point, and what to put where none says anything."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree
from torch import Tensor

from .cameras import Camera
from .raycast import RayMesh

POWER = 4  # of the cosine between normal and view
GRAZING = 0.1  # cosine below which a view says nothing
FEATHER = 6.0  # pixels over which a view fades out towards outlines and jumps of depth
JUMP = 6.0  # pixel widths that the depth may change from a pixel to the next
NEIGHBOURS = 6  # of a point that is filled
TOLERANCE = 3e-4  # of the solution: a texture has 256 steps
MANY = 100_000  # points to fill at once: steps from one to the next would take long to cross the surface
GOLDEN = 0.5 * (5**0.5 - 1)  # whose multiples pick points evenly from rows of any length


@torch.no_grad()
def view_weights(scene: RayMesh, points: Tensor, normals: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """(weights (N,) in [0, 1], pixels (N, 2)) of surface points (N, 3) in one view.

    The weight is cos^4 of the angle between normal (N, 3) and view, and fades to 0 over 6 px towards outlines and jumps
    of depth, where pixels mix surfaces; hidden points, those out of the picture and those seen at a slant have 0.
    """
    pixel, z = camera.project(points)
    pixel, z = pixel[0], z[0]
    size = pixel.new_tensor([camera.width, camera.height])
    inside = (pixel > 0).all(-1) & (pixel < size).all(-1) & (z > 0)
    away = points - camera.centres if camera.model != "ortho" else camera.c2w[:, :3, 2].expand_as(points)
    facing = -(normals * torch.nn.functional.normalize(away, dim=-1)).sum(-1)
    weight = (facing.clamp_min(0) ** POWER) * (inside & (facing > GRAZING))
    chosen = (weight > 0).nonzero()[:, 0]
    solidity = (inside_px(scene, camera) / FEATHER).clamp_max(1)
    weight[chosen] *= _sample(solidity[..., None], pixel[chosen] / size)[:, 0]
    chosen = (weight > 0).nonzero()[:, 0]
    start = points[chosen] - (z[chosen, None] * away[chosen] if camera.model == "ortho" else away[chosen])
    hidden = scene.first_faces(start, points[chosen] - start, 1 - 2e-3) >= 0
    weight[chosen] *= ~hidden
    return weight, pixel


def sample_pixels(image: Tensor, pixel: Tensor) -> Tensor:
    """Bilinear values (N, C) of an image (H, W, C) at pixels (N, 2), the centre of pixel j being j + 0.5."""
    return _sample(image, pixel / pixel.new_tensor([image.shape[1], image.shape[0]]))


def _sample(image: Tensor, place: Tensor) -> Tensor:
    """At places (N, 2) in [0, 1], the origin at the top left."""
    found = torch.nn.functional.grid_sample(
        image.movedim(-1, 0)[None].to(place), (2 * place - 1)[None, None], padding_mode="border", align_corners=False
    )
    return found[0, :, 0].T


def inside_px(scene: RayMesh, camera: Camera) -> Tensor:
    """(H, W) pixels from each pixel of a surface to the next one beside an outline or a jump of depth; 0 there and off
    the surface."""
    seen = scene.render(camera, ("depth",))
    depth, hit = seen.depth[0, ..., 0], seen.alpha[0, ..., 0] > 0.5
    width = 1 / camera.K[0, 0, 0] * (torch.ones_like(depth) if camera.model == "ortho" else depth)  # metres a pixel
    solid = hit.clone()
    for axis in (0, 1):
        jump = depth.diff(dim=axis).abs() > JUMP * torch.minimum(*_pair(width, axis))
        jump |= hit.narrow(axis, 1, hit.shape[axis] - 1) != hit.narrow(axis, 0, hit.shape[axis] - 1)
        for start in (0, 1):
            solid.narrow(axis, start, hit.shape[axis] - 1).logical_and_(~jump)
    return torch.from_numpy(distance_transform_edt(solid.cpu().numpy()).astype(np.float32)).to(depth)


def _pair(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Neighbours along an axis."""
    last = values.shape[axis] - 1
    return values.narrow(axis, 0, last), values.narrow(axis, 1, last)


def diffused(values: NDArray[np.float32], known: NDArray[np.bool_], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values (N, C) where those that are not `known` (N,) are the weighted mean of their neighbours in space.

    Harmonic on the graph of the nearest points (N, 3) with weights 1 / distance: smooth, between the least and the
    largest known value, and blind to the borders of charts. Nothing known: unchanged.
    """
    if known.all() or not known.any():
        return values
    unknown = np.flatnonzero(~known)
    tree = cKDTree(points)
    distance, near = tree.query(points[unknown], k=min(NEIGHBOURS + 1, len(points)))
    row = np.repeat(np.arange(len(unknown)), near.shape[1])
    column, weight = near.reshape(-1), 1 / np.maximum(distance.reshape(-1), 1e-9)
    other = column != unknown[row]
    row, column, weight = row[other], column[other], np.minimum(weight[other], 1e6)
    place = np.full(len(points), -1)
    place[unknown] = np.arange(len(unknown))
    inner = place[column] >= 0
    count = len(unknown)
    links = coo_matrix((weight[inner], (row[inner], place[column[inner]])), shape=(count, count)).tocsr()
    links = links.maximum(links.T)  # an edge counts for both of its ends
    anchor = coo_matrix((weight[~inner], (row[~inner], column[~inner])), shape=(count, len(points))).tocsr()
    total = np.asarray(links.sum(axis=1) + anchor.sum(axis=1)).reshape(-1)
    filled, start = values.copy(), _begun(values, known, points)
    scale = 1 / np.sqrt(np.maximum(total, 1e-12))
    weak = 1e-9 * total  # what hangs together with nothing known keeps its nearest value
    operator = coo_matrix((total + weak, (range(count), range(count))), shape=(count, count)).tocsr() - links
    operator = operator.multiply(scale[:, None]).multiply(scale[None]).tocsr()
    for channel in range(values.shape[1]):
        right = anchor @ values[:, channel] + weak * start[:, channel]
        solved, _ = cg(operator, scale * right, x0=start[:, channel] / scale, rtol=TOLERANCE, maxiter=2000)
        filled[unknown, channel] = scale * solved
    return filled


def _begun(values: NDArray[np.float32], known: NDArray[np.bool_], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values (M, C) that filling begins with: of the nearest known point, or, where many are to be filled, of the
    nearest ones among a quarter of all points, which is filled first."""
    picked = np.arange(len(points)) * GOLDEN % 1 < 0.25
    if np.count_nonzero(~known) <= MANY or not known[picked].any():
        return values[known][cKDTree(points[known]).query(points[~known])[1]]
    coarse = diffused(values[picked], known[picked], points[picked])
    distance, near = cKDTree(points[picked]).query(points[~known], k=NEIGHBOURS)
    share = 1 / np.maximum(distance, 1e-9)
    share /= share.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkc->nc", share, coarse[near]).astype(np.float32)
