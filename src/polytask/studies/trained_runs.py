"""What is done with a trained run: its figures on data, and a file of its network for other programs."""

from __future__ import annotations

from pathlib import Path

from polytask.batch import map_inputs
from polytask.data.arrays import as_tensors
from polytask.data.base import DataSet, Part, Split, Splits
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


def export_run(folder: str, format: str = "onnx", out: str | None = None, source: str = "") -> Path:
    """Writes a trained run's network as a file for other programs; see `polytask.export.export`.

    Args:
        folder: the run folder, of a compact network or any other.
        format: ``onnx`` or ``torch``.
        out: the file; ``model.onnx`` or ``model.pt2``, of a source ``model-<source>.onnx``, in the run folder if None.
        source: whose kind of inputs the file takes, for a run on data of several sources.

    Returns:
        The file's path; ``<path>.json`` beside it tells inputs, outputs, classes and preprocessing.

    Raises:
        FileNotFoundError: there is no such run, or its data set's files are missing (an example is needed).
        ValueError: an unknown format, damaged files, an unknown source or none named of several, or a file whose
            outputs are not the network's; it is deleted.
        ModuleNotFoundError: the packages for ``onnx`` are not installed.
    """
    place = Path(folder)
    one_of("format", format, FORMATS)
    with threads(stored(place)["threads"]):
        built = opened(place)
        trainer = built.trainer
        source, split = _source_of(splits_of(built).train, source)
        example = map_inputs(lambda tensor: tensor[:2], as_tensors(split.inputs))
        name = f"model-{source}{SUFFIX[format]}" if source else f"model{SUFFIX[format]}"
        return export(
            trainer.model, place / name if out is None else out, format, list(trainer.tasks.values()),
            example=example, source=source, preprocessing=built.data.preprocessing,
        )  # fmt: skip


def _source_of(part: Part, source: str) -> tuple[str, Split]:
    """The source that is named, or the only one there is, and its split; "" for data without sources."""
    known = [] if isinstance(part, Split) else list(part)
    if source and source not in known:
        raise ValueError(f"`source` must name a source of the run's data, found `{source}`: {nearest(source, known)}")
    if isinstance(part, Split):
        return "", part
    if not source and len(part) > 1:
        listed = ", ".join(f"`{name}`" for name in known)
        raise ValueError(
            f"an exported file takes the inputs of one source, found data of several and none named: name one with "
            f"`source` (--source) of {listed}"
        )
    source = source or known[0]
    return source, part[source]
