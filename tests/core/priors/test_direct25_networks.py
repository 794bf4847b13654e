"""The published networks of Direct2.5 on random weights, against what its authors say they compute, written out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from unproject.core.priors import StableDiffusionPrior
from unproject.core.priors.direct25 import DISTANCE, find_networks, load_direct25
from unproject.geometry.cameras import Camera, to_mvdream
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

AZIMUTHS, ELEVATION = (10.0, 100.0, 190.0, 280.0), -22.5


class Joint:
    """Self-attention of four views as one sequence, written out."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **other: Any) -> Tensor:
        rows, tokens, width = hidden_states.shape
        x = hidden_states
        if encoder_hidden_states is None:
            x = x.view(-1, 4 * tokens, width)
        read = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(x), attn.to_k(read), attn.to_v(read)
        heads = [t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v)]
        weights = torch.softmax(heads[0] @ heads[1].mT / math.sqrt(heads[0].shape[-1]), -1)
        out = (weights @ heads[2]).transpose(1, 2).flatten(2)
        return attn.to_out[0](out).view(rows, tokens, width)


def camera_numbers(azimuth: float, elevation: float) -> np.ndarray:
    """World to camera as [right, up, -look] and -R p, row by row, in Blender's axes."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    place = 1.5 * 0.5 / np.tan(np.deg2rad(30)) * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    look = -place / np.linalg.norm(place)
    right = np.cross(look, [0, 0, 1])
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(right, look), -look])
    return np.concatenate([turn, (-turn @ place)[:, None]], 1).ravel()


def camera_code(numbers: np.ndarray) -> np.ndarray:
    """Number by number: ten sines each, then ten cosines each, the first ten moved to the end."""
    angles = [value * 10_000 ** (-k / 10) for value in numbers for k in range(10)]
    code = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return np.array(code[10:] + code[:10], np.float32)


def lively(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in pipe.unet.state_dict().items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(a folder as it is published, the U-Nets in it and their camera layers)."""
    folder, rng = tmp_path_factory.mktemp("published"), generator(7)
    normals, colours = tiny_sd(), tiny_sd(in_channels=8)
    width = normals.unet.time_embedding.linear_2.out_features
    camera = {
        f"camera_embedding.linear_{i}.{kind}": torch.randn(shape, generator=rng)
        for i, kind, shape in (
            (1, "weight", (width, 240)), (1, "bias", (width,)), (2, "weight", (width, width)), (2, "bias", (width,)),
        )
    }  # fmt: skip
    kinds = (("mvnormal_finetune_sd21b", "MVUNet2DConditionModel", normals, camera),
             ("mvrgb_normalcond_sd21b", "CondMVUNet2DConditionModel", colours, {}))  # fmt: skip
    for name, kind, pipe, more in kinds:
        place = folder / name / "unet"
        place.mkdir(parents=True)
        config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
        (place / "config.json").write_text(json.dumps({**config, "_class_name": kind, "num_view": 4, "mode": "RGB"}))
        weights = {**lively(pipe), **more}
        if more:
            save_file(weights, place / "diffusion_pytorch_model.safetensors")
        else:
            torch.save(weights, place / "diffusion_pytorch_model.bin")
    return folder, {"normals": normals.unet, "colours": colours.unet, "camera": camera}


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = generator(8)
    x, maps = (torch.randn(4, 4, 8, 8, generator=rng) for _ in range(2))
    return x, maps, torch.randn(1, 5, 32, generator=rng).expand(4, -1, -1), torch.full((4,), 420.0)


def base() -> StableDiffusionPrior:
    return StableDiffusionPrior(tiny_sd(), "base")


@torch.no_grad()
def test_normals_are_drawn_as_published(published: tuple[Path, dict[str, Any]]) -> None:
    folder, made = published
    prior, _ = load_direct25(folder, base())
    x, _, text, time = inputs()
    camera = Camera.orbit(AZIMUTHS, ELEVATION, DISTANCE, 60.0, 32)
    condition = prior.encode_text("a").with_views(to_mvdream(camera.c2w), 4)
    asked = prior.predict(x, time, condition["cond"].with_tensors(text=text))
    unet, layers = made["normals"], made["camera"]
    codes = torch.from_numpy(np.stack([camera_code(camera_numbers(a, ELEVATION)) for a in AZIMUTHS]))
    first = codes @ layers["camera_embedding.linear_1.weight"].T + layers["camera_embedding.linear_1.bias"]
    hidden = torch.nn.functional.silu(first)
    added = hidden @ layers["camera_embedding.linear_2.weight"].T + layers["camera_embedding.linear_2.bias"]
    unet.set_attn_processor(Joint())
    hook = unet.time_embedding.register_forward_hook(lambda module, args, out: out + added)
    expected = unet(x, time, text).sample
    hook.remove()
    torch.testing.assert_close(asked, expected, rtol=1e-3, atol=1e-3)
    assert float((asked - unet(x, time, text).sample).abs().max()) > 0.05  # cameras matter
    assert prior.recommended.guidance == 7.5 and prior.recommended.steps == 50 and prior.frames == 4


@torch.no_grad()
def test_colours_are_painted_as_published_whatever_the_camera(published: tuple[Path, dict[str, Any]]) -> None:
    folder, made = published
    _, painter = load_direct25(folder, base())
    x, maps, text, time = inputs()
    camera = Camera.orbit(AZIMUTHS, ELEVATION, DISTANCE, 60.0, 32)
    told = painter.encode_text("a").with_views(to_mvdream(camera.c2w), 4)["cond"].with_tensors(text=text, concat=maps)
    unet = made["colours"]
    unet.set_attn_processor(Joint())
    expected = unet(torch.cat([x, maps], 1), time, text).sample  # published: the state before the maps
    torch.testing.assert_close(painter.predict(x, time, told), expected, rtol=1e-4, atol=1e-4)
    assert painter.latent_shape == (4, 8, 8) and not any(p.requires_grad for p in painter.parameters())


def test_folders_that_lack_something_say_what(published: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = published
    assert len(find_networks(folder)) == 2 and find_networks(tmp_path) == {}
    with pytest.raises(InputError, match="lacks the U-Net of mvnormal and mvrgb"):
        load_direct25(tmp_path, base())
    wide = StableDiffusionPrior(tiny_sd(cross_attention_dim=48), "other")
    with pytest.raises(InputError, match="reads text of 32 numbers, other writes 48; give --prior sd21-base"):
        load_direct25(folder, wide)
