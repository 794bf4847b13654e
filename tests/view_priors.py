"""Priors of several views whose drawings are known: they look at a mesh from the cameras that they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import trimesh
from torch import Tensor, nn

from unproject.core.priors import SD_SCHEDULE, Condition, Prior, Recommended, Rows
from unproject.generate.view_normals import NormalCode, Ring
from unproject.geometry.cameras import Camera, opencv_from_opengl
from unproject.geometry.meshes import Mesh
from unproject.geometry.raycast import RayMesh

SIZE = 32
WORDS = ("a", "red", "egg", "normal", "map")


def egg() -> Mesh:
    """A solid without symmetry, coloured by where its points are."""
    ball = trimesh.creation.icosphere(3, 1.0)
    ball.vertices = ball.vertices * (0.62, 0.4, 0.5) + (0.05, -0.06, 0.1)
    mesh = Mesh.from_trimesh(ball)
    low, high = mesh.bounds
    colors = 0.15 + 0.7 * (mesh.vertices - low) / (high - low)
    return Mesh(mesh.vertices, mesh.faces, vertex_colors=colors).with_smooth_normals()


class KnownViews(Prior):
    """Draws a mesh, its normals where the prompt ends with "normal map". Latents are pixels in [-1, 1].

    `paints`: "colours"; "normals", which shows the maps that it reads; or a grey level, everywhere.
    """

    name, prediction_type, frames, recipe = "known", "sample", 4, "toybox"
    scheduler_config = {**SD_SCHEDULE, "set_alpha_to_one": True}  # runs end without noise
    reads = frozenset({"text", "cameras", "concat"})
    recommended = Recommended(guidance=2.0, steps=2)

    def __init__(self, mesh: Mesh, paints: Any = "colours", words: Sequence[str] = WORDS) -> None:
        self.mesh, self.ring, self.paints, self.words = RayMesh(mesh), Ring(), paints, words
        self.latent_shape, self.image_size, self.code = (3, SIZE, SIZE), SIZE, NormalCode()
        self.states: list[Tensor] = []
        self.asked: list[Rows] = []

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        return [(word, []) for word in prompt.replace(",", "").split() if word not in self.words]

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        told = torch.tensor([[[float(text.endswith("normal map"))]] for text in texts])
        return Condition({"cond": Rows({"text": told}), "null": Rows({"text": told})}, texts)

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        self.states.append(x.clone())
        self.asked.append(rows)
        if "concat" in rows and self.paints == "normals":
            return rows["concat"]
        pose = rows["cameras"].unflatten(-1, (4, 4)) * torch.tensor([1.0, 1.0, 1.0, self.ring.distance])
        pose[:, 3, 3] = 1
        K = self.ring.camera(1, SIZE).K.expand(len(pose), 3, 3)
        seen = self.mesh.render(Camera(opencv_from_opengl(pose), K, SIZE, SIZE), ("rgb", "normal"), 0.85)
        maps = rows["text"][:, :, :, None] > 0.5
        paint = seen.rgb if isinstance(self.paints, str) else torch.full_like(seen.rgb, self.paints)
        colours = paint.permute(0, 3, 1, 2)
        return self.encode(torch.where(maps, self.code.encode(seen.normal, seen.alpha), colours))

    def encode(self, images: Tensor, sample: bool = False, generator: Any = None) -> Tensor:
        return 2 * images - 1

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        images = latents / 2 + 0.5
        return images.clamp(0, 1) if clamp else images
