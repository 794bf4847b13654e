"""What a user calls: thin recipes over tasks, core and geometry, loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import loader

if TYPE_CHECKING:
    from .edit_image import EditImage
    from .image_to_camera import ImageToCamera
    from .image_to_geometry import ImageToDepth, ImageToGeometry, ImageToNormals
    from .image_to_mesh import ImageToMesh
    from .image_to_views import ImageToViews
    from .images_to_splats import ImagesToSplats
    from .match_images import MatchImages
    from .restore_image import RestoreImage
    from .shortcuts import depth, fit_splats, normals
    from .text_to_image import TextToImage
    from .text_to_mesh import TextToMesh
    from .text_to_splats import TextToSplats

__all__ = [
    "EditImage",
    "ImageToCamera",
    "ImageToDepth",
    "ImageToGeometry",
    "ImageToMesh",
    "ImageToNormals",
    "ImageToViews",
    "ImagesToSplats",
    "MatchImages",
    "RestoreImage",
    "TextToImage",
    "TextToMesh",
    "TextToSplats",
    "depth",
    "fit_splats",
    "normals",
]

_HOMES = {
    "EditImage": ".edit_image",
    "ImageToCamera": ".image_to_camera",
    "ImageToDepth": ".image_to_geometry",
    "ImageToGeometry": ".image_to_geometry",
    "ImageToMesh": ".image_to_mesh",
    "ImageToNormals": ".image_to_geometry",
    "ImageToViews": ".image_to_views",
    "ImagesToSplats": ".images_to_splats",
    "MatchImages": ".match_images",
    "RestoreImage": ".restore_image",
    "TextToImage": ".text_to_image",
    "TextToMesh": ".text_to_mesh",
    "TextToSplats": ".text_to_splats",
    "depth": ".shortcuts",
    "fit_splats": ".shortcuts",
    "normals": ".shortcuts",
}

__getattr__ = loader(__name__, _HOMES)
