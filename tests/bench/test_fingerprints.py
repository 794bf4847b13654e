"""What results rest on: digests that see what matters and nothing else, stale results, and the check of the pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unproject.bench import fingerprints as marks
from unproject.bench.experiment import Experiment
from unproject.bench.fingerprints import ROOT, Sources, fingerprints, parsed, weights_digest
from unproject.bench.registry import EXPERIMENTS
from unproject.bench.stale import State, compared, stale, state_of
from unproject.scripts import make_docs
from unproject.utils.files import read_json, write_json, write_text

CODE = '''"""What it does."""
import math

class Size:
    """Its size."""
    side: int = 3
    """pixels"""

def area(size):
    return size.side ** 2  # square
'''


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("# square", "# of a square", True),
        ('"""pixels"""', '"""in pixels"""', True),
        ('"""What it does."""', "", True),
        ("size.side ** 2", "(\n        size.side**2\n    )", True),
        ("size.side ** 2", "size.side ** 3", False),
        ("int = 3", "int = 4", False),
        ("int = 3", "int = True", False),
        ("size.side ** 2", "size.side * 2", False),
        ("return size.side ** 2", "return -size.side ** 2", False),
        ("area(size)", "area(size=None)", False),
    ],
)
def test_the_digest_of_code_sees_what_it_does_and_not_how_it_reads(before: str, after: str, same: bool) -> None:
    assert before in CODE
    assert (parsed(CODE.replace(before, after)).digest == parsed(CODE).digest) is same


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with one experiment."""
    files = {
        "bench/new.py": "from ..core import solve\nfrom ..core.grids import grid\nfrom .helpers import mean\n"
        "from .runner import Context\nfrom ..utils.files import write_json\n",
        "bench/helpers.py": "from ..core.norms import norm\ndef mean(x): return norm(x)\n",
        "bench/runner.py": "class Context: ...\n",
        "core/__init__.py": "from .solvers import solve\n",
        "core/solvers.py": "from .inner import step\ndef solve(x): return step(x)\n",
        "core/inner.py": "def step(x): return x\n",
        "core/grids.py": "def grid(n): return range(n)\n",
        "core/norms.py": "norm = abs\n",
        "core/other.py": "def other(): ...\n",
        "utils/files.py": "def write_json(): ...\n",
    }
    for name, text in files.items():
        write_text(tmp_path / name, text)
    return tmp_path


