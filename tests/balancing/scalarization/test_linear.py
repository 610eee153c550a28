"""The weighted sum."""

from __future__ import annotations

import math

import pytest
import torch
from tests.helpers import NAN, data, same, trainer, weights

import polytask as pt
from polytask.balancing import Evidence


def test_equal_is_the_plain_sum():
    runs = []
    for balancer in (
        None,
        pt.scalarization.Linear(),
        pt.scalarization.Linear("equal"),
        pt.scalarization.Linear({"a": 1, "b": 1}),
    ):
        run = trainer(balancer=balancer)
        run.fit(data(), epochs=2)
        runs.append(weights(run.model))
    assert all(same(runs[0], other) for other in runs[1:])


def test_inverse_makes_up_for_missing_targets():
    balancer = pt.scalarization.Linear("inverse")
    balancer.setup(["a", "b", "penalty"], {"a": 10, "b": 30})
    weights = balancer.combine(Evidence(["a", "b", "penalty"]))
    assert weights[0] == pytest.approx(3 * weights[1])
    assert (weights[0] + weights[1]) / 2 == pytest.approx(1)
    assert weights[2] == 1


def test_inverse_counts_the_training_targets():
    x, y = data(24)
    y["a"][:18] = NAN
    by_size, by_hand = (
        trainer(balancer=pt.scalarization.Linear("inverse")),
        trainer(balancer=pt.scalarization.Linear({"a": 2 * 24 / 30, "b": 2 * 6 / 30})),
    )
    for run in (by_size, by_hand):
        run.fit((x, y), epochs=1)
    for name, value in weights(by_size.model).items():
        torch.testing.assert_close(value, by_hand.model.state_dict()[name])


def test_a_zero_weight_takes_a_task_out():
    x, y = data(16)
    run = trainer(balancer=pt.scalarization.Linear({"a": 1.0, "b": 0.0}))
    before = weights(run.model.heads["b"])
    run.fit((x, y), epochs=1)
    assert same(weights(run.model.heads["b"]), before)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"a": -1.0, "b": 1.0}, "a weight must be at least 0 and finite, found -1.0 for `a`"),
        ({"a": math.nan, "b": 1.0}, "a weight must be at least 0 and finite, found nan for `a`"),
        ({"a": math.inf, "b": 1.0}, "a weight must be at least 0 and finite, found inf for `a`"),
        ({"a": 0.0, "b": 0}, "at least one weight must be above 0, found none"),
        ("equla", '`weights` must be "equal", "inverse" or {objective: weight}, found "equla"'),
        ({"a": 1.0}, "`weights` must name every objective, found none for `b`"),
        ({"a": 1.0, "b": 1.0, "bb": 1.0}, "a weight is given for an unknown objective `bb`: did you mean `b`?"),
    ],
)
def test_refusals(given: object, rule: str):
    with pytest.raises(ValueError) as caught:
        trainer(balancer=pt.scalarization.Linear(given)).fit(data(), epochs=1)
    assert str(caught.value) == rule


def test_inverse_needs_known_sizes():
    from tests.helpers import loader

    with pytest.raises(ValueError, match="needs data of known size, found a source that cannot tell"):
        trainer(balancer=pt.scalarization.Linear("inverse")).fit(loader(), epochs=1)
