"""Inputs from files and predictions to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.models.by_source import known_sources
from polytask.studies.loading import opened
from polytask.studies.store import write_text
from polytask.task import Prediction, Task
from polytask.training.misfit import Misfit

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FORMATS = (".npy", ".npz", ".csv")


def predict_file(folder: str, inputs: str, out: str | None = None, source: str = "") -> str:
    """Predictions of a trained run for inputs in a file, as CSV.

    Args:
        folder: the run folder.
        inputs: for a run on a `polytask.data.Table`, another table with its input columns. Else a .npy array
            (N, ...), an .npz of one array or of several named inputs, or a .csv of numbers, one row an example, with
            or without a header.
        out: the CSV file to write.
        source: whose kind of inputs they are, for a network that has an encoder for each source.

    Returns:
        The CSV text: the row's number, its id where the data have one, and for each task the label or number, and the
        probability of each class.

    Raises:
        FileNotFoundError: there is no such run or file.
        ValueError: a file that cannot be read, inputs that the network does not take, or a source that it has no
            encoder for.
    """
    built = opened(Path(folder))
    if not source and (known := known_sources(built.trainer.model)):
        listed = ", ".join(f"`{name}`" for name in known)
        raise ValueError(
            f"the source of the inputs must be told where a network has encoders for several, found none: name one "
            f"with `source` (--source) of {listed}"
        )
    trainer, found = built.trainer, built.data.read(inputs)
    values, beside = (read_inputs(inputs), {}) if found is None else (found.inputs, found.beside)
    try:
        predictions = trainer.predict(values, source)
    except (RuntimeError, Misfit) as error:
        raise ValueError(f"{inputs} must hold inputs that the network takes, found: {error}") from error
    text = as_table(predictions, trainer.tasks, beside).to_csv(index_label="row", lineterminator="\n")
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(out), text)
    return text


def read_inputs(path: str | Path) -> Any:
    """The arrays in a file, floats as float32: one array, or {name: array} for several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a damaged one, or one with no rows.
    """
    import numpy as np

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"an input file must exist, found no file {source}")
    if source.suffix not in FORMATS:
        raise ValueError(f"an input file must end in one of {', '.join(FORMATS)}, found {source.name}")
    try:
        # pandas reads numbers, and numpy is told not to unpickle: neither can run code
        content = _read_csv(source) if source.suffix == ".csv" else np.load(source, allow_pickle=False)
        named = {"": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"{source} must hold arrays of numbers, found: {error}") from error
    arrays = {key: _checked(array, source) for key, array in named.items()}
    if not arrays:
        raise ValueError(f"{source} must hold at least one array, found none")
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def as_table(
    predictions: Mapping[str, Prediction], tasks: Mapping[str, Task], beside: Mapping[str, Sequence[Any]] | None = None
) -> pd.DataFrame:
    """Predictions as a pandas table, one row an example.

    Column ``<task>`` has the label (its name, where the task names them) or the number; columns
    ``<task>/p(<label>)`` have probabilities. A task of several labels or numbers has columns ``<task>/<label>``.

    Args:
        predictions: {task: its prediction}.
        tasks: tasks by name.
        beside: further columns, such as ids, which come first.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, prediction in predictions.items():
        columns |= _columns(tasks[name], prediction)
    taken = {"row", *columns}
    given = {f"{name} (given)" if name in taken else name: entries for name, entries in (beside or {}).items()}
    return pd.DataFrame(given | columns)


def _columns(task: Task, prediction: Prediction) -> dict[str, Any]:
    values, probabilities = prediction.values.cpu().numpy(), prediction.probabilities
    if values.ndim > 1:
        labels = task.labels or tuple(map(str, range(values.shape[1])))
        columns = {f"{task.name}/{label}": values[:, i] for i, label in enumerate(labels)}
        if probabilities is not None:
            chances = probabilities.cpu().numpy()
            columns |= {f"{task.name}/p({label})": chances[:, i] for i, label in enumerate(labels)}
        return columns
    if probabilities is None:
        return {task.name: values}
    chances = probabilities.cpu().numpy()
    if chances.ndim == 1:
        label = task.labels[1] if task.labels else "1"
        return {task.name: _names(task, values), f"{task.name}/p({label})": chances}
    labels = task.labels or tuple(map(str, range(chances.shape[1])))
    return {task.name: _names(task, values)} | {
        f"{task.name}/p({label})": chances[:, i] for i, label in enumerate(labels)
    }


def _names(task: Task, values: np.ndarray) -> Any:
    return [task.labels[value] for value in values] if task.labels else values


def _read_csv(path: Path) -> np.ndarray:
    import pandas as pd

    first = pd.read_csv(path, header=None, nrows=1)
    headed = not all(pd.api.types.is_numeric_dtype(kind) for kind in first.dtypes)
    return pd.read_csv(path, header=0 if headed else None, dtype="float32").to_numpy()


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    import numpy as np

    if array.ndim < 1 or len(array) == 0:
        raise ValueError(f"{path} must hold at least one example, found shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold numbers, found the type {array.dtype}")
    return array.astype(np.float32) if array.dtype.kind == "f" else array
