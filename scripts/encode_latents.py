"""Encode rendered pictures: python -m unproject.scripts.encode_latents --vae FOLDER --data FOLDER ... --out FOLDER."""

from __future__ import annotations

import argparse
import sys

import torch

from ..core.training.latents import encode_latents
from ..toybox.dataset import RenderedSet
from ..toybox.maps import MapPictures
from ..utils.errors import UnprojectError
from .beginnings import load_vae


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code. An interrupted run goes on after its last whole shard."""
    parser = argparse.ArgumentParser(prog="encode_latents", description=__doc__.splitlines()[0])
    parser.add_argument("--vae", required=True, help="diffusers folder of the codec")
    parser.add_argument("--data", required=True, nargs="+", help="rendered folders, in the order the recipe names them")
    parser.add_argument("--out", required=True, help="folder of the latents")
    parser.add_argument("--kinds", nargs="+", default=["picture"], help="maps of each view, as the recipe names them")
    parser.add_argument("--size", type=int, help="pixels of a side, if less than the renders': they lose their border")
    parser.add_argument("--pack", action="store_true", help="int8 instead of float16; latents of deviation 1 only")
    options = parser.parse_args(arguments)
    try:
        vae = load_vae(options.vae).to(memory_format=torch.channels_last)
        pictures = MapPictures([(RenderedSet(options.data), options.kinds)], options.size)
        print(encode_latents(vae, pictures, options.out, options.pack))
    except UnprojectError as error:
        print(f"encode_latents: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
