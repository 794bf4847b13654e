"""The toybox renderer: exact visibility by ray casting, shading by a GGX microfacet model.

One directional sun or point lamp with shadow rays, and a second-order spherical-harmonics environment
(diffuse: Ramamoorthi and Hanrahan 2001, eq. 10; specular: environment radiance along the mirrored ray, scaled by
Karis' split-sum approximation). Colours are linear until the last step and sRGB after it. Radiance channels are
the mean of samples x samples rays per pixel; geometric channels come from one more ray through the pixel centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import open3d as o3d

from .hits import Hits
from .materials import Look, albedo_at, linear_from_srgb, srgb_from_linear
from .parts import SLOTS
from .programs import stable_hash
from .scenes import Light, Scene, placed_vertices
from .soft_light import OFFSET_M, develop, reached, shade

SH_C = np.array([0.282095, 0.488603, 0.488603, 0.488603, 1.092548, 1.092548, 0.315392, 1.092548, 0.546274])
SH_COSINE = np.array([np.pi, *[2 * np.pi / 3] * 3, *[np.pi / 4] * 5])  # convolution with the clamped cosine


@dataclass
class Rendering:
    """Channels of one view, (H, W, C) float32 unless stated. Background: alpha 0, depth 0, ids -1, vectors 0."""

    rgb: np.ndarray  # display-referred sRGB in [0, 1] over the scene's background
    alpha: np.ndarray  # (H, W, 1) coverage in [0, 1]
    depth_m: np.ndarray | None = None  # (H, W) camera z-depth
    normal: np.ndarray | None = None  # world, unit
    albedo: np.ndarray | None = None  # linear
    roughness: np.ndarray | None = None  # (H, W)
    metallic: np.ndarray | None = None  # (H, W)
    part_id: np.ndarray | None = None  # (H, W) int32, part of its object
    object_id: np.ndarray | None = None  # (H, W) int32; room surfaces count on after the objects
    canonical: np.ndarray | None = None  # canonical object coordinates
    foreground_linear: np.ndarray | None = None  # premultiplied linear radiance, for other backgrounds
    keypoints: list[dict[str, tuple[float, float, bool]]] = field(default_factory=list)  # (u, v, visible) per object


def sh_basis(n: np.ndarray) -> np.ndarray:
    """Real spherical harmonics up to order 2, (N, 9), in the order 1, y, z, x, xy, yz, 3z^2-1, xz, x^2-y^2."""
    x, y, z = n[:, 0], n[:, 1], n[:, 2]
    return SH_C * np.stack([np.ones_like(x), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], axis=1)


class Renderer:
    """A scene prepared for many views."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.looks: list[Look] = []
        vertices, faces, normals, canonical, look, part, owner = [], [], [], [], [], [], []
        offset = 0
        shared: dict[Look, int] = {}
        for index, placed in enumerate(scene.objects):
            toy = placed.toy
            rotation = placed.matrix[:3, :3] / np.cbrt(np.linalg.det(placed.matrix[:3, :3]))
            vertices.append(placed_vertices(placed))
            faces.append(toy.faces + offset)
            normals.append(toy.corner_normals @ rotation.T)
            canonical.append(toy.vertices)
            slots = [s for s in SLOTS if s in toy.looks]
            table = np.array([len(self.looks) + slots.index(s) if s in slots else -1 for s in SLOTS])
            self.looks += [toy.looks[s] for s in slots]
            look.append(table[toy.face_slot])
            part.append(toy.face_part)
            owner.append(np.full(len(toy.faces), index))
            offset += len(toy.vertices)
        for index, surface in enumerate(scene.surfaces):
            corners = surface.corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.stack(
                [surface.span_u, surface.span_v]
            )
            normal = np.cross(surface.span_u, surface.span_v)
            vertices.append(corners.astype(np.float32))
            faces.append(np.array([[0, 1, 2], [0, 2, 3]]) + offset)
            normals.append(np.tile(normal / np.linalg.norm(normal), (2, 3, 1)))
            canonical.append(corners.astype(np.float32))
            if surface.look not in shared:
                shared[surface.look] = len(self.looks)
                self.looks.append(surface.look)
            look.append(np.full(2, shared[surface.look]))
            part.append(np.zeros(2, np.int64))
            owner.append(np.full(2, len(scene.objects) + index))
            offset += 4
        self.vertices = np.concatenate(vertices)
        self.faces = np.concatenate(faces)
        self.normals = np.concatenate(normals).astype(np.float32)
        self.canonical = np.concatenate(canonical).astype(np.float32)
        self.look, self.part, self.owner = np.concatenate(look), np.concatenate(part), np.concatenate(owner)
        self.plain = np.array([(one.roughness, one.metallic, one.emission, *one.albedo) for one in self.looks])
        self.caster = o3d.t.geometry.RaycastingScene(nthreads=1)
        self.caster.add_triangles(o3d.core.Tensor(self.vertices), o3d.core.Tensor(self.faces.astype(np.uint32)))

    def render(
        self, c2w: np.ndarray, K: np.ndarray, size: int | tuple[int, int], samples: int = 2, geometry: bool = True
    ) -> Rendering:
        """One view. c2w (4, 4) OpenCV axes, K (3, 3) pixels, size = width (and height), pixel centres at +0.5."""
        width, height = (size, size) if isinstance(size, int) else size
        step = (np.arange(samples) + 0.5) / samples
        us = (np.arange(width)[:, None] + step).reshape(-1)
        vs = (np.arange(height)[:, None] + step).reshape(-1)
        hits = self._cast(c2w, K, us, vs)
        radiance = np.zeros((len(vs) * len(us), 3), np.float32)
        if hits.where.size:
            radiance[hits.where] = self._radiance(hits, c2w, (len(vs), len(us)))
            if self.scene.light.panels:
                radiance = develop(radiance).astype(np.float32)
        mask = np.zeros((len(vs) * len(us), 1), np.float32)
        mask[hits.where] = 1.0

        def pool(image: np.ndarray) -> np.ndarray:
            return image.reshape(height, samples, width, samples, -1).mean((1, 3))

        alpha, front = pool(mask), pool(np.minimum(radiance, 1.0))
        background = linear_from_srgb(self.scene.background_srgb)
        rgb = srgb_from_linear(front + (1 - alpha) * background)
        out = Rendering(rgb.astype(np.float32), alpha.astype(np.float32), foreground_linear=front.astype(np.float32))
        if geometry:
            self._geometry(out, c2w, K, width, height)
            out.keypoints = [self._keypoints(i, c2w, K, width, height) for i in range(len(self.scene.objects))]
        return out

    def smooth_albedo(self, c2w: np.ndarray, K: np.ndarray, size: int, samples: int = 2) -> np.ndarray:
        """Linear albedo (size, size, 3): the mean over those of samples x samples rays that meet something, else 0.

        `Rendering.albedo` is that of the ray through the pixel's centre.
        """
        places = (np.arange(size * samples) + 0.5) / samples
        hits = self._cast(c2w, K, places, places)
        sums = np.zeros((size * samples * size * samples, 4), np.float32)
        sums[hits.where, :3], sums[hits.where, 3] = self.material(hits)[0], 1.0
        sums = sums.reshape(size, samples, size, samples, 4).sum((1, 3))
        return sums[..., :3] / np.maximum(sums[..., 3:], 1.0)

    def _cast(self, c2w: np.ndarray, K: np.ndarray, us: np.ndarray, vs: np.ndarray) -> Hits:
        directions = np.empty((len(vs), len(us), 3))
        directions[..., 0] = ((us - K[0, 2]) / K[0, 0])[None, :]
        directions[..., 1] = ((vs - K[1, 2]) / K[1, 1])[:, None]
        directions[..., 2] = 1.0
        directions = directions.reshape(-1, 3) @ c2w[:3, :3].T  # unit camera z, so that t is z-depth
        return self.hit(np.broadcast_to(c2w[:3, 3], directions.shape), directions)

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """What rays (N, 3), (N, 3) meet; depth is in lengths of the directions."""
        rays = np.concatenate([origins, directions], 1).astype(np.float32)
        answer = self.caster.cast_rays(o3d.core.Tensor(rays))
        depth = answer["t_hit"].numpy()
        where = np.flatnonzero(np.isfinite(depth))
        face = answer["primitive_ids"].numpy()[where].astype(np.int64)
        uv = answer["primitive_uvs"].numpy()[where]
        weights = np.stack([1 - uv.sum(1), uv[:, 0], uv[:, 1]], 1)
        view = directions[where] / np.linalg.norm(directions[where], axis=1, keepdims=True)
        normal = np.einsum("nc,ncd->nd", weights, self.normals[face])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        canonical = np.einsum("nc,ncd->nd", weights, self.canonical[self.faces[face]])
        point = origins[where] + directions[where] * depth[where, None]
        return Hits(where, depth[where], face, normal, canonical, point, -view)

    def material(self, hits: Hits, coarse: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Linear albedo (N, 3), roughness (N,), metallic (N,), emission (N,); `coarse`: without what is painted on."""
        looks = self.look[hits.face]
        table = self.plain[looks]
        if coarse:
            return table[:, 3:], table[:, 0], table[:, 1], table[:, 2]
        albedo = np.zeros((len(hits.face), 3), np.float32)
        order = np.argsort(looks, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(looks[order])) + 1):
            if len(chosen):
                albedo[chosen] = albedo_at(self.looks[looks[chosen[0]]], hits.canonical[chosen])
        return albedo, table[:, 0], table[:, 1], table[:, 2]

    def _radiance(self, hits: Hits, c2w: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Outgoing linear radiance (N, 3); where rays are drawn, they depend on the camera alone."""
        if not self.scene.light.panels:
            return self._shade(hits)
        rng = np.random.default_rng(stable_hash("rays", c2w.astype(np.float32).tobytes()))
        return shade(self, hits, shape, self.scene.light, _split_sum, rng)

    def _shade(self, hits: Hits) -> np.ndarray:
        """Outgoing linear radiance (N, 3)."""
        albedo, rough, metal, _ = self.material(hits)
        light = self.scene.light
        facing = (hits.normal * hits.view).sum(1)
        normal = np.where((facing < 0)[:, None], hits.normal - 2 * facing[:, None] * hits.view, hits.normal)
        n_v = np.clip(np.abs(facing), 1e-3, 1.0)
        f0 = 0.04 * (1 - metal)[:, None] + albedo * metal[:, None]
        diffuse = albedo * (1 - metal)[:, None]
        irradiance = sh_basis(normal) @ (SH_COSINE[:, None] * light.environment_sh)
        mirrored = 2 * n_v[:, None] * normal - hits.view
        blur = np.stack([np.ones_like(rough), *[1 - 0.35 * rough] * 3, *[1 - 0.75 * rough] * 5], 1)
        reflected = (sh_basis(mirrored) * blur) @ light.environment_sh
        out = diffuse * np.maximum(irradiance, 0) / np.pi + np.maximum(reflected, 0) * _split_sum(f0, rough, n_v)
        return out + self._direct(hits, normal, diffuse, f0, rough, n_v, light)

    def _direct(
        self,
        hits: Hits,
        normal: np.ndarray,
        diffuse: np.ndarray,
        f0: np.ndarray,
        rough: np.ndarray,
        n_v: np.ndarray,
        light: Light,
    ) -> np.ndarray:
        """Sun or lamp: Lambert plus GGX with the Smith-Schlick visibility term, shadowed."""
        if light.lamp_position is not None:
            offset = light.lamp_position - hits.point
            distance = np.linalg.norm(offset, axis=1, keepdims=True)
            to_light, power = offset / distance, light.intensity / np.maximum(distance, 0.4) ** 2
            reach, far = offset, 0.999  # the shadow ray ends at the lamp
        else:
            assert light.sun_direction is not None
            to_light = np.broadcast_to(light.sun_direction, hits.point.shape)
            power, reach, far = light.intensity[None], to_light, 1e6
        n_l = (normal * to_light).sum(1)
        lit = np.flatnonzero(n_l > 0)
        keep = lit[reached(self.caster, hits.point[lit] + OFFSET_M * normal[lit], reach[lit], far)]
        n_l = n_l[keep]
        half = to_light[keep] + hits.view[keep]
        half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
        n_h = np.clip((normal[keep] * half).sum(1), 0, 1)
        v_h = np.clip((hits.view[keep] * half).sum(1), 0, 1)
        a2 = np.maximum(rough[keep] ** 2, 0.02) ** 2
        ggx = a2 / (np.pi * ((n_h**2 * (a2 - 1) + 1) ** 2))
        k = (rough[keep] + 1) ** 2 / 8
        visibility = 1 / (4 * (n_v[keep] * (1 - k) + k) * (n_l * (1 - k) + k))
        fresnel = f0[keep] + (1 - f0[keep]) * ((1 - v_h) ** 5)[:, None]
        out = np.zeros_like(diffuse)
        power = np.broadcast_to(power, diffuse.shape)[keep]
        out[keep] = (diffuse[keep] / np.pi + fresnel * (ggx * visibility)[:, None]) * n_l[:, None] * power * np.pi * 0.5
        return out

    def _geometry(self, out: Rendering, c2w: np.ndarray, K: np.ndarray, width: int, height: int) -> None:
        hits = self._cast(c2w, K, np.arange(width) + 0.5, np.arange(height) + 0.5)
        albedo, rough, metal, _ = self.material(hits)

        def scatter(values: np.ndarray, empty: float = 0.0, dtype: type = np.float32) -> np.ndarray:
            image = np.full((height * width, *values.shape[1:]), empty, dtype)
            image[hits.where] = values
            return image.reshape(height, width, *values.shape[1:])

        out.depth_m, out.normal = scatter(hits.depth), scatter(hits.normal)
        out.albedo, out.roughness, out.metallic = scatter(albedo), scatter(rough), scatter(metal)
        out.part_id = scatter(self.part[hits.face], -1, np.int32)
        out.object_id = scatter(self.owner[hits.face], -1, np.int32)
        out.canonical = scatter(hits.canonical)

    def _keypoints(
        self, index: int, c2w: np.ndarray, K: np.ndarray, width: int, height: int
    ) -> dict[str, tuple[float, float, bool]]:
        """Pixel position and visibility of the keypoints of one object."""
        placed = self.scene.objects[index]
        names = list(placed.toy.keypoints)
        points = np.stack([placed.toy.keypoints[n] for n in names]) @ placed.matrix[:3, :3].T + placed.matrix[:3, 3]
        camera = (points - c2w[:3, 3]) @ c2w[:3, :3]
        pixels = camera @ K.T
        pixels = pixels[:, :2] / np.maximum(pixels[:, 2:], 1e-9)
        offsets = points - c2w[:3, 3]
        rays = np.concatenate([np.broadcast_to(c2w[:3, 3], points.shape), offsets], 1).astype(np.float32)
        reach = self.caster.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy()  # 1 = the keypoint itself
        tolerance = (
            0.04 / np.maximum(np.linalg.norm(offsets, axis=1), 1e-9) * np.cbrt(np.linalg.det(placed.matrix[:3, :3]))
        )
        inside = (pixels >= 0).all(1) & (pixels < [width, height]).all(1) & (camera[:, 2] > 0)
        visible = inside & (reach > 1 - tolerance)
        return {n: (float(u), float(v), bool(s)) for n, (u, v), s in zip(names, pixels, visible, strict=True)}


def _split_sum(f0: np.ndarray, rough: np.ndarray, n_v: np.ndarray) -> np.ndarray:
    """Environment BRDF (N, 3), Karis' analytic fit for mobile (2014)."""
    r = rough[:, None] * np.array([-1, -0.0275, -0.572, 0.022]) + np.array([1, 0.0425, 1.04, -0.04])
    a004 = np.minimum(r[:, 0] ** 2, 2 ** (-9.28 * n_v)) * r[:, 0] + r[:, 1]
    return f0 * (-1.04 * a004 + r[:, 2])[:, None] + (1.04 * a004 + r[:, 3])[:, None]


def render_views(
    scene: Scene,
    cameras: Sequence[tuple[np.ndarray, np.ndarray]],
    size: int | tuple[int, int],
    samples: int = 2,
    geometry: bool = True,
) -> list[Rendering]:
    """Renders the scene from several (c2w, K)."""
    renderer = Renderer(scene)
    return [renderer.render(c2w, K, size, samples, geometry) for c2w, K in cameras]
