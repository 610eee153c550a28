"""Data sets: tasks, splits, and where their files are."""

from __future__ import annotations

import gzip
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from polytask.errors import nearest
from polytask.task import Task

Augmentation = Callable[[Any, torch.Generator], Any]
"""(inputs of a batch, generator) -> inputs of the same shapes, random draws from that generator only."""

_GZIP_MAGIC = b"\x1f\x8b"


class _Part(NamedTuple):
    inputs: Any
    targets: dict[str, Tensor]


@final
class Split(_Part):
    """One part of a data set: the pair (inputs, targets), and what training does to its batches.

    Args:
        inputs: a tensor, a SciPy sparse matrix, or a tuple or dictionary of them, N examples along the first dimension.
        targets: {task: tensor of N targets}.
        augment: applied to every batch in training, on its device, and never in evaluation; None for nothing.

    >>> inputs, targets = Split(torch.zeros(3, 2), {"left": torch.zeros(3)})
    """

    augment: Augmentation | None = None

    def __new__(cls, inputs: Any, targets: dict[str, Tensor], augment: Augmentation | None = None) -> Split:
        split = super().__new__(cls, inputs, targets)
        split.augment = augment
        return split


Part = Split | dict[str, Split]
"""One part of a data set: a split or, where it has several sources, {source: its split}."""


class Splits(NamedTuple):
    """The three parts; validation selects, test only reports.

    Where a data set has several sources, each part is a dictionary of them; see `Part`.
    """

    train: Part
    validation: Part
    test: Part


class Examples(NamedTuple):
    """Examples from a file of the user's, see `DataSet.read`.

    Attributes:
        inputs: what the network takes, N examples.
        beside: {column: N entries} that stand beside predictions, such as ids.
        targets: {task: N targets}, empty where they were not asked for.
    """

    inputs: Any
    beside: dict[str, list[Any]]
    targets: dict[str, Tensor]


def as_splits(loaded: Any, name: str) -> Splits:
    """What a data set's `load` returned as `Splits`; plain tuples of the same form are taken too.

    Args:
        loaded: three parts, each (inputs, {task: targets}) or {source: (inputs, {task: targets})}.
        name: the data set's name, for messages.

    Raises:
        TypeError: it has another form.
        ValueError: a source is in the validation or test part and not in the training part.
    """
    if isinstance(loaded, (tuple, list)) and len(loaded) == 3:
        parts = [part for part in map(_as_part, loaded) if part is not None]
        if len(parts) == 3:
            _check_sources(parts, name)
            return Splits(*parts)
    found = [type(part).__name__ for part in loaded] if isinstance(loaded, (tuple, list)) else type(loaded).__name__
    raise TypeError(
        f"{name}.load() must return train, validation and test parts, each (inputs, {{task: targets}}) or "
        f"{{source: (inputs, {{task: targets}})}}, found {found}"
    )


def _as_part(part: Any) -> Part | None:
    """A split, or a dictionary of them, if it has the form of one."""
    if isinstance(part, Mapping):
        splits = {source: _as_split(split) for source, split in part.items()}
        known = {source: split for source, split in splits.items() if split is not None}
        return known if known and len(known) == len(splits) else None
    return _as_split(part)


def _as_split(part: Any) -> Split | None:
    if isinstance(part, (tuple, list)) and len(part) == 2 and isinstance(part[1], Mapping):
        return Split(part[0], dict(part[1]), getattr(part, "augment", None))
    return None


def _check_sources(parts: list[Part], name: str) -> None:
    known = [list(part) if isinstance(part, dict) else [""] for part in parts]
    for where, sources in zip(("validation", "test"), known[1:], strict=True):
        for source in sources:
            if source not in known[0]:
                found = f"a source `{source}`" if source else "a single split"
                raise ValueError(
                    f"{name}.load(): the {where} part must have the sources of the training part, found {found}: "
                    f"{nearest(source, known[0])}"
                )


def only_split(part: Part, what: str) -> Split:
    """The split of a part that has one source.

    Raises:
        ValueError: it has several; the message says what needs a single one.
    """
    if isinstance(part, Split):
        return part
    if len(part) == 1:
        return next(iter(part.values()))
    raise ValueError(f"{what} needs a data set of one source, found {sorted(part)}")


