"""Ctrl-C and SIGTERM while training: noted, obeyed after the step, and told with the checkpoint they left."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytask.training.run import Run

SIGNAL_STEPS = {"cuda": 50}
"""Steps between agreements of several ranks on signals, by device: each waits for the device. 1 elsewhere."""
SIGNAL_ECHO = 2.0
"""Seconds within which a second signal to one of several ranks is the first again, passed on by their launcher."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM after a checkpoint was written to `path`."""

    def __init__(self, path: Path, signal_number: int, epoch: int, epochs: int) -> None:
        self.path = path
        self.signal_number = signal_number
        self._epochs = (epoch, epochs)
        name = signal.Signals(signal_number).name
        super().__init__(
            f"{name} after {epoch} of {epochs} epochs; go on with resume={str(path)!r} and the same arguments"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # an exception's own would give the message alone
        return type(self), (self.path, self.signal_number, *self._epochs)


@contextmanager
def signals(run: Run) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM is noted and obeyed after the step; the second acts at once.

    Of several ranks, a second one that comes within `SIGNAL_ECHO` means nothing new: launchers pass on what the
    terminal has sent to all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    echoed = math.inf  # until when

    def note(number: int, frame: Any) -> None:
        nonlocal echoed
        run.signal_number = number
        if run.ranks.alone:
            signal.signal(number, previous[signal.Signals(number)])
        elif time.monotonic() > echoed:
            obeyed.set()
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)
        else:
            echoed = min(echoed, time.monotonic() + SIGNAL_ECHO)

    obeyed = threading.Event()
    try:
        for number in previous:
            signal.signal(number, note)
        with nullcontext() if run.ranks.alone else _last_resort(obeyed):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if run.signal_number and not isinstance(sys.exc_info()[1], Exception):
            signal.raise_signal(run.signal_number)  # it came too late for a checkpoint, not for its sender


@contextmanager
def _last_resort(obeyed: threading.Event) -> Iterator[None]:
    """Ends the process at a second signal that nobody obeys: a collective that others have left runs no handler."""
    receiving, sending = socket.socketpair()
    sending.setblocking(False)

    def watch() -> None:
        echoed = math.inf
        while number := receiving.recv(1):  # nothing once the other end is closed
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if time.monotonic() > echoed and not obeyed.wait(1.0):
                os._exit(128 + number[0])  # as a shell counts one that a signal ended
            echoed = min(echoed, time.monotonic() + SIGNAL_ECHO)

    before = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sending.close()
        watcher.join()
        receiving.close()
