"""Train our splats inside nerfstudio, in an environment of its own: python -m unproject.scripts.nerfstudio_run FOLDER.

Makes FOLDER/env (nerfstudio pins packages that this one does not), installs nerfstudio and this package into it, writes
a capture of a toy, and runs ns-train and ns-eval with the method and the dataparser of this package. FOLDER/told.json
keeps versions, seconds and what ns-eval measured. About 6 GB of downloads where torch comes with CUDA.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..geometry.camera_files import save_nerfstudio
from ..geometry.posed import PosedImages
from ..toybox.orbits import posed_orbit, toy
from ..utils.errors import UnprojectError
from ..utils.files import read_json, write_json
from ..utils.pictures import save_image

ROOT = Path(__file__).resolve().parent.parent
NERFSTUDIO = ("nerfstudio==1.1.5", "open3d<0.20")  # later ones want the system's libusb
BESIDE = (  # what the plugin imports that nerfstudio does not ask for
    "accelerate", "diffusers", "fast-simplification", "manifold3d", "numba", "peft", "safetensors", "tifffile",
    "transformers", "zstandard",
)  # fmt: skip
ASKED = "import importlib.metadata as m\nfor n in ('nerfstudio', 'torch', 'numpy'): print(n, m.version(n))"


def environment(folder: Path, torch_packages: Sequence[str]) -> Path:
    """The bin folder of an environment with nerfstudio and this package; what is there is kept."""
    programs = folder / "bin"
    if not (programs / "ns-train").exists():
        venv.create(folder, with_pip=True)
        for packages in (torch_packages, NERFSTUDIO, BESIDE):
            told([programs / "python", "-m", "pip", "install", "--quiet", *packages])
    told([programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", ROOT])
    return programs


def capture(pictures: PosedImages, folder: Path) -> Path:
    """transforms.json and the pictures beside it."""
    names = [f"images/{row:04d}.png" for row in range(len(pictures))]
    for row, name in enumerate(names):
        layers = [pictures.images[row]] + ([] if pictures.alpha is None else [pictures.alpha[row]])
        save_image(folder / name, torch.cat(layers, dim=-1))
    return save_nerfstudio(folder / "transforms.json", pictures.cameras, names)


def told(command: Sequence[Any], **settings: str) -> str:
    """What a command prints, with settings of its environment. Raises UnprojectError with its end when it fails."""
    around = {**os.environ, "COLUMNS": "120", **settings}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=around)
    if done.returncode:
        raise UnprojectError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def train(programs: Path, data: Path, out: Path, steps: int, device: str) -> dict[str, Any]:
    """Runs ns-train and ns-eval; versions, seconds and the numbers of ns-eval."""
    began = time.perf_counter()
    told(
        [programs / "ns-train", "unproject-splats", "--output-dir", out, "--experiment-name", "toy",
         "--timestamp", "run", "--max-num-iterations", steps, "--steps-per-save", steps, "--vis", "tensorboard",
         "--machine.device-type", device, "unproject-data", "--data", data]
    )  # fmt: skip
    seconds, run = time.perf_counter() - began, out / "toy" / "unproject-splats" / "run"
    evaluate = [programs / "ns-eval", "--load-config", run / "config.yml", "--output-path", out / "eval.json"]
    told(evaluate, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")  # nerfstudio 1.1.5 reads its own checkpoint as older torch did
    versions = dict(line.split() for line in told([programs / "python", "-c", ASKED]).splitlines())
    return {
        "versions": versions,
        "steps": steps,
        "seconds": round(seconds, 1),
        "results": read_json(out / "eval.json")["results"],
        "splats": str(run / "splats.ply"),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="nerfstudio_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", nargs="+", default=["torch", "torchvision"], help="what pip installs first")
    parser.add_argument("--words", default="a red chair", help="the toy")
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, default=128, help="px")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        data = capture(posed_orbit(toy(options.words), options.views, options.size), folder / "capture")
        programs = environment(folder / "env", options.torch)
        found = train(programs, data, folder / "out", options.steps, options.device)
    except UnprojectError as error:
        print(f"nerfstudio_run: {error}", file=sys.stderr)
        return error.exit_code
    print(write_json(folder / "told.json", found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
