"""--control-image, --control-net, --ip-image, --ip-adapter: what they read, what goes together, what is handed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.pipelines.picture_conditions import control_map
from unproject.utils.errors import InputError

DRAW = ("text-to-image", "a red chair", "--device", "cpu", "--prior", "sd15")


@pytest.fixture
def photo(in_tmp: Path) -> Path:
    """A bright square on black, one corner of it grey."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24] = 255
    Image.fromarray(pixels).save("photo.png")
    return Path("photo.png")


def test_the_edges_of_a_picture(photo: Path) -> None:
    edges = control_map("canny", photo)
    assert edges.shape == (1, 3, 32, 32) and set(edges.unique().tolist()) == {0.0, 1.0}
    assert edges[0, 0, 12:20, 6:10].sum() >= 8 and edges[0, 0, 14:18, 14:18].sum() == 0
    assert torch.equal(control_map("map", photo)[0, :, 10, 10], torch.ones(3))


def test_maps_of_depth_and_normals(in_tmp: Path) -> None:
    depth = np.array([[0.2, 0.6], [0.4, 1.0]], np.float32)
    np.savez("d.npz", depth=depth, valid=np.array([[True, True], [True, False]]))
    near = control_map("depth", Path("d.npz"))[0, 0]
    torch.testing.assert_close(near, torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    normals = np.zeros((2, 2, 3), np.float32)
    normals[..., 1] = -1  # up, with y down
    np.savez("n.npz", normals=normals, frame="opencv")
    assert control_map("normal", Path("n.npz"))[0, :, 0, 0].tolist() == [0.5, 1.0, 0.5]
    with pytest.raises(InputError, match=r"d\.npz holds depth, valid, no map for normal:"):
        control_map("normal", Path("d.npz"))


def test_what_is_handed_on(
    run: Callable[..., tuple[int, str, str]], fake_images: list[dict[str, Any]], photo: Path
) -> None:
    code, _, error = run(*DRAW, "--control-image", f"canny:{photo}", "-o", "a.png")
    assert code == 0, error
    assert fake_images[0]["controlnet"] == ["lllyasviel/sd-controlnet-canny"]
    assert fake_images[1]["control_image"].shape == (1, 3, 32, 32)
    full = ("text-to-image", "a red chair", "--prior", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert run(*full, "--control-image", f"depth:{photo}", "-o", "full.png")[0] == 0
    assert fake_images.pop(2)["controlnet"] == ["lllyasviel/sd-controlnet-depth"] and fake_images.pop(2)
    words = ("--control-image", f"canny:{photo}", f"map:{photo}", "--control-net", "one:0.5", "two")
    assert run(*DRAW, *words, "-o", "b.png")[0] == 0
    assert fake_images[2]["controlnet"] == ["one:0.5", "two"] and len(fake_images[3]["control_image"]) == 2
    assert run(*DRAW, "--ip-image", str(photo), "--ip-adapter", "ip.safetensors:0.6", "-o", "c.png")[0] == 0
    assert fake_images[4]["ip_adapter"] == "ip.safetensors:0.6" and fake_images[5]["ip_adapter_image"] == photo


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--control-image", "photo.png"), "write KIND:FILE with canny, depth, normal, map"),
        (("--control-image", "canny:none.png"), "none.png does not exist"),
        (("--control-image", "map:photo.png"), "no control of this kind is known for --prior sd15"),
        (("--control-image", "canny:photo.png", "--control-net", "a", "b"), "give one of each"),
        (("--control-net", "a"), "give one of each"),
        (("--ip-image", "photo.png"), "--ip-image and --ip-adapter go together"),
        (("--ip-adapter", "x.safetensors"), "--ip-image and --ip-adapter go together"),
    ],
)
def test_what_does_not_go_together(
    run: Callable[..., tuple[int, str, str]], photo: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, error = run(*DRAW, *words)
    assert code == 2
    assert message in " ".join(error.split())
