"""The numbers: means, Δm in both definitions, ranks and verdicts, on records with known answers."""

import math

import pytest

from polytask.reports.delta import ALL_FIGURES, METRICS, TASK_FIRST, delta_m, relative_change
from polytask.reports.estimate import Estimate, Figure, compare
from polytask.reports.summary import summarize
from polytask.reports.tables import notes

A = Figure("a", "accuracy", True)
A_LOSS = Figure("a", "loss", False)
B = Figure("b", "mae", False)


def named(summary, name):
    return next(method for method in summary.methods if method.name == name)


def test_mean_and_sample_standard_deviation_over_seeds(two):
    runs = [two("joint", seed, a, 1.0) for seed, a in enumerate((0.7, 0.8, 0.9))]
    estimate = summarize(runs).methods[0].figures["a/accuracy"]
    assert estimate.mean == pytest.approx(0.8)
    assert estimate.spread == pytest.approx(0.1)
    assert estimate.count == 3


def test_a_single_seed_has_no_spread(two):
    estimate = summarize([two("joint", 0, 0.7, 1.0)]).methods[0].figures["a/accuracy"]
    assert (estimate.mean, estimate.spread) == (0.7, None)


@pytest.mark.parametrize(
    ("value", "base", "higher", "change"),
    [(1.0, 0.5, True, -100), (0.25, 0.5, True, 50), (0.5, 1.0, False, -50), (3.0, 1.0, False, 200),
     (-0.25, -0.5, True, -50), (0.5, 0.5, True, 0)],
)  # fmt: skip
def test_relative_change_is_negative_where_better(value, base, higher, change):
    assert relative_change(value, base, higher) == pytest.approx(change)


def test_the_two_definitions_differ_where_tasks_have_different_numbers_of_figures():
    base = {0: {"a/accuracy": 0.5, "a/loss": 1.0, "b/mae": 2.0}}
    method = {0: {"a/accuracy": 0.6, "a/loss": 0.5, "b/mae": 2.6}}  # −20 %, −50 %, +30 %
    figures = [A, A_LOSS, B]
    assert delta_m(method, base, figures, task_first=False).mean == pytest.approx(-40 / 3)
    assert delta_m(method, base, figures, task_first=True).mean == pytest.approx((-35 + 30) / 2)


def test_delta_m_pairs_by_seed():
    base = {0: {"b/mae": 1.0}, 1: {"b/mae": 2.0}, 2: {"b/mae": 4.0}}
    method = {0: {"b/mae": 1.1}, 1: {"b/mae": 2.2}, 2: {"b/mae": 4.4}, 3: {"b/mae": 100.0}}
    estimate = delta_m(method, base, [B], task_first=True)
    # every pair says +10 %, though the seeds themselves spread widely; seed 3 has no partner
    assert estimate.mean == pytest.approx(10)
    assert estimate.spread == pytest.approx(0, abs=1e-9)
    assert estimate.count == 3


def test_delta_m_without_common_seeds_carries_both_spreads():
    base = {0: {"b/mae": 0.9}, 1: {"b/mae": 1.1}}
    method = {5: {"b/mae": 1.9}, 6: {"b/mae": 2.1}}
    estimate = delta_m(method, base, [B], task_first=True)
    spread = math.sqrt(0.02)
    assert estimate.mean == pytest.approx(100)
    # d(M/S − 1): s_M / S = s, and M s_S / S² = 2 s
    assert estimate.spread == pytest.approx(100 * math.hypot(spread, 2 * spread))


def test_delta_m_unpaired_keeps_the_correlation_between_tasks():
    other = Figure("c", "mae", False)
    base = {0: {"b/mae": 1.0, "c/mae": 1.0}, 1: {"b/mae": 1.0, "c/mae": 1.0}}
    method = {5: {"b/mae": 0.8, "c/mae": 1.2}, 6: {"b/mae": 1.2, "c/mae": 0.8}}
    assert delta_m(method, base, [B, other], task_first=True).spread == pytest.approx(0, abs=1e-9)


def test_delta_m_of_single_runs_has_no_spread():
    assert delta_m({0: {"b/mae": 2.0}}, {0: {"b/mae": 1.0}}, [B], task_first=True).spread is None
    estimate = delta_m({0: {"b/mae": 2.0}}, {7: {"b/mae": 1.0}}, [B], task_first=True)
    assert (estimate.mean, estimate.spread) == (pytest.approx(100), None)
    assert "two seeds" in estimate.reason


