"""A user's own table, CSV or Parquet, as a data set."""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from polytask.data.base import DataSet, Examples, Split, Splits
from polytask.data.compositing import check_seed
from polytask.data.dividing import PARTS, Rows, by_column, by_fraction, by_group, check_fractions, check_groups
from polytask.data.encoding import Encoding, fit_encoding
from polytask.data.kinds import (
    BINARY,
    CLASSIFICATION,
    REGRESSION,
    TARGET_KINDS,
    check_inputs_named,
    check_target,
    guess_inputs,
    guess_targets,
    odd_classes,
    unread,
)
from polytask.data.sheet import FORMATS, Form, Sheet, content_digest, kind_of, read_sheet
from polytask.errors import nearest, one_of, whole
from polytask.task import MISSING_CLASS, Task, binary, classification, regression

logger = logging.getLogger("polytask")

FORMAT = 1
LEAST_SPREAD = 1e-4
"""A regression target's standard deviation as a share of its mean: below it float32 keeps too few of its digits."""
SHOWN = 5
"""Names of that many classes or categories are told in a message."""


@final
class Table(DataSet):
    """Your own table, CSV or Parquet: some columns are inputs, some are targets, one task each.

    Columns of numbers are standardised, a missing number being filled with the median and told by a further 0/1
    input; columns of categories become one 0/1 input for each, "not given" being a category too. Both are fitted on the
    training rows only, by scikit-learn's SimpleImputer, StandardScaler and OneHotEncoder; the log counts what was
    filled. The loss of a regression is
    measured in standard deviations of its training targets, while predictions and metrics are in the column's units.
    An entry missing in a target column is left missing: the row then teaches the other tasks only. Inputs are
    (N, D) float32; class targets are (N,) int64, others (N,) float32.

    Reading happens at the first call of `load` or look at `tasks`, once for the same settings and content of the file
    in a process. What was fitted is kept in a run folder as plain JSON, so that it predicts without this file.

    Args:
        path: the file: .csv, .tsv or .txt with a line of names first, or .parquet (which needs pyarrow). In a YAML
            file it is relative to that file's folder.
        targets: {column: ``binary``, ``classification`` or ``regression``}, or a list of columns, whose kinds are
            then guessed and logged: two values are binary, text and at most 20 whole numbers classes.
        inputs: {column: ``numeric`` or ``categorical``}, or a list of columns whose kinds are guessed, or None: all
            other columns, but those with nothing to tell, ids, dates and free text; the log says which.
        classes: {target column: its classes in order}; those of the training rows, sorted, where it says nothing. The
            second of two is the positive one.
        names: {target column: the task's name}. Else it is the column's, ``.`` and ``/`` replaced.
        metrics: {target column: its metric}, see `polytask.binary`, `polytask.regression`.
        weights: {target column: the fixed weight of its task}, above 0.
        fractions: of rows for train, validation and test, drawn at random and stratified by the classes where they
            have the rows for it. A class of too few rows is in training at least.
        split: a column with ``train``, ``validation`` or ``test`` in every row, in place of `fractions`.
        group: a column whose equal entries must stay together, such as a patient's number. `fractions` are then
            those of the groups, drawn whatever their classes; with `split`, a group in two parts is refused.
        id: a column that names rows; it is no input, and stands beside predictions.
        seed: of the division into parts, 0..2**32 - 1.
        rare: categories of fewer training rows share one input, as do those never seen; at least 1.
        most: inputs that a column of categories makes at most, at least 2; its least frequent ones share the last.
        missing: entries that stand for "not given", besides empty ones, ``NA``, ``null`` and the like.
        encoding: of the text.
        separator: what stands between entries of a line; ``\\t`` is a tab.
        decimal: what stands before the decimals of a number, ``.`` or ``,``.

    Raises:
        ValueError: a setting is out of range; when it reads: the file is damaged (the line is named), a column is
            missing, named twice or has nothing to learn from, a class has no training row, a group is in two parts, or
            there are too few rows.
        FileNotFoundError: there is no such file (when it reads).

    >>> import tempfile
    >>> lines = ["age,town,member,spent"] + [f"{20 + i},{'AB'[i % 2]},{'yes' if i % 3 else 'no'},{i / 2}"
    ...                                      for i in range(40)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "shop.csv").write_text("\\n".join(lines))
    ...     table = Table(f"{folder}/shop.csv", ["member", "spent"], inputs={"age": "numeric", "town": "categorical"})
    ...     parts = table.load()
    >>> [tuple(part.inputs.shape) for part in parts], [task.name for task in table.tasks], table.tasks[0].labels
    ([(28, 3), (6, 3), (6, 3)], ['member', 'spent'], ('no', 'yes'))
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)
    learns = True

    def __init__(
        self,
        path: str,
        targets: dict[str, str] | list[str],
        inputs: dict[str, str] | list[str] | None = None,
        classes: dict[str, list[str]] | None = None,
        names: dict[str, str] | None = None,
        metrics: dict[str, str] | None = None,
        weights: dict[str, float] | None = None,
        fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
        split: str | None = None,
        group: str | None = None,
        id: str | None = None,
        seed: int = 0,
        rare: int = 5,
        most: int = 50,
        missing: list[str] | None = None,
        encoding: str = "utf-8",
        separator: str = ",",
        decimal: str = ".",
    ) -> None:
        check_setting("targets", targets, TARGET_KINDS)
        if inputs is not None:
            check_setting("inputs", inputs, ("numeric", "categorical"))
        both = [name for name in targets if name in (inputs or ())]
        if both:
            raise ValueError(f"a target must not be an input, found `{both[0]}` among both")
        for setting, by_target in (("classes", classes), ("names", names), ("metrics", metrics), ("weights", weights)):
            for name in by_target or ():
                if name not in targets:
                    raise ValueError(f"`{setting}` must name targets, found `{name}`: {nearest(str(name), targets)}")
        roles = {"split": split, "group": group, "id": id}
        for role, name in roles.items():
            if name is not None and (name in targets or name in (inputs or ())):
                raise ValueError(f"`{role}` must be no target and no input, found `{name}`")
        whole("rare", rare, 1)
        whole("most", most, 2)
        self._settings = Settings(
            str(path), _pairs(targets), None if inputs is None else _pairs(inputs),
            tuple((name, tuple(values)) for name, values in (classes or {}).items()), tuple((names or {}).items()),
            check_fractions(fractions), split, group, id, check_seed(seed), rare, most,
            Form(encoding, separator, decimal, tuple(missing or ())),
        )  # fmt: skip
        self._metrics = dict(metrics or {})
        self._weights = dict(weights or {})
        self._made: _Prepared | None = None
        self._restored: Fitted | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # known once it is read
        return tuple(
            goal.task(self._metrics.get(goal.column), self._weights.get(goal.column, 1.0))
            for goal in self._known().goals
        )

    @property
    def preprocessing(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride] (likewise)
        return {"inputs": self._known().encoding.labels(), "columns": self._known().encoding.to_json()}

    @property
    def width(self) -> int:
        """How many numbers an example has once it is encoded: the width of the network's first layer."""
        return self._known().encoding.width

    @property
    def encoding(self) -> Encoding:
        """How its columns become numbers, as fitted on the training rows."""
        return self._known().encoding

    def load(self) -> Splits:
        """Reads, divides and encodes the table."""
        if self._restored is None:
            return self._read().splits
        sheet, fitted = self._settings.read(), self._known()
        if sheet.digest != fitted.digest:
            raise sheet.error(
                "the table must be the one that the run was trained on, found changed content, of which training rows "
                "can no longer be told: evaluate it as a new file (`--file`)"
            )
        return _encoded(sheet, fitted, _divided(sheet, self._settings, fitted.goals))

    def fitted(self) -> dict[str, Any]:
        return self._known().to_json()

    def restore(self, fitted: Mapping[str, Any]) -> None:
        self._restored = Fitted.from_json(fitted)

    def read(self, path: str | Path, targets: bool = False) -> Examples | None:
        """Rows of another file, encoded as the training rows were; see `DataSet.read`.

        It must have the input columns; the id column stands beside predictions if it is there. Categories that no
        training row had are taken as rare ones, or as none of those known, and missing numbers are filled as in
        training; the log tells both.

        Raises:
            ValueError: the file is damaged, lacks a column, or (if `targets`) has a class that no training row had.
            FileNotFoundError: there is no such file.
        """
        if kind_of(path) not in FORMATS:
            return None
        fitted, settings = self._known(), self._settings
        sheet = settings.read(path)
        inputs, known = torch.from_numpy(fitted.encoding.apply(sheet)), {}
        beside = {settings.id: sheet.text(settings.id).tolist()} if settings.id in sheet.columns else {}
        if targets:
            sheet.check_columns((goal.column for goal in fitted.goals), "a target")
            known = {goal.name: goal.targets(sheet) for goal in fitted.goals}
        for column, found in fitted.encoding.unseen(sheet).items():
            logger.info("%s: `%s` has categories that no training row had: %s", path, column, _listed(found))
        _tell_filled(sheet, fitted.encoding)
        return Examples(inputs, beside, known)

    def take(self, sheet: Sheet) -> None:
        """Takes its file as read already; nothing is logged."""
        self._made = _prepare(self._settings, sheet)

    def _known(self) -> Fitted:
        return self._read().fitted if self._restored is None else self._restored

    def _read(self) -> _Prepared:
        """What the file had when it was first read: its tasks and its splits must be of one content."""
        if self._made is None:
            self._made = _prepared(self._settings, content_digest(self._settings.path))
        return self._made


