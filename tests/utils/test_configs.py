from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unproject.utils.configs import config_path, load_config, to_dict, to_yaml
from unproject.utils.errors import InputError


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    sizes: tuple[int, ...] = (64, 128)
    mode: Literal["fast", "exact"] = "fast"


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 100
    inner: Inner = field(default_factory=Inner)
    span: tuple[float, float] = (0.02, 0.98)
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    stages: tuple[Inner, ...] = ()
    on: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")


def test_reads_nested_values_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: x\ninner: {rate: 1e-4, sizes: [8, 16]}\nfolder: out\nweights: {a: 1}\nstages: [{mode: exact}]\n"
    )
    config = load_config(Outer, file)
    assert config == Outer(
        "x", inner=Inner(1e-4, (8, 16)), folder=Path("out"), weights={"a": 1.0}, stages=(Inner(mode="exact"),)
    )
    assert isinstance(config.weights["a"], float)


def test_overrides_win_and_may_be_dotted() -> None:
    config = load_config(
        Outer, {"name": "x", "inner": {"rate": 0.5}}, steps=3, **{"inner.sizes": [1], "inner.mode": "exact"}
    )
    assert (config.steps, config.inner) == (3, Inner(0.5, (1,), "exact"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "stepz": 1}, "unknown key 'stepz' .*did you mean 'steps'"),
        ({"name": "x", "inner": {"rat": 1}}, "unknown key 'inner.rat' .*did you mean 'rate'"),
        ({"name": "x", "qqqqq": 1}, "valid keys: name, steps"),
        ({}, "key 'name' is missing"),
        ({"name": 3}, "'name' .* is 3 .int., expected str"),
        ({"name": "x", "steps": 1.5}, "'steps' .* expected int"),
        ({"name": "x", "steps": True}, "'steps' .* expected int"),
        ({"name": "x", "on": 1}, "'on' .* expected bool"),
        ({"name": "x", "inner": 3}, "'inner' .* expected keys and values"),
        ({"name": "x", "inner": {"rate": "soon"}}, "'inner.rate' .* expected float"),
        ({"name": "x", "inner": {"sizes": "ab"}}, "'inner.sizes' .* expected a list"),
        ({"name": "x", "inner": {"sizes": [1, "b"]}}, r"'inner.sizes\[1\]' .* expected int"),
        ({"name": "x", "inner": {"mode": "slow"}}, "choose one of 'fast', 'exact'"),
        ({"name": "x", "span": [1.0]}, "'span' .* has 1 entries, expected 2"),
        ({"name": "x", "folder": 3}, "'folder' .* expected Path"),
        ({"name": "x", "weights": {"a": "b"}}, "'weights.a' .* expected float"),
        ({"name": "x", "steps": 0}, "steps must be positive, got 0"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(Outer, values)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_config(Outer, tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML"):
        load_config(Outer, broken)
    broken.write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="must hold keys and values, not a list"):
        load_config(Outer, str(broken))
    with pytest.raises(InputError, match="cannot be read"):
        load_config(Outer, tmp_path)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(Outer, broken)


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(Outer, file)


def test_unknown_packaged_config_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"no packaged config 'method'; have .*methods.*did you mean 'methods'"):
        config_path("method")
    with pytest.raises(InputError) as told:
        config_path("rules/nfsdd")
    assert str(told.value).endswith("(did you mean 'rules/nfsd'?)") and "train/" not in str(told.value)
    for name in ("rules/zzzzzz", "nowhere/methods", "../README"):
        with pytest.raises(InputError, match=r"have .*methods|have rules/asd"):
            config_path(name)
    assert config_path("methods").name == "methods.yaml"
    with pytest.raises(InputError, match="did you mean 'rules/asd'") as refused:
        config_path("rules/asdf")
    assert "rules/vsd" in str(refused.value) and "train/" not in str(refused.value)
    with pytest.raises(InputError, match=r"have .*rules/vsd"):
        config_path("/elsewhere/asd")


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Outer,
        name=st.text(max_size=20),
        steps=st.integers(1, 10**9),
        inner=st.builds(Inner, rate=st.floats(allow_nan=False), sizes=st.lists(st.integers()).map(tuple)),
        span=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        folder=st.none() | st.just(Path("a/b")),
        weights=st.dictionaries(st.text(max_size=5), st.floats(-1, 1), max_size=3),
        on=st.booleans(),
    )
)
def test_round_trip_through_yaml(config: Outer) -> None:
    assert load_config(Outer, yaml.safe_load(to_yaml(config))) == config
    assert load_config(Outer, to_dict(config)) == config


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\n", "\r", "\t", "\ufeff", " "])
def test_line_breaks_of_any_kind_survive(mark: str) -> None:
    for text in (mark, f"a{mark}b", f"{mark} b"):
        config = Outer(text, weights={text: 0.5})
        assert load_config(Outer, yaml.safe_load(to_yaml(config))) == config


def test_other_scripts_stay_readable() -> None:
    assert "椅子 🪑" in to_yaml(Outer("椅子 🪑"))
