"""Processes that a launcher started share a list: what they make is what one process makes, and one record says so."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from unproject.bench import queue
from unproject.cli import bench, jobs, main
from unproject.utils import shares
from unproject.utils.pictures import load_image
from unproject.utils.progress import Progress
from unproject.utils.shares import Share, alone, rank_records, share

Run = Callable[..., tuple[int, str, str]]
DRAW = ("text-to-image", "--prompts", "list.txt", "--steps", "2", "--size", "32", "--device", "cpu")
COMPUTES_S = 100  # of a processor, about eight times as long as a process needs; a busy machine changes nothing
PROMPTS = ("a red chair", "a blue mug", "a green car")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def be(rank: int, count: int, local: int = 0) -> None:
        for name, value in zip(shares.LAUNCHED, (rank, count, local), strict=True):
            monkeypatch.setenv(name, str(value))

    return be


def test_everything_falls_to_one_process_and_nothing_to_two(launched: Callable[..., None]) -> None:
    assert share() == Share() and share().own([1, 2, 3]) == [1, 2, 3] and share().gathered({"a": 1}) == [{"a": 1}]
    found = []
    for rank in range(3):
        launched(rank, 3, rank % 2)
        assert share() == Share(rank, 3, rank % 2)
        found += share().own(list(range(8)))
    assert sorted(found) == list(range(8)) and found != list(range(8))
    launched(0, 1)
    assert share() == Share()


def test_the_first_process_speaks_for_all(launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNPROJECT_QUIET", raising=False)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    for rank in (1, 0):
        launched(rank, 2)
        with Progress(2, f"process {rank}") as bar:
            bar.advance(2)
    assert "process 0: 2/2" in said.getvalue() and "process 1" not in said.getvalue()


def test_others_keep_records_of_their_own() -> None:
    record = Path("out/depth.run.json")
    assert Share(0, 2).beside(record) == record
    assert Share(1, 2).beside(record) == Path("out/depth.rank1.run.json")
    assert rank_records(record).name == "depth.rank*.run.json"


def test_what_a_process_starts_shares_with_nobody(
    launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in alone()
    launched(3, 4, 1)
    assert not set(shares.LAUNCHED) & alone().keys() and alone()["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert alone()["CUDA_VISIBLE_DEVICES"] == "6"


def _process(rank: int, port: int, folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (COMPUTES_S, COMPUTES_S))
    os.chdir(folder)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # as torchrun: the parent is where they meet
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = main([*DRAW, "--out", "two"])
    Path(f"told{rank}.json").write_text(json.dumps([code, told.getvalue()]))
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(1200)  # only for processes that wait for each other for ever; see COMPUTES_S
def test_two_processes_draw_what_one_draws(run: Run, in_tmp: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("\n".join(PROMPTS))
    monkeypatch.syspath_prepend(str(root))
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    start_processes(_process, (meeting.port, str(in_tmp)), nprocs=2, start_method="spawn")
    assert run(*DRAW, "--out", "one")[0] == 0
    one, two = (sorted(path.name for path in Path(folder).iterdir()) for folder in ("one", "two"))
    assert one == two and len(one) == 4
    for name in one:
        if name.endswith(".png"):
            assert (load_image(f"one/{name}") == load_image(f"two/{name}")).all()
    whole, shared = (json.loads(Path(f"{folder}/text-to-image.run.json").read_text()) for folder in ("one", "two"))
    assert sorted(shared["notes"]["sources"].values()) == sorted(whole["notes"]["sources"].values()) == sorted(PROMPTS)
    assert shared["nfe"] == whole["nfe"] and len(shared["outputs"]) == 3
    assert [part["nfe"]["denoiser"] for part in shared["notes"]["processes"]] == [8, 4]
    (code, told), (other, silent) = (json.loads(Path(f"told{rank}.json").read_text()) for rank in (0, 1))
    assert code == other == 0 and told.count(".png") == 3 and not silent


def test_what_others_left_is_known_to_the_next_run(
    run: Run, in_tmp: Path, launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, each process leaves the record of its own part; one process goes on from all of them."""
    Path("list.txt").write_text("\n".join(PROMPTS))
    monkeypatch.setattr(Share, "gathered", lambda self, facts: [dict(facts)])
    monkeypatch.setattr(jobs, "_together", lambda mine, found, record, failed, made: (failed, made))
    launched(1, 2)
    code, out, _ = run(*DRAW, "--out", "out")
    assert code == 0 and not out
    assert sorted(path.suffix for path in Path("out").iterdir()) == [".json", ".png"]
    assert Path("out/text-to-image.rank1.run.json").is_file()
    monkeypatch.undo()
    os.chdir(in_tmp)
    code, _, error = run(*DRAW, "--guidance", "3", "--out", "out")
    assert code == 2 and "a-blue-mug-seed0.png was made with --guidance None" in error
    code, out, _ = run(*DRAW, "--out", "out")
    assert code == 0 and "skipped: a blue mug (already there" in out
    sources = json.loads(Path("out/text-to-image.run.json").read_text())["notes"]["sources"]
    assert sorted(sources.values()) == sorted(PROMPTS)
    assert not list(Path("out").glob("*.rank*")) and len(list(Path("out").glob("*.png"))) == 3


def test_experiments_are_shared_too(
    run: Run, in_tmp: Path, launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def measured(commands: Mapping[str, list[str]], *_: Any) -> dict[str, int]:
        started.extend(" ".join(words[3:5] + words[-1:]) for words in commands.values())
        for name in commands:
            Path("out").mkdir(exist_ok=True)
            table = [{"method": "a", "value": 1.0}, {"method": name, "value": 2.0}]
            Path(f"out/{name}.json").write_text(json.dumps({"title": name, "table": table}))
        return dict.fromkeys(commands, 0)

    monkeypatch.setattr(queue, "run_queue", measured)
    launched(0, 2)
    other = {"codes": {"edict": 1}, "outputs": [], "nfe": {}, "warnings": [], "seconds": 2.0}
    monkeypatch.setattr(Share, "gathered", lambda self, facts: [dict(facts), other])
    code, out, _ = run("bench", "regions", "edict", "--quick", "-o", "out")
    assert started == ["bench regions --quick"], "the second falls to the other process"
    assert code == 1 and "1 of 2 measured in out" in out and "failed: edict" in out
    assert bench.share().count == 2
