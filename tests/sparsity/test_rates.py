"""Rates count rows as the papers do; costs are what a user pays."""

from __future__ import annotations

import pytest
import torch
from tests import helpers
from tests.sparsity.dying import BUILDERS, SPREADS, images, kill, kill_filters, settle
from torch import nn

from polytask.sparsity.compact import compact
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.rates import Rates, cost_of, macs_of, overall, predicted, rates_of
from polytask.sparsity.rows import Layer


def layer(name: str, rows: list[list[float]]) -> Layer:
    module = nn.Linear(len(rows), len(rows[0]))
    with torch.no_grad():
        module.weight.copy_(torch.tensor(rows).T)
    return Layer(name, module)


def test_rates_are_those_of_their_definitions():
    found = rates_of([layer("one", [[0, 0], [1, 2], [1, 2], [3, 4], [0, 1]]), layer("two", [[0, 0], [0, 0], [5, 5]])])
    assert found == {"one": Rates(5, 1, 3), "two": Rates(3, 2, 1)}
    assert found["one"].sparsity == 1 / 5
    assert found["one"].compression == 5 / 3
    assert found["one"].sharing == 4 / 3
    both = overall(found)
    assert both == Rates(8, 3, 4)
    assert both.compression == pytest.approx(both.sharing / (1 - both.sparsity))


def test_a_dead_layer_compresses_without_bound():
    found = rates_of([layer("one", [[0.0], [0.0]])])["one"]
    assert (found.sparsity, found.compression, found.sharing) == (1.0, float("inf"), 1.0)


def test_rates_count_single_rows_whatever_the_granularity():
    model = BUILDERS["lenet"]()
    with torch.no_grad():
        model.trunk[7].weight[:, :32] = 0  # what filters 0 and 1 feed
    x = images("lenet", 1, torch.float32)
    by_unit, by_row = (rates_of(layers_in_play(model, x, granularity)) for granularity in ("unit", "row"))
    assert by_unit == by_row
    assert by_unit["trunk.7"].rows == 320 and by_unit["trunk.7"].dead == 32


def test_no_layer_has_no_rate():
    with pytest.raises(ValueError, match="at least one layer in play, found none"):
        overall({})


def test_costs_are_those_of_the_published_network():
    cost = cost_of(BUILDERS["lenet"](), images("lenet", 1, torch.float32), batch_size=3, repeats=2)
    convolutions = 24 * 24 * 10 * 25 + 8 * 8 * 20 * 10 * 25
    assert cost.parameters == 22_350
    assert cost.macs == convolutions + 320 * 50 + 2 * 50 * 10
    assert 4 * cost.parameters < cost.bytes < 4 * cost.parameters + 2000
    assert cost.latency > 0 and cost.batch_size == 3 and cost.threads == 1


def test_measuring_changes_nothing():
    model = BUILDERS["normed"]().train()
    before = helpers.weights(model)
    cost_of(model, images("normed", 2, torch.float32), batch_size=4, repeats=1)
    assert model.training and helpers.same(helpers.weights(model), before)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"repeats": 0}])
def test_counts_below_one_are_refused(options):
    with pytest.raises(ValueError, match="must be at least 1, found 0"):
        cost_of(BUILDERS["lenet"](), images("lenet"), **options)


@pytest.mark.parametrize("name", ["monitored", "residual"])
def test_what_is_predicted_before_is_measured_after(name):
    model = settle(BUILDERS[name]())
    kill(model, 0.5, spreads=SPREADS[name])
    kill_filters(model, 0.2)
    x = images(name, 2, torch.float32)
    parameters, macs = predicted(model, x)
    cost = cost_of(compact(model, x).model, x, batch_size=2, repeats=1)
    assert (cost.parameters, cost.macs) == (parameters, macs)


def test_nothing_dead_predicts_the_network_itself():
    model = settle(BUILDERS["attentive"]())
    x = images("attentive", 2, torch.float32)
    assert predicted(model, x) == (sum(p.numel() for p in model.parameters()), macs_of(model, x) // 2)
