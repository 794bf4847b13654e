"""The shape of the repository: imports point one way, importing is quick, files are small, packages are declared."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IGNORED = {"tests", "build", "dist", "outputs", "runs", "data", "weights", "docs", "node_modules"}
CORE = ("core/priors", "core/sampling", "core/training", "core/distillation")
LAYERS = ("geometry", *CORE, "tasks", "generate", "pipelines")
EVERYTHING = (*LAYERS, "core", "toybox", "utils", "bench", "scripts", "cli", "app")
MAY_IMPORT = {
    "utils": (),
    "geometry": ("utils",),
    "toybox": ("geometry", "utils"),
    "core": ("geometry", "utils", *CORE),
    "core/priors": ("geometry", "utils"),
    "core/sampling": ("core/priors", "geometry", "utils"),
    "core/training": ("core/priors", "core/sampling", "geometry", "utils"),
    "core/distillation": ("core/priors", "core/sampling", "core/training", "geometry", "utils"),
    "tasks": ("core", *CORE, "geometry", "utils"),
    "generate": ("core", *CORE, "geometry", "utils"),
    "pipelines": ("tasks", "generate", "core", *CORE, "geometry", "utils"),
    "bench": EVERYTHING,
    "scripts": EVERYTHING,
    "cli": EVERYTHING,
    "app": EVERYTHING,
}
FORBIDDEN = {
    r"\btorch\.manual_seed\(": "seeds the world; pass a generator",
    r"\.cuda\(\)": "devices follow the data",
    r"\bimport pickle\b|\bpickle\.load": "pickles run code",
    r"\btorch\.load\((?!.*\bweights_only=True\))": "pickles run code; weights are safetensors",
    r"\bimport torchvision\b|\bfrom torchvision\b": "does not import beside the CPU build of torch",
    r"(?<![\w.])(eval|exec)\(": "runs text as code",
    r"\bNotImplementedError\b": "no stubs",
    r"\b(TODO|FIXME|XXX)\b": "no loose ends",
    r"allow_pickle=True": "pickles run code",
    r"""["'](/home|/root|/work|/tmp|/Users)/""": "no path of one machine",
    r"\bdefault_rng\(\)": "randomness without a seed",
    r"^except:|\s+except:": "names no error",
}


def sources() -> list[Path]:
    """Every Python file of the package, without tests and without what is made or hidden."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in IGNORED]
        found += [Path(folder) / f for f in files if f.endswith(".py") and not f.startswith(".")]
    return sorted(found)


def packages() -> list[str]:
    folders = {p.parent.relative_to(ROOT) for p in sources() if p.name == "__init__.py"}
    return sorted("unproject" + "".join(f".{part}" for part in folder.parts) for folder in folders)


def layer(module: tuple[str, ...]) -> str:
    """The layer of a module path inside the package: "geometry", "core/priors", ... or "" for the root."""
    if not module:
        return ""
    if module[0] == "core" and len(module) > 1 and "/".join(module[:2]) in MAY_IMPORT:
        return "/".join(module[:2])
    return module[0]


def imported_modules(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line, module path inside the package) of every import of our own code, wherever it stands in the file."""
    package = path.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
            names = [(*base, alias.name) for alias in node.names] if node.module is None else [base]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(node.lineno, ("unproject", *n.split(".")[1:])) for n in names if n.split(".")[0] == "unproject"]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = layer(path.relative_to(ROOT).with_suffix("").parts[:-1] or (path.stem,))
    if path.parent == ROOT:
        return
    for line, module in imported_modules(path):
        assert module[:1] != ("unproject",), f"{path}:{line}: imports inside the package are relative"
        target = layer(module)
        if target in ("", own) or (target == "__version__" and own == "cli"):
            continue
        assert target in MAY_IMPORT[own], f"{path}:{line}: {own} must not import {target}"


@pytest.mark.parametrize("room", ["utils", "geometry", "toybox", "tasks", "generate", "pipelines"])
def test_no_import_circles(room: str) -> None:
    """Not even by imports inside functions or for types: what two modules know of each other stands in a third."""
    paths = [p for p in sources() if p.name != "__init__.py" and p.is_relative_to(ROOT / room)]
    modules = {p.relative_to(ROOT).with_suffix("").parts: p for p in paths}
    imports = {name: {m for _, m in imported_modules(path) if m in modules} for name, path in modules.items()}
    left = dict(imports)
    while ends := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in ends:
            del left[name]
    assert not left, f"a circle among {sorted('/'.join(name) for name in left)}"


def test_every_folder_of_code_has_a_rule() -> None:
    top = {p.relative_to(ROOT).parts[0] for p in sources() if p.parent != ROOT}
    assert top <= set(MAY_IMPORT)


