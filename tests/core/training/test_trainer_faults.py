"""What a training must not do: lose its last validation, call a diverged run done, share what is its own."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from unproject.core.training.checkpoints import latest_checkpoint, read_document, read_tensors
from unproject.core.training.config import TrainerConfig
from unproject.core.training.loss import LossOut
from unproject.core.training.objectives.base import Objective, fixed_init
from unproject.core.training.sampling_order import ORDER, SampleOrder
from unproject.core.training.trainer import Trainer
from unproject.utils.errors import InputError, UnprojectError

CONFIG = TrainerConfig(steps=6, batch=4, lr=0.05, save_every=3, log_every=1, ema=0.5)


@dataclass(frozen=True)
class Settings:
    scale: float = 1.0


class Items:
    """Numbers."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(i), 1.0])}


class Line(Objective):
    """A linear map; `loss_at` and `score` say what is strange."""

    def __init__(self, scale: float = 1.0, loss_at=None, score: float = 1.0) -> None:
        self.config, self.loss_at, self.score = Settings(scale), loss_at or {}, score
        with fixed_init(0):
            self.modules, self.frozen = {"net": nn.Linear(2, 1)}, {}

    def loss(self, batch, rng, step):
        error = (self.modules["net"](batch["x"]) * self.config.scale).square().mean()
        return LossOut(error * self.loss_at.get(step, 1.0), {})

    def validate(self):
        return {"score": self.score * float(self.modules["net"].weight.detach().sum())}


def train(out: Path, config: TrainerConfig = CONFIG, resume: bool = False, **objective) -> tuple[Trainer, object]:
    trainer = Trainer(config, Line(**objective), Items(), out, "cpu")
    return trainer, trainer.run(resume)


def bits(trainer: Trainer) -> torch.Tensor:
    tensors, _ = trainer.loop.state()
    return torch.cat([part[name].detach().flatten() for part in tensors.values() for name in sorted(part)])


def test_the_last_validation_is_in_the_last_checkpoint(tmp_path):
    _, result = train(tmp_path)
    state = read_document(latest_checkpoint(tmp_path), "trainer")
    assert state["step"] == 6 and state["validation"] == result.validation != {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"score": math.nan}, "validation score is nan"),
        ({"loss_at": dict.fromkeys(range(6), math.nan)}, "the last 6 updates had no finite loss"),
        ({"loss_at": {4: math.inf, 5: math.inf}}, "the last 2 updates had no finite loss"),
    ],
)
def test_a_diverged_run_says_so_and_keeps_its_checkpoint(tmp_path, wrong, message):
    with pytest.raises(UnprojectError, match=rf"diverged at step 6: {message}.*nothing is exported.*lr=0.05"):
        train(tmp_path, **wrong)
    reader = Trainer(CONFIG, Line(), Items(), tmp_path, "cpu")
    reader.load(latest_checkpoint(tmp_path), goes_on=False)
    with pytest.raises(UnprojectError, match="diverged at step 6"):
        reader.check_sound()


def test_averages_that_are_not_finite_are_no_export(tmp_path):
    trainer, _ = train(tmp_path)
    trainer.check_sound()
    (player,) = trainer.loop.players.values()
    player.average["net.bias"].fill_(math.inf)
    with pytest.raises(UnprojectError, match=r"1 averaged weights are not finite, first net\.bias"):
        trainer.check_sound()


def test_a_run_that_recovers_is_sound(tmp_path):
    trainer, result = train(tmp_path, loss_at={2: math.nan})
    assert result.reason == "done" and trainer.loop.players["model"].skips_total == 1


def test_trainers_of_other_precision_and_accumulation_leave_each_other_alone(tmp_path):
    alone, _ = train(tmp_path / "alone")
    here = Trainer(CONFIG, Line(), Items(), tmp_path / "here", "cpu")
    other = Trainer(replace(CONFIG, precision="bf16", accumulate=3), Line(), Items(), tmp_path / "other", "cpu")
    here.run()
    other.run()
    assert torch.equal(bits(alone), bits(here))
    assert not torch.equal(bits(alone), bits(other))


