"""The correlation of two tasks' predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import data, network, trainer, weights

import polytask as pt
from polytask.training.callbacks.prediction_correlation import correlation


def noted(model: Any = None, names: str = "ab", validation: Any = None, **options: Any) -> dict[str, float]:
    """The first row of a fit that moves nothing."""
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "callbacks": [pt.callbacks.PredictionCorrelation()]}
    run = trainer(network("norm+dropout", names) if model is None else model, names, **still | options)
    return run.fit(data(names=names), data(40, names, seed=1) if validation is None else validation, epochs=1)[0]


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4))
def test_it_is_linear_cka_and_bounded(seed: int, one: int, other: int):
    random = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(20, width, generator=random, dtype=torch.float64) for width in (one, other))
    found = correlation(x, y)
    assert 0 <= found <= 1
    assert found == pytest.approx(correlation(y, x), abs=1e-12)
    centre = np.eye(20) - 1 / 20
    gram_x, gram_y = (centre @ (z @ z.T).numpy() @ centre for z in (x, y))  # its definition by examples
    cka = np.sum(gram_x * gram_y) / math.sqrt(np.sum(gram_x**2) * np.sum(gram_y**2))
    assert found**2 == pytest.approx(cka, abs=1e-10)


def test_between_single_numbers_it_is_the_size_of_pearsons_r():
    random = torch.Generator().manual_seed(0)
    x, noise = torch.randn(50, generator=random), torch.randn(50, generator=random)
    for y in (x, -x, noise, 0.3 * x - noise):
        r = np.corrcoef(x.double(), y.double())[0, 1]
        assert correlation(x[:, None], y[:, None]) == pytest.approx(abs(r), abs=1e-9)


def test_it_does_not_depend_on_names_or_scales():
    random = torch.Generator().manual_seed(0)
    x, y = (torch.rand(60, width, generator=random, dtype=torch.float64) for width in (4, 3))
    one = correlation(x, y)
    assert correlation(x[:, [2, 0, 3, 1]], y) == pytest.approx(one, abs=1e-9)
    assert correlation(x, 5 - 3 * y) == pytest.approx(one, abs=1e-9)
    assert correlation(x, x) == 1.0
    p = x[:, :1]  # a yes/no task is one of two classes
    assert correlation(torch.cat([p, 1 - p], 1), y) == pytest.approx(correlation(p, y), abs=1e-9)


def test_without_variation_there_is_no_figure():
    x = torch.arange(5.0)[:, None]
    assert math.isnan(correlation(x, torch.ones(5, 2)))
    assert math.isnan(correlation(x, x * math.nan))
    assert math.isnan(correlation(x, x * math.inf))


def test_columns_are_those_of_the_networks_predictions():
    model = network("norm+dropout", "abc")
    x, y = data(40, "abc", seed=1)
    run = trainer(model, "abc", optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    run.callbacks = (pt.callbacks.PredictionCorrelation(),)
    row = run.fit(data(24, "abc"), (x, y), epochs=2)[-1]
    said = run.predict(x)
    parts = {"a": said["a"].probabilities[:, None], "b": said["b"].probabilities, "c": said["c"].values[:, None]}
    columns = [column for column in row if column.startswith("correlation/")]
    assert columns == ["correlation/a/b", "correlation/a/c", "correlation/b/c"]
    for one, other in ("ab", "ac", "bc"):
        assert row[f"correlation/{one}/{other}"] == pytest.approx(correlation(parts[one], parts[other]), abs=1e-6)


def test_only_examples_with_both_targets_count_whatever_the_batches():
    x, y = data(40, seed=1)
    y["a"][30:] = torch.nan
    y["b"][:8] = -100  # with chunks of 8, the first batch lacks b
    whole = noted(validation=(x, y))["correlation/a/b"]
    assert noted(validation=(x, y), evaluation_batch_size=8)["correlation/a/b"] == pytest.approx(whole, abs=1e-6)
    shared = (x[8:30], {name: values[8:30] for name, values in y.items()})
    assert noted(validation=shared)["correlation/a/b"] == pytest.approx(whole, abs=1e-6)
    assert noted(validation=data(40, seed=1))["correlation/a/b"] != pytest.approx(whole, abs=1e-3)


def test_the_pairs_of_one_task():
    row = noted(names="abc", callbacks=[pt.callbacks.PredictionCorrelation("b")])
    assert [column for column in row if column.startswith("correlation/")] == ["correlation/a/b", "correlation/b/c"]


def test_corpora_with_some_examples_in_common_are_not_refused():
    x, y = data(40, seed=1)
    both, alone = (x[:20], {name: values[:20] for name, values in y.items()}), (x[20:], {"a": y["a"][20:]})
    expected = noted(validation=both)["correlation/a/b"]
    assert noted(validation={"both": both, "alone": alone})["correlation/a/b"] == pytest.approx(expected, abs=1e-6)


def test_it_changes_nothing_else():
    results = []
    for callbacks in ([], [pt.callbacks.PredictionCorrelation()]):
        run = trainer(
            network("norm+dropout"),
            callbacks=callbacks,
            schedule=pt.schedules.AlternateEpochs(1, 1),
            frozen_dropout=True,
        )
        history = run.fit(data(), data(10, seed=1), epochs=4)
        rows = [{k: v for k, v in row.items() if not k.endswith("seconds") and k[:4] != "corr"} for row in history]
        results.append((rows, {name: value.tolist() for name, value in weights(run.model).items()}))
    assert results[0] == results[1]


def test_sources_balancers_and_schedules_observe_the_same_row(monkeypatch: pytest.MonkeyPatch):
    """With what callbacks give as `figures`, without what they note afterwards."""
    seen: list[dict[str, Any]] = []
    for kind in (pt.data.Source, pt.balancing.Balancer, pt.schedules.Schedule):
        monkeypatch.setattr(kind, "observe", lambda self, row: seen.append(dict(row)))

    class Late(pt.Callback):
        def on_epoch_end(self, run: Any, row: Any) -> None:
            assert len(seen) % 3 == 0
            run.note("late", 1.0)

    teachers = pt.distillation.TeacherAnnealing(network(form="single", seed=7))
    made = trainer(callbacks=[Late(), pt.callbacks.PredictionCorrelation(), teachers])
    history = made.fit(data(), data(20, seed=1), epochs=2)
    assert history.column("late") == [1.0, 1.0]
    rows = [{column: value for column, value in row.items() if column != "late"} for row in history]
    assert seen == [row for row in rows for _ in range(3)]
    assert all({"correlation/a/b", "teacher_weight"} <= row.keys() for row in seen)


def test_refusals():
    x, y = data(20, seed=1)
    y["a"][11:] = torch.nan
    y["b"][:10] = -100
    with pytest.raises(
        ValueError, match="at least 2 validation examples with targets of both, found 1 for `a` and `b`"
    ):
        noted(validation=(x, y))
    corpora = {"one": (x, {"a": y["a"]}), "other": (x, {"b": y["b"]})}  # no example has both, as is known at once
    run = trainer(callbacks=[pt.callbacks.PredictionCorrelation()])
    with pytest.raises(ValueError, match=r"found at most 0 for `a` and `b`: give validation data with both, name a"):
        run.fit(data(), corpora, epochs=1)
    assert not len(run.history)
    with pytest.raises(ValueError, match="needs validation data, found none"):
        trainer(callbacks=[pt.callbacks.PredictionCorrelation()]).fit(data(), epochs=1)
    with pytest.raises(ValueError, match="`primary` must be a task, found `aa`: did you mean `a`"):
        noted(callbacks=[pt.callbacks.PredictionCorrelation("aa")])