@pytest.mark.parametrize(
    ("base", "reason"),
    [({0: {"b/mae": 0.0}, 1: {"b/mae": 1.0}}, "too near 0"), ({0: {"b/mae": -1.0}, 1: {"b/mae": 1.2}}, "too near 0"),
     ({}, "no finished run"), ({0: {}}, "without a finite b/mae"), ({0: {"b/mae": math.nan}}, "without a finite")],
)  # fmt: skip
def test_delta_m_is_refused_with_its_reason(base, reason):
    estimate = delta_m({0: {"b/mae": 1.0}, 1: {"b/mae": 1.0}}, base, [B], task_first=True)
    assert estimate.mean is None
    assert reason in estimate.reason


def test_columns_of_a_comparison(two):
    runs = [two("single-task", 0, 0.5, 2.0), two("joint", 0, 0.6, 3.0), two("other", 0, 0.5, 1.0)]
    summary = summarize(runs)
    assert (summary.baseline, summary.reference) == ("single-task", "joint")
    assert named(summary, "joint").deltas[METRICS].mean == pytest.approx((-20 + 50) / 2)
    assert named(summary, "other").deltas[METRICS].mean == pytest.approx((0 - 50) / 2)
    assert named(summary, "single-task").deltas[METRICS].reason == "the baseline itself"


def test_losses_enter_once_and_only_with_a_metric_that_is_not_the_loss(record, task):
    tasks = [task("a"), task("b", "b")]
    base = {"a/accuracy": 0.5, "a/loss": 1.0, "b/mae": 2.0, "b/loss": 2.0}
    method = {"a/accuracy": 0.6, "a/loss": 0.5, "b/mae": 2.6, "b/loss": 2.6}
    summary = summarize([record("single", 0, base, tasks), record("m", 0, method, tasks)])
    assert [delta.key for delta in summary.deltas] == [METRICS, ALL_FIGURES, TASK_FIRST]
    deltas = named(summary, "m").deltas
    assert deltas[METRICS].mean == pytest.approx(5)
    assert deltas[ALL_FIGURES].mean == pytest.approx(-40 / 3)
    assert deltas[TASK_FIRST].mean == pytest.approx(-2.5)


def test_definitions_that_coincide_are_one_column_that_says_so(record, task):
    tasks = [task("a"), task("c", "c")]
    figures = {"a/accuracy": 0.5, "a/loss": 1.0, "c/f1": 0.5, "c/loss": 2.0}
    summary = summarize([record("single", 0, figures, tasks), record("m", 0, figures, tasks)])
    assert [delta.key for delta in summary.deltas] == [METRICS, ALL_FIGURES]
    assert all("same number" in delta.meaning for delta in summary.deltas)
    both = named(summary, "m").deltas
    assert both[ALL_FIGURES].mean == both[TASK_FIRST].mean == 0


def test_no_baseline_no_delta(two):
    summary = summarize([two("x", 0, 0.5, 1.0), two("y", 0, 0.5, 1.0)])
    assert summary.baseline is None
    assert "no single-task baseline" in summary.methods[0].deltas[METRICS].reason


def test_mean_rank_with_ties_and_directions(record):
    tasks = ("a", "b", "c")
    rows = {"x": (0.9, 1.0, 0.5), "y": (0.9, 2.0, 0.6), "z": (0.1, 3.0, 0.7)}
    runs = [record(n, 0, dict(zip(("a/accuracy", "b/mae", "c/f1"), v, strict=True)), tasks) for n, v in rows.items()]
    ranks = {method.name: method.rank for method in summarize(runs).methods}
    assert ranks == {"x": pytest.approx((1.5 + 1 + 3) / 3), "y": pytest.approx((1.5 + 2 + 2) / 3),
                     "z": pytest.approx((3 + 3 + 1) / 3)}  # fmt: skip


def test_differences_below_the_printed_digits_rank_alike(two):
    means = {"x": (0.81196225, 1.0), "y": (0.81196231, 1.00005), "z": (0.8115, 1.001)}
    summary = summarize([two(name, 0, *figures) for name, figures in means.items()])
    assert {m.name: m.rank for m in summary.methods} == {"x": 1.5, "y": 1.5, "z": 3.0}
    assert any("means within a relative 0.0001" in note for note in notes(summary))


