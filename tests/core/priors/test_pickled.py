"""Pickled checkpoints: tensors by name out of whole modules too, and nothing that a file asks to run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unproject.core.priors.pickled import as_safetensors, tensors_of
from unproject.utils.errors import InputError


class Command:
    """Unpickled plainly, it would run."""

    def __reduce__(self):
        return (os.system, ("touch ran",))


def layers() -> torch.nn.Module:
    inner = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    return torch.nn.Sequential(inner, torch.nn.Linear(3, 4, bias=False))


def test_a_whole_module_gives_what_its_state_dict_would(tmp_path: Path) -> None:
    module = layers()
    torch.save(module, tmp_path / "whole.pth")
    found, wanted = tensors_of(tmp_path / "whole.pth", layers=True), module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    with pytest.raises(InputError, match="without running code"):
        tensors_of(tmp_path / "whole.pth")


def test_state_dicts_are_found_at_the_top_and_inside(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "inside.ckpt")
    torch.save({"epoch": 3, **state}, tmp_path / "top.pt")
    save_file(state, tmp_path / "plain.safetensors")
    for name in ("inside.ckpt", "top.pt", "plain.safetensors"):
        found = tensors_of(tmp_path / name)
        assert found.keys() == {"a.weight"} and torch.equal(found["a.weight"], state["a.weight"])
    torch.save({"state_dict": {**state, "b": "words"}}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match="b is no tensor"):
        tensors_of(tmp_path / "odd.ckpt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(InputError, match="no tensors by name"):
        tensors_of(tmp_path / "none.pt")


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_file_asks_to_run_is_named_and_not_run(tmp_path: Path, monkeypatch, whole: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Command()}, "evil.ckpt")
    with pytest.raises(InputError, match="posix.system" if whole else "without running code"):
        tensors_of("evil.ckpt", whole)
    assert not (tmp_path / "ran").exists()


def test_a_copy_is_kept_once_and_made_again_of_another_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_CACHE", str(tmp_path / "cache"))
    path, asked = tmp_path / "some.pth", []

    def keep(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        asked.append(set(state))
        return {"kept": state["a"]}

    torch.save({"a": torch.ones(2), "b": torch.zeros(2)}, path)
    made = as_safetensors(path, "tests", keep)
    assert made == as_safetensors(path, "tests", keep) and asked == [{"a", "b"}]
    assert torch.equal(load_file(made)["kept"], torch.ones(2))
    torch.save({"a": torch.ones(3), "b": torch.zeros(2), "c": torch.zeros(9)}, path)
    assert as_safetensors(path, "tests", keep) != made and len(asked) == 2
    with pytest.raises(InputError, match="does not exist"):
        tensors_of(tmp_path / "absent.pth")