@dataclass(frozen=True)
class Settings:
    """What a `Table` was given that its reading depends on; hashable."""

    path: str
    targets: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str], ...] | None
    classes: tuple[tuple[str, tuple[str, ...]], ...]
    names: tuple[tuple[str, str], ...]
    fractions: tuple[float, float, float]
    split: str | None
    group: str | None
    id: str | None
    seed: int
    rare: int
    most: int
    form: Form

    def read(self, path: str | Path | None = None) -> Sheet:
        """The table itself, or another one, which must be of that form."""
        if path is None:
            return read_sheet(self.path, self.form)
        return read_sheet(path, replace(self.form, fixed=True))


@dataclass(frozen=True)
class Goal:
    """A target column.

    Attributes:
        column: its name.
        name: the task's.
        kind: ``binary``, ``classification`` or ``regression``.
        labels: its classes in order, none for a regression.
        mean: of a regression's training targets.
        std: their standard deviation.
    """

    column: str
    name: str
    kind: str
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def task(self, metric: str | None, weight: float) -> Task:
        """The task of predicting it."""
        if self.kind == BINARY:
            return binary(self.name, metric=metric, weight=weight, labels=self.labels)
        if self.kind == CLASSIFICATION:
            return classification(self.name, len(self.labels), metric=metric, weight=weight, labels=self.labels)
        return regression(self.name, metric=metric, weight=weight, mean=self.mean, std=self.std)

    def targets(self, sheet: Sheet, rows: np.ndarray | None = None) -> Tensor:
        """The rows' targets (all if None), (N,).

        Raises:
            ValueError: a class that is none of `labels`, or an entry that is no number.
        """
        rows = np.arange(sheet.rows) if rows is None else rows
        if self.kind == REGRESSION:
            return torch.from_numpy(sheet.numbers(self.column)[rows].astype(np.float32))
        words = sheet.categories(self.column)[rows].tolist()
        codes: dict[str | None, int] = {label: index for index, label in enumerate(self.labels)}
        codes[None] = MISSING_CLASS
        new = set(words) - set(codes)
        if new:
            row, word = next((row, word) for row, word in zip(rows, words, strict=True) if word in new)
            raise sheet.error(
                f"target `{self.column}` must be a class that training rows have, found {word!r} in "
                f"{sheet.where(int(row))}: {_nearest_class(str(word), self.labels)}"
            )
        found = torch.tensor([codes[word] for word in words], dtype=torch.int64)
        return found.float().masked_fill(found == MISSING_CLASS, torch.nan) if self.kind == BINARY else found