def test_an_experiment_rests_on_what_it_names_and_on_what_it_declares(package: Path) -> None:
    made = Experiment("", "new", ("", None))
    found = Sources(package).code_of(made)
    named = {"bench/new.py", "bench/helpers.py", "core/solvers.py", "core/grids.py", "core/norms.py"}
    assert set(found) == named
    declared = Sources(package).code_of(Experiment("", "new", ("", None), method=("core/inner.py",)))
    assert set(declared) == named | {"core/inner.py"}
    assert set(Sources(package).code_of(Experiment("", "new", ("", None), method=("core",)))) >= {"core/other.py"}
    write_text(package / "core" / "norms.py", "norm = float\n")
    again = Sources(package).code_of(made)
    assert [path for path in found if found[path] != again[path]] == ["core/norms.py"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with one prior."""
    folder = tmp_path / "weights"
    write_json(folder / "toybox" / "unet" / "config.json", {"channels": [1, 2], "versions": {"torch": "1"}})
    save_file({"w": torch.arange(4.0)}, folder / "toybox" / "unet" / "model.safetensors")
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(folder))
    return folder


def test_the_digest_of_weights_sees_every_value(weights: Path) -> None:
    before = weights_digest("toybox")
    assert weights_digest(str(weights / "toybox")) == before and weights_digest("nothing") is None
    config = weights / "toybox" / "unet" / "config.json"
    write_text(config, '{"versions": {"torch": "2"},\n"channels": [1,2]}')
    assert weights_digest("toybox") == before
    write_json(config, {"channels": [2, 1]})
    other = weights_digest("toybox")
    assert other != before
    save_file({"w": torch.tensor([0.0, 1.0, 2.0, 4.0])}, weights / "toybox" / "unet" / "model.safetensors")
    assert weights_digest("toybox") not in (other, before)


NOW = {"weights": {"toybox": "a", "judge": "b"}, "code": {"x.py": "1", "y.py": "2"}}


@pytest.mark.parametrize(
    ("measured", "reasons"),
    [
        (NOW, []),
        ({**NOW, "code": {"x.py": "1", "z.py": "2"}}, ["code changed: y.py, z.py"]),
        ({**NOW, "code": dict.fromkeys("abcdef", "1")}, ["code changed: a, b, c, d and 4 more"]),
        ({**NOW, "code": None}, ["code changed: unknown"]),
        ({**NOW, "weights": {"toybox": "c", "judge": "b"}}, ["weights of toybox changed"]),
        ({**NOW, "weights": {"toybox": "a"}}, ["weights of judge unknown"]),
        ({**NOW, "weights": {"toybox": "a", "judge": None}}, ["weights of judge unknown"]),
        ({}, ["weights of toybox unknown", "weights of judge unknown", "code changed: unknown"]),
    ],
)
def test_what_is_not_known_counts_as_changed(measured: dict[str, Any], reasons: list[str]) -> None:
    assert compared(measured, NOW).reasons == reasons


def test_weights_that_are_not_there_cannot_be_those_of_a_result() -> None:
    gone = {"weights": {"toybox": None}, "code": {}}
    assert compared(gone, gone).weights == ("weights of toybox unknown",)


def test_results_are_stale_until_they_are_measured_again(tmp_path: Path) -> None:
    assert state_of("regions", tmp_path) == State(missing=("never measured",))
    write_json(tmp_path / "judge.json", {"prior": "toybox", "quick": False, "rests_on": fingerprints("judge")})
    assert state_of("judge", tmp_path) == State()  # it draws nothing, whatever prior its record names
    record = {"prior": "toybox-dit", "quick": False, "rests_on": fingerprints("regions")}
    write_json(tmp_path / "regions.json", record)
    assert state_of("regions", tmp_path) == State()
    assert list(stale(["regions", "focus"], tmp_path)) == ["focus"]
    assert state_of("regions", tmp_path, "folder").missing == ("measured on toybox-dit",)
    write_json(tmp_path / "regions.json", {**record, "quick": True})
    assert state_of("regions", tmp_path).missing == ("a quick run",)


def test_a_result_of_a_script_rests_on_the_files_it_names(tmp_path: Path) -> None:
    now = Sources().digests(["scripts/splat_fields.py", "geometry/splats/spz.py"])
    write_json(tmp_path / "made.json", {"rests_on": {"weights": {}, "code": now}})
    assert len(now) == 2 and state_of("made", tmp_path) == State()
    gone = {**now, "geometry/splats/spz.py": "0", "scripts/gone.py": "1"}
    write_json(tmp_path / "made.json", {"rests_on": {"weights": {}, "code": gone}})
    assert state_of("made", tmp_path).code == ("geometry/splats/spz.py", "scripts/gone.py")
    assert state_of("other", tmp_path).missing == ("never measured",)
    write_json(tmp_path / "other.json", {"script": "generations"})  # rests on other results
    assert state_of("other", tmp_path) == State()


def test_every_experiment_declares_what_is_there() -> None:
    sources = Sources()
    for name, made in EXPERIMENTS.items():
        assert all((ROOT / path).exists() for path in made.method), name
        code = sources.code_of(made)
        assert f"bench/{made.module}.py" in code and not any(path.startswith("utils/") for path in code)
        texts = [(ROOT / path).read_text() for path in code if path.startswith("bench/")]
        judged = any("Judge.from_pretrained" in text for text in texts)
        assert made.weights is None or ("judge" in made.weights) == judged, name


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A checkout whose one page shows the table of `regions`, resting on what is given."""

    def make(**rests_on: Any) -> Path:
        record = {"prior": "toybox-dit", "quick": False, "table": [{"setting": "plain", "steps": 3}]}
        write_json(tmp_path / "docs" / "results" / "regions.json", {**record, "rests_on": rests_on})
        write_text(tmp_path / "README.md", "<!-- table:regions -->\n<!-- /table -->\n")
        monkeypatch.setattr(make_docs, "ROOT", tmp_path)
        assert make_docs.main([]) == 0
        return tmp_path

    return make


def test_pages_say_what_was_measured_with_other_weights_and_tell_of_other_code(
    pages: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    now = fingerprints("regions")
    pages(**now)
    assert make_docs.main(["--check"]) == 0 and "regions" not in capsys.readouterr().out
    pages(weights=now["weights"], code={**now["code"], "bench/regions.py": "0"})
    assert make_docs.main(["--check"]) == 0
    assert "regions: code changed: bench/regions.py" in capsys.readouterr().out
    folder = pages(weights={**now["weights"], "judge": "0"}, code=now["code"])
    assert make_docs.main(["--check"]) == 0
    assert "regions: weights of judge changed" in capsys.readouterr().out
    page = folder / "README.md"
    assert page.read_text().count(make_docs.FORMER) == 1
    write_text(page, page.read_text().replace(make_docs.FORMER, ""))
    assert make_docs.main(["--check"]) == 1
    assert make_docs.FORMER not in (pages(**now) / "README.md").read_text()
    folder = pages(**now)
    write_text(folder / "README.md", "<!-- table:regions -->\n| 4 |\n<!-- /table -->\n")
    assert make_docs.main(["--check"]) == 1


def test_the_pages_of_this_checkout_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_docs.main(["--check"]) == 0, capsys.readouterr().out


def test_every_published_result_names_what_it_rests_on() -> None:
    for path in (ROOT / "docs" / "results").glob("*.json"):
        record = read_json(path)
        if path.stem not in EXPERIMENTS:
            assert (ROOT / "scripts" / f"{record['script']}.py").is_file(), path
            continue
        assert set(record["rests_on"]) == {"weights", "code"}, path
        assert set(record["rests_on"]["weights"]) == set(EXPERIMENTS[path.stem].rests_on(record["prior"])), path
    assert marks.FRAME and np.all([(ROOT / "bench" / f"{name}.py").is_file() for name in marks.FRAME])
