"""Text and images to 3D with one frozen diffusion prior.

>>> import unproject
>>> mesh = unproject.text_to_mesh("a red chair").mesh
>>> mesh.save("chair.glb")

Importing this package is quick: every name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.lazy import loader
from .utils.library_notes import drop_idle_notes
from .utils.threads import wait_passively

if TYPE_CHECKING:
    from .core.priors import load_prior
    from .core.sampling.plan import SamplingPlan
    from .geometry.cameras import Camera
    from .geometry.meshes import Mesh
    from .geometry.points import PointCloud
    from .pipelines.direct25_mesh import Direct25TextToMesh
    from .pipelines.edit_image import EditImage
    from .pipelines.image_to_camera import ImageToCamera
    from .pipelines.image_to_geometry import ImageToDepth, ImageToGeometry, ImageToNormals
    from .pipelines.image_to_mesh import ImageToMesh
    from .pipelines.image_to_views import ImageToViews
    from .pipelines.images_to_splats import ImagesToSplats
    from .pipelines.match_images import MatchImages
    from .pipelines.restore_image import RestoreImage
    from .pipelines.shortcuts import depth, fit_splats, normals, text_to_image, text_to_mesh
    from .pipelines.text_to_image import TextToImage
    from .pipelines.text_to_mesh import TextToMesh
    from .pipelines.text_to_splats import TextToSplats
    from .utils.errors import InputError, UnprojectError

__version__ = "0.1.0"
__all__ = [
    "Camera",
    "Direct25TextToMesh",
    "EditImage",
    "ImageToCamera",
    "ImageToDepth",
    "ImageToGeometry",
    "ImageToMesh",
    "ImageToNormals",
    "ImageToViews",
    "ImagesToSplats",
    "InputError",
    "MatchImages",
    "Mesh",
    "PointCloud",
    "RestoreImage",
    "SamplingPlan",
    "TextToImage",
    "TextToMesh",
    "TextToSplats",
    "UnprojectError",
    "__version__",
    "depth",
    "fit_splats",
    "load_prior",
    "normals",
    "text_to_image",
    "text_to_mesh",
]

drop_idle_notes()
wait_passively()  # before anything imports torch

_HOMES = {
    "Camera": ".geometry.cameras",
    "Direct25TextToMesh": ".pipelines.direct25_mesh",
    "EditImage": ".pipelines.edit_image",
    "ImageToCamera": ".pipelines.image_to_camera",
    "ImageToDepth": ".pipelines.image_to_geometry",
    "ImageToGeometry": ".pipelines.image_to_geometry",
    "ImageToMesh": ".pipelines.image_to_mesh",
    "ImageToNormals": ".pipelines.image_to_geometry",
    "ImageToViews": ".pipelines.image_to_views",
    "ImagesToSplats": ".pipelines.images_to_splats",
    "InputError": ".utils.errors",
    "MatchImages": ".pipelines.match_images",
    "Mesh": ".geometry.meshes",
    "PointCloud": ".geometry.points",
    "RestoreImage": ".pipelines.restore_image",
    "SamplingPlan": ".core.sampling.plan",
    "TextToImage": ".pipelines.text_to_image",
    "TextToMesh": ".pipelines.text_to_mesh",
    "TextToSplats": ".pipelines.text_to_splats",
    "UnprojectError": ".utils.errors",
    "depth": ".pipelines.shortcuts",
    "fit_splats": ".pipelines.shortcuts",
    "load_prior": ".core.priors",
    "normals": ".pipelines.shortcuts",
    "text_to_image": ".pipelines.shortcuts",
    "text_to_mesh": ".pipelines.shortcuts",
}
_SUBPACKAGES = ("core", "geometry", "pipelines", "tasks", "toybox", "utils")


_load = loader(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    return import_module(f".{name}", __name__) if name in _SUBPACKAGES else _load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
