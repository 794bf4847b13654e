"""Names that are loaded when they are first used."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from unproject.utils.lazy import loader


def test_a_name_comes_from_its_home_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("made_up")
    monkeypatch.setitem(sys.modules, "made_up", package)
    monkeypatch.setitem(sys.modules, "made_up.home", home := ModuleType("made_up.home"))
    package.__path__ = []
    home.thing = [1]
    load = loader("made_up", {"thing": ".home", "gone": ".home"})
    assert load("thing") is home.thing and package.thing is home.thing
    with pytest.raises(AttributeError, match="module 'made_up' has no attribute 'other'"):
        load("other")
    with pytest.raises(AttributeError):
        load("gone")
