"""What libraries say while a script imports them: one note less, and nothing else."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

import unproject.scripts  # noqa: F401 (it is what is looked at)

WHERE = "transformers.utils.import_utils"
NOTE = "requires torchvision (not installed)"


def test_scripts_leave_out_one_note_of_one_library(caplog: pytest.LogCaptureFixture) -> None:
    heard = logging.getLogger(WHERE)
    heard.addHandler(caplog.handler)  # its library may keep it from the root's handlers
    try:
        heard.warning("`CLIPImageProcessor` %s; falling back to `CLIPImageProcessorPil`", NOTE)
        heard.warning("`bitsandbytes` requires accelerate")
        logging.getLogger("somebody").warning("this %s", NOTE)
    finally:
        heard.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"`bitsandbytes` requires accelerate", f"this {NOTE}"}


def test_the_library_still_says_it_in_these_words_there() -> None:
    package = importlib.util.find_spec("transformers")
    assert package is not None and package.submodule_search_locations
    source = Path(package.submodule_search_locations[0], *WHERE.split(".")[1:]).with_suffix(".py").read_text()
    assert f"` {NOTE}" in source and "logger = logging.get_logger(__name__)" in source
