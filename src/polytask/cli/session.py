"""What surrounds a command: its log, its exit status, and how errors and interruptions are told."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from polytask.launched import first_error, rank_by_environment

DEBUG = "POLYTASK_DEBUG"
NOT_REACHED = 3
ERROR = 2
SOME_FAILED = 1


@contextmanager
def session(speaks: bool) -> Iterator[None]:
    """The package's log on standard error, and the working folder's modules importable; undone at the end.

    Args:
        speaks: whether this process is the one of several that prints results and logs.
    """
    logger = logging.getLogger("polytask")
    level, here = logger.level, str(Path.cwd())
    debug = os.environ.get(DEBUG, "0") not in ("", "0")
    handler = _ToStderr() if speaks or debug else logging.NullHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        if speaks:
            yield
        else:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if added:
            sys.path.remove(here)


class _ToStderr(logging.Handler):
    """Writes to what standard error is now: a progress display replaces it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def refuse(message: str) -> int:
    told, mine = first_error(" ".join(message.split()))
    if mine:
        print(f"polytask: error: {told}", file=sys.stderr)
    return ERROR


def interrupted(interrupt: KeyboardInterrupt) -> int:
    # Python callers are told about `resume=`; here the same command does it
    what = str(interrupt).split(";")[0]
    what = f"{what}; the same command goes on from there" if what else "interrupted"
    if rank_by_environment() == 0:
        print(f"polytask: {what}", file=sys.stderr)
    return 128 + getattr(interrupt, "signal_number", signal.SIGINT)
