"""Suggested groupings are the best there are; a study trains one and reports on it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polytask as pt
from polytask.studies.grouping import ALONE, _good, _optimizer, _Score, advantage, in_words, remarks, suggest
from polytask.studies.pairs import Mean, successive


def matrix(rows: list[list[float]]) -> dict[str, dict[str, float]]:
    names = [f"t{i}" for i in range(len(rows))]
    return {
        i: {j: value for j, value in zip(names, row, strict=True) if i != j} for i, row in zip(names, rows, strict=True)
    }


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            for more in partitions([i for i in rest if i not in others]):
                yield [[first, *others], *more]


def total(rows: list[list[float]], groups: Any) -> float:
    """The sum of mean inbound figures, straight from the definition."""
    gains = [
        sum(rows[i][j] for i in group if i != j) / (len(group) - 1) if len(group) > 1 else ALONE
        for group in groups
        for j in group
    ]
    return math.fsum(gains)


@st.composite
def _problems(draw: Any, most: int = 6) -> tuple[list[list[float]], int]:
    size = draw(st.integers(2, most))
    value = st.floats(-1, 1, allow_nan=False, width=32)
    rows = draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=size, max_size=size))
    return rows, draw(st.integers(1, size + 1))


@settings(max_examples=150, deadline=None)
@given(_problems())
def test_no_grouping_is_better_than_the_suggested_one(problem: tuple[list[list[float]], int]):
    rows, groups = problem
    made = suggest(matrix(rows), groups)
    found = [[int(task[1:]) for task in group] for group in made.groups]
    allowed = [p for p in partitions(list(range(len(rows)))) if len(p) <= groups]
    best = max(total(rows, p) for p in allowed)
    assert made.exact and len(found) <= groups
    assert sorted(i for group in found for i in group) == list(range(len(rows)))
    assert total(rows, found) == pytest.approx(best, abs=1e-9)
    assert math.fsum(made.gains.values()) == pytest.approx(best, abs=1e-9)
    assert math.fsum(made.together.values()) == pytest.approx(total(rows, [range(len(rows))]), abs=1e-9)
    as_good = [len(p) for p in allowed if total(rows, p) > best + 1e-9]
    assert not as_good


@settings(max_examples=60, deadline=None)
@given(_problems())
def test_the_search_for_many_tasks_ends_where_no_single_change_helps(problem: tuple[list[list[float]], int]):
    rows, groups = problem
    found = _good(_Score(matrix(rows), list(matrix(rows))), groups)
    assert sorted(i for group in found for i in group) == list(range(len(rows))) and 1 <= len(found) <= groups
    reached = total(rows, found)
    for task in range(len(rows)):
        left = [kept for group in found if (kept := [i for i in group if i != task])]
        options = [[*left[:k], [*left[k], task], *left[k + 1 :]] for k in range(len(left))]
        options += [[*left, [task]]] if len(left) < groups else []
        assert all(total(rows, option) <= reached + 1e-9 for option in options)


def test_many_tasks_of_two_kinds_are_told_apart():
    size = 20
    rows = [[0.1 if i % 2 == j % 2 else -0.1 for j in range(size)] for i in range(size)]
    made = suggest(matrix(rows), 2)
    assert not made.exact
    assert {frozenset(int(t[1:]) % 2 for t in group) for group in made.groups} == {frozenset({0}), frozenset({1})}


def test_ties_go_to_fewer_networks_and_harm_to_none():
    equal = matrix([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    assert suggest(equal, 3).groups == (("t0", "t1", "t2"),)
    hostile = matrix([[0.0, -0.5], [-0.1, 0.0]])
    assert suggest(hostile, 2).groups == (("t0",), ("t1",)) and suggest(hostile, 2).gains["t0"] == ALONE
    assert suggest(hostile, 1).groups == (("t0", "t1"),)
    assert in_words(suggest(equal, 3)) == "t0, t1 and t2 together"
    assert in_words(suggest(hostile, 2)) == "t0 alone; t1 alone"


@settings(max_examples=60, deadline=None)
@given(st.lists(_problems(4), min_size=2, max_size=5).filter(lambda found: len({len(rows) for rows, _ in found}) == 1))
def test_the_advantage_is_that_of_the_sums_of_gains_epoch_by_epoch(problems: Any):
    matrices, groups = [matrix(rows) for rows, _ in problems], problems[0][1]
    made = suggest(matrices[0], groups)
    incomplete = {task: {} for task in matrices[0]}
    found = advantage([incomplete, *matrices], made)
    chosen = [[int(task[1:]) for task in group] for group in made.groups]
    everyone = [list(range(len(made.gains)))]
    expected = successive([total(rows, chosen) - total(rows, everyone) for rows, _ in problems])
    assert found.value == pytest.approx(expected.value, abs=1e-9)
    assert found.error == pytest.approx(expected.error, abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "groups", "message"),
    [
        ({"a": {}}, 2, "there must be at least two tasks to group, found 1"),
        ({"a": {"b": 0.1}, "b": {}}, 2, "every pair of tasks must have a finite figure, found none of `b` towards `a`"),
        ({"a": {"b": math.inf}, "b": {"a": 0.0}}, 2, "a finite figure, found inf of `a` towards `b`"),
        ({"a": {"b": 0.1}, "b": {"a": 0.1}}, 0, "`groups` must be at least 1, found 0"),
    ],
)
def test_refused_matrices(rows: Any, groups: int, message: str):
    with pytest.raises(ValueError, match=message):
        suggest(rows, groups)


# The study


class Opposed(pt.data.DataSet):
    """Three regressions: a and b are one function of the inputs, c is another; the trunk is too narrow for both."""

    tasks = (pt.regression("a"), pt.regression("b"), pt.regression("c"))

    def load(self) -> Any:
        random = torch.Generator().manual_seed(0)

        def part(size: int) -> Any:
            x = torch.randn(size, 4, generator=random)
            y = (x @ torch.tensor([1.0, -1.0, 0.5, 0.0])).abs()
            other = (x @ torch.tensor([1.0, 1.0, 0.0, 1.0])).abs()
            return x, {"a": y, "b": 0.8 * y, "c": other}

        return part(192), part(64), part(64)


CONFIG: dict[str, Any] = {
    "data": {"class_path": "tests.studies.test_grouping.Opposed"},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {"class_path": "MLP", "init_args": {"inputs": 4, "widths": [3]}},
            "heads": {
                name: {"class_path": "MLP", "init_args": {"inputs": 3, "widths": [], "outputs": 1}} for name in "abc"
            },
        },
    },
    "trainer": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}, "batch_size": 16},
    "epochs": 6,
    "seeds": [0],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("grouping") / "study"
    return pt.group(CONFIG, groups=2, every=2, folder=folder, jobs=1, progress=False)


def test_a_study_trains_what_it_suggests_beside_the_alternatives(study: Any):
    assert study.grouping.groups == (("a", "b"), ("c",))
    assert [record.method for record in study.comparison.records] == ["single-task", "together", "grouped"]
    assert all(record.state == "done" for record in study.comparison.records)
    assert study.comparison.baseline == "single-task"
    made = pt.load(study.folder / "grouped" / "seed-0").model
    assert isinstance(made, pt.models.Grouped) and made.groups == (("a", "b"), ("c",))


def test_measuring_does_not_change_what_is_trained(study: Any):
    measured, together = (pt.load(study.folder / name).model for name in ("affinity", "together/seed-0"))
    for one, other in zip(measured.parameters(), together.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_noise_is_said(study: Any):
    """The advantage of the grouping is that of the sum of gains; of one seed nothing is known."""
    history = pt.load(study.folder / "affinity").history
    assert study.noise["a"]["b"] == successive(history.column("affinity/a/b"))
    assert {i: {j: mean.value for j, mean in row.items()} for i, row in study.noise.items()} == study.affinity
    gained = sum(study.grouping.gains.values()) - sum(study.grouping.together.values())
    assert study.advantage.value == pytest.approx(gained, abs=1e-9)
    losses = {
        record.method: [record.metrics["validation"][f"{name}/loss"] for name in "abc"]
        for record in study.comparison.records
    }
    alone, together, grouped = (losses[name] for name in ("single-task", "together", "grouped"))
    expected = sum((t - g) / s for s, t, g in zip(alone, together, grouped, strict=True))
    assert study.measured_advantage.value == pytest.approx(expected) and not study.measured_advantage.known
    first, second, third = remarks(study)
    unclear = sum(not mean.clear for row in study.noise.values() for mean in row.values())
    assert first.startswith(f"{unclear} of 6 affinities cannot be told from zero")
    verdict = "more than noise" if study.advantage.clear else "inside the noise"
    assert second.startswith("Expected gain of `grouped` beyond `together`") and verdict in second
    assert "Without several seeds it is not known" in third


def _remarked(study: Any, figure: float) -> list[str]:
    every = {i: {j: figure for j in "abc" if i != j} for i in "abc"}
    return remarks(replace(study, grouping=suggest(every, 3)))


def test_what_was_suggested_is_named_for_what_it_is(study: Any):
    apart = _remarked(study, -1.0)
    assert apart[0] == "Grouped = single-task: every task is suggested to be alone, as in `single-task`."
    assert any(said.startswith("Expected gain of `single-task` beyond `together`") for said in apart)
    joint = _remarked(study, 1.0)
    assert joint[0] == "Grouped = together: all tasks are suggested to share one trunk, as in `together`."
    assert not any("beyond" in said for said in joint)


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (Mean(0.04, 0.01, 0.03), "+4 % ± 1 % (standard error over epochs): more than noise."),
        (Mean(-0.04, 0.01, 0.05), "−4 % ± 1 % (standard error over epochs): inside the noise, the two cannot be told"),
        (
            Mean(0.04, math.nan, math.nan),
            "+4 %. Without several epochs it is not known whether that is more than noise",
        ),
    ],
)
def test_an_advantage_is_judged_by_its_error(study: Any, mean: Mean, said: str):
    assert any(said in sentence for sentence in remarks(replace(study, advantage=mean)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, ""),
        ({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.0}}, ""),
        ({"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}, "SGD with momentum"),
        ({"class_path": "torch.optim.Adam"}, "Adam"),
    ],
)
def test_steps_that_are_no_plain_ones_are_named(study: Any, given: Any, told: str):
    assert _optimizer({"trainer": {"optimizer": given}}) == told
    said = [sentence for sentence in remarks(replace(study, optimizer=told)) if "plain gradient steps" in sentence]
    assert len(said) == bool(told) and all(f"not of those that {told} makes" in sentence for sentence in said)


def test_a_finished_study_is_read_and_not_repeated(study: Any):
    from polytask.studies import read_grouping

    before = {path: path.stat().st_mtime_ns for path in study.folder.rglob("weights.safetensors")}
    again = pt.group(CONFIG, groups=2, every=2, folder=study.folder, jobs=1, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.rglob("weights.safetensors")}
    read = read_grouping(study.folder)
    assert read.grouping == again.grouping == study.grouping
    assert read.affinity == again.affinity == study.affinity
    with pytest.raises(ValueError, match="must hold no run of another configuration"):
        pt.group({**CONFIG, "epochs": 7}, groups=2, every=2, folder=study.folder, jobs=1, progress=False)


def test_the_report_holds_the_heat_map_and_what_came_of_it(study: Any):
    from polytask import reports

    text = reports.write_grouping(study, title="Three tasks").read_text()
    charts = json.loads(text.split('id="charts">')[1].split("</script>")[0])
    heat = [chart for chart in charts.values() if chart["data"][0]["type"] == "heatmap"]
    assert len(heat) == 1 and heat[0]["data"][0]["zmid"] == 0
    assert "a and b together; c alone" in text
    assert "affinities cannot be told from zero" in text and "<code>grouped</code> beyond <code>together" in text
    assert 'id="gains"' in text


class Apart(Opposed):
    """The same tasks, each of examples of its own, which come batch by batch in turns."""

    def load(self) -> Any:
        return tuple({name: (x, {name: y[name]}) for name in "abc"} for x, y in super().load())


class InTurns(Opposed):
    """The same tasks, of which every batch holds one: what is known only once it has been seen."""

    def load(self) -> Any:
        parts = []
        for x, y in super().load():
            for number, targets in enumerate(y.values()):
                targets[torch.arange(len(x)) % 3 != number] = torch.nan
            parts.append((x, y))
        return tuple(parts)


@pytest.mark.parametrize(
    ("mixture", "pair"),
    [
        (None, "both `a` and `b`: use `Zip`, or `accumulate`"),
        ({"class_path": "RoundRobin"}, "both `a` and `b`"),
    ],
)
def test_tasks_that_never_meet_are_refused_before_anything_is_trained(mixture: Any, pair: str, tmp_path: Path):
    config = {**CONFIG, "data": {"class_path": "tests.studies.test_grouping.Apart"}, "epochs": 1}
    config["trainer"] = {**CONFIG["trainer"], "mixture": mixture}
    with pytest.raises(ValueError, match=f"affinities need steps with targets of every two tasks, and none .* {pair}"):
        pt.group(config, every=2, folder=tmp_path / "study", jobs=1, progress=False)
    assert not list((tmp_path / "study").rglob("run.json"))


def test_tasks_that_did_not_meet_are_refused_by_their_cause(tmp_path: Path):
    config = {**CONFIG, "data": {"class_path": "tests.studies.test_grouping.InTurns"}, "epochs": 1}
    config["trainer"] = {**CONFIG["trainer"], "batch_size": 1}
    with pytest.raises(ValueError, match="found none: no step held targets of two tasks, for which use `Zip`"):
        pt.group(config, every=64, folder=tmp_path / "study", jobs=1, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "unknown key `methods`: a study of groups has methods of its own"),
        ({"model": {"class_path": "SingleTask"}}, "`model` must be HardSharing, .* found polytask.models"),
        (
            {"trainer": {"schedule": {"class_path": "AlternateEpochs"}}},
            "`trainer.schedule` must be Joint or null, .* found polytask.schedules",
        ),
    ],
)
def test_refused_configurations(change: Any, message: str, tmp_path: Path):
    from polytask.studies.spec import merge

    with pytest.raises(ValueError, match=message):
        pt.group(merge(CONFIG, change), folder=tmp_path / "study", jobs=1, progress=False)
    with pytest.raises(ValueError, match="`groups` must be at least 1, found 0"):
        pt.group(CONFIG, groups=0, folder=tmp_path / "study")
    assert not (tmp_path / "study").exists()