def test_the_average_does_not_tick_where_the_scaler_skips(tmp_path):
    """65504 is the largest half number and 65536 the scaler's first scale, so the first gradients overflow."""
    trainer = Trainer(replace(CONFIG, precision="fp16"), Line(scale=0.3), Items(), tmp_path, "cpu")
    (player,) = trainer.loop.players.values()
    values = [player.named["net.weight"].detach().clone()]
    for _ in range(CONFIG.steps):
        trainer.loop.advance()
        values.append(player.named["net.weight"].detach().clone())
    moved = sum(not torch.equal(a, b) for a, b in zip(values, values[1:]))
    assert 0 < moved < CONFIG.steps
    assert player.ema.optimization_step == player.updates == moved
    assert trainer.engine.scaler.get_scale() == 65536.0 / 2 ** (CONFIG.steps - moved)
    assert player.skips_total == 0


def test_the_scaler_lives_on_in_a_resumed_run(tmp_path):
    config, options = replace(CONFIG, precision="fp16", steps=8), {"scale": 0.3}
    whole, _ = train(tmp_path / "whole", config, **options)
    train(tmp_path / "parts", replace(config, max_minutes=0.0), **options)
    parts, _ = train(tmp_path / "parts", config, resume=True, **options)
    assert torch.equal(bits(whole), bits(parts))
    assert parts.engine.scaler.state_dict() == whole.engine.scaler.state_dict()


@pytest.mark.parametrize("seed", [0, 7])
def test_the_next_seed_is_not_the_next_epoch(seed):
    def epoch(number: int, of: int) -> list[int]:
        return SampleOrder(50, of).take(50 * number, 50).tolist()

    assert epoch(1, seed) != epoch(0, seed + 1)
    seen = {tuple(epoch(number, of)) for number in range(4) for of in range(seed, seed + 4)}
    assert len(seen) == 16


def test_a_checkpoint_of_another_sample_order_does_not_go_on(tmp_path):
    _, result = train(tmp_path)
    path = latest_checkpoint(tmp_path) / "trainer.json"
    state = json.loads(path.read_text())
    assert state["recipe"].pop("order") == ORDER
    path.write_text(json.dumps(state))
    config = replace(CONFIG, steps=9)
    with pytest.raises(InputError, match=r"samples in another order \(order=None, now 2\).*start_from.*--export"):
        train(tmp_path, config, resume=True)
    reader = Trainer(config, Line(), Items(), tmp_path, "cpu")
    reader.load(latest_checkpoint(tmp_path), goes_on=False)
    with reader.averaged():
        assert reader.objective.validate() == result.validation


@pytest.mark.parametrize(("scale", "clip"), [(100.0, 0.5), (1e-4, 0.5), (100.0, 2.0)])
def test_gradients_are_clipped_to_the_configured_norm(tmp_path, scale, clip):
    """After one step AdamW's first moment is (1 - beta1) times the gradient that it was given."""
    train(tmp_path, replace(CONFIG, steps=1, clip=clip), scale=scale)
    moments = read_tensors(latest_checkpoint(tmp_path), "optimizer")
    given = torch.cat([v.flatten() for k, v in moments.items() if k.endswith("exp_avg")]).norm() / 0.1
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert float(given) == pytest.approx(min(row["grad_norm"], clip), rel=1e-4)
    assert (row["grad_norm"] > clip) == (scale > 1)


def test_samples_and_numbers_of_a_step_depend_on_seed_and_step_only(tmp_path):
    """A trainer that skipped to a step draws what one that went there would."""
    seen: dict[int, list] = {}

    class Watches(Line):
        def loss(self, batch, rng, step):
            seen.setdefault(step, []).append((batch["x"].tolist(), torch.rand(2, generator=rng).tolist()))
            return super().loss(batch, rng, step)

    Trainer(CONFIG, Watches(), Items(), tmp_path / "a", "cpu").run()
    late = Trainer(CONFIG, Watches(), Items(), tmp_path / "b", "cpu")
    late.loop.step = 4
    late.loop.advance()
    assert seen[4][0] == seen[4][1] and seen[4][0] != seen[3][0]
