"""The experiment `full-size` on a folder in diffusers' layout, such as a random Stable Diffusion 1.5 of full size.

    python -m unproject.scripts.random_backbones sd15 --full --out runs/random-sd15    (3.4 GB, once)
    python -m unproject.scripts.full_size runs/random-sd15

Takes about ten minutes of one processor core and 8 GB; the folder can be deleted afterwards.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..bench.full_size import FullSize, rows
from ..core.priors.registry import load_prior
from ..utils.configs import to_dict
from ..utils.files import write_json
from ..utils.runs import machine, versions


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; what is measured is written at once."""
    parser = argparse.ArgumentParser(prog="full_size", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--px", type=int, default=FullSize.px, help="of the pictures")
    parser.add_argument("--out", type=Path, default=Path("outputs/full-size.json"))
    options = parser.parse_args(arguments)
    prior, config = load_prior(options.folder), FullSize(px=options.px)
    millions = round(sum(p.numel() for p in prior.parameters()) / 1e6, 1)
    facts = {"config": {**to_dict(config), "millions": millions, "dtype": str(prior.dtype)}, "seeds": [0, 1]}
    measured = []
    for row in rows(prior, config):
        measured.append(row)
        record = {**facts, "table": measured, "versions": versions(), "machine": machine()}
        print(write_json(options.out, record), row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
