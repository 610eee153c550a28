"""What is done with a trained run: its figures on data, and a file of its network for other programs."""

from __future__ import annotations

from pathlib import Path

from polytask.batch import map_inputs
from polytask.data.arrays import as_tensors
from polytask.data.base import DataSet, Split, Splits, only_split
from polytask.errors import nearest, one_of
from polytask.export import FORMATS, SUFFIX, export
from polytask.studies.loading import opened
from polytask.studies.machine import threads
from polytask.studies.network import splits_of
from polytask.studies.run_folder import stored


def evaluate_run(folder: str, split: str = "test", file: str | None = None) -> dict[str, float]:
    """Losses and metrics of a trained run.

    Args:
        folder: the run folder.
        split: ``train``, ``validation`` or ``test``.
        file: a file with inputs and targets in the data set's raw form, such as another table, in place of a split.

    Raises:
        FileNotFoundError: there is no such run or file, or its data set's files are missing.
        ValueError: an unknown split, damaged files, or a data set that reads no such files.
    """
    if split not in Splits._fields:
        raise ValueError(f"unknown split `{split}`: {nearest(split, Splits._fields)}")
    config = stored(Path(folder))
    with threads(config["threads"]):
        built = opened(Path(folder))
        return built.trainer.evaluate(getattr(splits_of(built), split) if file is None else _labelled(built.data, file))


def _labelled(data: DataSet, file: str) -> Split:
    found = data.read(file, targets=True)
    if found is None:
        raise ValueError(f"`file` must be one that {type(data).__name__} reads, found {file}")
    return Split(found.inputs, found.targets)


def export_run(folder: str, format: str = "onnx", out: str | None = None) -> Path:
    """Writes a trained run's network as a file for other programs; see `polytask.export.export`.

    Args:
        folder: the run folder, of a compact network or any other.
        format: ``onnx`` or ``torch``.
        out: the file; ``model.onnx`` or ``model.pt2`` in the run folder if None.

    Returns:
        The file's path; ``<path>.json`` beside it tells inputs, outputs, classes and preprocessing.

    Raises:
        FileNotFoundError: there is no such run, or its data set's files are missing (an example is needed).
        ValueError: an unknown format, damaged files, or a file whose outputs are not the network's; it is deleted.
        ModuleNotFoundError: the packages for ``onnx`` are not installed.
    """
    place = Path(folder)
    one_of("format", format, FORMATS)
    with threads(stored(place)["threads"]):
        built = opened(place)
        trainer = built.trainer
        inputs = only_split(splits_of(built).validation, "an exported file").inputs
        example = map_inputs(lambda tensor: tensor[:2], as_tensors(inputs))
        return export(
            trainer.model, place / f"model{SUFFIX[format]}" if out is None else out, format,
            list(trainer.tasks.values()), example=example, preprocessing=built.data.preprocessing,
        )  # fmt: skip
