"""A table of the user's: what is learned from it, what is not, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.helpers import same
from torch import nn

import polytask as pt
from polytask.data import Table
from polytask.data.encoding import Encoding, fit_encoding
from polytask.data.entries import a_date, as_numbers
from polytask.data.kinds import odd_classes
from polytask.data.sheet import Form, Sheet, _typed, _without, read_sheet
from polytask.data.table import Fitted

KINDS = {"age": "numeric", "pay": "numeric", "town": "categorical", "car": "categorical"}


def frame(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            "age": random.integers(18, 90, rows).astype(float),
            "pay": random.lognormal(3, 1, rows),
            "town": random.choice(list("abcdefgh"), rows, p=[0.4, 0.3, 0.2, 0.04, 0.03, 0.01, 0.01, 0.01]),
            "car": random.choice(["yes", "no"], rows),
            "member": random.choice(["no", "yes"], rows),
            "plan": random.choice(["x", "y", "z"], rows),
            "spent": random.normal(100, 20, rows),
            "part": random.permutation(
                ["train"] * (rows - 2 * (rows // 5)) + ["validation"] * (rows // 5) + ["test"] * (rows // 5)
            ),
            "person": random.integers(0, rows // 5, rows),
        }
    )
    for name in ("pay", "town", "plan", "spent"):
        made.loc[random.random(rows) < 0.15, name] = None
    return made


def written(folder: Path, content: pd.DataFrame | str | bytes, name: str = "data.csv") -> str:
    path = folder / name
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


TARGETS = {"member": "binary", "plan": "classification", "spent": "regression"}


def table(folder: Path, content: pd.DataFrame | str | bytes | None = None, **options: Any) -> Table:
    options = {"targets": TARGETS, "inputs": KINDS} | options
    return Table(written(folder, frame() if content is None else content), **options)


def lines(rows: Sequence[str], header: str = "x,c,t") -> str:
    return "\n".join([header, *rows]) + "\n"


def small(count: int = 30) -> list[str]:
    """Rows of x (a number), c (a category) and t (two classes)."""
    return [f"{i * 0.5},{'pqr'[i % 3]},{'ny'[i % 2]}" for i in range(count)]


# What is learned


def pipeline(kinds: dict[str, str], rare: int = 5, most: int = 50) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name, kind in kinds.items() if kind == "numeric"]
    categories = [name for name, kind in kinds.items() if kind == "categorical"]
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=rare, max_categories=most, sparse_output=False
    )
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            ("missing", MissingIndicator(error_on_new=False), numbers),
            ("categories", one_hot, categories),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rare", "most"), [(1, 50), (5, 50), (2, 4)])
def test_the_encoding_is_that_of_a_pipeline_fitted_on_the_training_rows(tmp_path, seed, rare, most):
    content = frame(seed=seed)
    made = table(tmp_path, content, split="part", rare=rare, most=most)
    read = content.astype({"town": object, "car": object})
    read["town"] = read["town"].where(read["town"].notna(), None)
    oracle = pipeline(KINDS, rare, most).fit(read[read["part"] == "train"])
    for part, split in zip(("train", "validation", "test"), made.load(), strict=True):
        wanted = oracle.transform(read[read["part"] == part])
        assert same(split.inputs, torch.from_numpy(np.asarray(wanted, dtype=np.float32)))
    assert made.width == split.inputs.shape[1] == len(made.preprocessing["inputs"])


def test_rows_outside_of_training_teach_nothing(tmp_path):
    before = table(tmp_path, split="part")
    parts, fitted = before.load(), before.fitted()
    content = frame()
    held = content["part"] != "train"
    for name in ("age", "pay", "spent"):
        content.loc[held, name] = 1e6 + np.arange(held.sum()) ** 2.0
    for name, entry in (("town", "elsewhere"), ("car", "elsewhere"), ("member", "yes"), ("plan", "z")):
        content.loc[held, name] = entry
    after = table(tmp_path, content, split="part")
    assert after.fitted() | {"digest": ""} == fitted | {"digest": ""}
    assert same(after.load().train.inputs, parts.train.inputs) and same(after.load().train.targets, parts.train.targets)
    assert not same(after.load().test.inputs, parts.test.inputs)


def test_targets_keep_their_classes_and_units_and_what_is_missing(tmp_path):
    content = frame()
    made = table(tmp_path, content, split="part", classes={"plan": ["z", "y", "x"]}, metrics={"spent": "mae"})
    member, plan, spent = made.tasks
    assert member.labels == ("no", "yes") and plan.labels == ("z", "y", "x")
    assert spent.metric.name == "mae"
    train = content[content["part"] == "train"]
    found = made.load().train.targets
    assert found["member"].tolist() == (train["member"] == "yes").astype(float).tolist()
    assert found["plan"].tolist() == [{"z": 0, "y": 1, "x": 2}.get(value, -100) for value in train["plan"]]
    np.testing.assert_allclose(found["spent"], train["spent"], rtol=1e-6)
    assert (spent.mean, spent.std) == pytest.approx((train["spent"].mean(), train["spent"].std(ddof=0)), rel=1e-6)
    assert spent.predict(torch.zeros(1, 1)).values.item() == pytest.approx(spent.mean)


def test_one_read_serves_all_runs_until_the_file_changes(tmp_path):
    first, second = table(tmp_path), table(tmp_path)
    assert first.load().train.inputs is second.load().train.inputs
    before = first.load().train.inputs
    assert not same(table(tmp_path, frame(seed=1)).load().train.inputs, before)
    assert first.load().train.inputs is before  # a table is of one content
    assert first.fitted()["digest"] == second.fitted()["digest"] != table(tmp_path, frame(seed=2)).fitted()["digest"]


# What is kept


def test_a_restored_table_encodes_to_the_bit_without_its_file(tmp_path):
    made = table(tmp_path, id="person")
    new = written(tmp_path, frame(50, seed=9), "new.csv")
    kept, wanted = json.dumps(made.fitted(), allow_nan=False), made.read(new, targets=True)
    parts = made.load()
    restored = Table(str(tmp_path / "data.csv"), TARGETS, KINDS, id="person")
    restored.restore(json.loads(kept))
    assert same(restored.load().test.inputs, parts.test.inputs) and same(restored.load().train.targets, parts.train[1])
    (tmp_path / "data.csv").unlink()
    found = restored.read(new, targets=True)
    assert same(found.inputs, wanted.inputs) and same(found.targets, wanted.targets)
    assert found.beside == {"person": [str(n) for n in frame(50, seed=9)["person"]]}
    assert json.dumps(restored.fitted()) == json.dumps(json.loads(kept))
    assert [task.describe() for task in restored.tasks] == [task.describe() for task in made.tasks]
    with pytest.raises(FileNotFoundError, match="found no file"):
        restored.load()


def test_a_restored_table_refuses_a_file_that_has_changed(tmp_path):
    made = table(tmp_path)
    kept = made.fitted()
    later = table(tmp_path, pd.concat([frame(), frame(5, seed=3)]))
    later.restore(kept)
    with pytest.raises(ValueError, match="the one that the run was trained on, found changed content"):
        later.load()


@pytest.mark.parametrize("broken", [{}, {"format": 2}, {"inputs": {"numeric": [{}]}}, {"targets": [{"x": 1}]}])
def test_a_damaged_encoding_is_refused(tmp_path, broken):
    made = table(tmp_path)
    content = made.fitted() | broken if broken else {}
    with pytest.raises(ValueError, match="must be the encoding of a table, found a damaged one"):
        Table("x.csv", ["member"]).restore(content)


def test_new_categories_are_taken_as_rare_ones_or_as_none_of_the_known(tmp_path, caplog):
    made = table(tmp_path, split="part")
    row = pd.DataFrame({"age": [30], "pay": [None], "town": ["nowhere"], "car": ["bicycle"]})
    with caplog.at_level(logging.INFO, logger="polytask"):
        found = made.read(written(tmp_path, row, "new.csv"))
    assert "`town` has categories that no training row had: `nowhere`" in caplog.text
    values = dict(zip(made.preprocessing["inputs"], found.inputs[0].tolist(), strict=True))
    assert values["town is rare or new"] == 1 and values["pay is missing"] == 1 and found.targets == {}
    assert [value for label, value in values.items() if label.startswith("car")] == [0, 0]
    assert values["pay"] == pytest.approx(
        (made.fitted()["inputs"]["numeric"][1]["fill"] - made.fitted()["inputs"]["numeric"][1]["mean"])
        / made.fitted()["inputs"]["numeric"][1]["scale"]
    )


numbers = st.one_of(st.none(), st.floats(-1e20, 1e20), st.integers(-5, 5).map(float))
words = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4))


@settings(max_examples=60)
@given(st.lists(st.tuples(numbers, numbers, words), min_size=3, max_size=30), st.integers(1, 4), st.integers(2, 6))
def test_any_table_is_encoded_as_scikit_learn_does_and_kept_to_the_bit(tmp_path, rows, rare, most):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["a", "b", "c"])
    writer.writerows([["" if entry is None else entry for entry in row] + [] for row in rows])
    sheet = read_sheet(written(tmp_path, text.getvalue()))
    kinds = {"a": "numeric", "b": "numeric", "c": "categorical"}
    train = np.arange(math.ceil(len(rows) / 2))
    parts = {name: sheet.numbers(name) if kind == "numeric" else sheet.categories(name) for name, kind in kinds.items()}
    for name in "ab":
        assume(not np.isnan(parts[name][train]).all())
    assume(any(value is not None for value in parts["c"][train]))
    encoding = fit_encoding(sheet, kinds, train, rare=rare, most=most)
    oracle = pipeline(kinds, rare, most)
    whole = pd.DataFrame({name: pd.Series(values, dtype=values.dtype) for name, values in parts.items()})
    oracle.fit(whole.iloc[train])
    shown = encoding.apply(sheet, train)
    np.testing.assert_array_equal(shown, np.asarray(oracle.transform(whole.iloc[train]), dtype=np.float32))
    again = Encoding.from_json(json.loads(json.dumps(encoding.to_json(), allow_nan=False)))
    assert again == encoding and again.apply(sheet, train).tobytes() == shown.tobytes()


# Names

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=6)
odd = st.one_of(names, st.sampled_from(["type", "a.b", "a/b", "a_b", 'say "x"', "a,b", " ", "train", "2020", "ä ö"]))


@settings(max_examples=30)
@given(st.lists(odd, min_size=4, max_size=4, unique=True))
def test_columns_may_have_any_names(tmp_path, columns):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([[i, "pqr"[i % 3], "ny"[i // 2 % 2], i % 7 if i % 5 else ""] for i in range(40)])
    number, category, first, second = columns
    made = Table(
        written(tmp_path, text.getvalue()), {first: "binary", second: "regression"},
        {number: "numeric", category: "categorical"},
    )  # fmt: skip
    tasks = made.tasks
    assert len({task.name for task in tasks}) == 2
    heads = {task.name: nn.Linear(8, task.outputs) for task in tasks}
    model = pt.models.HardSharing(pt.models.MLP(made.width, [8]), heads)
    history = pt.Trainer(model, tasks, progress=False).fit(*made.load()[:2], epochs=1)
    assert math.isfinite(history[-1]["validation/loss"])


def test_tasks_take_the_names_given(tmp_path):
    made = table(tmp_path, names={"member": "joins", "spent": "euros"})
    assert [task.name for task in made.tasks] == ["joins", "plan", "euros"] == list(made.load().train.targets)


# Kinds


def test_kinds_are_guessed_and_told(tmp_path, caplog):
    content = frame()
    content.insert(0, "", range(len(content)))  # as pandas writes its index
    content["name"] = [f"person {i}" for i in range(len(content))]
    content["note"] = [f"text {i // 2}" if i % 7 else None for i in range(len(content))]
    content["same"], content["void"], content["flag"] = 3, None, np.arange(len(content)) % 2 == 0
    content["stars"] = np.arange(len(content)) % 5
    with caplog.at_level(logging.INFO, logger="polytask"):
        made = table(tmp_path, content, targets=["member", "plan", "spent", "stars"], inputs=None, split="part")
        kinds = {type(task).__name__: task.name for task in made.tasks}
    assert kinds == {"Binary": "member", "Classification": "stars", "Regression": "spent"}
    read = made.fitted()["inputs"]
    assert [c["name"] for c in read["numeric"]] == ["age", "pay", "person"]
    assert [c["name"] for c in read["categorical"]] == ["town", "car", "flag"]
    for told in (
        "numeric: `age`, `pay`, `person`; categorical: `town`, `car`, `flag`", "binary: `member`",
        "`column 1` is left out of the inputs: numbers the rows",
        "`name` is left out of the inputs: all entries differ",
        "`note` is left out of the inputs: 100 different entries in 171 rows",
        "`same` is left out of the inputs: only one",
        "`void` is left out of the inputs: no entries",
    ):  # fmt: skip
        assert told in caplog.text


def test_whole_numbers_are_the_same_category_however_they_are_written(tmp_path):
    rows = [f"{i},{'01'[i % 2]}{'.0' * (i % 3 == 0)},{'12'[i // 2 % 2]}" for i in range(40)]
    made = Table(written(tmp_path, lines(rows)), {"t": "binary"}, {"x": "numeric", "c": "categorical"})
    assert made.preprocessing["inputs"] == ["x", "c = 0", "c = 1"] and made.tasks[0].labels == ("1", "2")


# How numbers are written


def german(folder: Path, content: pd.DataFrame, name: str = "german.csv") -> str:
    path = folder / name
    content.to_csv(path, index=False, sep=";", decimal=",")
    return str(path)


def test_decimal_commas_are_read_as_points_are(tmp_path):
    content = frame().assign(grade=np.where(np.arange(200) % 5, np.arange(200) % 3, np.nan))  # written as 1,0
    options: dict[str, Any] = {"targets": TARGETS | {"grade": "classification"}, "inputs": KINDS, "split": "part"}
    wanted = table(tmp_path, content, **options)
    found = Table(german(tmp_path, content), separator=";", decimal=",", **options)
    assert same(found.load().train.inputs, wanted.load().train.inputs)
    assert same(found.load().test.targets, wanted.load().test.targets)
    assert found.tasks[-1].labels == wanted.tasks[-1].labels == ("0", "1", "2")
    new = german(tmp_path, content[:5], "new.csv")
    assert same(found.read(new).inputs, wanted.read(written(tmp_path, content[:5], "points.csv")).inputs)
    with pytest.raises(ValueError, match=r"`age` must hold numbers.*decimal points, its `decimal` must be ',', as in"):
        found.read(written(tmp_path, content[:5].to_csv(sep=";", index=False), "points.csv"))


@pytest.mark.parametrize(
    ("entries", "decimal", "told"),
    [
        (["3,5", "-0,25", "4"], ".", "numbers with decimal commas, such as '3,5': `decimal: ','` reads them"),
        (["3.5", "-.25", "4"], ",", "numbers with decimal points, such as '3.5': `decimal: '.'` reads them"),
        (["1,234", "900"], ".", "marks between thousands, such as '1,234': write them without, or if they are decimal"),
        (["1.234,5", "12,5"], ".", "marks between thousands, such as '1.234,5'"),
    ],
)
def test_numbers_written_in_another_way_are_told_and_never_categories(tmp_path, caplog, entries, decimal, told):
    words = [f'"{entries[i % len(entries)]}",{"pqr"[i % 3]},{"ny"[i % 2]}' for i in range(30)]
    path = written(tmp_path, lines(words))
    with caplog.at_level(logging.INFO, logger="polytask"):
        assert Table(path, ["t"], decimal=decimal).width == 3
    assert f"column `x` is left out of the inputs: {told}" in caplog.text or told in caplog.text
    with pytest.raises(ValueError, match="column `x` must hold numbers or text, found numbers with"):
        Table(path, ["t"], ["x", "c"], decimal=decimal).load()
    with pytest.raises(ValueError, match="target `x` must hold classes or numbers, found numbers with"):
        Table(path, ["x"], ["c"], decimal=decimal).load()
    with pytest.raises(ValueError, match=r"column `x` must hold numbers.*(decimal (commas|points)|between thousands)"):
        Table(path, ["t"], {"x": "numeric"}, decimal=decimal).load()
    named = Table(path, ["t"], {"x": "categorical"}, decimal=decimal)
    assert named.width == len(entries)  # who says so means it


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.sampled_from([".", ","]))
def test_any_number_is_read_with_its_decimal_mark(values, decimal):
    column = np.array([repr(value).replace(".", decimal) for value in values], dtype=object)
    assert as_numbers(column, decimal).tolist() == values


# Dates


@pytest.mark.parametrize(
    "written_as",
    ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f+00:00", "%d.%m.%Y", "%m/%d/%y", "%d %b %Y", "%B %d, %Y",
     "%H:%M", "%Y%m%d", "%d/%m/%Y %I:%M %p"],
)  # fmt: skip
def test_dates_are_left_out_and_no_target(tmp_path, caplog, written_as):
    days = [day.strftime(written_as) for day in pd.date_range("2023-11-28", periods=30, freq="31h")]
    content = pd.DataFrame({"day": days, "c": list("pqr") * 10, "t": ["n", "y"] * 15})
    content.loc[::2, "day"] = content.loc[::4, "day"].repeat(2)[:15].tolist()  # they need not differ
    path = written(tmp_path, content)
    with caplog.at_level(logging.INFO, logger="polytask"):
        assert Table(path, ["t"]).preprocessing["inputs"] == ["c = p", "c = q", "c = r"]
    assert f"`day` is left out of the inputs: dates or times, such as {days[0]}" in caplog.text
    with pytest.raises(ValueError, match="target `day` must hold classes or numbers, found dates or times"):
        Table(path, ["day"], ["c"]).load()


@pytest.mark.parametrize(
    "entries", [["10-12", "18-30"], ["2019", "2020"], ["v1.2", "v1.3"], ["3:2", "16:9"], ["a", "1/2"]]
)
def test_what_is_no_date_is_kept(tmp_path, entries):
    path = written(tmp_path, lines([f"{entries[i % 2]},{'pqr'[i % 3]},{'ny'[i // 2 % 2]}" for i in range(30)]))
    assert "x" in {c["name"] for part in Table(path, ["t"], {"x": "categorical", "c": "categorical"})
                   .preprocessing["columns"].values() for c in part}  # fmt: skip
    assert not read_sheet(path).profile("x").date


@given(st.lists(st.datetimes(), min_size=1, max_size=5))
def test_any_time_of_iso_8601_is_a_date(times):
    assert a_date({time.isoformat(): 1 for time in times}) and a_date({str(time.date()): 2 for time in times})


def test_times_of_parquet_are_dates(tmp_path):
    series = pd.Series([pd.Timestamp("2024-01-01 12:30", tz="UTC"), pd.NaT])
    column = _typed(tmp_path / "data.parquet", "day", series)
    assert column.tolist() == ["2024-01-01 12:30:00+00:00", None]
    assert Sheet(tmp_path, {"day": column}, "").profile("day").date


# What is told


def test_what_is_missing_is_counted_and_named(tmp_path, caplog):
    content = frame().assign(town=frame()["town"].fillna("None"), plan=frame()["plan"].fillna("None"))
    with caplog.at_level(logging.INFO, logger="polytask"):
        made = table(tmp_path, content, split="part", rare=1)
        labels = made.preprocessing["inputs"]
    lost, fill = content["pay"].isna().sum(), content[content["part"] == "train"]["pay"].median()
    assert f"missing numbers are filled with the training rows' median: `pay` {lost} with {fill:.6g}" in caplog.text
    assert "pay is missing" in labels and "town is missing" in labels and not any("None" in label for label in labels)
    absent = read_sheet(str(tmp_path / "data.csv")).profile("town").absent
    assert absent == {"None": (content["town"] == "None").sum()} and made.tasks[1].labels == ("x", "y", "z")
    new = written(tmp_path, content[:3].assign(age=None, pay=1.0), "new.csv")
    with caplog.at_level(logging.INFO, logger="polytask"):
        made.read(new)
    assert "`age` 3 with" in caplog.text and "which no input tells, as no training row lacked it" in caplog.text


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([f"c{i % 24}" for i in range(240)], "24 classes, of 10 rows each on average and 10 at least"),
        ([f"c{i % 60}" for i in range(2400)], "60 classes, of 40 rows each on average and 40 at least"),
        (["a", "b"] * 30 + ["c"], "a class of 1 row only: not every part may have one"),
        ([f"c{i % 24}" for i in range(2400)], ""),
    ],
)  # fmt: skip
def test_odd_targets_are_told(tmp_path, caplog, entries, told):
    path = written(tmp_path, pd.DataFrame({"x": np.arange(len(entries)) ** 2, "t": entries}))
    assert odd_classes(read_sheet(path).profile("t")) == told
    with caplog.at_level(logging.WARNING, logger="polytask"):
        Table(path, ["t"], ["x"]).load()
    assert [record.getMessage() for record in caplog.records] == [f"{path}: target `t` has {told}"] * bool(told)


def test_text_becomes_numbers_once_a_column(tmp_path, monkeypatch):
    asked = []

    def counted(column: np.ndarray, decimal: str) -> np.ndarray:
        asked.append(id(column))
        return as_numbers(column, decimal)

    monkeypatch.setattr("polytask.data.sheet.as_numbers", counted)
    table(tmp_path, targets=list(TARGETS), inputs=list(KINDS)).load()
    assert 0 < len(asked) == len(set(asked))


# Parts


@pytest.mark.parametrize("rows", [60, 400])
def test_the_order_of_targets_does_not_change_the_parts(tmp_path, rows):
    content = frame(rows, seed=4)
    content["zone"], content["area"] = content["town"], np.where(np.arange(rows) % 30, content["plan"], "rare")
    path = written(tmp_path, content)
    names = ["zone", "member", "area", "spent"]
    parts = [Table(path, list(order), ["age"]).load() for order in itertools.permutations(names)]
    parts.append(Table(path, names, ["age"], classes={"member": ["yes", "no"]}).load())
    for found in parts[1:]:
        assert all(same(ours.inputs, first.inputs) for ours, first in zip(found, parts[0], strict=True))


def test_fractions_divide_all_rows_seeded_and_stratified(tmp_path):
    made = table(tmp_path, frame(400), targets={"member": "binary", "plan": "classification"})
    parts = made.load()
    assert [len(part.inputs) for part in parts] == [280, 60, 60]
    shares = [part.targets["member"].mean().item() for part in parts]
    assert max(shares) - min(shares) < 0.03
    counts = [torch.bincount(part.targets["plan"] + 100, minlength=103)[[0, 100, 101, 102]] for part in parts]
    assert (counts[0] / 280 - counts[1] / 60).abs().max() < 0.03
    again = Table(str(tmp_path / "data.csv"), {"member": "binary", "plan": "classification"}, KINDS, seed=1).load()
    assert not same(again.train.inputs, parts.train.inputs)


def test_a_class_of_one_row_is_in_training(tmp_path):
    for place in (0, 17, 29):
        rows = small()
        rows[place] = "3,p,rare"
        made = Table(written(tmp_path, lines(rows)), {"t": "classification"}, {"x": "numeric", "c": "categorical"})
        assert made.tasks[0].labels == ("n", "rare", "y") and (made.load().train.targets["t"] == 1).sum() == 1
        assert sum(len(part.inputs) for part in made.load()) == 30


def test_no_group_is_divided(tmp_path):
    content = frame()
    made = table(tmp_path, content, group="person", id="age", inputs={"pay": "numeric"})
    keys = dict(zip(content["spent"].round(3), content["person"], strict=True))
    found = [
        {keys[round(v, 3)] for v in part.targets["spent"].double().tolist() if round(v, 3) in keys}
        for part in made.load()
    ]
    assert sum(len(part.inputs) for part in made.load()) == 200 and all(found)
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


# What is refused

MIXED = lines([*small(), "high,p,n"])
BAD = {
    "missing column": ({"inputs": {"y": "numeric"}}, None, "an input must be a column of the file, found no.*`y`"),
    "misspelt column": ({"inputs": {"xx": "numeric"}}, None, "did you mean `x`?"),
    "misspelt target": ({"targets": {"tt": "binary"}}, None, "a target must be a column.*`tt`: did you mean `t`"),
    "unknown split": ({"split": "part"}, None, "`split` must be a column.*`part`"),
    "duplicated column": ({}, lines(small(), "x,x,t"), r"different names, found `x` as columns \[1, 2\]"),
    "one class": ({}, lines(["1,p,n", "2,q,n"] * 9), "target `t` must have at least two different entries"),
    "no target": ({}, lines(["1,p,", "2,q,"] * 9), "target `t` must have an entry in at least one row, found none"),
    "three classes": ({}, lines([*small(), "1,p,m"]), "target `t` must have two classes, found 3: `m`, `n`, `y`"),
    "mixed": ({"inputs": None}, MIXED, "column `x` must hold numbers or text.*0.0 in line 2 and 'high' in line 32"),
    "text among numbers": ({}, MIXED, "column `x` must hold numbers, found 'high' in line 32: is it categorical"),
    "mixed target": ({"targets": ["x"], "inputs": ["c"]}, MIXED, "column `x` must hold numbers or text, found both"),
    "empty": ({}, "", "must have a line of names and rows, found an empty file"),
    "header only": ({}, "x,c,t\n", "must have at least one row, found only the line of names"),
    "encoding": ({}, lines([*small(), "1,é,n"]).encode("latin-1"), "must be utf-8 text, found byte 0xe9 in line 32"),
    "unknown encoding": ({"encoding": "utf-88"}, None, "`encoding` must be one that Python knows.*'utf-88'"),
    "binary": ({}, b"x,c,t\n1,\0,n\n", "must be text, found a zero byte in line 2"),
    "short row": ({}, lines([*small(), "1,p"]), "every row must have 3 entries.*found 2 in line 32"),
    "long row": ({}, lines(["1,p,n,4", *small()]), "every row must have 3 entries.*found 4 in line 2"),
    "open quote": ({}, lines([*small(), '"1,p,n']), "must be valid CSV, found in line 32"),
    "other separator": ({}, lines(small()).replace(",", ";"), "say so with `separator: ';'`"),
    "constant input": ({}, lines([f"3,{'pq'[i % 2]},{'ny'[i % 2]}" for i in range(30)]), "`x` must have at least two"),
    "void input": ({}, lines([f",{'pq'[i % 2]},{'ny'[i % 2]}" for i in range(30)]), "`x` must have at least two.*none"),
    "infinite input": ({}, lines([*small(), "-inf,p,n"]), "finite numbers of at most 1e.30.*found -inf in line 32"),
    "huge input": ({}, lines([*small(), "1e300,p,n"]), r"found 1e\+300 in line 32"),
    "infinite target": ({"targets": {"x": "regression"}, "inputs": ["c"]}, lines([*small(), "inf,p,n"]), "found inf"),
    "text as target": ({"targets": {"c": "regression"}, "inputs": ["x"]}, None, "`c` must hold numbers, found 'p'"),
    "id as target": ({"targets": ["c"], "inputs": ["x"]}, lines([f"{i},u{i},n" for i in range(30)]), "is it an id"),
    "few rows": ({}, lines(small(3)), "rows for train, validation and test, found 3 for fractions 0.7, 0.15, 0.15"),
    "no inputs": ({"inputs": None, "targets": ["x", "c", "t"]}, None, "there must be at least one input column"),
    "groups": ({"group": "c"}, None, "groups of `c` for train, validation and test, found 3"),
    "no class": ({"classes": {"t": ["n", "y", "z"]}, "targets": {"t": "classification"}}, None, "found `z` in no row"),
    "other class": ({"classes": {"t": ["n", "Y"]}}, None, "one of its `classes`, `n`, `Y`, found 'y' in line 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_in_words(tmp_path, case):
    options, content, message = BAD[case]
    options = {"targets": {"t": "binary"}, "inputs": {"x": "numeric", "c": "categorical"}} | options
    if case == "groups":
        options["inputs"] = ["x"]
    made = Table(written(tmp_path, lines(small()) if content is None else content), **options)
    with pytest.raises(ValueError, match=message):
        made.load()


WRONG = {
    "both": ({"targets": ["x"], "inputs": ["x", "c"]}, "a target must not be an input, found `x` among both"),
    "no targets": ({"targets": []}, "`targets` must name at least one column"),
    "twice": ({"targets": ["t", "t"]}, "must be different columns, found `t` twice"),
    "kind": ({"targets": {"t": "binry"}}, "`targets.t` must be one of 'binary', 'classification', 'regression'"),
    "input kind": ({"inputs": {"x": "number"}}, "`inputs.x` must be one of 'numeric', 'categorical', found 'number'"),
    "fractions": ({"fractions": (0.5, 0.2, 0.2)}, "`fractions` must be three numbers above 0 that sum to 1"),
    "stranger": ({"weights": {"tt": 2.0}}, "`weights` must name targets, found `tt`: did you mean `t`"),
    "role": ({"id": "t"}, "`id` must be no target and no input, found `t`"),
    "rare": ({"rare": 0}, "`rare` must be at least 1"),
    "most": ({"most": 1}, "`most` must be at least 2"),
    "separator": ({"separator": ";;"}, "`separator` must be one character, found ';;'"),
    "decimal": ({"decimal": ";"}, "`decimal` must be one of '.', ',', found ';'"),
    "number": ({"targets": {1e5: "binary"}}, "must name columns in words, found the number 100000.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused_before_anything_is_read(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Table("none.csv", **{"targets": ["t"], **options})


def divided(words: Sequence[str], groups: Sequence[str] | None = None) -> str:
    groups = groups or [str(i) for i in range(len(words))]
    rows = [f"{row},{word},{group}" for row, word, group in zip(small(len(words)), words, groups, strict=True)]
    return lines(rows, "x,c,t,part,g")


PARTED = ["train"] * 20 + ["validation"] * 5 + ["test"] * 5


def test_parts_that_the_user_gives_are_checked(tmp_path):
    def load(content: str, **options: Any) -> Any:
        settings = {"targets": {"t": "binary"}, "inputs": ["x"], "split": "part"} | options
        return Table(written(tmp_path, content), **settings).load()

    assert [len(part.inputs) for part in load(divided(PARTED), group="g")] == [20, 5, 5]
    with pytest.raises(ValueError, match=r"must hold train, validation or test, found 'tain' in line 2: did you mean"):
        load(divided(["tain", *PARTED[1:]]))
    with pytest.raises(ValueError, match="must have rows for train, validation and test, found no test"):
        load(divided(["train"] * 20 + ["validation"] * 10))
    leaking = [str(i % 29) for i in range(30)]  # the first and the last row are of one group
    with pytest.raises(ValueError, match=r"no group of `g` may be in two parts, found '0' in train and test"):
        load(divided(PARTED, leaking), group="g")
    with pytest.raises(ValueError, match="must name every row's group, found none in line 3"):
        load(divided(PARTED, ["0", "", *map(str, range(28))]), group="g", split=None)


def test_a_class_outside_of_training_only_is_refused(tmp_path):
    content = divided(PARTED).replace("12.5,q,y,test", "12.5,q,m,test")
    assert ",m,test" in content
    made = Table(written(tmp_path, content), {"t": "classification"}, ["x"], split="part")
    with pytest.raises(ValueError, match="every class of target `t` must be in a training row, found `m` only in test"):
        made.load()
    rows = divided(PARTED).replace(",y,validation", ",,validation").replace(",n,validation", ",,validation")
    made = Table(written(tmp_path, rows), {"t": "binary"}, ["x"], split="part")
    with pytest.raises(ValueError, match="target `t` must have an entry in every part, found none in validation"):
        made.load()


def test_new_files_are_checked(tmp_path):
    made = table(tmp_path)
    good = frame(20, seed=5)
    for content, message, targets in (
        (good.drop(columns="age"), "an input must be a column of the file, found no column `age`", False),
        (good.assign(age="old"), "column `age` must hold numbers, found 'old' in line 2", False),
        (good.assign(age=1e30).assign(pay=1e30), "must hold numbers like those trained on", False),
        (good.assign(plan="w"), "must be a class that training rows have, found 'w' in line 2", True),
        (good.drop(columns="plan"), "a target must be a column of the file, found no column `plan`", True),
        (good[:0], "found only the line of names", False),
    ):
        path = written(tmp_path, content, "new.csv")
        with pytest.raises(ValueError, match=message):
            made.read(path, targets=targets)
    assert len(made.read(written(tmp_path, good.assign(plan="w"), "new.csv")).inputs) == 20  # targets are not looked at
    assert made.read("new.npy") is None
    with pytest.raises(FileNotFoundError, match="found no file"):
        made.read(tmp_path / "none.csv")


def test_text_may_be_told_apart_in_other_ways(tmp_path):
    wanted = Table(written(tmp_path, lines(small())), ["t"], ["x", "c"]).load().train.inputs
    marked = "\ufeff" + lines(small())
    assert same(Table(written(tmp_path, marked, "bom.csv"), ["t"], ["x", "c"]).load().train.inputs, wanted)
    tabs = lines(small()).replace(",", "\t").replace("\n", "\r\n\r\n")  # and blank lines
    assert same(Table(written(tmp_path, tabs, "tabs.tsv"), ["t"], ["x", "c"]).load().train.inputs, wanted)
    text = written(tmp_path, tabs, "tabs.txt")
    for tab in ("\t", "\\t"):  # as typed in a shell
        assert same(Table(text, ["t"], ["x", "c"], separator=tab).load().train.inputs, wanted)
    other = lines([row.replace("q", "é") for row in small()]).encode("latin-1")
    latin = Table(written(tmp_path, other, "l.csv"), ["t"], ["x", "c"], encoding="latin-1")
    assert "c = é" in latin.preprocessing["inputs"]
    unknown = Table(written(tmp_path, lines([*small(), "?,p,n"]), "q.csv"), ["t"], ["x", "c"], missing=["?"])
    assert "x" in unknown.preprocessing["inputs"]


def test_parquet_needs_pyarrow_and_is_read_like_csv(tmp_path, monkeypatch):
    content = frame().astype({"person": "Int64"}).assign(flag=np.arange(200) % 3 == 0)
    path = tmp_path / "data.parquet"
    options: dict[str, Any] = {"inputs": KINDS | {"flag": "categorical"}, "targets": TARGETS, "split": "part"}

    def without(*_: Any, **__: Any) -> None:
        raise ImportError("no pyarrow")

    path.write_bytes(b"PAR1")
    with (
        monkeypatch.context() as patched,
        pytest.raises(ModuleNotFoundError, match=r"needs pyarrow.*polytask\[parquet"),
    ):
        patched.setattr(pd, "read_parquet", without)
        Table(str(path), **options).load()
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="must be valid Parquet"):
        Table(str(path), **options).load()
    content.to_parquet(path)
    text = Table(written(tmp_path, content), **options)
    found = Table(str(path), **options)
    assert same(found.load().train.targets, text.load().train.targets)
    assert torch.equal(found.load().test.inputs, text.load().test.inputs)
    content.assign(day=pd.Timedelta(days=1)).to_parquet(path)
    with pytest.raises(ValueError, match="column `day` must hold numbers, text or booleans, found Timedelta"):
        Table(str(path), **options).load()


def test_numbers_are_kept_as_they_were(tmp_path):
    fitted = Fitted.from_json(json.loads(json.dumps(table(tmp_path).fitted())))
    assert repr(fitted) == repr(Fitted.from_json(table(tmp_path).fitted()))


def test_a_regression_is_measured_in_float64(tmp_path):
    numbers = 1e9 + 1e6 * np.random.default_rng(0).standard_normal(200)
    made = table(tmp_path, frame().assign(spent=numbers, part=["train"] * 160 + ["validation"] * 20 + ["test"] * 20),
                 targets={"spent": "regression"}, split="part")  # fmt: skip
    goal = made.fitted()["targets"][0]
    assert goal["mean"] == pytest.approx(numbers[:160].mean(), rel=1e-14)
    assert goal["std"] == pytest.approx(numbers[:160].std(), rel=1e-12)


@pytest.mark.parametrize("offset", [1e7, -1e9])
def test_a_regression_that_float32_cannot_hold_is_refused(tmp_path, offset):
    content = frame().assign(spent=offset + np.random.default_rng(0).standard_normal(200))
    made = table(tmp_path, content, targets={"spent": "regression"})
    with pytest.raises(
        ValueError, match=r"`spent` must spread by at least 0.0001 of its mean.*found standard deviation"
    ):
        made.load()


def test_a_class_that_is_none_of_those_given_is_told_by_the_setting(tmp_path):
    made = Table(written(tmp_path, lines(small())), {"t": "binary"}, ["x"], classes={"t": ["y", "m"]})
    with pytest.raises(ValueError, match=r"target `t` must be one of its `classes`, `y`, `m`, found 'n' in line \d+"):
        made.load()


def test_split_parts_need_every_row_s_group(tmp_path):
    groups = [str(row) for row in range(30)]
    groups[3] = ""
    made = Table(written(tmp_path, divided(PARTED, groups)), {"t": "binary"}, ["x"], split="part", group="g")
    with pytest.raises(ValueError, match="group column `g` must name every row's group, found none in line 5"):
        made.load()


def test_a_gzipped_table_may_end_in_gz(tmp_path):
    content = frame(30).to_csv(index=False).encode()
    plain = read_sheet(written(tmp_path, content))
    packed = read_sheet(written(tmp_path, gzip.compress(content), "data.CSV.gz"))
    assert all(packed.columns[name].tolist() == plain.columns[name].tolist() for name in plain.columns)


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        ("x;t\n3,5;n\n", Form(), r"must have 1 entry.*found 2 in line 2 \(if columns.*`separator: ';'`\)"),
        ("x;t\n3;n\n", Form(prefix="--"), r"found no column `x`.*say so with `--separator ';'`"),
        ("x;t\n3;n\n", Form(fixed=True), r"separated by ';', its `separator` must be ',', as in training\)"),
        ("x,t\né,n\n".encode("utf-16"), Form(), "byte 0xff in line 1: name its.*with `encoding`, such as utf-16"),
        ("x,t\né,n\n".encode("latin-1"), Form(prefix="--"), "name its encoding with `--encoding`, such as latin-1"),
        ("x,t\né,n\n".encode("latin-1"), Form(fixed=True), "must be utf-8 text, as in training, found.*in line 2$"),
    ],
)  # fmt: skip
def test_hints_name_settings_as_the_user_gives_them(tmp_path, content, form, message):
    with pytest.raises(ValueError, match=message):
        read_sheet(written(tmp_path, content), form).check_columns(["x", "t"], "an input")


@pytest.mark.parametrize("kind", ["int64", "Int64", "uint64"])
def test_whole_numbers_of_parquet_keep_all_digits(tmp_path, kind):
    large = 2**53 + 1
    series = pd.Series([17, large, -999 if kind != "uint64" else 999, 17], dtype=kind)
    if kind == "Int64":
        series[3] = pd.NA
    missing = frozenset({"-999", "999"})
    column = _without(_typed(tmp_path / "data.parquet", "n", series), missing)
    sheet = Sheet(tmp_path, {"n": column}, "")
    last = None if kind == "Int64" else "17"
    assert sheet.text("n").tolist() == sheet.categories("n").tolist() == ["17", str(large), None, last]
    np.testing.assert_array_equal(sheet.numbers("n"), [17, float(large), np.nan, np.nan if last is None else 17])
    assert sheet.profile("n").whole
