"""Several players under the trainer: a student and its discriminator, alternating, resumed, on two processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing import start_processes

from unproject.core.training.checkpoints import latest_checkpoint
from unproject.core.training.config import TrainerConfig
from unproject.core.training.loss import LossOut
from unproject.core.training.objectives.base import Objective, Playing, fixed_init
from unproject.core.training.players import Moves, Player, Regrown
from unproject.core.training.trainer import Trainer
from unproject.utils.errors import InputError

CONFIG = TrainerConfig(steps=5, batch=4, lr=0.05, warmup=1, save_every=2, log_every=1, ema=0.5)


TWICE = Moves(times=2, after="student")


@dataclass(frozen=True)
class Settings:
    noise: float = 0.1


class Numbers:
    """Points of a line that the student has to find."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([float(i) / 6 - 1, 1.0])}


class Duel(Objective):
    """The discriminator tells 2 x from the student's answers; the student pleases it."""

    def __init__(self, noise: float = 0.1, critic: Moves = TWICE) -> None:
        self.config, self.critic, self.seen = Settings(noise), critic, []
        with fixed_init(0):
            self.modules = {"student": nn.Linear(2, 1), "critic": nn.Linear(3, 1)}
        self.frozen = {}

    def players(self, config):
        adam = partial(torch.optim.AdamW, lr=config.lr, fused=True)
        student = {"student": self.modules["student"]}
        critic = {"critic": self.modules["critic"]}
        return [
            Player("student", student, adam, ema=config.ema, clip=config.clip),
            Player("critic", critic, partial(torch.optim.SGD, lr=0.1), rate=lambda step: 1.0, moves=self.critic),
        ]

    def losses(self):
        return {"student": self.loss, "critic": self.loss_critic}

    def answer(self, batch, rng) -> tuple[Tensor, Tensor]:
        x = batch["x"]
        return x, self.modules["student"](x + self.config.noise * torch.randn(x.shape, generator=rng))

    def loss(self, batch, rng, step):
        self.seen.append(("student", step, batch["x"][:, 0].tolist()))
        x, y = self.answer(batch, rng)
        judged = self.modules["critic"](torch.cat([x, y], 1))
        return LossOut(nn.functional.softplus(-judged).mean(), {"answer": y.detach().mean()})

    def loss_critic(self, batch, rng, step):
        self.seen.append(("critic", step, batch["x"][:, 0].tolist()))
        x, y = self.answer(batch, rng)
        real, false = (self.modules["critic"](torch.cat([x, v], 1)) for v in (2 * x[:, :1], y.detach()))
        return LossOut((nn.functional.softplus(-real) + nn.functional.softplus(false)).mean(), {})

    def validate(self):
        return {"bias": float(self.modules["student"].bias.detach().sum())}


def bits(trainer: Trainer) -> Tensor:
    tensors, _ = trainer.loop.state()
    return torch.cat([part[name].detach().flatten() for part in tensors.values() for name in sorted(part)])


def test_players_take_turns_on_their_samples(tmp_path):
    objective = Duel()
    trainer = Trainer(CONFIG, objective, Numbers(), tmp_path, "cpu")
    assert isinstance(objective, Playing)
    trainer.run()
    assert [(who, step) for who, step, _ in objective.seen[:6]] == [
        (who, step) for step in (0, 1) for who in ("student", "critic", "critic")
    ]
    drawn = [x for _, _, x in objective.seen]
    assert drawn[0] == drawn[1] != drawn[2]  # the same samples, then the next ones
    assert sorted(drawn[1] + drawn[2] + drawn[4]) == sorted(
        x.tolist()[0] for i in range(12) for x in Numbers()[i].values()
    )
    student, critic = trainer.loop.players.values()
    assert (student.updates, critic.updates) == (5, 10) and critic.ema is None
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "student/lr" in row]
    assert [row["student/lr"] for row in logged[:2]] == [0.0, 0.05] and {row["critic/lr"] for row in logged} == {0.1}
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["players"]["critic"]["moves"]["times"] == 2 and recipe["players"]["student"]["optimizer"] == "AdamW"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_several_players_resume_to_the_bit(tmp_path, accumulate):
    config = replace(CONFIG, accumulate=accumulate)
    whole = Trainer(config, Duel(), Numbers(), tmp_path / "whole", "cpu")
    whole.run()
    Trainer(replace(config, max_minutes=0.0), Duel(), Numbers(), tmp_path / "parts", "cpu").run()
    assert latest_checkpoint(tmp_path / "parts").name == "ckpt-1"
    parts = Trainer(config, Duel(), Numbers(), tmp_path / "parts", "cpu")
    parts.run(resume=True)
    assert torch.equal(bits(whole), bits(parts))
    assert whole.loop.state()[1] == parts.loop.state()[1]


