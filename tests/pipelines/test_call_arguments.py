"""What a call is told is taken, warned about or refused by name: guidance, sizes, negatives, embeddings, types, .to."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.core.priors import Condition, GaussianMixturePrior, Rows
from unproject.pipelines.base import placed
from unproject.pipelines.edit_image import EditImage
from unproject.pipelines.prompts import embedded
from unproject.pipelines.text_to_image import TextToImage
from unproject.pipelines.text_to_mesh import TextToMesh
from unproject.utils.errors import InputError

SIDE = 8
GREY = torch.full((3, SIDE, SIDE), 0.5)


class Wordy(GaussianMixturePrior):
    """One component; knows four words, reads three, and remembers what it was told."""

    KNOWN = ("a", "red", "chair", "dog")

    def __init__(self) -> None:
        super().__init__(torch.full((1, 3, 1, 1), -0.5), torch.tensor([0.3]))
        self.latent_shape = (3, SIDE, SIDE)
        self.told: list[Tensor] = []

    def truncated(self, prompt: str) -> str:
        return " ".join(prompt.split()[3:])

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        return [(word, []) for word in prompt.split()[:3] if word not in self.KNOWN]

    def encode_text(self, prompts: Any, negative: Any = None) -> Condition:
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = Rows({"text": torch.tensor([[[float(len(text)), 1.0]] for text in listed])})
        return Condition({"cond": rows, "null": Rows({"text": torch.zeros(len(listed), 1, 2)})}, listed)

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        self.told.append(rows["text"])
        return super()._forward(x, time, rows)


def told(**options: Any) -> list[str]:
    """The warnings of a call."""
    call = {"prompt": "a red chair", "num_inference_steps": 1, "seed": 0, "output_type": "latent", **options}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        TextToImage(Wordy())(**call)
    return [str(w.message) for w in seen if issubclass(w.category, UserWarning)]


def test_an_ordinary_call_says_nothing() -> None:
    assert told() == [] and told(guidance_scale=3.0, negative_prompt="a dog") == []


@pytest.mark.parametrize(
    ("scale", "means"), [(0, "draws without looking at the prompt"), (-2.5, "moves away from the prompt")]
)
def test_guidance_that_does_not_follow_the_prompt_is_told(scale: float, means: str) -> None:
    (message,) = told(guidance_scale=scale)
    assert f"guidance_scale={scale:g} {means}" in message and "guidance off is 1" in message
    with pytest.warns(UserWarning, match=f"guidance_scale={scale:g} {means}"):
        EditImage(Wordy())(GREY, "a dog", "a red dog", guidance_scale=scale, num_inference_steps=2)


@pytest.mark.parametrize("negative", ["a green dog and more", ["a green dog and more"]])
def test_negative_prompts_are_read_like_prompts(negative: Any) -> None:
    cut, unknown = told(negative_prompt=negative)
    assert "the negative prompt is longer" in cut and "'and more'" in cut
    assert "has never seen 'green' of the negative prompt; it will not keep it away" in unknown
    assert "a strange word can spoil the known ones too" in unknown
    assert "strange word can spoil" in told(prompt="a green dog")[0]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 32, "width": 16}, "16 x 32 px is far from the 8 px"),
        ({"height": 32, "width": 16}, "8 times the pixels or more in time and memory"),
        ({"height": 4, "width": 8}, "little of the prompt will be recognisable"),
    ],
)
def test_sizes_far_from_the_own_one_are_told_before_they_run(size: dict[str, int], message: str) -> None:
    (found,) = told(**size)
    assert message in found
    assert told(height=12, width=8) == []


def test_a_prior_of_several_sizes_draws_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wordy, "known_px", (4, 32), raising=False)
    assert told(height=4, width=4) == [] and told(height=32, width=32) == []
    assert len(told(height=64, width=32)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": "4"}, "steps='4' must be a whole number"),
        ({"num_inference_steps": 4.0}, "steps=4.0 must be a whole number"),
        ({"guidance_scale": "7"}, "guidance='7' must be a finite number"),
        ({"guidance_scale": float("nan")}, "guidance=nan must be a finite number"),
        ({"eta": float("inf")}, "eta=inf must be a finite number"),
        ({"height": 8.0}, "height=8.0 must be a whole number of px"),
        ({"width": "8"}, "width='8' must be a whole number of px"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"num_images_per_prompt": 2.0}, "num_images_per_prompt=2.0 must be a whole number"),
        ({"batch_size": "2"}, "batch_size='2' must be a whole number"),
        ({"negative_prompt": 5}, "negative_prompt=5 must be text"),
        ({"negative_prompt": []}, "negative_prompt=[] must be text or a non-empty list"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, "got 3 negative prompts for 2 prompts"),
        ({"prompt": None}, "prompt=None must be text"),
        ({"prompt": ["a", 3]}, "must be text or a non-empty list of texts"),
        ({"generator": [1, 2], "seed": None}, "generator=[1, 2] must be a torch.Generator"),
        ({"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}, "callbacks are handed latents alone"),
        ({"callback_on_step_end": 3}, "callback_on_step_end=3 cannot be called; give a function"),
        ({"prompt_embeds": torch.zeros(1, 1, 2)}, "give prompt or prompt_embeds, not both"),
        ({"negative_prompt_embeds": torch.zeros(1, 1, 2)}, "go with prompt_embeds"),
    ],
)
def test_wrong_values_are_named_before_the_network_is_asked(options: dict[str, Any], message: str) -> None:
    prior = Wordy()
    call = {"prompt": "a dog", "num_inference_steps": 1, "seed": 0, "output_type": "latent", **options}
    with pytest.raises(InputError) as error:
        TextToImage(prior)(**call)
    assert message in str(error.value) and prior.told == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": "4"}, "num_inference_steps='4' must be a whole number"),
        ({"guidance_scale": "7"}, "guidance_scale='7' must be a finite number"),
        ({"faces": 2.5}, "faces=2.5 must be a whole number"),
        ({"faces": 3}, "faces=3 must be at least 4"),
        ({"seed": "x"}, "seed='x' must be a whole number"),
        ({"negative_prompt": 7}, "negative_prompt=7 must be text"),
    ],
)
def test_the_same_of_a_mesh(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        TextToMesh(Wordy(), "toybox-single-view")("a dog", **options)


def test_numbers_of_numpy_are_numbers() -> None:
    numbers = {"height": np.int64(8), "num_inference_steps": np.int64(1), "guidance_scale": np.float64(2)}
    assert told(seed=np.int32(3), **numbers) == []


def test_embeddings_take_the_place_of_prompts() -> None:
    draw = {"num_inference_steps": 1, "seed": 0, "output_type": "latent", "guidance_scale": 3.0}
    prior = Wordy()
    TextToImage(prior)(prompt_embeds=torch.tensor([[[7.0, 2.0]]]), num_images_per_prompt=2, **draw)
    assert prior.told[0][:, 0].tolist() in ([[7, 2], [7, 2], [0, 0], [0, 0]], [[0, 0], [0, 0], [7, 2], [7, 2]])
    prior.told.clear()
    TextToImage(prior)(
        prompt_embeds=torch.tensor([[[7.0, 2.0]]]), negative_prompt_embeds=torch.tensor([[[5.0, 4.0]]]), **draw
    )
    assert sorted(prior.told[0][:, 0].tolist()) == [[5, 4], [7, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_embeds": torch.zeros(1, 1, 3)},
            r"has shape \(1, 1, 3\), expected one like \(1, 1, 2\)",
        ),
        ({"prompt_embeds": torch.zeros(1, 1, 2), "pooled_prompt_embeds": torch.zeros(1, 4)}, "pooled_prompt_embeds is"),
        (
            {"prompt_embeds": torch.zeros(2, 1, 2), "negative_prompt_embeds": torch.zeros(1, 1, 2)},
            "negative_prompt_embeds has 1 rows, prompt_embeds 2",
        ),
    ],
)
def test_embeddings_of_another_kind_are_refused(options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        embedded(Wordy(), **options)


@pytest.mark.parametrize(
    ("where", "named", "expected"),
    [
        (("cpu",), {}, ("cpu", None)),
        ((torch.float16,), {}, (None, torch.float16)),
        (("cpu", torch.float64), {}, ("cpu", torch.float64)),
        ((torch.float64, torch.device("cpu")), {}, ("cpu", torch.float64)),
        ((), {"dtype": torch.float64, "device": "cpu", "silence_dtype_warnings": True}, ("cpu", torch.float64)),
        ((None, torch.float64), {}, (None, torch.float64)),
    ],
)
def test_to_takes_what_diffusers_takes(where: Any, named: Any, expected: Any) -> None:
    device, dtype = placed(*where, **named)
    assert (None if device is None else str(device), dtype) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((torch.float16, torch.float32), "two values of dtype"),
        (("cpu", "cpu"), "two values of device"),
        (("tpu9",), "device='tpu9' is no device"),
        ((torch.int64,), "dtype=torch.int64 must be"),
    ],
)
def test_to_refuses_the_rest_by_name(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        placed(*where)


def test_moving_a_pipeline_casts_its_prior() -> None:
    pipe = TextToImage(Wordy())
    assert pipe.to(torch.float64) is pipe
    assert (pipe.dtype, str(pipe.device)) == (torch.float64, "cpu")
