"""The adapter that reads normals: what it trains on, what it trains, files, and a run that goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.core.distillation.teacher import prior_hash
from unproject.core.priors import MultiViewPrior, StableDiffusionPrior, inflate
from unproject.core.training.config import TrainerConfig
from unproject.core.training.objectives.diffusion import NoiseLossConfig
from unproject.core.training.trainer import Trainer
from unproject.generate.view_texture import NormalTexture, TextureConfig
from unproject.generate.view_texture_train import PairedGroups, TextureObjective, TextureTraining
from unproject.geometry.cameras import Camera
from unproject.scripts.random_backbones import seeded, tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

CONFIG = TextureTraining(TextureConfig(2), NoiseLossConfig(validation_samples=8, preview_steps=2, preview_guidance=2.0))


class Renders:
    """Two objects seen from four sides, each as a picture and as a normal map."""

    def __init__(self, turned: bool = False) -> None:
        self.turned = turned

    def __len__(self) -> int:
        return 16

    def captions(self, indices: np.ndarray, rng: Any = None) -> list[str]:
        return [("a red chair", "a blue wagon")[int(i) // 8] for i in indices]

    def groups(self) -> np.ndarray:  # of each object its pictures, then its maps
        return np.arange(16).reshape(2, 4, 2).transpose(0, 2, 1).reshape(4, 4)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = torch.as_tensor(indices // 2 + (indices % 2 if self.turned else 0))
        orbit = Camera.orbit(side * 90.0, 20.0, 3.0, 40.0, 8, 8)
        return orbit.c2w.numpy(), orbit.K.numpy()


class Latents:
    """Theirs: number i is i / 16 everywhere."""

    identity: dict[str, Any] = {"vae": "none"}

    def __init__(self, pictures: Renders) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return 16

    def rows(self, indices: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.standard_normal((16, 4, 8, 8)).astype(np.float32)[indices]

    def batch(self, indices: np.ndarray, rng: Any) -> dict[str, Any]:
        return {"latents": self.rows(indices), "captions": self.pictures.captions(indices)}


def pairs() -> PairedGroups:
    return PairedGroups(Latents(Renders()), Renders())


def prior(kind: str = "v_prediction") -> MultiViewPrior:
    pipe = tiny_sd(kind)
    return seeded(lambda: MultiViewPrior(pipe, inflate(pipe.unet), "tiny-mv"))


def test_views_come_with_the_normals_of_the_same_views() -> None:
    batch, rows = pairs().batch(np.array([1, 0]), None), Latents(Renders()).rows
    np.testing.assert_array_equal(batch["latents"], rows(np.array([8, 10, 12, 14, 0, 2, 4, 6])))
    np.testing.assert_array_equal(batch["concat"], rows(np.array([9, 11, 13, 15, 1, 3, 5, 7])))
    assert (
        batch["captions"] == ["a blue wagon"] * 4 + ["a red chair"] * 4 and batch["frames"] == 4 and len(pairs()) == 2
    )
    with pytest.raises(InputError, match="not of the same views"):
        PairedGroups(Latents(Renders(turned=True)), Renders())


def test_the_loss_is_the_noise_error_of_the_prior_with_maps_before_the_state() -> None:
    objective = TextureObjective(CONFIG, prior(), pairs())
    batch = pairs().batch(np.array([0]), None)
    values = [float(objective.loss(batch, generator(4), 0).loss) for _ in range(2)]
    plain = {key: value for key, value in batch.items() if key != "concat"}
    assert values[0] == values[1] == float(objective.loss(plain, generator(4), 0).loss)  # at first maps say nothing
    with torch.no_grad():
        objective.texture.adapter.entry.weight.normal_(generator=generator(5))
    assert float(objective.loss(batch, generator(4), 0).loss) != values[0]
    found = objective.validate()
    assert found.keys() == {"eps_mse_views", "eps_mse_blind"} and found["eps_mse_views"] != found["eps_mse_blind"]
    assert objective.config.noise.prediction == "v_prediction" and objective.config.base == prior_hash(prior())


def test_a_stopped_run_is_the_whole_one_and_trains_the_adapter_alone(tmp_path: Path) -> None:
    settings = TrainerConfig(steps=2, batch=1, lr=1e-2, warmup=0, ema=0.9, save_every=1, log_every=1)
    ended = []
    for name, minutes in (("whole", None), ("parts", 0.0)):
        reason = ""
        while reason != "done":
            objective = TextureObjective(CONFIG, prior(), pairs())
            trainer = Trainer(replace(settings, max_minutes=minutes), objective, pairs(), tmp_path / name, "cpu")
            reason = trainer.run(resume=True).reason
        ended.append(objective.texture)
    whole, parts = (texture.adapter.state_dict() for texture in ended)
    assert all(torch.equal(whole[name], value) for name, value in parts.items())
    assert float(whole["entry.weight"].abs().max()) > 0
    assert prior_hash(ended[0].prior) == prior_hash(prior())
    size = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert size < 20 * sum(value.numel() for value in whole.values())  # weights, average, two moments; no network


def test_files_hold_the_adapter_and_belong_to_their_prior(tmp_path: Path) -> None:
    made = NormalTexture(prior(), TextureConfig(2))
    with torch.no_grad():
        for parameter in made.adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(6)).half())
    folder = made.save(tmp_path / "export")
    assert {path.name for path in folder.iterdir()} == {"direct25.json", "direct25.safetensors"}
    back = NormalTexture.load(folder, prior())
    for name, value in made.adapter.state_dict().items():
        assert torch.equal(back.adapter.state_dict()[name], value), name
    other = prior()
    with torch.no_grad():
        other.views.unet.conv_in.weight.mul_(2)
    with pytest.raises(InputError, match="of other weights than tiny-mv has; train anew"):
        NormalTexture.load(folder, other)
    with pytest.raises(InputError, match=r"holds no direct25\.json"):
        NormalTexture.load(tmp_path, prior())
    with pytest.raises(InputError, match="draws single images"):
        NormalTexture(StableDiffusionPrior(tiny_sd(), "flat"))


def test_previews_show_normals_above_what_they_make(tmp_path: Path) -> None:
    objective = TextureObjective(CONFIG, prior(), pairs())
    (path,) = objective.preview(3, tmp_path)
    assert path.name == "painted-0000003.png" and path.exists()
