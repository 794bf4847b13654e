"""`unproject priors`, `methods` and `doctor`: what there is and what works on this machine."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..utils.files import read_json
from ..utils.runs import RunRecord, versions
from .common import Writer
from .needs import needs_shown
from .outputs import Target
from .showing import Shown, Table

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "huggingface_hub", "safetensors", "tokenizers"),
    *("numpy", "scipy", "PIL", "trimesh", "open3d", "skimage", "tifffile", "xatlas", "fast_simplification"),
    *("manifold3d", "numba", "tyro", "rich", "yaml", "imageio_ffmpeg", "matplotlib"),
)


EXTRAS = {  # optional package: the extra that installs it, what it is for
    "gsplat": ("gsplat", "draws splats on CUDA"),
    "pillow_heif": ("heic", "reads HEIC pictures"),
    "kornia": ("kornia", "cameras for kornia"),
    "nerfstudio": ("nerfstudio", "our splats and captures inside nerfstudio"),
    "zstandard": ("spz", "splats in SPZ"),
    "OpenEXR": ("exr", "maps in OpenEXR"),
    "pxr": ("usd", "writes USD"),
    "DracoPy": ("draco", "glTF in Draco's compression"),
}


@dataclass(frozen=True, kw_only=True)
class Info(Writer):
    """A command that tells something; it writes a file only when --out names one."""

    kinds: ClassVar[tuple[str, ...]] = (".json",)

    @property
    def leaves_files(self) -> bool:
        """It only tells something."""
        return False


@dataclass(frozen=True, kw_only=True)
class Priors(Info):
    """List the priors that --prior accepts and whether they are on this machine."""

    name: ClassVar[str] = "priors"

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Lists."""
        rows = prior_rows()
        table = Table(("prior", "state", "about"), [(r["name"], r["state"], r["about"]) for r in rows])
        return Shown(tables=[table], data={"priors": rows})


@dataclass(frozen=True, kw_only=True)
class Methods(Info):
    """List the implemented methods, where they live and what measures them."""

    name: ClassVar[str] = "methods"

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Lists."""
        from ..utils.methods import load_methods

        methods = load_methods()
        rows = [(n, m.title, m.year, m.kind, m.where, ", ".join(m.bench)) for n, m in methods.items()]
        data = {name: asdict(method) for name, method in methods.items()}
        return Shown(
            tables=[Table(("method", "title", "year", "kind", "where", "bench"), rows)], data={"methods": data}
        )


@dataclass(frozen=True, kw_only=True)
class Doctor(Info):
    """Check this machine: packages, accelerators, tools and priors, and why some are not active. With --prior it tells
    what a command needs of a card's memory."""

    name: ClassVar[str] = "doctor"

    prior: str | None = None
    """A prior whose needs are told: an id of `unproject priors` without its weights; any other is loaded, from the hub
    too (default: the machine is checked)."""
    verb: Literal["text-to-mesh", "text-to-image"] = "text-to-mesh"
    """The command that is to run with --prior."""

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Checks; a broken required package makes the last line say so, and the exit code 1."""
        if self.prior is not None:
            return needs_shown(self.prior, self.verb)
        checks = [
            *_package_checks(),
            *_extra_checks(),
            *_guarded("accelerator", "torch", _torch_checks),
            *_tool_checks(),
            *_guarded("prior", "priors", _prior_checks),
        ]
        broken = [c["name"] for c in checks if c["required"] and not c["ok"]]
        rows = [(c["group"], c["name"], "yes" if c["ok"] else "no", c["detail"]) for c in checks]
        end = f"required but broken: {', '.join(broken)}" if broken else "everything required works"
        data = {"ok": not broken, "checks": checks, "versions": versions(), "system": platform.platform()}
        return Shown([end], [Table(("group", "what", "active", "detail"), rows)], data, exit_code=int(bool(broken)))


def prior_rows() -> list[dict[str, str]]:
    """Name, state and description of each prior."""
    from ..core.priors.registry import EMBEDDED, available, registry, weights_root

    rows = []
    for name, about in available().items():
        if name in EMBEDDED:
            here = any((weights_root() / name).glob("*.json"))
            state = "ready" if here else f"missing: no weights in {weights_root() / name}"
        else:
            entry = registry()[name]
            cached = {_cache_state(repo, entry.file or "model_index.json") for repo in entry.repos} - {""}
            state = "ready" if "ready" in cached else next(iter(cached), "downloaded on first use")
        rows.append({"name": name, "state": state, "about": about})
    return rows


def hub_cache() -> Path:
    """Where the hub's client keeps what it fetched, by the variables that it looks at, without importing it."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expandvars(given or Path(home) / "hub")).expanduser()


