"""Gaussians to pictures, differentiably: `rasterization` with gsplat's arguments and meaning, on any processor.

On the CPU compiled loops draw tiles in as many threads as torch has, and derivatives are written by hand; on CUDA it is
gsplat; what lives on another device is drawn by the CPU too. `reference.rasterization_reference` is the slow twin in
plain torch that both are tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...utils.errors import need_extra
from .harmonics import count_of
from .plan import Plan

Array = NDArray[Any]
ROWS_PER_TASK = 4096  # Gaussians; fewer are not worth a thread


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    normals: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(renders (C, H, W, X), alphas (C, H, W, 1), meta) of N Gaussians seen by C cameras.

    means (N, 3), quats (N, 4) as (w, x, y, z) of any length, scales (N, 3) and opacities (N,) after their activations;
    colors (N, D) or (C, N, D), or with sh_degree coefficients (N, K, 3); viewmats (C, 4, 4) world to camera in OpenCV
    axes; Ks (C, 3, 3) in pixels, without skew and without gradient; backgrounds (C, D). X is D and, last, the depth.

    meta holds radii (C, N, 2), 0 where a Gaussian is not drawn, means2d (C, N, 2), whose gradient can be retained,
    depths, conics, opacities (C, N, ...) and with `normals` the map of sum w n (C, H, W, 3).
    """
    plan = Plan(
        width, height, near_plane, far_plane, radius_clip, eps2d, sh_degree, render_mode, rasterize_mode, camera_model,
        normals,
    )  # fmt: skip
    arrays = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities, "viewmats": viewmats, "Ks": Ks,
    }  # fmt: skip
    plan.check(arrays, colors, backgrounds)
    centres = torch.linalg.inv(viewmats)[:, :3, 3]
    if means.is_cuda:
        return _gsplat(plan, arrays, colors, centres, backgrounds)
    home = means.device
    projected = _Project.apply(plan, *_here(means, quats, scales, opacities, viewmats, Ks, centres))
    radii, means2d, depths, conics, factor, axes = (part.to(home) for part in projected)
    if sh_degree is not None:
        colors = _Colors.apply(count_of(sh_degree), *_here(colors, means, centres, radii)).to(home)
    parts = [colors.expand(len(viewmats), -1, -1)] if plan.with_color else []
    channels = colors.shape[-1]
    parts += [depths[..., None]] if plan.with_depth else []
    parts += [axes] if normals else []
    seen = opacities * factor if plan.antialiased else opacities.expand(len(viewmats), -1)
    blended = _Blend.apply(plan, *_here(means2d, conics, seen, torch.cat(parts, dim=-1), radii, depths.detach()))
    image, alpha = (part.to(home) for part in blended)
    meta = {"radii": radii, "means2d": means2d, "depths": depths, "conics": conics, "opacities": seen}
    return plan.finish(image, alpha, channels, backgrounds, meta)


def _here(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU; those that are there already are the same ones."""
    return [tensor.cpu() for tensor in tensors]


def in_threads(work: Callable[..., Any], pieces: list[Any]) -> list[Any]:
    """work(piece) of every piece, in as many threads as torch computes with; compiled loops let go of Python's lock."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads < 2:
        return [work(piece) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, pieces))


