"""Pages are wrapped: lines of prose have the width of code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

WIDEST = 120
ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))


def prose(text: str) -> Iterator[str]:
    """Lines that can be wrapped: no code, no rows of tables or the comments that make them, no single long word."""
    code = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.startswith(("|", "<!--")) and " " in line.strip():
            yield line


@pytest.mark.parametrize("page", PAGES)
def test_lines_have_the_width_of_the_others(page: str) -> None:
    lines = prose((ROOT / page).read_text(encoding="utf-8"))
    assert [line for line in lines if len(line) > WIDEST] == []


def test_only_prose_is_measured() -> None:
    table = "| a b |\n<!-- table:a b -->\n"
    page = f"one two\n```bash\ncode of\n```\n{table}https://example.org/x\n  - an item\n```\nx y\n```"
    assert list(prose(page)) == ["one two", "  - an item"]
    assert len(PAGES) > 30 and {"docs/methods/marigold.md", "README.md", "CONTRIBUTING.md"} <= set(PAGES)
