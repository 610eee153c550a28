"""Run folders: what a run leaves on disk, and reading it back.

A run folder holds ``config.yaml`` (the whole configuration as used), ``run.json`` (a `RunRecord`),
``history.csv``, ``weights.safetensors``, ``tasks.json``, ``last.ckpt`` and, for two-dimensional inputs,
``regions.npz``. A study folder holds ``study.json`` and one run folder per method and seed, named
``<method>/seed-<n>``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass
class RunRecord:
    """What is known about one run.

    Attributes:
        method: the name under which a comparison lists it.
        seed: its seed.
        state: ``running``, ``done`` or ``failed``.
        tasks: `Task.describe()` of each task: name, kind, outputs, metric, higher_is_better, weight, labels.
        metrics: {"validation" or "test": {"loss", "<task>/loss", "<task>/<metric>": value}} of the weights
            that were kept; the test part is reported, never selected on.
        epochs: epochs trained.
        selected_epoch: the epoch whose weights were kept, chosen on validation; `epochs` if they are the last.
        stopped: why training ended early, "" if it did not.
        seconds: training seconds in all, validation excluded.
        seconds_per_epoch: {phase: median training seconds of an epoch}.
        cost: {"parameters", "shared_parameters": counts; "forward_macs": multiply-accumulates per example;
            "phases": {phase: {"macs": multiply-accumulates per training example, forward and backward;
            "memory": peak bytes that one training step allocates}}}.
        versions: {"polytask", "torch", "python", "threads", "machine"}.
        started: ISO 8601 time, UTC.
        error: the failure's one line.
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
    temporary.write_text(text)
    os.replace(temporary, path)
