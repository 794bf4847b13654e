"""The training loop: same bits after a stop or a kill, guards, averages, refusals."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from unproject.core.training import checkpoints
from unproject.core.training.config import TrainerConfig
from unproject.core.training.loss import LossOut
from unproject.core.training.objectives.base import Objective, fixed_init
from unproject.core.training.players import Player
from unproject.core.training.sampling_order import SampleOrder, fetch, seed_of
from unproject.core.training.trainer import Trainer
from unproject.utils.errors import InputError, UnprojectError

CONFIG = TrainerConfig(steps=9, batch=4, lr=0.05, warmup=2, log_every=1, save_every=3, ema=0.3)


@dataclass(frozen=True)
class Settings:
    width: int = 3


class Pairs:
    """x and the target 2 x1 - x2."""

    def __init__(self, length: int = 10) -> None:
        self.x = np.random.default_rng(0).normal(size=(length, 2)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x = self.x[indices]
        return {"x": x, "y": x @ np.array([[2.0], [-1.0]], np.float32)}


class Fit(Objective):
    """A small network on noisy inputs; `at` maps a step to something that happens there."""

    def __init__(self, settings: Settings = Settings(), noise: float = 0.1, at=None) -> None:
        self.config, self.noise, self.at = settings, noise, at or {}
        with fixed_init(0):
            net = nn.Sequential(nn.Linear(2, settings.width), nn.Tanh(), nn.Linear(settings.width, 1))
        self.modules, self.frozen, self.previews = {"net": net}, {}, []

    def loss(self, batch, rng, step):
        happening = self.at.get(step, lambda: 1.0)() or 1.0
        x = torch.from_numpy(batch["x"])
        x = x + self.noise * torch.randn(x.shape, generator=rng)
        error = (self.modules["net"](x) - torch.from_numpy(batch["y"])).square().mean() * happening
        return LossOut(error, {"mse": error.detach()})

    def validate(self):
        return {"weight": float(self.modules["net"][0].weight.detach().sum())}

    def preview(self, step, out):
        self.previews.append(step)


def weights(trainer: Trainer) -> torch.Tensor:
    tensors, _ = trainer.loop.state()
    return torch.cat([part[name].detach().flatten() for part in tensors.values() for name in sorted(part)])


def only(trainer: Trainer) -> Player:
    (player,) = trainer.loop.players.values()
    return player


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run(out, config=CONFIG, resume=False, data=None, **objective) -> tuple[Trainer, object]:
    trainer = Trainer(config, Fit(**objective), data or Pairs(), out, "cpu")
    return trainer, trainer.run(resume)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, result = run(tmp_path / "whole")
    assert (result.step, result.reason) == (9, "done")
    _, stopped = run(tmp_path / "parts", at={4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert (stopped.step, stopped.reason) == (5, "signal")
    resumed, result = run(tmp_path / "parts", resume=True)
    assert result.reason == "done"
    assert torch.equal(weights(whole), weights(resumed))
    logged = [[(r["step"], r.get("loss"), r.get("lr")) for r in rows(tmp_path / d)] for d in ("whole", "parts")]
    assert logged[0] == logged[1]


@pytest.mark.parametrize("moment", ["writing", "renaming", "pointing"])
def test_a_run_killed_while_saving_resumes_to_the_same_bits(tmp_path, monkeypatch, moment):
    whole, _ = run(tmp_path / "whole")

    class Killed(BaseException):
        pass

    name = {"writing": "save_file", "renaming": "_flush", "pointing": "write_text"}[moment]
    original, calls = getattr(checkpoints, name), []

    def dies(*arguments, **named):
        calls.append(arguments)
        if any("ckpt-6" in str(a) for a in arguments):
            raise Killed
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, name, dies)
        with pytest.raises(Killed):
            run(tmp_path / "parts")
    broken = list((tmp_path / "parts").glob("*.tmp"))
    assert bool(broken) == (moment != "pointing")
    resumed, _ = run(tmp_path / "parts", resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert not list((tmp_path / "parts").glob("*.tmp"))


def test_checkpoints_hold_no_pickle_and_old_ones_go(tmp_path):
    run(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("ckpt-*")) == ["ckpt-6", "ckpt-9"]
    assert (tmp_path / "LATEST").read_text() == "ckpt-9\n"
    assert {p.suffix for p in (tmp_path / "ckpt-9").iterdir()} == {".safetensors", ".json"}
    state = json.loads((tmp_path / "ckpt-9" / "trainer.json").read_text())
    assert state["step"] == 9 and state["position"] == 36 and state["versions"]["torch"]
    names = checkpoints.read_tensors(tmp_path / "ckpt-9", "optimizer")
    assert "net.0.weight:exp_avg" in names


def test_steps_may_grow_and_nothing_else_may_change(tmp_path):
    run(tmp_path)
    _, result = run(tmp_path, replace(CONFIG, steps=12, log_every=5), resume=True)
    assert result.step == 12
    with pytest.raises(InputError, match=r"trainer\.batch, trainer\.lr"):
        run(tmp_path, replace(CONFIG, steps=12, lr=0.1, batch=2), resume=True)
    with pytest.raises(InputError, match=r"model\.width"):
        run(tmp_path, replace(CONFIG, steps=12), resume=True, settings=Settings(4))
    with pytest.raises(InputError, match=r"data\.length"):
        run(tmp_path, replace(CONFIG, steps=12), resume=True, data=Pairs(11))
    with pytest.raises(InputError, match="steps=3 is less than the 12"):
        run(tmp_path, replace(CONFIG, steps=3), resume=True)
    with pytest.raises(InputError, match="--resume"):
        run(tmp_path)


def test_a_step_without_a_finite_loss_is_skipped(tmp_path):
    trainer, _ = run(tmp_path / "a", at={3: lambda: math.nan, 5: lambda: math.inf})
    assert only(trainer).skips_total == 2 and only(trainer).ema.optimization_step == 7
    assert torch.isfinite(weights(trainer)).all()
    with pytest.raises(UnprojectError, match="2 updates in a row, last at step 4"):
        run(tmp_path / "b", replace(CONFIG, max_skips=2), at={3: lambda: math.nan, 4: lambda: math.nan})


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    one, _ = run(tmp_path / "one", replace(CONFIG, batch=6, steps=4), noise=0.0)
    three, _ = run(tmp_path / "three", replace(CONFIG, batch=2, accumulate=3, steps=4), noise=0.0)
    torch.testing.assert_close(weights(one), weights(three), rtol=1e-5, atol=1e-6)


def test_the_average_follows_its_recursion_and_serves_validation(tmp_path):
    seen = []
    trainer = Trainer(CONFIG, Fit(), Pairs(), tmp_path, "cpu")
    player = only(trainer)
    player.after_step = lambda turn: seen.append(player.named["net.0.bias"].detach().clone())
    start = player.named["net.0.bias"].detach().clone()
    result = trainer.run()
    average = start
    for n, value in enumerate(seen):
        decay = 0.0 if n == 0 else min((1 + n) / (10 + n), 0.3)
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(player.average["net.0.bias"], average)
    now = player.named["net.0.weight"].detach().clone()
    with trainer.averaged():
        assert result.validation["weight"] == trainer.objective.validate()["weight"]
        assert not torch.equal(now, player.named["net.0.weight"])
    assert torch.equal(now, player.named["net.0.weight"])


def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path):
    run(tmp_path)
    rates = [r["lr"] for r in rows(tmp_path) if "lr" in r]
    wanted = [0.0, 0.025] + [0.025 * (1 + math.cos(math.pi * k / 7)) for k in range(7)]
    assert rates == pytest.approx(wanted)


def test_a_time_budget_ends_with_a_checkpoint(tmp_path):
    _, result = run(tmp_path, replace(CONFIG, max_minutes=0.0))
    assert (result.step, result.reason) == (1, "time")
    assert checkpoints.latest_checkpoint(tmp_path).name == "ckpt-1"


def test_previews_come_at_their_steps_and_signals_return(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer, _ = run(tmp_path, replace(CONFIG, preview_every=4))
    assert trainer.objective.previews == [4, 8]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path)
    (tmp_path / "ckpt-9" / "ema.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"ema\.safetensors is missing or damaged"):
        run(tmp_path, resume=True)


def test_convolutions_resume_in_channels_last(tmp_path):
    class Pictures:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"x": torch.full((2, 4, 4), float(i))}

    class Conv(Fit):
        def __init__(self):
            super().__init__()
            with fixed_init(1):
                self.modules, self.frozen = {"net": nn.Conv2d(2, 3, 3)}, {"eye": nn.Conv2d(2, 3, 3)}

        def loss(self, batch, rng, step):
            return LossOut((self.modules["net"](batch["x"]) - 1).square().mean(), {})

        def validate(self):
            return {}

    config = replace(CONFIG, channels_last=True)
    whole = Trainer(config, Conv(), Pictures(), tmp_path / "whole", "cpu")
    whole.run()
    Trainer(replace(config, max_minutes=0.0), Conv(), Pictures(), tmp_path / "parts", "cpu").run()
    parts = Trainer(config, Conv(), Pictures(), tmp_path / "parts", "cpu")
    parts.run(resume=True)
    assert torch.equal(weights(whole), weights(parts))
    for weight in (only(parts).named["net.weight"], parts.objective.frozen["eye"].weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_on_the_cpu_attends_in_float32(tmp_path):
    seen = []

    class Attends(Fit):
        def loss(self, batch, rng, step):
            hidden = self.modules["net"][0](torch.from_numpy(batch["x"]))[None, None]
            mixed = nn.functional.scaled_dot_product_attention(hidden, hidden, value=hidden)
            with torch.autocast("cpu", enabled=False):
                plain = nn.functional.scaled_dot_product_attention(*[hidden.float()] * 3)
            seen.append((hidden.dtype, mixed.dtype, torch.equal(mixed, plain)))
            return LossOut((self.modules["net"][1:](mixed) - torch.from_numpy(batch["y"])).square().mean(), {})

    Trainer(replace(CONFIG, precision="bf16", optimizer="muon"), Attends(), Pairs(), tmp_path, "cpu").run()
    assert set(seen) == {(torch.bfloat16, torch.float32, True)}


def test_every_epoch_visits_everything_once():
    order = SampleOrder(7, seed=3)
    stream = np.concatenate([order.take(p, 5) for p in range(0, 35, 5)])
    for epoch in range(5):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert list(SampleOrder(7, seed=3).take(11, 9)) == list(stream[11:20])
    assert list(SampleOrder(7, seed=4).take(0, 7)) != list(stream[:7])
    with pytest.raises(InputError, match="empty"):
        SampleOrder(0, seed=0)


def test_seeds_differ_between_neighbours_and_items_are_collated():
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400
    got = fetch([{"x": 1.0}, {"x": 2.0}], np.array([1, 0]), np.random.default_rng(0))
    assert got["x"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"ema": 1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainerConfig(**wrong)