def shorten(train: Split, size: int | None) -> Split:
    """The first `size` examples of a training split, all if None; copies, so that the rest can be freed.

    Raises:
        ValueError: it has fewer.
    """
    if size is None:
        return train
    available = len(train.inputs)
    if size > available:
        raise ValueError(f"`train_size` must be at most {available}, the training examples there are, found {size}")
    kept = {task: target[:size].clone() for task, target in train.targets.items()}
    return Split(train.inputs[:size].clone(), kept, train.augment)


class DataSet(ABC):
    """A named problem: tasks and three splits. Nothing is read before `load`.

    >>> import torch, polytask as pt
    >>> class Halves(DataSet):
    ...     tasks = (pt.binary("left"),)
    ...     def load(self):
    ...         x = torch.rand(90, 2)
    ...         part = (x, {"left": (x[:, 0] < 0.5).float()})
    ...         return part, part, part

    Attributes:
        tasks: what its targets are.
        files: the files it needs below its folder, empty when it needs none.
        preprocessing: what `load` made of raw examples, in words and numbers, so that a user of the trained network
            can do the same; JSON values, empty if nothing.
        paths: which arguments are paths of files; in a YAML file they are relative to its folder.
        learns: whether `load` learns something from training examples that predictions need; see `fitted`.
    """

    tasks: tuple[Task, ...]
    files: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = MappingProxyType({})
    paths: ClassVar[tuple[str, ...]] = ()
    learns: bool = False

    @abstractmethod
    def load(self) -> Splits:
        """Reads or makes the splits, `Splits` or plain tuples of that form; the same bits every time.

        Raises:
            FileNotFoundError: files are missing; the message says which go where.
            ValueError: a file is damaged.
        """

    def fitted(self) -> dict[str, Any]:
        """What `load` learned from training examples, such as how to encode inputs, as JSON values.

        A run folder keeps it (`learns` says whether there is any), so that the network predicts without the data.
        """
        return {}

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """Takes what `fitted` told in place of learning it.

        Raises:
            ValueError: it is damaged.
        """

    def read(self, path: str | Path, targets: bool = False) -> Examples | None:
        """Raw examples in a file of the user's, made into what the network takes.

        Args:
            path: the file.
            targets: whether targets are wanted too.

        Returns:
            The examples; None where this data set has no raw form for such files, which then hold inputs as they are.
        """
        return None

    @classmethod
    def summary(cls) -> str:
        """The first line of the class's docstring, for listings."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def data_folder(folder: str | Path | None, subfolder: str, files: tuple[str, ...], archive: str = "") -> Path:
    """The folder that holds a data set's files.

    Looks in `folder` if given, else in ``$POLYTASK_DATA/<subfolder>``, ``$POLYTASK_DATA``,
    ``./data/<subfolder>`` and ``../shared/data/<subfolder>``; each file may also be there with ``.gz``
    appended or removed. Where the files come in an archive with a folder of its own, `archive`, each place's
    subfolder of that name is looked into as well.

    Raises:
        FileNotFoundError: no place has them all; the message lists the files and where to put them.
    """
    root = os.environ.get("POLYTASK_DATA")
    if folder is not None:
        places = [Path(folder)]
    elif root:
        places = [Path(root) / subfolder, Path(root)]
    else:
        places = [Path("data") / subfolder, Path("..") / "shared" / "data" / subfolder]
    if archive:
        places = [found for place in places for found in (place, place / archive)]
    for place in places:
        if all(_found(place, name) for name in files):
            return place
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"{subfolder} needs the files {', '.join(files)} (gzipped or not), found no folder with all of them "
        f"among {looked}: put them into one folder named {subfolder} and set POLYTASK_DATA to its parent"
    )


def _found(place: Path, name: str) -> bool:
    other = name.removesuffix(".gz") if name.endswith(".gz") else name + ".gz"
    return (place / name).is_file() or (place / other).is_file()


def locate(place: Path, name: str) -> Path:
    """The file `name` in `place`, gzipped or not."""
    other = name.removesuffix(".gz") if name.endswith(".gz") else name + ".gz"
    return place / name if (place / name).is_file() else place / other


def file_content(path: Path) -> bytearray:
    """A file's bytes, unpacked if it is gzipped (its content tells, not its name); writable, as torch wants memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: its gzip stream is corrupt.
    """
    data = path.read_bytes()
    if data[:2] == _GZIP_MAGIC:
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: a gzipped file must be one intact gzip stream, found: {error}") from error
    return bytearray(data)
