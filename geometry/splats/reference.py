"""The rasteriser's slow twin: every Gaussian at every pixel, in plain torch that differentiates itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .cloud import rotation_matrices
from .harmonics import basis, count_of
from .plan import Plan

ALPHA_MIN, ALPHA_MAX, LIGHT_MIN, REACH = 1 / 255, 0.999, 1e-4, 3.33


def rasterization_reference(
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
    rows: int = 16,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """As raster.rasterization; gradients also reach Ks. rows: of pixels at a time, computed twice to save memory."""
    plan = Plan(
        width, height, near_plane, far_plane, radius_clip, eps2d, sh_degree, render_mode, rasterize_mode, camera_model,
        normals,
    )  # fmt: skip
    arrays = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities, "viewmats": viewmats, "Ks": Ks,
    }  # fmt: skip
    plan.check(arrays, colors, backgrounds)
    centres = torch.linalg.inv(viewmats)[:, :3, 3]
    flat = project(plan, means, quats, scales, opacities, viewmats, Ks)
    if sh_degree is not None:
        colors = harmonic_colors(colors[:, : count_of(sh_degree)], means, centres)
    parts = [colors.expand(len(viewmats), -1, -1)] if plan.with_color else []
    parts += [flat.depths[..., None]] if plan.with_depth else []
    parts += [facing_axes(means, quats, scales, viewmats, centres, plan.ortho)] if normals else []
    values = torch.cat(parts, dim=-1)
    images = []
    for c in range(len(viewmats)):
        order = torch.argsort(flat.depths[c].detach(), stable=True)
        order = order[flat.drawn[c][order]]
        chosen = [t[c, order] for t in (flat.means2d, flat.conics, flat.opacities, values)]
        bands = [
            checkpoint(blend, torch.arange(top, min(top + rows, height)), width, *chosen, use_reentrant=False)
            for top in range(0, height, rows)
        ]
        images.append(torch.cat(bands))
    image = torch.stack(images)
    meta = {"radii": flat.radii, "means2d": flat.means2d, "depths": flat.depths, "conics": flat.conics}
    return plan.finish(image[..., :-1], image[..., -1:], colors.shape[-1], backgrounds, meta)


class Flat(NamedTuple):
    """Gaussians on the image planes of C cameras."""

    means2d: Tensor  # (C, N, 2) pixels
    depths: Tensor  # (C, N)
    conics: Tensor  # (C, N, 3)
    opacities: Tensor  # (C, N), compensated if antialiased
    radii: Tensor  # (C, N, 2) whole pixels, 0 where not drawn
    drawn: Tensor  # (C, N)


def project(
    plan: Plan, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmats: Tensor, Ks: Tensor
) -> Flat:
    """cov2d = J W Sigma W^T J^T + eps2d I (Zwicker et al., EWA splatting, 2001)."""
    W, K = viewmats[:, None, :3, :3], Ks[:, None]  # (C, 1, 3, 3)
    local = (W @ means[..., None])[..., 0] + viewmats[:, None, :3, 3]  # (C, N, 3)
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    x, y, z = local.unbind(-1)
    zero = torch.zeros_like(z)
    if plan.ortho:
        means2d = torch.stack([fx * x + cx, fy * y + cy], dim=-1)
        jacobian = [fx + zero, zero, zero, zero, fy + zero, zero]
    else:
        z = torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
        means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)
        margin_x, margin_y = 0.15 * plan.width / fx, 0.15 * plan.height / fy
        tx = torch.minimum(torch.maximum(x / z, -cx / fx - margin_x), (plan.width - cx) / fx + margin_x)
        ty = torch.minimum(torch.maximum(y / z, -cy / fy - margin_y), (plan.height - cy) / fy + margin_y)
        jacobian = [fx / z, zero, -fx * tx / z, zero, fy / z, -fy * ty / z]
    J = torch.stack(jacobian, dim=-1).unflatten(-1, (2, 3))
    factor = J @ W @ (rotation_matrices(quats) * scales[:, None, :])
    sharp = factor @ factor.mT  # (C, N, 2, 2)
    blurred = sharp + plan.eps2d * torch.eye(2).to(sharp)
    det_sharp = sharp[..., 0, 0] * sharp[..., 1, 1] - sharp[..., 0, 1] ** 2
    det = blurred[..., 0, 0] * blurred[..., 1, 1] - blurred[..., 0, 1] ** 2
    solid = det > 0
    safe = torch.where(solid, det, torch.ones_like(det))
    conics = torch.stack([blurred[..., 1, 1], -blurred[..., 0, 1], blurred[..., 0, 0]], dim=-1) / safe[..., None]
    seen = opacities.expand(len(viewmats), -1)
    if plan.antialiased:
        ratio = (det_sharp / safe).clamp_min(0)
        seen = seen * torch.where(ratio > 0, ratio, torch.ones_like(ratio)).sqrt() * (ratio > 0)
    reach = (2 * torch.log(seen / ALPHA_MIN).clamp_min(0)).sqrt().clamp_max(REACH)
    radii = torch.ceil(reach[..., None] * torch.diagonal(blurred, dim1=-2, dim2=-1).clamp_min(0).sqrt()).detach()
    size = radii.new_tensor([plan.width, plan.height])
    drawn = solid & (local[..., 2] >= plan.near_plane) & (local[..., 2] <= plan.far_plane) & (seen >= ALPHA_MIN)
    drawn &= (radii > plan.radius_clip).any(-1)
    drawn &= ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    return Flat(means2d, local[..., 2], conics, seen, (radii * drawn[..., None]).int(), drawn)


def blend(rows: Tensor, width: int, means2d: Tensor, conics: Tensor, opacities: Tensor, values: Tensor) -> Tensor:
    """Rows (R, W, D + 1) of a picture and its alpha from Gaussians in order of depth."""
    v, u = torch.meshgrid(rows.to(means2d) + 0.5, torch.arange(width).to(means2d) + 0.5, indexing="ij")
    dx, dy = (means2d[:, i] - p.reshape(-1, 1) for i, p in enumerate((u, v)))  # (P, N)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=1)
    alpha = torch.where(after > LIGHT_MIN, alpha, torch.zeros_like(alpha))  # a pixel that has ended stays ended
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weights = alpha * before
    picture = torch.cat([weights @ values, weights.sum(1, keepdim=True)], dim=-1)
    return picture.unflatten(0, (len(rows), width))


def harmonic_colors(sh: Tensor, means: Tensor, centres: Tensor) -> Tensor:
    """max(0, 0.5 + sum_k sh_k Y_k) (C, N, 3) in the directions from the cameras."""
    values = basis(means - centres[:, None], int(sh.shape[1] ** 0.5) - 1)  # (C, N, K)
    return (torch.einsum("cnk,nkd->cnd", values, sh) + 0.5).clamp_min(0)


def facing_axes(means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, centres: Tensor, ortho: bool) -> Tensor:
    """The shortest axis (C, N, 3) of each Gaussian in the world, turned towards each camera."""
    index = scales.detach().argmin(dim=-1)
    axes = rotation_matrices(quats).gather(2, index[:, None, None].expand(-1, 3, 1))[..., 0]
    away = viewmats[:, None, 2, :3] if ortho else means - centres[:, None]
    sign = torch.where((axes * away).sum(-1, keepdim=True) > 0, -1.0, 1.0).to(axes)
    return (sign * axes).expand(len(viewmats), -1, -1)
