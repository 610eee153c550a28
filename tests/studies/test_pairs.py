"""Means of figures of pairs of tasks, and whether they can be told from noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from polytask.studies.pairs import Mean, by_epoch, independent, read_noise, read_pairs, successive

ROWS = [
    {"epoch": 1, "phase": "joint", "train/a/loss": 3.0, "affinity/a/b": 0.25, "affinity/b/a": -1.0, "cosine/a/b": 0.5},
    {"epoch": 2, "phase": "joint", "affinity/a/b": 0.75, "cosine/a/b": math.nan},
]


def test_pairs_are_read_from_a_history():
    assert read_pairs(ROWS) == {"a": {"b": 0.5}, "b": {"a": -1.0}}
    assert read_pairs(ROWS, "cosine") == {"a": {"b": 0.5}, "b": {"a": 0.5}}
    assert read_pairs(ROWS[:0]) == {}
    assert by_epoch(ROWS) == [{"a": {"b": 0.25}, "b": {"a": -1.0}}, {"a": {"b": 0.75}, "b": {}}]


def test_errors_are_over_epochs_or_over_runs():
    one = read_noise([ROWS])
    assert one["a"]["b"] == successive([0.25, 0.75])
    assert one["b"]["a"].value == -1.0 and not one["b"]["a"].known and not one["b"]["a"].clear
    shifted = [{key: value + 1 if "/" in key else value for key, value in row.items()} for row in ROWS]
    two = read_noise([ROWS, ROWS[:0], shifted])  # a run without such figures is none
    assert two["a"]["b"] == independent([0.5, 1.5])


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=9), st.floats(-2, 2), st.floats(0.1, 3))
def test_errors_do_not_depend_on_where_zero_is_and_scale_with_the_figures(values: list[float], by: float, times: float):
    for mean in (independent, successive):
        first, second = mean(values), mean([times * value + by for value in values])
        assert second.value == pytest.approx(times * first.value + by, abs=1e-9)
        assert second.error == pytest.approx(times * first.error, abs=1e-9)
        assert second.reach == pytest.approx(times * first.reach, abs=1e-9)


def test_of_two_both_are_the_same_and_independent_ones_are_students():
    assert independent([0.1, 0.4]).error == pytest.approx(successive([0.1, 0.4]).error)
    assert independent([0.1, 0.4]).reach == pytest.approx(successive([0.1, 0.4]).reach)
    values = [0.3, -0.2, 0.5, 0.1]
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    made = independent(values)
    assert (made.value - made.reach, made.value + made.reach) == pytest.approx(interval)
    _, p = stats.ttest_1samp(values, 0)
    assert made.clear == bool(p < 0.05)


@pytest.mark.parametrize("count", [2, 3, 6, 20])
def test_noise_is_taken_for_more_in_one_case_of_twenty(count: int):
    """Independent normal noise. 4,000 draws: three standard errors of 5 % are 1.0 %, the approximation adds 1 %."""
    draws = np.random.default_rng(count).normal(size=(4000, count)).tolist()
    share = sum(successive(values).clear for values in draws) / len(draws)
    assert abs(share - 0.05) <= 0.02


def test_a_drift_is_not_noise():
    drifting = [0.01 * epoch for epoch in range(1, 41)]
    assert successive(drifting).error < 0.1 * independent(drifting).error
    noise = np.random.default_rng(0).normal(scale=0.3, size=(400, 40))
    squares = [successive(values).error ** 2 for values in (noise + drifting).tolist()]
    # of one draw the variance is known to 28 %, of the mean of 400 to 1.4 %
    assert np.mean(squares) == pytest.approx(0.3**2 / 40, rel=0.05)


def test_a_single_measurement_is_not_judged():
    for mean in (independent, successive):
        made = mean([0.5])
        assert made.value == 0.5 and math.isnan(made.error) and not made.known and not made.clear
    assert not Mean(0.0, 0.0, 0.0).clear and Mean(1e-9, 0.0, 0.0).clear
