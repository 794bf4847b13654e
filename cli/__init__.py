"""The command line: `unproject COMMAND --help`.

Exit codes: 0 done, 1 failed, 2 bad input, 3 some of several failed, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

from ..utils.errors import Stopped, UnprojectError, out_of_memory


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C inside, so that half-written files are removed and the record is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # names of files may be no text
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _terminable():
            from .commands import parse
            from .common import execute

            return execute(parse(words or ["--help"]))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except Stopped as stop:
        print(f"{stop}; this goes on: unproject {shlex.join(words)}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt as stop:
        print("terminated" if isinstance(stop, _Terminated) else "interrupted", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _failed(error, "--json" in words)


def _failed(error: Exception, as_json: bool) -> int:
    if os.environ.get("UNPROJECT_DEBUG") == "1":
        traceback.print_exc()
    text = " ".join(_told(error).split())
    code = error.exit_code if isinstance(error, UnprojectError) else 2 if _impossible_name(error) else 1
    if as_json:
        print(json.dumps({"status": "failed", "error": text, "exit_code": code}, ensure_ascii=False))
    print(f"error: {text}", file=sys.stderr)
    return code


def _told(error: Exception) -> str:
    """What happened, for people: the machine's own errors as what they are, the unexpected by its type."""
    if isinstance(error, UnprojectError):
        return str(error)
    if out_of_memory(error):
        way_out = "; draw fewer at once (--batch), smaller (--size), or on another --device" if str(error) else ""
        return f"out of memory {error}".strip() + way_out
    if isinstance(error, OSError) and error.strerror:
        return f"{str(error.filename)[:200]}: {error.strerror}" if error.filename is not None else error.strerror
    return f"{type(error).__name__}: {error} (UNPROJECT_DEBUG=1 shows where)"


def _impossible_name(error: Exception) -> bool:
    """Whether a file was named that no file system can hold."""
    return isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
