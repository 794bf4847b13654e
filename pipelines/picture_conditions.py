"""Pictures as conditions: what steers a U-Net by its lines or depths, and what is read beside the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import Condition, Prior
from ..core.priors.control import CONTROL, IMAGE_PROMPT
from ..core.priors.image_prompt import with_picture
from ..tasks.codecs.normals import convert_normals
from ..utils.errors import InputError
from .picture_inputs import PictureLike, pictures


def with_pictures(
    prior: Prior,
    condition: Condition,
    shape: Sequence[int],
    control_image: PictureLike | Sequence[Any] | None = None,
    ip_adapter_image: PictureLike | Sequence[PictureLike] | None = None,
) -> Condition:
    """A condition with the pictures that the prior's controls and its IP-Adapter look at.

    Args:
        prior: what will be asked.
        condition: one row an image.
        shape: (C, h, w) of the latents, whose pixels control pictures are brought to.
        control_image: as it is shown to the control, one picture or one for each row; with several controls a list of
            one such for each.
        ip_adapter_image: one picture or one for each row, of any size.

    Raises InputError for pictures that nothing looks at, and for those that are missing.
    """
    names = sorted((name for name in prior.reads if name.partition("_")[0] == CONTROL), key=len)
    _matched("control_image", control_image is not None, bool(names), "controlnet=FOLDER (--control-net)")
    shown = read_picture(prior, ip_adapter_image)
    if names:
        assert control_image is not None
        given = [control_image] if len(names) == 1 else control_image
        if not isinstance(given, (list, tuple)) or len(given) != len(names):
            raise InputError(f"{len(names)} controls need control_image=[...] with a picture for each")
        size = [side * prior.vae_factor for side in shape[1:]]
        condition = condition.with_rows(
            **{name: _sized(one, size).to(prior.device) for name, one in zip(names, given, strict=True)}
        )
    return condition if shown is None else with_picture(prior, condition, shown)


def read_picture(prior: Prior, image: PictureLike | Sequence[PictureLike] | None) -> Tensor | None:
    """(B, 3, H, W) of what a prior's IP-Adapter reads, None without one. Raises InputError where they do not match."""
    _matched("ip_adapter_image", image is not None, IMAGE_PROMPT in prior.reads, "ip_adapter=FILE (--ip-adapter)")
    return None if image is None else pictures(image)


def control_map(kind: str, file: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1], what a control looks at.

    "canny": white edges of a picture on black. "depth": near is white; "normal": the viewer's x, y and z as colours;
    both of an NPZ with such an entry, or a picture of the map. "map": a picture as it is.
    """
    if kind == "canny":
        from skimage.feature import canny

        grey = pictures(file)[0].mean(0).numpy()
        edges = canny(grey, sigma=1.0, low_threshold=0.1, high_threshold=0.2)
        return torch.from_numpy(edges).float().expand(1, 3, -1, -1)
    if file.suffix.lower() != ".npz":
        return pictures(file)
    name, shown = MAPS.get(kind, ("", None))
    with np.load(file, allow_pickle=False) as arrays:
        if shown is None or name not in arrays:
            raise InputError(f"{file} holds {', '.join(arrays)}, no map for {kind}:")
        values = torch.from_numpy(np.asarray(arrays[name], np.float32))
        valid = torch.from_numpy(arrays["valid"]).reshape(values.shape[:2]) if "valid" in arrays else None
        frame = str(arrays["frame"]) if "frame" in arrays else "viewer"
    return shown(values, valid, frame)


def _nearness(depth: Tensor, valid: Tensor | None, _: str) -> Tensor:
    """(1, 3, H, W), 1 at the nearest point and 0 at the farthest and where nothing is known."""
    known = depth if valid is None else depth[valid]
    near = (known.amax() - depth) / (known.amax() - known.amin()).clamp_min(1e-6)
    return (near if valid is None else near * valid).clamp(0, 1).expand(1, 3, -1, -1)


def _colours(normals: Tensor, _: Tensor | None, frame: str) -> Tensor:
    """(1, 3, H, W), the viewer's x, y and z from -1 to 1 as 0 to 1."""
    return 0.5 * convert_normals(normals.movedim(-1, 0)[None], frame, "viewer") + 0.5


MAPS = {"depth": ("depth", _nearness), "normal": ("normals", _colours)}
"""kind of control: entry of an NPZ, and how it is shown"""


def _sized(image: Any, size: Sequence[int]) -> Tensor:
    """(B, 3, H, W) of pictures at a size in px."""
    given = pictures(image)
    if list(given.shape[2:]) == list(size):
        return given
    return F.interpolate(given, list(size), mode="bicubic", antialias=True).clamp(0, 1)


def _matched(name: str, given: bool, looked_at: bool, way: str) -> None:
    if given and not looked_at:
        raise InputError(f"{name}= is something that this prior does not look at; load it with {way}, or leave it out")
    if looked_at and not given:
        raise InputError(f"this prior was loaded with {way}: give the picture that it looks at as {name}=")
