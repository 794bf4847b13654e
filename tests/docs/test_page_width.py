"""Pages on files and commands are wrapped: lines of prose have the width of code."""

from __future__ import annotations

from pathlib import Path

import pytest

WIDEST = 125  # of a line that ends in a long name


@pytest.mark.parametrize("page", ["docs/files.md", "docs/commands.md"])
def test_lines_have_the_width_of_the_others(page: str, root: Path) -> None:
    """Rows of tables cannot be wrapped."""
    lines = (root / page).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > WIDEST and not line.startswith("|")] == []
