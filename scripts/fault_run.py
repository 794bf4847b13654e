"""What is lost when a command is killed or stopped, or the disk refuses: rows of the table of bench/faults.py.

    python -m unproject.scripts.fault_run [--only WORD ...] [--stages N]

`unproject bench faults` measures all of it into docs/results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..bench.fault_verbs import VERBS
from ..bench.faults import STAGES, measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rows; the exit code is 1 when something was lost."""
    parser = argparse.ArgumentParser(prog="fault_run", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help=f"commands, of {', '.join(VERBS)}")
    parser.add_argument("--fault", nargs="*", default=[], help="faults by name, such as 'kill -9'")
    parser.add_argument("--stages", type=int, default=STAGES, help=f"places where faults strike (default {STAGES})")
    options = parser.parse_args(arguments)
    chosen = {name: verb for name, verb in VERBS.items() if not options.only or name in options.only}
    table = measured(chosen, options.stages, lambda fault: not options.fault or fault in options.fault, tell=True)
    return int(any(row["lost"] != "nothing" for row in table))


if __name__ == "__main__":
    sys.exit(main())
