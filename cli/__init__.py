"""The command line: `unproject COMMAND --help`. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence

from ..utils.errors import UnprojectError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code; prints failures as one line on standard error.

    UNPROJECT_DEBUG=1 adds the traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        from .. import __version__

        print(f"unproject {__version__}")
        return 0
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        from .commands import parse
        from .common import execute

        return execute(parse(words or ["--help"]))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _failed(error, "--json" in words)


def _failed(error: Exception, as_json: bool) -> int:
    if os.environ.get("UNPROJECT_DEBUG") == "1":
        traceback.print_exc()
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"out of memory {text}".strip()
    elif not isinstance(error, UnprojectError):
        text = f"{type(error).__name__}: {text} (UNPROJECT_DEBUG=1 shows where)"
    code = error.exit_code if isinstance(error, UnprojectError) else 1
    if as_json:
        print(json.dumps({"status": "failed", "error": text, "exit_code": code}, ensure_ascii=False))
    print(f"error: {text}", file=sys.stderr)
    return code
