"""Multi-view inflation of a 2-D denoising U-Net (Shi et al. 2023, "MVDream: Multi-view Diffusion for 3D Generation").

Every spatial self-attention sees the tokens of the F views of one object at once, each view knows its camera:
hidden (B F, L, C) -> (B, F L, C) before attn1 and back after; emb = MLP(gamma(t)) + W2 SiLU(W1 c), c in R^16.
Batches are group-contiguous (the F views of object 0, then of object 1 ...), tokens are view-major.
With frames=1 and no camera the network equals the 2-D one bit for bit. Nothing is kept between calls.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.files import atomic_path, read_json, write_json

CAMERA_DIM = 16  # row-major flattened 4x4 camera-to-world, translation of unit length
FRAMES = 4  # views of an object that the published and the embedded priors draw at once


class JointAttention:
    """Attention processor: joint self-attention over `frames` consecutive rows, plain cross-attention."""

    def __init__(self, joint: bool) -> None:
        self.joint = joint
        self.inner = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        frames: int = 1,
    ) -> Tensor:
        """Attends over (B F, L, C) hidden states; `frames` arrives through `cross_attention_kwargs`."""
        if not self.joint or frames == 1:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        rows, tokens, channels = hidden_states.shape
        grouped = hidden_states.reshape(rows // frames, frames * tokens, channels)
        return self.inner(attn, grouped, encoder_hidden_states, attention_mask, temb).reshape(rows, tokens, channels)


class CameraEmbedding(nn.Sequential):
    """Camera (B, 16) -> embedding (B, width) added to the time embedding: Linear, SiLU, Linear.

    The last layer starts at zero, so a freshly inflated network ignores its cameras; the parameter names
    (0.weight, 2.weight ...) are those of the published checkpoints' `camera_embed`.
    """

    def __init__(self, width: int, camera_dim: int = CAMERA_DIM) -> None:
        super().__init__(nn.Linear(camera_dim, width), nn.SiLU(), nn.Linear(width, width))
        last = self[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, cameras: Tensor) -> Tensor:
        """Embedding (B, width); a row of zeros (never a pose, whose last entry is 1) means "no camera" and gives 0."""
        known = cameras.abs().amax(-1, keepdim=True) > 0
        return super().forward(self.code(cameras)) * known

    def code(self, cameras: Tensor) -> Tensor:
        """What the first layer reads (B, camera_dim): here the cameras themselves."""
        return cameras


class MultiViewUNet(nn.Module):
    """A U-Net inflated to several views, with its camera embedding."""

    def __init__(self, unet: UNet2DConditionModel, camera_embedding: CameraEmbedding | None = None) -> None:
        super().__init__()
        if unet.class_embedding is not None and not isinstance(unet.class_embedding, nn.Identity):
            raise InputError("this U-Net already has a class embedding; only class-free U-Nets can be inflated")
        unet.set_attn_processor({name: JointAttention("attn1." in name) for name in unet.attn_processors})
        unet.class_embedding = nn.Identity()  # the slot that adds to the time embedding; no parameters of its own
        first = unet.time_embedding.linear_2
        self.unet = unet
        self.camera_embedding = camera_embedding or CameraEmbedding(first.out_features)
        self.camera_embedding.to(first.weight.device, first.weight.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The network's dtype."""
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.unet.device

    def forward(
        self, x: Tensor, time: Tensor, embeds: Tensor, cameras: Tensor | None = None, frames: int = 1
    ) -> Tensor:
        """Raw prediction (B F, C, h, w).

        Args:
            x: latents (B F, C, h, w), views of one object contiguous.
            time: model time, scalar or (B F,), fractional allowed; equal within a group.
            embeds: text embeddings (B F, L, D), repeated per view (interleaved).
            cameras: (B F, 16) flattened camera-to-world (`geometry.cameras.to_mvdream`), or None.
            frames: F; 1 is the 2-D network.
        """
        if x.shape[0] % frames:
            raise InputError(f"a batch of {x.shape[0]} rows does not hold whole groups of frames={frames} views")
        if cameras is None:
            added = x.new_zeros(())
        else:
            if cameras.shape != (x.shape[0], CAMERA_DIM):
                raise InputError(f"cameras have shape {tuple(cameras.shape)}, expected {(x.shape[0], CAMERA_DIM)}")
            added = self.camera_embedding(cameras.to(x.dtype))
        kwargs = {"frames": frames}
        return self.unet(x, time, embeds, class_labels=added, cross_attention_kwargs=kwargs, return_dict=False)[0]

    def deflate(self) -> UNet2DConditionModel:
        """The U-Net with stock attention and without the camera slot, for single images; the weights are shared."""
        self.unet.class_embedding = None
        self.unet.set_attn_processor(AttnProcessor2_0())
        return self.unet

    def save(self, folder: str | Path, base: str = "toybox", shared: bool = False, **extra: object) -> Path:
        """Writes unet/, camera_embedding.safetensors and mv.json; `base` names the sibling folder with the rest.

        `shared`: the base has this very U-Net, so it is not written twice.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not shared:
            self.unet.save_pretrained(folder / "unet")
        with atomic_path(folder / "camera_embedding.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in self.camera_embedding.state_dict().items()}, temporary)
        write_json(folder / "mv.json", {"base": base, "camera_dim": CAMERA_DIM, **extra})
        return folder

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> MultiViewUNet:
        """Reads what `save` wrote; a shared U-Net comes from the base. Raises InputError when a file is missing or
        does not fit."""
        folder = Path(folder)
        weights = folder / "camera_embedding.safetensors"
        if not weights.is_file():
            raise InputError(f"{folder} is not a multi-view prior: it needs camera_embedding.safetensors")
        home = folder if (folder / "unet").is_dir() else Path(base_of(folder))
        network = home / "unet"
        if not network.is_dir():
            raise InputError(
                f"{folder} is not a multi-view prior: neither it nor its base has unet/; put {home} beside it"
            )
        unet = UNet2DConditionModel.from_pretrained(network, use_safetensors=True)
        model = cls(unet)
        try:
            model.camera_embedding.load_state_dict(load_file(weights))
        except RuntimeError as error:
            raise InputError(f"{weights} does not fit the U-Net in {network}: {error}") from error
        return model.to(dtype)


def inflate(unet: UNet2DConditionModel) -> MultiViewUNet:
    """Turns a 2-D U-Net into a multi-view one in place (same weights), with a zero-initialised camera embedding."""
    return MultiViewUNet(unet)


def read_manifest(folder: str | Path) -> dict[str, object]:
    """The mv.json of a multi-view folder. Raises InputError when it is missing or malformed."""
    path = Path(folder) / "mv.json"
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("base"), str):
        raise InputError(f'{path} must name the base prior: {{"base": "toybox"}}')
    return manifest


def base_of(folder: str | Path) -> Path | str:
    """Where the parts a multi-view folder shares live: inside it, beside it, or the name of a prior."""
    return base_beside(folder, str(read_manifest(folder)["base"]))


def base_beside(folder: str | Path, base: str) -> Path | str:
    """A pipeline folder of this name in or beside a folder; else the name, which then is that of a prior."""
    folder = Path(folder)
    for candidate in (folder / base, folder.parent / base):
        if (candidate / "model_index.json").is_file():
            return candidate
    return base