def test_equal_to_the_best_of_a_group_not_to_its_last(two):
    """A chain of small steps is no tie of its ends."""
    means = {"x": 1.0, "y": 1.00008, "z": 1.00016}
    ranks = {m.name: m.rank for m in summarize([two(name, 0, 0.5, b) for name, b in means.items()]).methods}
    assert ranks == {"x": (2 + 1.5) / 2, "y": (2 + 1.5) / 2, "z": (2 + 3) / 2}


def test_a_diverged_run_is_not_averaged_away(two):
    runs = [two("x", 0, math.nan, 1.0), two("x", 1, 0.99, 1.0), two("y", 0, 0.1, 2.0)]
    summary = summarize(runs)
    estimate = named(summary, "x").figures["a/accuracy"]
    assert estimate.mean is None
    assert estimate.reason == "not finite in 1 of 2 runs"
    assert named(summary, "x").rank == pytest.approx((2 + 1) / 2)


def test_failed_runs_are_left_out_and_listed(two):
    failed = two("x", 1, 0, 0, state="failed", error="the loss is not finite")
    summary = summarize([two("x", 0, 0.5, 1.0), failed, two("y", 1, 0, 0, state="running")])
    assert named(summary, "x").figures["a/accuracy"].mean == 0.5
    assert [run.error for run in summary.unfinished] == ["the loss is not finite", ""]
    assert named(summary, "y").rank is None


def test_nothing_finished(two):
    summary = summarize([two("single-task", 0, 0, 0, state="failed"), two("joint", 0, 0, 0, state="failed")])
    assert summary.split == "test"
    assert named(summary, "joint").figures["a/accuracy"].reason == "no finished run"


def test_seconds_memory_and_phases(record):
    phases = {"shared": {"macs": 50, "memory": 300}, "specific": {"macs": 30, "memory": 100}}
    run = record("x", 0, {}, seconds=30.0, epochs=60, seconds_per_epoch={"shared": 0.6, "specific": 0.4},
                 cost={"parameters": 7, "phases": phases})  # fmt: skip
    method = summarize([run]).methods[0]
    assert method.seconds_per_epoch.mean == 0.5
    assert method.memory.mean == 300
    assert method.phases["specific"].macs.mean == 30
    assert method.phases["shared"].seconds.mean == 0.6
    assert method.forward_macs.reason == "no figures"


@pytest.mark.parametrize(
    ("one", "other", "higher", "verdict"),
    [((0.90, 0.01, 3), (0.80, 0.01, 3), True, "better"), ((0.90, 0.01, 3), (0.80, 0.01, 3), False, "worse"),
     ((0.90, 0.08, 3), (0.80, 0.08, 3), True, ""), ((0.90, 0.01, 2), (0.80, 0.01, 3), True, ""),
     ((0.90, 0.06, 3), (0.80, 0.08, 3), True, ""), ((0.901, 0.06, 3), (0.80, 0.08, 3), True, "better")],
)  # fmt: skip
def test_better_means_beyond_the_spread_of_three_seeds(one, other, higher, verdict):
    assert compare(Estimate(*one), Estimate(*other), higher) == verdict


def test_baseline_and_reference_come_first(two):
    runs = [two(name, 0, 0.5, 1.0) for name in ("zeta", "Joint", "alpha", "Single Task")]
    assert [method.name for method in summarize(runs).methods] == ["Single Task", "Joint", "zeta", "alpha"]
    assert summarize(runs, baseline="zeta", reference="alpha").methods[0].name == "zeta"


def test_validation_figures_are_named_as_such(two):
    run = two("x", 0, 0.5, 1.0)
    run.metrics = {"validation": run.metrics["test"]}
    assert summarize([run]).split == "validation"


def test_refusals(two, record, task):
    with pytest.raises(ValueError, match="at least one run, found none"):
        summarize([])
    with pytest.raises(ValueError, match="found two of `x` with seed 0"):
        summarize([two("x", 0, 1, 1), two("x", 0, 1, 1)])
    with pytest.raises(ValueError, match="baseline must be one of the methods, found `jont`: did you mean `joint`"):
        summarize([two("joint", 0, 1, 1)], baseline="jont")
    with pytest.raises(ValueError, match="by one metric, found accuracy and f1"):
        summarize([record("x", 0, {}, [task("a")]), record("y", 0, {}, [task("a", metric="f1")])])