def test_declared_packages_are_the_folders() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[(.*?)\]", text, re.S | re.M)
    assert block is not None
    declared = re.findall(r'"([\w.]+)"', block[1])
    assert sorted(declared) == packages()
    assert declared == sorted(declared)


MODULES = {  # what a distribution is imported as, where its name does not say
    "dracopy": "DracoPy",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "manifold3d": "manifold3d",
    "open3d-cpu": "open3d",
    "openexr": "OpenEXR",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "types-pyyaml": "yaml",
    "usd-core": "pxr",
}
BESIDE = {"Imath"}  # modules that come with OpenEXR
TOOLS = {"pytest-timeout", "pytest-xdist", "ruff", "mypy", "types-pyyaml"}  # dev tools that no file imports


def requirements() -> tuple[set[str], dict[str, set[str]]]:
    """Distributions that pyproject asks for: those of the base, and those of each extra."""
    text = (ROOT / "pyproject.toml").read_text()
    base = re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M)
    extras = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.S | re.M)
    assert base is not None and extras is not None

    def names(block: str) -> set[str]:
        return {name.lower() for name in re.findall(r'"([A-Za-z0-9_-]+)', block)}

    found = re.findall(r"^([\w-]+) = \[(.*?)\]$", extras[1], re.S | re.M)
    return names(base[1]), {extra: names(block) for extra, block in found}


def foreign(paths: list[Path]) -> set[str]:
    """Packages of others that the files import, wherever the import stands."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"unproject", "_typeshed", ""} - BESIDE


def as_imported(distributions: set[str]) -> set[str]:
    return {MODULES.get(name, name.replace("-", "_")) for name in distributions}


def test_what_is_required_is_imported_and_what_is_imported_is_required() -> None:
    base, extras = requirements()
    optional = set().union(*(names for extra, names in extras.items() if extra != "dev"))
    assert as_imported(base) <= foreign(sources()) <= as_imported(base | optional)
    tests = foreign(sorted((ROOT / "tests").rglob("*.py")))
    for extra, names in extras.items():
        unused = as_imported(names - TOOLS) - foreign(sources()) - tests
        assert not unused, f"the extra {extra} promises {', '.join(sorted(unused))}, which nothing imports"
    assert tests <= as_imported(base | optional | extras["dev"])


def test_the_doctor_asks_for_what_is_required() -> None:
    from unproject.cli.info import PACKAGES

    assert set(PACKAGES) == as_imported(requirements()[0])


def test_every_folder_of_code_is_a_package() -> None:
    assert {p.parent for p in sources()} == {p.parent for p in sources() if p.name == "__init__.py"}


def test_version_is_stated_once() -> None:
    from unproject import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", [*sources(), *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: p.name)
def test_file_is_small_and_clean(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines; split it"
    if path.name == "test_layout.py":
        return
    for pattern, reason in FORBIDDEN.items():
        hit = re.search(pattern, text, re.M)
        assert hit is None, f"{path}:{text[: hit.start()].count(chr(10)) + 1}: {hit[0]!r}: {reason}" if hit else ""


def test_test_files_have_unique_names_and_no_packages() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    assert len({p.name for p in files}) == len(files)
    assert not list((ROOT / "tests").rglob("__init__.py"))


def _run(code: str) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import time; began = time.process_time(); import unproject; took = time.process_time() - began; "
        "print(took, *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    runs = [_run(code).split() for _ in range(2)]
    assert min(float(run[0]) for run in runs) < 0.3
    heavy = {"torch", "numpy", "diffusers", "transformers", "open3d", "scipy", "trimesh", "tyro"}
    assert not heavy & set(runs[0][1:])


@pytest.mark.parametrize("module", ["geometry.cameras", "bench.registry", "bench.stale"])
def test_modules_of_small_things_load_small_things(module: str) -> None:
    loaded = set(_run(f"import unproject.{module}; print(*{{m.split('.')[0] for m in sys.modules}})").split())
    assert not loaded & (foreign(sources()) - {"torch", "numpy"})
    assert module == "geometry.cameras" or not loaded & {"torch", "numpy"}


def test_command_line_module_loads_no_network_library() -> None:
    loaded = set(_run("import unproject.cli.commands; print(*{m.split('.')[0] for m in sys.modules})").split())
    assert "tyro" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "open3d", "scipy", "matplotlib"}


def test_lazy_names_lead_somewhere() -> None:
    import unproject

    for name in unproject.__all__:
        if name != "__version__":
            home = ROOT / (unproject._HOMES[name].strip(".").replace(".", "/"))
            assert home.with_suffix(".py").is_file() or home.is_dir(), f"{name} lives in {home}, which is not there"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        unproject.nonsense  # noqa: B018