def _cache_state(repo: str, file: str) -> str:
    """What the hub's cache holds of a repository whose main file is `file`; "" for nothing."""
    from ..core.priors.build import OPTIONAL_PARTS
    from ..core.priors.variants import incomplete_parts

    found = list((hub_cache() / f"models--{repo.replace('/', '--')}").glob(f"snapshots/*/{file}"))
    if not found:
        return ""
    if file != "model_index.json":
        return "ready"
    whole = any(not incomplete_parts(path.parent, read_json(path), OPTIONAL_PARTS) for path in found)
    return "ready" if whole else "partly downloaded, the rest on first use"


def _check(group: str, name: str, ok: bool, detail: str, required: bool = False) -> dict[str, Any]:
    return {"group": group, "name": name, "ok": ok, "detail": detail, "required": required}


def _import_check(module: str) -> dict[str, Any]:
    """Imports a required package for real: an installed one may still lack a system library."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        why = "not installed: pip install unproject" if missing else f"does not import: {error}"
        return _check("package", module, False, why, True)
    except Exception as error:
        return _check("package", module, False, f"does not import: {type(error).__name__}: {error}", True)
    return _check("package", module, True, str(getattr(found, "__version__", "")), True)


def _package_checks() -> list[dict[str, Any]]:
    return [_import_check(name) for name in PACKAGES]


def _extra_checks() -> list[dict[str, Any]]:
    """Optional packages, looked for and not imported."""
    from ..geometry.rasterisers import RASTERISERS

    checks = []
    for name, (extra, use) in EXTRAS.items():
        here = find_spec(name) is not None
        checks.append(_check("extra", extra, here, use + ("" if here else f": pip install 'unproject[{extra}]'")))
    for name, made in RASTERISERS.items():
        here, use = find_spec(made.package) is not None, f"draws meshes on {' and '.join(made.devices)}"
        checks.append(_check("extra", name, here, use + ("" if here else f": {made.source}")))
    return checks


def _guarded(group: str, name: str, probe: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a probe, or one row with what stopped it: a broken package hides no other check."""
    try:
        return probe()
    except Exception as error:
        return [_check(group, name, False, f"cannot be checked: {_reason(error)}")]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _torch_checks() -> list[dict[str, Any]]:
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    no_cuda = "no CUDA device found" if torch.version.cuda else "this torch is built without CUDA"
    processor = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return [
        _check("accelerator", "cpu", True, processor),
        _check("accelerator", "cuda", cuda, torch.cuda.get_device_name(0) if cuda else no_cuda),
        _check("accelerator", "mps", mps, "Apple GPU" if mps else "not an Apple GPU machine"),
    ]


def _tool_checks() -> list[dict[str, Any]]:
    return [_tool("ffmpeg", _ffmpeg), _tool("node", _node), _tool("gltf-validator", _validator)]


def _tool(name: str, probe: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    try:
        ok, detail = probe()
    except Exception as error:
        ok, detail = False, _reason(error)
    return _check("tool", name, ok, detail)


def _ffmpeg() -> tuple[bool, str]:
    import imageio_ffmpeg

    return True, f"version {imageio_ffmpeg.get_ffmpeg_version()} writes MP4"


def _node() -> tuple[bool, str]:
    path = shutil.which("node")
    if path is None:
        return False, "not on the PATH; only the glTF validator needs it"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    return True, version.stdout.strip()


def _validator() -> tuple[bool, str]:
    from ..geometry.validate import validator_modules

    found = validator_modules()
    return found is not None, "`make test` installs it with npm" if found is None else f"in {found}"


def _prior_checks() -> list[dict[str, Any]]:
    from ..core.priors.registry import weights_root

    rows = prior_rows()
    checks = [_check("prior", row["name"], row["state"] == "ready", f"{row['state']}; {row['about']}") for row in rows]
    head = weights_root() / "toybox-geometry"
    here = (head / "head.json").is_file()
    return [*checks, _check("head", head.name, here, f"{'ready' if here else f'no weights in {head}'}; depth, normals")]