def _ranges(count: int) -> list[tuple[int, int]]:
    """Rows in pieces for the threads."""
    parts = max(1, min(torch.get_num_threads(), count // ROWS_PER_TASK))
    edges = np.linspace(0, count, parts + 1).astype(int).tolist()
    return list(zip(edges[:-1], edges[1:]))


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().contiguous().numpy()
    return array


class _Project(torch.autograd.Function):
    """kernels_project as a function of torch."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *inputs: Tensor) -> tuple[Tensor, ...]:
        from .kernels_project import project_forward

        means, quats, scales, opacities, viewmats, Ks, centres = (_numpy(t) for t in inputs)
        shape = (len(viewmats), len(means))
        radii = torch.empty(*shape, 2, dtype=torch.int32)
        outs = [inputs[0].new_empty(*shape, *tail) for tail in ((2,), (), (3,), (), (3,))]
        for c in range(shape[0]):
            views = [_numpy(radii)[c], *(_numpy(t)[c] for t in outs)]

            def work(rows: tuple[int, int], c: int = c, views: list[Array] = views) -> None:
                project_forward(
                    *rows, means, quats, scales, opacities, viewmats[c], Ks[c], centres[c], plan.width, plan.height,
                    float(plan.near_plane), float(plan.far_plane), float(plan.radius_clip), float(plan.eps2d),
                    plan.antialiased, plan.ortho, *views,
                )  # fmt: skip

            in_threads(work, _ranges(shape[1]))
        ctx.plan = plan
        ctx.save_for_backward(*inputs, radii, outs[2])
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(True)
        return (radii, *outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from .kernels_project import project_backward

        plan, saved = ctx.plan, ctx.saved_tensors
        means, quats, scales, _, viewmats, Ks, centres, radii, conics = (_numpy(t) for t in saved)
        v_means2d, v_depths, v_conics, v_factor, v_normals = (_numpy(g) for g in grads[1:])
        found = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in saved[:3]]
        v_means, v_quats, v_scales = (_numpy(t) for t in found)
        v_view = np.zeros(viewmats.shape)
        for c in range(len(viewmats)):

            def work(rows: tuple[int, int], c: int = c) -> Array:
                own = np.zeros((4, 4))
                project_backward(
                    *rows, means, quats, scales, viewmats[c], Ks[c], centres[c], plan.width, plan.height,
                    float(plan.eps2d), plan.ortho, radii[c], conics[c], v_means2d[c], v_depths[c], v_conics[c],
                    v_factor[c], v_normals[c], v_means, v_quats, v_scales, own,
                )  # fmt: skip
                return own

            v_view[c] = sum(in_threads(work, _ranges(len(means))))
        return None, *found, None, torch.from_numpy(v_view).to(saved[0]), None, None


class _Colors(torch.autograd.Function):
    """kernels_harmonics as a function of torch."""

    @staticmethod
    def forward(ctx: Any, count: int, sh: Tensor, means: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
        from .kernels_harmonics import colors_forward

        colors = means.new_empty(len(centres), len(means), 3)
        for c in range(len(centres)):
            arrays = [_numpy(means), _numpy(centres)[c], _numpy(radii)[c], _numpy(colors)[c]]

            def work(rows: tuple[int, int], arrays: list[Array] = arrays) -> None:
                colors_forward(*rows, _numpy(sh), count, *arrays)

            in_threads(work, _ranges(len(means)))
        ctx.count = count
        ctx.save_for_backward(sh, means, centres, radii, colors)
        return colors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from .kernels_harmonics import colors_backward

        sh, means, centres, radii, colors = ctx.saved_tensors
        v_sh, v_means = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (sh, means))
        v_centres = np.zeros((len(centres), 3))
        for c in range(len(centres)):
            arrays = [_numpy(means), *(_numpy(t)[c] for t in (centres, radii, colors, grad))]

            def work(rows: tuple[int, int], arrays: list[Array] = arrays) -> Array:
                own = np.zeros(3)
                colors_backward(*rows, _numpy(sh), ctx.count, *arrays, _numpy(v_sh), _numpy(v_means), own)
                return own

            v_centres[c] = sum(in_threads(work, _ranges(len(means))))
        return None, v_sh, v_means, torch.from_numpy(v_centres).to(means), None


class _Blend(torch.autograd.Function):
    """kernels_tiles as a function of torch: (channels (C, H, W, D), alpha (C, H, W, 1))."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, radii: Tensor,
        depths: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from .kernels_tiles import BLOCK, blend_forward

        channels = colors.shape[-1]
        padded = torch.nn.functional.pad(colors, (0, -channels % BLOCK)).contiguous()
        image = padded.new_empty(len(means2d), plan.height, plan.width, padded.shape[-1])
        light = padded.new_empty(image.shape[:3])
        last = torch.empty(image.shape[:3], dtype=torch.int32)
        drawn = [means2d, conics, opacities.contiguous(), padded]
        ctx.bins = []
        for c in range(len(means2d)):
            bins = _binned(plan, *(_numpy(t[c]) for t in (depths, radii, means2d, conics, opacities)))
            arrays = [_numpy(t)[c] for t in drawn]

            def work(tiles: Array, bins: _Bins = bins, arrays: list[Array] = arrays, c: int = c) -> None:
                blend_forward(
                    tiles, bins.offsets, bins.ids, *arrays, plan.width, plan.height, bins.across, _numpy(image)[c],
                    _numpy(light)[c], _numpy(last)[c],
                )  # fmt: skip

            in_threads(work, bins.pieces())
            ctx.bins.append(bins)
        ctx.plan, ctx.channels = plan, channels
        ctx.save_for_backward(*drawn, light, last)
        return image[..., :channels], (1 - light)[..., None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:
        from .kernels_tiles import BLOCK, blend_backward, gather

        plan, (*drawn, light, last) = ctx.plan, ctx.saved_tensors
        v_image = torch.nn.functional.pad(v_image, (0, -ctx.channels % BLOCK)).contiguous()
        total = light.new_zeros(*drawn[0].shape[:2], 6 + v_image.shape[-1])
        for c, bins in enumerate(ctx.bins):
            found = np.empty((len(bins.ids), total.shape[-1]), _numpy(total).dtype)
            arrays = [*(_numpy(t)[c] for t in drawn)]
            maps = [_numpy(t)[c] for t in (light, last, v_image, v_alpha[..., 0])]

            def work(
                tiles: Array, bins: _Bins = bins, arrays: list[Array] = arrays, rest: list[Array] = maps + [found]
            ) -> None:
                blend_backward(
                    tiles, bins.offsets, bins.ids, bins.slots, *arrays, plan.width, plan.height, bins.across, *rest
                )

            in_threads(work, bins.pieces())

            def collect(rows: tuple[int, int], bins: _Bins = bins, found: Array = found, c: int = c) -> None:
                gather(*rows, bins.firsts, found, _numpy(total)[c])

            in_threads(collect, _ranges(total.shape[1]))
        colors = total[..., 6 : 6 + ctx.channels]
        return None, total[..., :2], total[..., 2:5], total[..., 5], colors, None, None


class _Bins:
    """Which Gaussians meet which tile of one image."""

    def __init__(self, across: int, offsets: Array, firsts: Array, ids: Array, slots: Array) -> None:
        self.across = across
        self.offsets = offsets  # (tiles + 1,) into ids
        self.firsts = firsts  # (N + 1,) into the gradients, which lie Gaussian by Gaussian
        self.ids = ids  # Gaussians, tile by tile, nearest first
        self.slots = slots  # where the gradients of an entry of ids go

    def pieces(self) -> list[Array]:
        """The tiles in pieces of about equal work."""
        threads = torch.get_num_threads()
        tiles = np.arange(len(self.offsets) - 1, dtype=np.int64)
        return [tiles] if threads < 2 else [tiles[i :: 4 * threads] for i in range(min(len(tiles), 4 * threads))]


def _binned(plan: Plan, depths: Array, radii: Array, means2d: Array, conics: Array, opacities: Array) -> _Bins:
    """Sorts the Gaussians of one image by depth into tiles."""
    from .kernels_tiles import TILE, bin_tiles

    across, down = -(-plan.width // TILE), -(-plan.height // TILE)
    drawn = np.flatnonzero(radii[:, 0] > 0)
    order = drawn[np.argsort(depths[drawn], kind="stable")]
    counts, firsts = np.zeros(across * down, np.int64), np.zeros(len(radii), np.int64)
    arguments = [order, means2d, conics, opacities, radii, across, down]
    none = np.empty(0, np.int64)
    bin_tiles(*arguments, counts, firsts, none.astype(np.int32), none, False)
    offsets, starts = (np.concatenate([[0], np.cumsum(a)]) for a in (counts, firsts))
    ids, slots = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
    bin_tiles(*arguments, offsets[:-1].copy(), starts[:-1].copy(), ids, slots, True)
    return _Bins(across, offsets, starts, ids, slots)


def _gsplat(
    plan: Plan, arrays: dict[str, Tensor], colors: Tensor, centres: Tensor, backgrounds: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """gsplat's own rasteriser; normals ride along as channels."""
    try:
        from gsplat import rasterization as on_cuda
    except ImportError:
        need_extra("gsplat", "gsplat")
    from .reference import facing_axes, harmonic_colors

    if plan.sh_degree is not None:
        colors = harmonic_colors(colors[:, : count_of(plan.sh_degree)], arrays["means"], centres)
    parts = [colors.expand(len(centres), -1, -1)] if plan.with_color else []
    if plan.with_depth:
        view = arrays["viewmats"]
        parts.append((arrays["means"] @ view[:, :3, :3].mT + view[:, None, :3, 3])[..., 2:])
    if plan.normals:
        parts.append(
            facing_axes(arrays["means"], arrays["quats"], arrays["scales"], arrays["viewmats"], centres, plan.ortho)
        )
    image, alpha, meta = on_cuda(
        **arrays, colors=torch.cat(parts, dim=-1), width=plan.width, height=plan.height, near_plane=plan.near_plane,
        far_plane=plan.far_plane, radius_clip=plan.radius_clip, eps2d=plan.eps2d, packed=False,
        rasterize_mode=plan.rasterize_mode, camera_model=plan.camera_model,
    )  # fmt: skip
    return plan.finish(image, alpha, colors.shape[-1], backgrounds, dict(meta))
