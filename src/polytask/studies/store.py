"""Run folders: what a run leaves on disk, and reading it back.

A run folder holds ``config.yaml`` (the whole configuration as used), ``run.json`` (a `RunRecord`),
``history.csv``, ``weights.safetensors``, ``tasks.json``, ``last.ckpt`` and, for two-dimensional inputs,
``regions.npz``. A study folder holds ``study.json`` and one run folder per method and seed, named
``<method>/seed-<n>``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from polytask.training.history import History

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

FORMAT = 1
LOCK = "lock"


@dataclass
class RunRecord:
    """What is known about one run.

    Attributes:
        method: the name under which a comparison lists it.
        seed: its seed.
        state: ``running`` (also if it was killed), ``interrupted``, ``done`` or ``failed``.
        tasks: `Task.describe()` of each task: name, kind, outputs, metric, higher_is_better, weight, labels.
        metrics: {"validation" or "test": {"loss", "<task>/loss", "<task>/<metric>", "<objective>/value": value}} of
            the weights that were kept; the test part is reported, never selected on.
        epochs: epochs trained.
        selected_epoch: the epoch whose weights were kept, chosen on validation; `epochs` if they are the last,
            0 if they are the initial ones.
        stopped: why training ended early, "" if it did not.
        seconds: training seconds in all, validation excluded.
        seconds_per_epoch: {phase: median training seconds of an epoch}.
        cost: {"parameters", "shared_parameters": counts; "forward_macs": multiply-accumulates per example;
            "phases": {phase: {"macs": multiply-accumulates per training example, forward and backward;
            "memory": peak bytes that one training step allocates}}}.
        versions: {"polytask", "torch", "python", "threads", "machine"}.
        started: ISO 8601 time, UTC.
        error: the failure's one line.
        start: the digest of the weights it started from (`polytask.studies.spec.digest`), "" if they were drawn.
    """

    method: str
    seed: int
    state: str
    tasks: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    epochs: int = 0
    selected_epoch: int = 0
    stopped: str = ""
    seconds: float = 0.0
    seconds_per_epoch: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    error: str = ""
    start: str = ""
    folder: Path | None = None

    def history(self) -> Any:
        """The run's history as a pandas table indexed by epoch; columns as in `polytask.History`."""
        import pandas as pd

        assert self.folder is not None
        return pd.read_csv(self.folder / "history.csv").set_index("epoch")


def write_record(record: RunRecord, folder: str | Path) -> None:
    """Writes ``run.json``: to a temporary name first, then renamed."""
    target = Path(folder)
    content = asdict(record) | {"format": FORMAT}
    content.pop("folder")
    write_text(target / "run.json", json.dumps(content, indent=2) + "\n")


def read_record(folder: str | Path) -> RunRecord:
    """Reads ``run.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or of a newer format.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"a run folder must hold run.json, found none in {folder}")
    try:
        content = json.loads(path.read_text())
        version = content.pop("format")
        if version > FORMAT:
            raise ValueError(f"format {version}, newer than {FORMAT}")
        return RunRecord(**content, folder=Path(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be a run record of polytask, found a damaged one ({error})") from error


def read_study(folder: str | Path) -> list[RunRecord]:
    """The records of every run below a study folder, or of the one run folder given, in a fixed order."""
    root = Path(folder)
    return [read_record(path.parent) for path in sorted(root.rglob("run.json"))]


def write_text(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def described(path: Path, newest: int, what: str = "a study of polytask") -> Iterator[dict[str, Any]]:
    """What a study's file in JSON says, to be taken apart within; whatever is wrong with it is told as damage.

    Args:
        path: an existing file.
        newest: the newest format that is known.
        what: what the file should describe.

    Raises:
        ValueError: it is of a newer format, is no JSON, or does not hold what is looked for.
    """
    try:
        content = json.loads(path.read_text())
        if content.pop("format") > newest:
            raise ValueError("it is of a newer format")
        yield content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must describe {what}, found a damaged file ({error})") from error


def read_history(path: str | Path) -> History:
    """Reads a ``history.csv`` back; what an epoch has no value for is left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    source = Path(path)
    try:
        with source.open(newline="") as file:
            rows = [_typed(row) for row in csv.DictReader(file)]
    except (ValueError, AttributeError, csv.Error) as error:
        raise ValueError(f"{source} must be a history of polytask, found a damaged one ({error})") from error
    return History(rows)


def _typed(row: dict[str, str]) -> dict[str, Any]:
    kinds: dict[str, Any] = {"epoch": int, "phase": str}
    return {key: kinds.get(key, float)(value) for key, value in row.items() if value != ""}


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """A folder name for each method name: letters, digits, ``.``, ``_`` and ``-`` only, all different.

    >>> safe_names(["joint", "ATE-SG 1/1", "ATE-SG 1:1"])
    {'joint': 'joint', 'ATE-SG 1/1': 'ATE-SG-1-1', 'ATE-SG 1:1': 'ATE-SG-1-1-c673'}
    """
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        folder = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
        # compared without case: some file systems do not tell `Joint` from `joint`
        if not folder or folder.lower() in taken:
            folder = f"{folder}-{hashlib.sha256(name.encode()).hexdigest()[:4]}".lstrip("-")
        taken.add(folder.lower())
        folders[name] = folder
    return folders


def probe(folder: str | Path) -> Path:
    """Makes `folder` and finds out whether it can be written, before hours are spent.

    Raises:
        OSError: it cannot be made or written.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        raise type(error)(f"the output folder {target} must be writable, found: {error.strerror or error}") from error
    return target


class Locked(OSError):
    """A run folder is being worked on by another process."""


@contextmanager
def lock(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Holds a run folder: no two processes train in it at once.

    The lock belongs to the open file, so the system lets go of it however a process ends. Workers outlive a
    killed parent for a while, which is what `wait` is for. Where the system has no such locks (Windows)
    nothing is held.

    Args:
        folder: an existing run folder.
        wait: seconds to wait for another process to finish.

    Raises:
        Locked: another process still holds it.
    """
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("a+") as file:
        end = time.monotonic() + wait
        while not _try_lock(file):
            if time.monotonic() > end:
                holder = lock_holder(folder) or {"process": "unknown"}
                raise Locked(f"{folder} must not be in use, found it held by process {holder['process']}")
            time.sleep(0.1)
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "parent": os.getppid()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock_holder(folder: Path) -> dict[str, int] | None:
    """The ``process`` that holds a run folder now and its ``parent``, None if there is none."""
    path = folder / LOCK
    if fcntl is None or not path.is_file():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(ValueError):
                return json.loads(file.read())
    return None  # what a killed process wrote stays in the file, but its lock does not


def _try_lock(file: IO[str]) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