def test_other_rules_do_not_resume(tmp_path):
    Trainer(CONFIG, Duel(), Numbers(), tmp_path, "cpu").run()
    other = Trainer(replace(CONFIG, steps=7), Duel(critic=Moves(after="student")), Numbers(), tmp_path, "cpu")
    with pytest.raises(InputError, match=r"players\.critic\.moves\.times"):
        other.run(resume=True)


def test_a_player_of_foreign_names_is_refused(tmp_path):
    class Wrong(Duel):
        def players(self, config):
            return [replaced(p, self.modules[p.name]) for p in super().players(config)]

    def replaced(player: Player, module: nn.Module) -> Player:
        return Player(player.name, module if player.name == "student" else {"critic": module}, torch.optim.AdamW)

    with pytest.raises(ValueError, match="player 'student' must be given its modules by their names"):
        Trainer(CONFIG, Wrong(), Numbers(), tmp_path, "cpu")


class Crowd(Objective):
    """Rows that follow the data; after step 1 the first is copied and the last goes."""

    def __init__(self) -> None:
        self.config, self.frozen, self.modules = Settings(), {}, {"crowd": nn.ParameterDict()}
        self.modules["crowd"]["rows"] = nn.Parameter(torch.arange(8.0).reshape(4, 2))

    def players(self, config):
        adam = partial(torch.optim.AdamW, lr=config.lr)
        return [Player("crowd", self.groups, adam, ema=config.ema, grows=True, after_step=self.after_step)]

    def groups(self):
        return [{"params": {"crowd.rows": self.modules["crowd"]["rows"]}}]

    def losses(self):
        return {"crowd": self.loss}

    def loss(self, batch, rng, step):
        return LossOut((self.modules["crowd"]["rows"] - batch["x"].mean(0)).square().sum(), {})

    def after_step(self, turn):
        if turn.step != 1:
            return None
        change = Regrown(torch.tensor([0, 1, 2]), torch.tensor([0, 0]))
        rows = self.modules["crowd"]["rows"].detach()[[0, 1, 2, 0, 0]]
        self.modules["crowd"]["rows"] = nn.Parameter(rows.clone())
        return change


def test_parameters_grow_under_the_trainer_and_resume_to_the_bit(tmp_path):
    config = replace(CONFIG, save_every=3)
    whole = Trainer(config, Crowd(), Numbers(), tmp_path / "whole", "cpu")
    whole.run()
    assert whole.loop.parameters()["crowd.rows"].shape == (5, 2)
    shutil.copytree(tmp_path / "whole" / "ckpt-3", tmp_path / "parts" / "ckpt-3")
    parts = Trainer(config, Crowd(), Numbers(), tmp_path / "parts", "cpu")
    parts.run(resume=True)
    assert torch.equal(bits(whole), bits(parts))


def _process(rank: int, port: int, out: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    config = replace(CONFIG, batch=2, accumulate=2)
    trainer = Trainer(config, Duel(noise=0.0), Numbers(), Path(out) / "run", "cpu")
    assert trainer.engine.ranks == 2
    trainer.run()
    save_file({"bits": bits(trainer)}, f"{out}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_same_samples(tmp_path, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root))  # where the processes find this file
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_process, (port, str(tmp_path)), nprocs=2, start_method="spawn")  # a fork has what others pretend
    alone = Trainer(replace(CONFIG, batch=8), Duel(noise=0.0), Numbers(), tmp_path / "alone", "cpu")
    alone.run()
    first, second = (load_file(tmp_path / f"{rank}.safetensors")["bits"] for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, bits(alone), rtol=1e-5, atol=1e-6)
