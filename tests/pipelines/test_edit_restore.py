"""Editing and restoring with a prior whose answers are exact: what changes, what stays, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unproject.core.priors import GaussianMixturePrior
from unproject.core.sampling import RestoreConfig
from unproject.pipelines.calibrations import Sizes, measure_error_curve, setting
from unproject.pipelines.edit_image import EditImage
from unproject.pipelines.restore_image import RestoreImage, Task, measured, parse_task
from unproject.pipelines.sampling_parts import handed_out, longest_side
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.errors import InputError, UnprojectError
from unproject.utils.seeds import generator

SIDE = 8
EDIT = {"guidance_scale": 1.0, "num_inference_steps": 20, "output_type": "pt"}


def mixture(std: float = 0.2) -> GaussianMixturePrior:
    means = torch.stack([torch.full((3, SIDE, SIDE), -0.5), torch.full((3, SIDE, SIDE), 0.5)])
    return GaussianMixturePrior(means, torch.tensor([std, std]), names=("dark", "light"))


def dark_picture(seed: int = 0) -> torch.Tensor:
    """(3, H, W) as the component "dark" draws them."""
    return (0.25 + 0.1 * torch.randn(3, SIDE, SIDE, generator=generator(seed))).clamp(0, 1)


def test_an_unchanged_prompt_changes_nothing() -> None:
    out = EditImage(mixture())(dark_picture(), "dark", "dark", **EDIT)
    torch.testing.assert_close(out.images[0], dark_picture().double(), atol=1e-6, rtol=0)
    assert out.nfe == 2 * 2 * 16  # two calls a step, both ways, 0.8 of 20 steps


def test_another_prompt_moves_the_picture_and_keeps_its_detail() -> None:
    picture = dark_picture()
    out = EditImage(mixture())(picture, "dark", "light", strength=1.0, **EDIT).images[0]
    torch.testing.assert_close(out, (picture.double() + 0.5).clamp(0, 1), atol=0.06, rtol=0)


def test_inversions_are_kept_and_drawn_again() -> None:
    pipe = EditImage(mixture())
    images = torch.stack([dark_picture(1), dark_picture(2)])
    inversion = pipe.invert(images, ["dark", "dark"], num_inference_steps=8, guidance_scale=1.0)
    assert inversion.x.shape == (2, 3, SIDE, SIDE)
    back = pipe.prior.decode(pipe.regenerate(inversion, "dark", guidance_scale=1.0))
    torch.testing.assert_close(back, images.double(), atol=1e-7, rtol=0)
    with pytest.raises(InputError, match="does not fit a condition of 3 rows"):
        pipe.regenerate(inversion, ["dark"] * 3, guidance_scale=1.0)


def test_edited_pictures_come_in_every_form(tmp_path: Path) -> None:
    pipe, settings = EditImage(mixture()), {**EDIT, "num_inference_steps": 2}
    assert pipe(dark_picture(), "dark", "light", **{**settings, "output_type": "pil"}).images[0].size == (SIDE, SIDE)
    array = pipe(np.full((16, 16, 3), 0.3), "dark", "light", **{**settings, "output_type": "np"}).images
    assert array.shape == (1, SIDE, SIDE, 3)  # the prior's own size
    (latents,) = pipe(dark_picture(), "dark", "light", **{**settings, "output_type": "latent"}, return_dict=False)
    assert latents.shape == (1, 3, SIDE, SIDE)
    with pytest.raises(InputError, match="'gif'"):
        pipe(dark_picture(), "dark", "light", output_type="gif")
    with pytest.raises(InputError, match="strength=0"):
        pipe(dark_picture(), "dark", "light", strength=0.0, guidance_scale=1.0)


def test_what_came_of_a_picture_loses_its_padding_and_is_finite() -> None:
    images = torch.rand(2, 3, 8, 12, generator=generator(0))
    latents = torch.zeros(2, 4, 2, 3)
    assert torch.equal(handed_out(latents, lambda: images, (7, 9), "pt", "editing"), images[:, :, :7, :9])
    assert handed_out(latents, lambda: images, (7, 9), "np", "editing").shape == (2, 7, 9, 3)
    assert [one.size for one in handed_out(latents, lambda: images, (7, 9), "pil", "editing")] == [(9, 7)] * 2
    unasked: Callable[[], torch.Tensor] = lambda: pytest.fail("decoded for nothing")  # noqa: E731
    assert handed_out(latents, unasked, (7, 9), "latent", "editing") is latents
    latents[1, 2, 0, 1] = torch.inf
    with pytest.raises(UnprojectError, match="restoring produced values that are not finite; use dtype float32"):
        handed_out(latents, lambda: images, (7, 9), "latent", "restoring")


def test_the_longer_side_is_one_that_the_prior_draws() -> None:
    prior = mixture()
    assert (longest_side(prior, None), longest_side(prior, 2 * SIDE)) == (SIDE, 2 * SIDE)
    with pytest.raises(InputError, match="height=-1 must be a positive multiple"):
        longest_side(prior, -1)


def test_what_a_mask_hides_is_filled_in_and_the_rest_stays() -> None:
    picture, mask = dark_picture(), torch.zeros(SIDE, SIDE)
    mask[2:6, 3:7] = 1
    settings = {"config": RestoreConfig(guidance=1.0), "output_type": "pt", "seed": 0}
    made = RestoreImage(mixture(0.05))(picture, "inpaint", "dark", mask=mask[None], noise_std=0.01, **settings)
    hidden = mask.bool().expand(3, -1, -1)
    torch.testing.assert_close(made.images[0][~hidden], picture[~hidden].double(), atol=0.08, rtol=0)
    torch.testing.assert_close(made.images[0][hidden], torch.full((48,), 0.25).double(), atol=0.08, rtol=0)
    assert made.seeds == [0] and made.residual[0] < 0.03


def test_a_small_picture_is_enlarged_and_explained() -> None:
    small = F.interpolate(dark_picture()[None], scale_factor=0.25, mode="bicubic", antialias=True)
    pipe, config = RestoreImage(mixture()), RestoreConfig(steps=10, guidance=1.0)
    settings = {"config": config, "output_type": "pt", "noise_std": 0.01}
    made = pipe(small, "super-resolution:4", "dark", seed=3, **settings)
    assert made.images.shape == (1, 3, SIDE, SIDE) and made.nfe == 10
    assert made.residual[0] <= 0.0201
    again = pipe(small, "super-resolution:4", "dark", generator=[generator(3)], **settings)
    assert torch.equal(made.images, again.images) and again.seeds is None


def test_a_curve_belongs_to_its_prior_and_guidance(tmp_path: Path) -> None:
    pipe = RestoreImage(mixture())
    sizes = Sizes(guidance=1.0, steps=4)
    curve = measure_error_curve(TextToImage(pipe.prior), ["dark"] * 4, sizes)
    file = curve.save(tmp_path / "curve.safetensors", setting(TextToImage(pipe.prior), ["dark"], sizes).fingerprint)
    settings = {"seed": 0, "output_type": "latent"}
    one, two = (
        pipe(dark_picture(), "deblur:1", "dark", curve=c, config=RestoreConfig(3, guidance=1.0), **settings).latents
        for c in (curve, file)
    )
    assert torch.equal(one, two)
    with pytest.raises(InputError, match=r"guidance 1 \(now 2\)"):
        pipe(dark_picture(), "deblur:1", "dark", curve=file, config=RestoreConfig(3, guidance=2.0), **settings)


@pytest.mark.parametrize(
    ("task", "shape", "measured_shape", "kept"),
    [
        (Task("super-resolution", 4), (5, 7), (6, 8), (20, 28)),  # cells of 8 px: 24 x 32
        (Task("super-resolution", 4), (30, 40), (6, 8), (24, 32)),  # reduced, with a warning
        (Task("deblur", 2.0), (60, 100), (24, 32), (19, 32)),
        (Task("inpaint"), (20, 32), (24, 32), (20, 32)),
        (Task("inpaint"), (10, 40), (8, 32), (8, 32)),
    ],
)
def test_pictures_of_any_size_fit_the_cells(
    task: Task, shape: tuple[int, int], measured_shape: tuple[int, int], kept: tuple[int, int]
) -> None:
    prior = SimpleNamespace(latent_shape=(4, 8, 8), vae_factor=4, latent_multiple=2)
    picture = torch.rand(1, 3, *shape, generator=generator(0))
    mask = torch.zeros(1, *shape)
    mask[:, 2:4, 2:4] = 1

    def prepared():
        return measured(prior, picture, task, mask if task.kind == "inpaint" else None, None)

    reduced = {(30, 40): "40 x 30 to 8 x 6", (60, 100): "100 x 60 to 32 x 19", (10, 40): "40 x 10 to 32 x 8"}.get(shape)
    if reduced:
        with pytest.warns(UserWarning, match=f"reduced from {reduced} px: a result of 32 px has no more"):
            y, operator, found = prepared()
    else:
        y, operator, found = prepared()
    assert (tuple(y.shape[2:]), found) == (measured_shape, kept)
    canvas = operator.pseudo_inverse(y)
    assert canvas.shape[2] % 8 == canvas.shape[3] % 8 == 0
    if task.kind == "inpaint":
        known = operator.known[0, 0]
        assert not known[kept[0] :].any() and not known[2:4, 2:4].any()
        assert reduced or int(known.sum()) == 20 * 32 - 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "sharpen"}, "task 'sharpen' is unknown; write super-resolution:FACTOR"),
        ({"task": "super-resolution:1"}, "is unknown"),
        ({"task": "deblur:nan"}, "is unknown"),
        ({"task": "inpaint"}, "mask= is what inpaint fills in"),
        ({"task": "deblur:1", "mask": np.zeros((8, 8))}, "mask= is what inpaint fills in"),
        ({"task": "inpaint", "mask": np.zeros((4, 8))}, "the mask has 8 x 4 px, the picture 8 x 8"),
        ({"task": "inpaint", "mask": np.ones((8, 8))}, "covers the whole picture"),
        ({"task": "super-resolution:16"}, "leaves nothing of a result of 8 px"),
        ({"task": "deblur:1", "output_type": "gif"}, "'gif'"),
        ({"task": "deblur:1", "curve": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_restorations_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RestoreImage(mixture())(dark_picture(), **{"seed": 0, **arguments})


def test_tasks_are_read() -> None:
    assert parse_task("super-resolution:4") == ("super-resolution", 4)
    assert parse_task("deblur:1.5") == ("deblur", 1.5)
    assert parse_task("inpaint") == ("inpaint", 0)
