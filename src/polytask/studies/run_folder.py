"""What the folder of a run holds, and whether it is this very run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polytask.data.base import DataSet
from polytask.errors import plural
from polytask.studies import spec
from polytask.studies.store import LOCK, read_record, write_text

STUDIES = ("study.json", "front.json", "sparsify.json", "seeds.json")
"""Files that tell the folder of a study from that of a run."""
LAYOUT = "layout.json"
"""Sizes of the layers of a compact network, see `polytask.sparsity.compact.rebuild`."""
FITTED = "data.json"
"""What the data set learned from training examples, see `polytask.data.DataSet.fitted`."""
FILES = (
    "config.yaml", "run.json", "history.csv", "weights.safetensors", "tasks.json", "last.ckpt",
    "interrupted.ckpt", "regions.npz", LAYOUT, FITTED, LOCK,
)  # fmt: skip


def write_fitted(data: DataSet, folder: Path) -> None:
    """Writes what the data set learned, if it learns, into a run folder."""
    if data.learns:
        write_text(folder / FITTED, json.dumps(data.fitted(), indent=1) + "\n")


def stored(folder: Path) -> spec.Config:
    """The configuration of a run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it is not a run's.
        ValueError: the configuration is damaged.
    """
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise FileNotFoundError(f"a run folder must exist, found none at {folder}")
    check_one(folder)
    if not path.is_file():
        raise FileNotFoundError(
            f"a run folder must hold config.yaml, found none in {folder} (polytask.load can be given a model and "
            "tasks instead)"
        )
    config = spec.resolve(spec.read_config(path))
    config["trainer"] |= {"devices": None, "nodes": 1}  # a trained network needs no more than there are
    return config


def check_one(folder: Path) -> None:
    """Refuses a folder that is no run's where runs lie below it, and names these.

    Raises:
        FileNotFoundError: it is a study's, or one that holds the runs of several seeds.
    """
    if any((folder / name).is_file() for name in ("run.json", "weights.safetensors")):
        return  # a configuration may have been trained and compared in one folder
    study = any((folder / name).is_file() for name in STUDIES)
    runs = runs_below(folder)
    if runs or study:
        found = "a study's" if study else f"one with {plural(len(runs), 'run')} below it"
        named = [str(run.relative_to(folder)) for run in runs[:3]]
        raise FileNotFoundError(f"{folder} must be the folder of one run, found {found}: name one of {named}")


def runs_below(folder: Path) -> list[Path]:
    """The folders of runs in one, up to three levels down, as the studies lay them out."""
    found = (path.parent for depth in (1, 2, 3) for path in folder.glob("*/" * depth + "run.json"))
    return sorted(found)


def compared_beside(folder: Path) -> list[Path]:
    """The runs of the study whose folder is that of a run as well; none where it is one or the other."""
    both = (folder / "run.json").is_file() and any((folder / name).is_file() for name in STUDIES)
    return runs_below(folder) if both else []


def finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / "run.json").is_file() and read_record(folder).state == "done"


def different(folder: Path, resolved: Mapping[str, Any]) -> list[str]:
    """How the configuration stored in `folder`, if any, differs from this one.

    Weights to start from are the same where their content is, wherever they lie.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return []
    before, now = spec.read_config(path), dict(resolved)
    starts = before.pop("start", None), now.pop("start", None)
    return [*spec.differences(before, now), *_other_start(folder, *starts)]


def _other_start(folder: Path, before: str | None, now: str | None) -> list[str]:
    begun = read_record(folder).start if (folder / "run.json").is_file() else ""
    found = "" if now is None else spec.digest(now)
    if begun and found:
        return [] if begun == found else [f"start: other weights than now in {now}"]
    return spec.differences(before, now, "start")


def check_same(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Refuses a folder that holds a run of another configuration."""
    found = different(folder, resolved)
    if found:
        listed = "; ".join(found[:3]) + " and more" * (len(found) > 3)
        raise ValueError(
            f"{folder} must hold no run of another configuration, found one that differs in {listed}: "
            "choose another output folder (--out), or overwrite this one (--overwrite)"
        )


def clear(folder: Path) -> None:
    """Removes the files of a run, and nothing else, from its folder."""
    for name in FILES:
        if name != LOCK:
            (folder / name).unlink(missing_ok=True)
