"""A first configuration for a user's own table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polytask.data.base import only_split
from polytask.data.encoding import NUMERIC, Encoding
from polytask.data.entries import Profile
from polytask.data.kinds import REGRESSION, TARGET_KINDS, Guess, guess_inputs, guess_targets, odd_classes
from polytask.data.sheet import Form, Sheet, content_digest, read_sheet
from polytask.data.table import SHOWN, check_setting, table_of
from polytask.studies.store import write_text
from polytask.task import Task

HIDDEN = (128, 64)
BATCH_SIZES = ((2_000, 32), (10_000, 128), (50_000, 256), (200_000, 512))
"""(training rows below which it holds, examples a step)."""
LARGEST_BATCH = 1024
EVALUATED = 4096
"""Examples per forward pass where nothing is learned: rows of a table are small."""
EPOCHS, PATIENCE = 50, 5


@dataclass(frozen=True)
class Use:
    """What a column was taken for.

    Attributes:
        column: what it looks like.
        role: ``input``, ``target``, ``id``, ``group``, ``split`` or ``left out``.
        kind: the kind of input or target; why it is left out; "" for the others.
        fill: what its missing entries were filled with: a number, ``a category``, or ``not filled`` in a target; "" if
            there are none, or it is neither.
        indicator: whether a further input tells that a number is missing.
    """

    column: Profile
    role: str
    kind: str
    fill: str = ""
    indicator: bool = False


@dataclass(frozen=True)
class First:
    """What `first_config` wrote.

    Attributes:
        path: the configuration.
        uses: what the columns were taken for, in the table's order.
        rows: rows of the table.
        width: numbers that an encoded example has.
        notes: what the user should look at, a line each.
    """

    path: Path
    uses: tuple[Use, ...]
    rows: int
    width: int
    notes: tuple[str, ...] = ()


def first_config(
    data: str | Path,
    targets: Sequence[str],
    out: str | Path | None = None,
    *,
    id: str | None = None,
    group: str | None = None,
    split: str | None = None,
    missing: Sequence[str] = (),
    encoding: str = "utf-8",
    separator: str = ",",
    decimal: str = ".",
    overwrite: bool = False,
) -> First:
    """Looks at a table, guesses what its columns are, and writes a YAML file that trains on it as it stands.

    Args:
        data: the table, see `polytask.data.Table`.
        targets: the columns to predict.
        out: the YAML file; beside the table, with its name, if None.
        id, group, split, missing, encoding, separator, decimal: as in `polytask.data.Table`.
        overwrite: replace a YAML file that is already there.

    Raises:
        ValueError: a file of that name is there, or whatever `polytask.data.Table` refuses; nothing is written.
        FileNotFoundError: there is no such table, or no folder to write into.
    """
    source = Path(data)
    form = Form(encoding, separator, decimal, tuple(missing), prefix="--")
    content_digest(source)  # there must be such a file
    plain = source.with_suffix("") if source.suffix.lower() == ".gz" else source
    path = plain.with_suffix(".yaml") if out is None else Path(out)
    _check_path(path, overwrite)
    check_setting("--targets", targets, TARGET_KINDS)
    sheet = read_sheet(source, form)
    for name in targets:
        if fault := _unwritable(name):
            raise ValueError(f"a target must have a name that a configuration can hold, found `{name}`: {fault}")
    sheet.check_columns(targets, "a target")
    roles = {"id": id, "group": group, "split": split}
    for role, name in roles.items():
        sheet.check_columns([name] if name is not None else [], f"`--{role}`")
        if name in targets:
            raise ValueError(f"`--{role}` must be no target, found `{name}`")
    kinds = guess_targets(sheet, targets)
    guesses = _guesses(sheet, (*targets, *(name for name in roles.values() if name is not None)))
    if id is None:
        roles["id"] = next((name for name, guess in guesses.items() if guess.names_rows), None)
    given_roles = {key: value for key, value in roles.items() if value is not None}
    inputs = {name: guess.kind for name, guess in guesses.items() if guess.kind}
    table = table_of(sheet, kinds, inputs, **given_roles)
    names = dict(zip(targets, table.tasks, strict=True))
    train = len(only_split(table.load().train, "a table").inputs)
    uses = tuple(_use(sheet.profile(name), kinds, guesses, roles, table.encoding) for name in sheet.columns)
    notes = tuple(note for use in uses for note in _notes(use))
    text = _text(path, source, uses, given_roles | _form(sheet.form), names, table.width, sheet.rows, train, notes)
    write_text(path, text)
    return First(path, uses, sheet.rows, table.width, notes)


def _form(form: Form) -> dict[str, Any]:
    """The settings of a `Table` that tell how it is written, those that differ from its defaults."""
    found = {
        "missing": list(form.missing), "encoding": form.encoding, "separator": form.separator, "decimal": form.decimal
    }  # fmt: skip
    plain = Form()
    return {key: value for key, value in found.items() if value != getattr(plain, key) and value != []}


def _check_path(path: Path, overwrite: bool) -> None:
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"a configuration's name must end in .yaml, found {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder to write into must exist, found none at {path.parent}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} must not be there yet: choose another name (--out), or overwrite it (--overwrite)")


def _guesses(sheet: Sheet, not_inputs: Sequence[str]) -> dict[str, Guess]:
    odd = {name: fault for name in sheet.columns if name not in not_inputs and (fault := _unwritable(name))}
    found = guess_inputs(sheet, (*not_inputs, *odd), mixed=True)
    return found | {name: Guess(None, fault) for name, fault in odd.items()}


def _unwritable(name: str) -> str:
    """Why a column cannot be named in a configuration, "" if it can: what jsonargparse would take for other things."""
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", name):  # it quotes by YAML 1.1, which has no such numbers
        return "YAML reads its name as a number: rename it"
    return "a configuration names classes so: rename it" if name == "class_path" else ""


def _use(
    found: Profile, kinds: Mapping[str, str], guesses: Mapping[str, Guess], roles: Mapping[str, str | None],
    encoding: Encoding,
) -> Use:  # fmt: skip
    missing = found.given < found.rows
    if found.name in kinds:
        return Use(found, "target", kinds[found.name], "not filled" * missing)
    role = next((role for role, name in roles.items() if name == found.name), None)
    if role is not None:
        return Use(found, role, "")
    guess = guesses[found.name]
    if not guess.kind:
        return Use(found, "left out", guess.reason)
    number = next((column for column in encoding.numeric if column.name == found.name), None)
    fill = "a category" if number is None else f"{number.fill:.6g}"
    return Use(found, "input", guess.kind, fill * missing, number is not None and number.indicator)


def _notes(use: Use) -> list[str]:
    """What the user should look at in a column."""
    found, name = use.column, _comment(use.column.name)
    notes = []
    if use.role == "target" and use.kind != REGRESSION and (told := odd_classes(found)):
        notes.append(f"target `{name}` has {told}")
    if use.kind == NUMERIC and found.whole and found.distinct == found.rows:
        notes.append(f"input `{name}` has another whole number in every row: if it is an id, name it with --id")
    if not found.numeric:  # among numbers such words can mean nothing else
        rename = "rename them if they mean something"
        notes += [
            f"`{name}` has {rows:,} entries {_comment(repr(word))}, taken for not given: {rename}"
            for word, rows in found.absent.items()
        ]
    return notes


def _text(
    path: Path, source: Path, uses: Sequence[Use], settings: Mapping[str, Any], names: Mapping[str, Task],
    width: int, rows: int, train: int, notes: Sequence[str],
) -> str:  # fmt: skip
    batch = next((size for below, size in BATCH_SIZES if train < below), LARGEST_BATCH)
    lines = [
        *_introduction(path, source, uses, names, rows, notes), *_data(path, source, uses, settings, names),
        *_model(names, width), *_trainer(batch), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _introduction(
    path: Path, source: Path, uses: Sequence[Use], names: Mapping[str, Task], rows: int, notes: Sequence[str]
) -> list[str]:
    left_out = [f"#   {_comment(use.column.name)}: {_comment(use.kind)}" for use in uses if use.role == "left out"]
    inputs, run = sum(use.role == "input" for use in uses), f"runs/{path.stem}"
    return [
        f"# A first configuration for {_comment(source.name)}: {rows:,} rows, {inputs} input columns, "
        f"{len(names)} targets. Change what you like.",
        f"#   polytask train {path.name} --epochs 3",
        f"#   polytask compare {path.name} --methods UPGrad --seeds 0,1,2",
        f"#   polytask predict {run}/UPGrad/seed-0 new.csv --out predictions.csv  # {run}: what `train` made",
        *(["# Columns left out of the inputs:", *left_out] if left_out else []),
        *(["# To look at:", *(f"#   {note}" for note in notes)] if notes else []),
    ]


def _data(
    path: Path, source: Path, uses: Sequence[Use], settings: Mapping[str, Any], names: Mapping[str, Task]
) -> list[str]:
    found = {use.column.name: use for use in uses}
    targets = [found[name] for name in names]  # in the user's order
    return [
        "data:",
        "  class_path: Table",
        "  init_args:",
        f"    path: {_word(_relative(source, path.parent))} # relative to this file",
        "    inputs: # numeric or categorical",
        *(f"      {_word(use.column.name)}: {use.kind}{_about(use)}" for use in uses if use.role == "input"),
        "    targets: # binary, classification or regression; one task each",
        *(f"      {_word(use.column.name)}: {use.kind}{_about_task(use, names[use.column.name])}" for use in targets),
        *(f"    {key}: {_value(value)}" for key, value in settings.items()),
        *([] if "split" in settings else ["    fractions: [0.7, 0.15, 0.15] # of rows to train, validate and test"]),
    ]


def _model(names: Mapping[str, Task], width: int) -> list[str]:
    return [
        "model:",
        "  class_path: HardSharing # one trunk for all tasks; `polytask methods` lists other models",
        "  init_args:",
        "    trunk:",
        "      class_path: MLP",
        f"      init_args: {{inputs: {width}, widths: {list(HIDDEN)}}} # the columns above make {width} numbers",
        "    heads:",
        *(line for task in names.values() for line in _head(task)),
    ]


def _trainer(batch: int) -> list[str]:
    return [
        "trainer:",
        "  optimizer:",
        "    class_path: torch.optim.AdamW",
        "    init_args: {lr: 0.001}",
        f"  batch_size: {batch}",
        f"  evaluation_batch_size: {EVALUATED}",
        "  callbacks:",
        "    - class_path: EarlyStopping # puts the weights of the best epoch back",
        f"      init_args: {{monitor: validation/loss, patience: {PATIENCE}}}",
        f"epochs: {EPOCHS} # at most",
        "seed: 0",
    ]


def _head(task: Task) -> list[str]:
    return [
        f"      {_word(task.name)}:",
        "        class_path: torch.nn.Linear",
        f"        init_args: {{in_features: {HIDDEN[-1]}, out_features: {task.outputs}}}",
    ]


def _kind(task: Task) -> str:
    return type(task).__name__.lower()


def _about(use: Use) -> str:
    found = use.column
    told = [f"{found.distinct} categories"] * (use.kind != NUMERIC) + _missing(use)
    told += [f"numbers and text, such as {_comment(found.mixed)}"] * bool(found.mixed)
    return f" # {', '.join(told)}" if told else ""


def _missing(use: Use) -> list[str]:
    absent = use.column.rows - use.column.given
    if not absent:
        return []
    how = f"filled with {use.fill}" if use.kind == NUMERIC else use.fill
    how += ", told by a further input" * use.indicator
    return [f"{absent:,} missing ({100 * absent / use.column.rows:.2g} %): {how}"]


def _about_task(use: Use, task: Task) -> str:
    shown = ", ".join(_comment(label) for label in task.labels[:SHOWN])
    told = [f"{len(task.labels)} classes: {shown}" + ", ..." * (len(task.labels) > SHOWN)] * bool(task.labels)
    told += _missing(use)
    return f" # {'; '.join(told)}" if told else ""


def _relative(source: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(source, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return str(source.absolute())


def _comment(text: str) -> str:
    """Text that ends no comment."""
    return "".join(character if character.isprintable() else " " for character in text)


def _word(text: str) -> str:
    """A string as YAML: bare where nothing else could be read in it, else quoted."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**20).strip()


def _value(value: str | Sequence[str]) -> str:
    return _word(value) if isinstance(value, str) else "[" + ", ".join(map(_word, value)) + "]"