@dataclass(frozen=True)
class Fitted:
    """What was learned from the training rows.

    Attributes:
        encoding: of the inputs.
        goals: the targets.
        digest: of the file's content.
    """

    encoding: Encoding
    goals: tuple[Goal, ...]
    digest: str

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        goals = [asdict(goal) for goal in self.goals]
        return {"format": FORMAT, "inputs": self.encoding.to_json(), "targets": goals, "digest": self.digest}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fitted:
        """What `to_json` told.

        Raises:
            ValueError: it is damaged, or of a newer format.
        """
        try:
            if content["format"] > FORMAT:
                raise ValueError(f"format {content['format']}, newer than {FORMAT}")
            goals = (Goal(**{**goal, "labels": tuple(map(str, goal["labels"]))}) for goal in content["targets"])
            return cls(Encoding.from_json(content["inputs"]), tuple(goals), str(content["digest"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it must be the encoding of a table, found a damaged one ({error})") from error


@dataclass(frozen=True)
class _Prepared:
    fitted: Fitted
    splits: Splits


@functools.lru_cache(maxsize=2)  # a comparison makes the same data set for every one of its runs
def _prepared(settings: Settings, digest: str) -> _Prepared:
    sheet = settings.read()
    made = _prepare(settings, sheet)
    _tell_filled(sheet, made.fitted.encoding)
    for goal in made.fitted.goals:
        if goal.kind != REGRESSION and (told := odd_classes(sheet.profile(goal.column))):
            logger.warning("%s: target `%s` has %s", sheet.path, goal.column, told)
    return made


def table_of(sheet: Sheet, targets: dict[str, str], inputs: dict[str, str], **settings: Any) -> Table:
    """The data set of a table that has been read already, in the form that `settings` tell; it reads nothing."""
    form = sheet.form
    made = Table(
        str(sheet.path), targets, inputs, missing=list(form.missing), encoding=form.encoding, separator=form.separator,
        decimal=form.decimal, **settings,
    )  # fmt: skip
    made.take(sheet)
    return made


def _prepare(settings: Settings, sheet: Sheet) -> _Prepared:
    inputs, targets = _kinds(sheet, settings)
    goals = tuple(_goal(sheet, settings, *target) for target in targets.items())
    parts = _divided(sheet, settings, goals)
    goals = tuple(_measured(sheet, goal, parts) for goal in goals)
    encoding = fit_encoding(sheet, inputs, parts[0], rare=settings.rare, most=settings.most)
    fitted = Fitted(encoding, goals, sheet.digest)
    return _Prepared(fitted, _encoded(sheet, fitted, parts))


def _kinds(sheet: Sheet, settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """{column: kind} of the inputs and of the targets, guessed where they were not given."""
    targets = dict(settings.targets)
    sheet.check_columns(targets, "a target")
    roles = [name for name in (settings.split, settings.group, settings.id) if name is not None]
    for role in ("split", "group", "id"):
        sheet.check_columns([name for name in [getattr(settings, role)] if name is not None], f"`{role}`")
    for name in targets:
        check_target(sheet, sheet.profile(name))
    guessed = guess_targets(sheet, [name for name, kind in targets.items() if not kind])
    targets |= guessed
    if settings.inputs is None:
        guesses = guess_inputs(sheet, (*targets, *roles))
        inputs = {name: guess.kind for name, guess in guesses.items() if guess.kind}
        left_out = {name: guess.reason for name, guess in guesses.items() if not guess.kind}
        _tell(sheet, inputs | guessed, left_out)
        return inputs, targets
    inputs = dict(settings.inputs)
    sheet.check_columns(inputs, "an input")
    check_inputs_named(sheet, inputs)
    unknown = [name for name, kind in inputs.items() if not kind]
    for name in unknown:
        if (found := sheet.profile(name)).unread:
            raise sheet.error(f"column `{name}` must hold numbers or text, found {unread(sheet, found)}")
    if unknown:
        found = guess_inputs(sheet, set(sheet.columns) - set(unknown))
        inputs |= {name: found[name].kind or "categorical" for name in unknown}  # it was named, so it is not left out
    _tell(sheet, {name: inputs[name] for name in unknown} | guessed, {})
    return inputs, targets


def _tell(sheet: Sheet, kinds: Mapping[str, str], left_out: Mapping[str, str]) -> None:
    if kinds:
        found: dict[str, list[str]] = {}
        for name, kind in kinds.items():
            found.setdefault(kind, []).append(f"`{name}`")
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items())
        logger.info("%s: kinds guessed from the entries: %s", sheet.path, told)
    for name, reason in left_out.items():
        logger.info("%s: column `%s` is left out of the inputs: %s", sheet.path, name, reason)


def _tell_filled(sheet: Sheet, encoding: Encoding) -> None:
    """Logs how many missing numbers were filled, and with what."""
    found = encoding.filled(sheet)
    if found:
        unsigned = ", which no input tells, as no training row lacked it"
        told = (
            f"`{name}` {count:,} with {column.fill:.6g}" + unsigned * (not column.indicator)
            for name, (count, column) in found.items()
        )
        logger.info("%s: missing numbers are filled with the training rows' median: %s", sheet.path, "; ".join(told))


def _goal(sheet: Sheet, settings: Settings, column: str, kind: str) -> Goal:
    """The target, with all classes that the file has where none are given."""
    taken = dict(settings.names)
    own = taken.get(column) or _task_names([name for name, _ in settings.targets], taken)[column]
    if kind == REGRESSION:
        return Goal(column, own, kind)
    found = [value for value in dict.fromkeys(sheet.categories(column).tolist()) if value is not None]
    given = dict(settings.classes).get(column)
    if given and (others := [value for value in found if value not in given]):
        row = int(np.flatnonzero(sheet.categories(column) == others[0])[0])
        rule = f"target `{column}` must be one of its `classes`, {_listed(given)}"
        raise sheet.error(f"{rule}, found {others[0]!r} in {sheet.where(row)}: {nearest(others[0], given)}")
    labels = given or _in_order(found)
    if kind == BINARY and len(labels) != 2:
        rule = f"binary target `{column}` must have two classes"
        raise sheet.error(f"{rule}, found {len(labels)}: {_listed(labels)}: is it a classification?")
    if len(set(labels)) < len(labels):
        raise ValueError(f"`classes` must be different, found {list(labels)} for `{column}`")
    return Goal(column, own, kind, tuple(labels))


def _divided(sheet: Sheet, settings: Settings, goals: Sequence[Goal]) -> Rows:
    if settings.split is not None:
        parts = by_column(sheet, settings.split)
    elif settings.group is not None:
        parts = by_group(sheet, settings.group, settings.fractions, settings.seed)
    else:
        ordered = sorted(goals, key=lambda goal: goal.column)  # the order of targets must not change the parts
        parts = by_fraction(sheet, [_strata(sheet, goal) for goal in ordered], settings.fractions, settings.seed)
    if settings.group is not None:
        check_groups(sheet, settings.group, parts)
    return parts


def _strata(sheet: Sheet, goal: Goal) -> np.ndarray:
    """What every row has for this target: its class's place among all, sorted, or (of a regression) if it has one."""
    if goal.kind == REGRESSION:
        return np.isnan(sheet.numbers(goal.column)).astype(np.int64)
    places: dict[str | None, int] = {label: index for index, label in enumerate(_in_order(goal.labels))}
    return np.array([places.get(word, len(places)) for word in sheet.categories(goal.column)], dtype=np.int64)


def _measured(sheet: Sheet, goal: Goal, parts: Rows) -> Goal:
    """The target with what its training rows tell; the others must have something to be judged by.

    Raises:
        ValueError: a part has no target, a class is in no training row, or training targets are equal or all but equal.
    """
    targets = [goal.targets(sheet, rows) for rows in parts]
    given = [part[~torch.isnan(part)] if part.is_floating_point() else part[part != MISSING_CLASS] for part in targets]
    for part, values in zip(PARTS, given, strict=True):
        if not len(values):
            raise sheet.error(f"target `{goal.column}` must have an entry in every part, found none in {part}")
    if goal.kind != REGRESSION:
        _check_trained(sheet, goal, given)
        return goal
    numbers = sheet.numbers(goal.column)[parts[0]]  # in float64: float32 may have lost what tells them apart
    numbers = numbers[~np.isnan(numbers)]
    mean, std = float(numbers.mean()), float(numbers.std())
    if numbers.min() == numbers.max():
        raise sheet.error(f"target `{goal.column}` must have two different training numbers, found only {mean:g}")
    if std < LEAST_SPREAD * abs(mean):
        rule = f"regression target `{goal.column}` must spread by at least {LEAST_SPREAD:g} of its mean"
        raise sheet.error(
            f"{rule}, as float32 has about 7 digits, found standard deviation {std:g} about mean {mean:.9g} in "
            "training: take a constant, such as the mean, off the column"
        )
    return Goal(goal.column, goal.name, goal.kind, mean=mean, std=std)


def _check_trained(sheet: Sheet, goal: Goal, given: Sequence[Tensor]) -> None:
    trained, *held = (set(values.long().tolist()) for values in given)
    for index, label in enumerate(goal.labels):
        if index not in trained:
            places = [part for part, found in zip(PARTS[1:], held, strict=True) if index in found]
            where = f"only in {' and '.join(places)}" if places else "in no row"
            raise sheet.error(
                f"every class of target `{goal.column}` must be in a training row, found `{label}` {where}: change the "
                "parts, or drop those rows"
            )


def _encoded(sheet: Sheet, fitted: Fitted, parts: Rows) -> Splits:
    return Splits(*(_split(sheet, fitted, rows) for rows in parts))


def _split(sheet: Sheet, fitted: Fitted, rows: np.ndarray) -> Split:
    targets = {goal.name: goal.targets(sheet, rows) for goal in fitted.goals}
    return Split(torch.from_numpy(fitted.encoding.apply(sheet, rows)), targets)


def _task_names(columns: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """A task's name for each target column: its own, unless modules cannot be called so; all different.

    >>> _task_names(["spent", "a.b", "a/b", "type"], {})
    {'spent': 'spent', 'a.b': 'a_b', 'a/b': 'a_b_2', 'type': 'type_'}
    """
    names = dict(given)
    for column in columns:
        if column not in names:
            plain = " ".join(re.sub(r"[./]", "_", column).split()) or "target"
            plain += "_" * (hasattr(nn.ModuleDict, plain) or plain == "training")
            taken, name, number = set(names.values()), plain, 1
            while name in taken:
                number += 1
                name = f"{plain}_{number}"
            names[column] = name
    return names


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Classes sorted: as numbers if they all are, else as text.

    >>> _in_order(["10", "9", "1"]), _in_order(["b", "10", "a"])
    (('1', '9', '10'), ('10', 'a', 'b'))
    """
    words = list(values)
    try:
        return tuple(sorted(words, key=float))
    except ValueError:
        return tuple(sorted(words))


def _nearest_class(word: str, labels: Sequence[str]) -> str:
    """The class that it may have been, or some of those known."""
    close = difflib.get_close_matches(word, labels, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known: {_listed(labels)}"


def _listed(words: Sequence[str]) -> str:
    shown = ", ".join(f"`{word}`" for word in words[:SHOWN])
    return shown + f" and {len(words) - SHOWN} more" * (len(words) > SHOWN)


def check_setting(setting: str, given: Any, kinds: Sequence[str]) -> None:
    """Raises `ValueError` unless a setting names different columns, each of a known kind if it tells kinds."""
    if not given:
        raise ValueError(f"`{setting}` must name at least one column, found none")
    for name in given:
        if not isinstance(name, str):
            raise ValueError(
                f"`{setting}` must name columns in words, found the number {name!r}: YAML reads it so, rename it"
            )
    if not isinstance(given, Mapping):
        twice = [name for index, name in enumerate(given) if name in given[:index]]
        if twice:
            raise ValueError(f"`{setting}` must be different columns, found `{twice[0]}` twice")
        return
    for name, kind in given.items():
        one_of(f"{setting}.{name}", kind, kinds)


def _pairs(given: Mapping[str, str] | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(column, kind), kinds that are to be guessed empty."""
    return tuple(given.items()) if isinstance(given, Mapping) else tuple((name, "") for name in given)
