"""What libraries say in a process that uses the package: some idle notes less, and nothing else."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from unproject.utils.library_notes import IDLE, Without, drop_idle_notes

SAID = {
    "transformers.utils.import_utils": ("`CLIPImageProcessor` {}; falling back", "`bitsandbytes` requires accelerate"),
    "diffusers.models.modeling_utils": (
        "There are modules in X {}. Casting directly",
        "There are modules in X that should be kept in float32: ['norm']. Casting directly",
    ),
}


@pytest.mark.parametrize("where", list(IDLE))
def test_a_note_of_a_library_is_left_out_and_no_other(where: str, caplog: pytest.LogCaptureFixture) -> None:
    heard, (idle, telling) = logging.getLogger(where), SAID[where]
    heard.addHandler(caplog.handler)  # its library may keep it from the root's handlers
    try:
        heard.warning(idle.format(IDLE[where]))
        heard.warning(telling)
        logging.getLogger("somebody").warning("this %s", IDLE[where])
    finally:
        heard.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {telling, f"this {IDLE[where]}"}


def test_asking_twice_filters_once() -> None:
    drop_idle_notes()
    for where in IDLE:
        assert sum(isinstance(one, Without) for one in logging.getLogger(where).filters) == 1


def test_transformers_still_says_it_in_these_words_there() -> None:
    where = "transformers.utils.import_utils"
    package = importlib.util.find_spec("transformers")
    assert package is not None and package.submodule_search_locations
    source = Path(package.submodule_search_locations[0], *where.split(".")[1:]).with_suffix(".py").read_text()
    assert f"` {IDLE[where]}" in source and "logger = logging.get_logger(__name__)" in source


def test_diffusers_still_says_it_of_a_network_without_such_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = logging.getLogger("diffusers.models.modeling_utils")
    records: list[str] = []
    monkeypatch.setattr(heard, "filters", [lambda record: bool(records.append(record.getMessage()))])
    monkeypatch.setattr(heard, "level", logging.WARNING)
    monkeypatch.setattr(heard, "_cache", {})
    AutoencoderKL(block_out_channels=(32,)).to(dtype=torch.float64)
    assert any(IDLE[heard.name] in words for words in records), records
