"""The two networks that Direct2.5 publishes (Lu et al. 2024): U-Nets of SD 2.1 in diffusers' layout, for four views.

mvnormal draws normal maps and is told cameras: [R | t] of world to camera, 12 numbers p in Blender's axes, become
    sin and cos of p_i 10000^{-k / (10 - shift)}, k < 10: all sines, then all cosines, rolled by 10 where the time
    embedding has its cosines first;
and these 240 numbers, through two linear layers, are added to the time embedding. mvrgb draws colours, reads the
latents of the views' normals behind its state and is told no camera. What is pickled is read as tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from ...geometry.cameras import invert_rigid
from ...utils.errors import InputError, damage
from ...utils.files import read_json
from .base import Recommended
from .diffusers import StableDiffusionPrior
from .embedded import MultiViewPrior
from .multiview import CameraEmbedding, MultiViewUNet

DISTANCE = 1.5 * 0.5 / math.tan(math.radians(30))  # metres from the origin, of all cameras it learnt
NUMBERS = 12  # of a camera
FEATURES = 20  # of each of them
SIDE_PX = 256
RECOMMENDED = Recommended(guidance=7.5, steps=50)
NORMALS, COLOURS = "MVUNet2DConditionModel", "CondMVUNet2DConditionModel"  # classes of the files' configs
FOREIGN = ("num_view", "mode")  # settings that a plain U-Net does not have
CAMERA = "camera_embedding.linear_"
DEPTHS = ("*", "*/unet", "*/*/unet")  # below the folder that is given
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class WorldToCamera(CameraEmbedding):
    """The published camera embedding; it is told MVDream's 16 numbers, as every network of several views."""

    def __init__(self, width: int, shift: float = 0.0, cosines_first: bool = True) -> None:
        """`shift` and `cosines_first`: freq_shift and flip_sin_to_cos of the U-Net."""
        super().__init__(width, NUMBERS * FEATURES)
        self.shift, self.cosines_first = shift, cosines_first

    def code(self, cameras: Tensor) -> Tensor:
        """(B, 240) of OpenGL camera-to-world (B, 16) with a centre of length 1, DISTANCE taken for that."""
        return sinusoids(world_to_camera(cameras.float()), self.shift, self.cosines_first).to(cameras.dtype)


def world_to_camera(cameras: Tensor) -> Tensor:
    """(B, 12) rows of [R | t], Blender's axes, of MVDream's camera condition (B, 16) at DISTANCE."""
    pose = cameras.unflatten(-1, (4, 4))
    scale = pose.new_tensor([1.0, 1.0, 1.0, DISTANCE])
    return invert_rigid(pose * scale)[:, :3].flatten(1)


def sinusoids(numbers: Tensor, shift: float = 0.0, cosines_first: bool = True) -> Tensor:
    """(B, 20 N) of numbers (B, N); the roll by half of 20, where all of a timestep's would be meant, is the published
    one."""
    half = FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = (numbers[..., None] * torch.exp(-math.log(10_000) * steps / (half - shift))).flatten(1)
    code = torch.cat([angles.sin(), angles.cos()], -1)
    return code.roll(-half, -1) if cosines_first else code


def find_networks(folder: str | Path) -> dict[str, Path]:
    """The U-Net folders by class that lie in `folder`: of mvnormal and of mvrgb."""
    found: dict[str, Path] = {}
    for config in (path for depth in DEPTHS for path in sorted(Path(folder).glob(f"{depth}/config.json"))):
        values = read_json(config)
        kind = values.get("_class_name") if isinstance(values, dict) else None
        if kind in (NORMALS, COLOURS):
            found.setdefault(kind, config.parent)
    return found


def load_direct25(folder: str | Path, base: StableDiffusionPrior) -> tuple[MultiViewPrior, MultiViewPrior]:
    """(draws normal maps, paints views whose normals are its row "concat") of a folder with both published ones; `base`
    (SD 2.1 base) gives VAE, text encoder and schedule. Raises InputError for files that are missing or do not fit."""
    found = find_networks(folder)
    if missing := [name for name, kind in (("mvnormal", NORMALS), ("mvrgb", COLOURS)) if kind not in found]:
        raise InputError(
            f"{folder} lacks the U-Net of {' and '.join(missing)}; it has to hold the folders mvnormal_finetune_sd21b "
            "and mvrgb_normalcond_sd21b of ml-direct2.5, each with unet/"
        )
    normals, colours = (read_network(found[kind]) for kind in (NORMALS, COLOURS))
    for views, where in ((normals, found[NORMALS]), (colours, found[COLOURS])):
        own, other = views.unet.config["cross_attention_dim"], base.pipe.unet.config["cross_attention_dim"]
        if own != other:
            raise InputError(f"{where} reads text of {own} numbers, {base.name} writes {other}; give --prior sd21-base")
        views.to(base.device, base.dtype)
    name, channels = Path(folder).resolve().name, base.latent_shape[0]
    if colours.unet.config["in_channels"] != 2 * channels:
        raise InputError(f"{found[COLOURS]} does not read {2 * channels} channels; it is no network of normals")
    prior = MultiViewPrior(base.pipe, normals, name).learnt_at(min(SIDE_PX, base.image_size))
    prior.recommended = RECOMMENDED
    painter = prior.with_views(colours)
    colours.requires_grad_(False).eval()
    return prior, painter


def read_network(folder: Path) -> MultiViewUNet:
    """The U-Net of one of the folders, as MultiViewUNet asks it: maps come before the state."""
    config = dict(read_json(folder / "config.json"))
    kind = config.pop("_class_name", None)
    settings = {key: value for key, value in config.items() if key not in FOREIGN and not key.startswith("_")}
    weights = _tensors(folder)
    unet = UNet2DConditionModel.from_config(settings)
    camera = {key.removeprefix(CAMERA): weights.pop(key) for key in list(weights) if key.startswith(CAMERA)}
    embedding = None
    if kind == NORMALS:
        embedding = WorldToCamera(unet.time_embedding.linear_2.out_features, config.get("freq_shift", 0),
                                  config.get("flip_sin_to_cos", True))  # fmt: skip
    else:
        weights["conv_in.weight"] = _maps_first(weights.get("conv_in.weight"), folder)
    try:
        unet.load_state_dict(weights)
        if embedding is not None:  # linear_1 and linear_2, with the SiLU between them
            places = {"1": "0", "2": "2"}
            embedding.load_state_dict({f"{places.get(key[0])}{key[1:]}": value for key, value in camera.items()})
    except RuntimeError as error:
        raise InputError(f"{folder} does not fit its config.json: {str(error).splitlines()[0]}") from error
    return MultiViewUNet(unet, embedding)


def _maps_first(weight: Tensor | None, folder: Path) -> Tensor:
    """The first convolution with its channels the other way round: published, the state comes before the maps."""
    if weight is None:
        raise InputError(f"{folder} holds no conv_in.weight; it is no U-Net")
    return torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder. Raises InputError for a missing or damaged file."""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder} holds no {' or '.join(FILES)}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        read: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value for key, value in read.items() if isinstance(value, Tensor)}
    except Exception as error:  # the readers raise many kinds for what is no checkpoint or holds more than tensors
        raise InputError(f"{path} cannot be read: {damage(error)}") from error
