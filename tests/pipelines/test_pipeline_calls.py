"""What users of diffusers expect of a call: generators, callbacks, dtypes, decoding in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unproject.core.priors import GaussianMixturePrior, Rows
from unproject.core.sampling import RestoreConfig
from unproject.pipelines import base, text_to_shape
from unproject.pipelines.calibrations import Sizes, measure_error_curve, setting
from unproject.pipelines.edit_image import EditImage
from unproject.pipelines.restore_image import RestoreImage
from unproject.pipelines.text_to_image import TextToImage
from unproject.pipelines.text_to_mesh import TextToMesh
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SIDE = 8
EDIT = {"guidance_scale": 1.0, "num_inference_steps": 5, "output_type": "latent"}
RESTORE = {"config": RestoreConfig(2, guidance=1.0), "output_type": "latent"}


class Mixture(GaussianMixturePrior):
    """One dark component of any size; knows how many images it has decoded at once and draws when it encodes."""

    def __init__(self) -> None:
        super().__init__(torch.full((1, 3, 1, 1), -0.5), torch.tensor([0.3]))
        self.latent_shape = (3, SIDE, SIDE)
        self.decoded: list[int] = []

    def encode(self, images: Tensor, sample: bool = False, generator: Any = None) -> Tensor:
        latents = super().encode(images)
        draws = [generator] * len(images) if isinstance(generator, torch.Generator) else generator
        if sample:
            latents = latents + 0.1 * torch.stack([torch.randn(latents.shape[1:], generator=g) for g in draws])
        return latents

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        self.decoded.append(len(latents))
        return super().decode(latents, clamp)


class Seen(Mixture):
    """Takes cameras and answers as if there were none."""

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        assert "cameras" in rows
        return super()._forward(x, time, rows)


def picture(seed: int = 0) -> Tensor:
    return torch.rand(3, SIDE, SIDE, generator=generator(seed))


def test_images_are_decoded_as_they_are_drawn() -> None:
    prior = Mixture()
    draw = {"num_images_per_prompt": 5, "seed": 0, "num_inference_steps": 2, "output_type": "pt"}
    parts = TextToImage(prior)("x", batch_size=2, **draw).images
    assert prior.decoded == [2, 2, 1]
    torch.testing.assert_close(parts, TextToImage(prior)("x", **draw).images, rtol=0, atol=1e-6)
    assert prior.decoded[3:] == [5]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_object_seen_from_several_cameras_is_one_image(eta: float) -> None:
    pipe = TextToImage(Seen())
    draw = {"num_inference_steps": 3, "output_type": "latent", "solver": "ddim", "eta": eta}
    draw |= {"cameras": torch.ones(4, 16), "guidance_scale": 1.0}
    both = pipe(["x", "x"], seed=7, **draw)
    assert both.seeds == [7, 8]
    for i, seed in enumerate(both.seeds):
        torch.testing.assert_close(pipe("x", seed=seed, **draw).latents, both.latents[4 * i : 4 * i + 4])
    given = pipe(["x", "x"], generator=[generator(7), generator(8)], batch_size=4, **draw)
    torch.testing.assert_close(given.latents, both.latents)
    assert len({tuple(view.flatten().tolist()) for view in both.latents}) == 8
    with pytest.raises(InputError, match="8 generators for 2"):
        pipe(["x", "x"], generator=[generator(i) for i in range(8)], **draw)


def test_a_callback_follows_every_call_of_every_part() -> None:
    seen: list[tuple[int, int]] = []

    def keep(pipe: Any, call: int, timestep: float, tensors: dict[str, Tensor]) -> None:
        seen.append((call, len(tensors["latents"])))

    draw = {"seed": 0, "num_inference_steps": 2, "solver": "heun", "output_type": "latent"}
    TextToImage(Mixture())("x", num_images_per_prompt=3, batch_size=2, callback_on_step_end=keep, **draw)
    assert seen == [(call, rows) for rows in (2, 1) for call in range(3)]


def test_editing_tells_of_its_steps_and_takes_another_state() -> None:
    pipe, calls = EditImage(Mixture()), []

    def zero(owner: Any, call: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        assert owner is pipe
        calls.append(call)
        return {"latents": torch.zeros_like(tensors["latents"])} if call == 7 else None

    made = pipe(picture(), "x", "x", callback_on_step_end=zero, **EDIT)
    assert calls == list(range(2 * 4))  # two calls for each of 0.8 of 5 steps
    assert float(made.latents.abs().max()) == 0


def test_a_generator_draws_what_the_encoder_leaves_open() -> None:
    pipe, both = EditImage(Mixture()), torch.stack([picture(1), picture(2)])
    mean = pipe(both, "x", "x", **EDIT).latents
    drawn = pipe(both, "x", "x", generator=[generator(1), generator(2)], **EDIT).latents
    alone = pipe(both[1], "x", "x", generator=generator(2), **EDIT).latents
    torch.testing.assert_close(drawn[1:], alone)
    assert 0.05 < float((drawn - mean).std()) < 0.2
    with pytest.raises(InputError, match="got 1 generators for 2 images"):
        pipe(both, "x", "x", generator=[generator(1)], **EDIT)


def test_one_generator_restores_all_pictures() -> None:
    pipe, both = RestoreImage(Mixture()), torch.stack([picture(1), picture(2)])
    one, same, other = (pipe(both, "deblur:1", generator=generator(s), **RESTORE) for s in (3, 3, 4))
    assert torch.equal(one.latents, same.latents) and not torch.equal(one.latents, other.latents)
    assert one.seeds is None
    alone = pipe(both[:1], "deblur:1", seed=3, **RESTORE)
    torch.testing.assert_close(pipe(both[:1], "deblur:1", generator=generator(3), **RESTORE).latents, alone.latents)


def test_a_curve_belongs_to_its_size(tmp_path: Path) -> None:
    pipe = RestoreImage(Mixture())
    for size in (None, 16):
        sizes = Sizes(guidance=1.0, steps=2, size=size)
        curve = measure_error_curve(TextToImage(pipe.prior), ["x"] * 2, sizes)
        mark = setting(TextToImage(pipe.prior), ["x"], sizes).fingerprint
        curve.save(tmp_path / f"{size}.safetensors", mark)
    wide = torch.rand(3, 6, SIDE, generator=generator(0))  # no square: the size is that of the longest side
    for size in (None, 16):
        pipe(wide, "deblur:1", curve=tmp_path / f"{size}.safetensors", size=size, seed=0, **RESTORE)
    with pytest.raises(InputError, match=r"latent shape \(3, 16, 16\) \(now \(3, 8, 8\)\)"):
        pipe(wide, "deblur:1", curve=tmp_path / "16.safetensors", seed=0, **RESTORE)


@pytest.mark.parametrize("kind", [TextToImage, EditImage, RestoreImage, TextToMesh])
def test_diffusers_name_of_the_dtype(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    asked: list[torch.dtype] = []

    def load(name: str, device: Any, dtype: torch.dtype, **options: Any) -> GaussianMixturePrior:
        assert not options
        asked.append(dtype)
        return Mixture()

    for module in (base, text_to_shape):
        monkeypatch.setattr(module, "load_prior", load)
    kind.from_pretrained("any", torch_dtype=torch.bfloat16)
    kind.from_pretrained("any", dtype=torch.float16)
    assert asked == [torch.bfloat16, torch.float16]


def test_restoring_tells_of_its_steps_and_takes_another_state() -> None:
    pipe, seen = RestoreImage(Mixture()), []

    def keep(owner: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        assert owner is pipe
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else None

    settings = {"config": RestoreConfig(steps=3, guidance=1.0), "seed": 0, "output_type": "latent"}
    made = pipe(picture(), "deblur:1", "x", callback_on_step_end=keep, **settings)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert [time for _, time in seen] == sorted((time for _, time in seen), reverse=True)
    assert float(made.latents.abs().max()) == 0
