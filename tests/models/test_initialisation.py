"""LSUV: every layer's outputs get the wanted standard deviation on the given batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import FEATURED, data, network, same, weights
from torch import nn

import polytask as pt
from polytask.models import BySource, ConvNet, LeNet, lsuv
from polytask.models.initialisation import lsuv_over

X = data(200)[0]


def outputs(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Standard deviation of every layer's outputs, with batch statistics and without dropout."""
    found, handles = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            handles.append(
                layer.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, float(out.std())))
            )
    state = weights(model)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        model(inputs)
    model.load_state_dict(state)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("form", ["hard", "single", "soft", "partitioned", *FEATURED])
def test_every_layer_of_any_network_reaches_the_wanted_deviation(form: str):
    model = network("norm+dropout", "abc", form)
    zero = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and not layer.weight.any()}
    assert len(zero) == (3 if form == "shared decision" else 0)
    reached = lsuv(model, X, std=2.0, tolerance=0.01)
    found = {name: value for name, value in outputs(model, X).items() if name not in zero}
    assert not any(model.get_submodule(name).weight.any() for name in zero)
    assert reached.keys() == found.keys()
    for name, value in found.items():
        assert value == pytest.approx(2.0, abs=0.011)
        assert reached[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(("encoder", "shape"), [(LeNet, (1, 28, 28)), (ConvNet, (3, 32, 32))])
def test_convolutions_reach_it_within_the_papers_settings(encoder: Any, shape: tuple[int, ...]):
    assert all(abs(value - 1) <= 0.1 for value in lsuv(encoder(), torch.rand(64, *shape)).values())


def test_rows_of_weights_stay_orthogonal_and_biases_are_zero():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    lsuv(model, torch.randn(50, 8))
    for layer in (model[0], model[2]):
        gram = layer.weight @ layer.weight.T
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-5, rtol=0)
        assert not layer.bias.any()


def test_it_depends_on_its_seed_alone_and_leaves_modes_buffers_and_random_state():
    results, models = [], [network("norm+dropout", seed=seed) for seed in (1, 2)]
    models[1].trunk[1].eval()
    for number, model in enumerate(models):
        torch.manual_seed(number)
        before, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
        modes = [m.training for m in model.modules()]
        lsuv(model, X, seed=3)
        assert torch.equal(before, torch.get_rng_state())
        assert modes == [m.training for m in model.modules()]
        assert same(buffers, list(model.buffers()))
        results.append({k: v for k, v in weights(model).items() if "weight" in k and v.dim() > 1})
    assert same(*results)
    lsuv(models[0], X, seed=4)
    assert not same(results[0]["trunk.0.weight"], models[0].trunk[0].weight.detach())


def test_what_the_user_froze_and_what_does_not_run_is_left_alone():
    model = nn.ModuleDict({"on": nn.Linear(3, 4), "frozen": nn.Linear(4, 4), "off": nn.Linear(3, 4)})
    model["frozen"].requires_grad_(False)
    before = weights(model)
    reached = lsuv(model, X, forward=lambda m, x: m["frozen"](m["on"](x)))
    assert list(reached) == ["on"]
    assert {name for name, value in weights(model).items() if not same(value, before[name])} == {
        "on.weight", "on.bias",
    }  # fmt: skip


def test_it_stops_after_its_tries_and_says_what_was_reached():
    """A layer whose outputs do not follow its weights cannot converge."""

    class Stubborn(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / self.weight.norm()

    model = Stubborn(3, 4)
    assert lsuv(model, 10 * X, tries=2)[""] > 1.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "`std` must be a finite number above 0, found 0.0"),
        ({"tolerance": float("nan")}, "`tolerance` must be a finite number above 0, found nan"),
        ({"tries": 0}, "`tries` must be at least 1, found 0"),
        ({"inputs": torch.zeros(5, 3)}, "found a standard deviation of 0.0 in `trunk.0`"),
        ({"inputs": torch.full((5, 3), torch.nan)}, "found a standard deviation of nan in `trunk.0`"),
        ({"module": nn.ReLU()}, "there must be a linear or convolutional layer to initialise, found none that runs"),
    ],
)
def test_refusals(options: dict[str, Any], message: str):
    arguments = {"module": network(), "inputs": X} | options
    with pytest.raises(ValueError) as caught:
        lsuv(arguments.pop("module"), arguments.pop("inputs"), **arguments)
    assert message in str(caught.value)


def test_weights_that_are_all_zero_stay_so():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.zeros_(model[2].weight)
    assert list(lsuv(model, X)) == ["0", "1"]
    assert not model[2].weight.any()


# Towers that start equal


def tower() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6))


def own() -> dict[str, nn.Module]:
    return {name: nn.Linear(6, outputs) for name, outputs in (("a", 1), ("b", 3), ("c", 1))}


TOWERED = {
    "soft": lambda trunk: pt.models.SoftSharing(trunk, own()),
    "single": lambda trunk: pt.models.SingleTask(trunk, own()),
    "cross-stitch": lambda trunk: pt.models.CrossStitch(trunk, own()),
    "grouped": lambda trunk: pt.models.Grouped(trunk, own(), [["a", "c"], ["b"]]),
}


@pytest.mark.parametrize("form", TOWERED)
def test_towers_that_start_equal_stay_equal_and_reach_the_deviation(form: str):
    model = TOWERED[form](tower())
    before = weights(model)
    reached = lsuv(model, X, tolerance=0.01)
    first, *others = map(weights, model.side_by_side())
    assert others and all(same(first, other) for other in others)
    assert not any(same(value, before[name]) for name, value in weights(model).items() if "heads" in name)
    assert not same(first["0.weight"], first["2.weight"])
    assert reached.keys() == outputs(model, X).keys()
    for name, value in outputs(model, X).items():
        assert value == pytest.approx(1.0, abs=0.011) and reached[name] == pytest.approx(value, rel=1e-4)


def test_towers_of_their_own_stay_their_own():
    model = pt.models.SoftSharing({name: tower() for name in "abc"}, own())
    model.towers["c"][0].load_state_dict(model.towers["a"][0].state_dict())
    lsuv(model, X)
    a, b, c = (weights(model.towers[name]) for name in "abc")
    assert same(a["0.weight"], c["0.weight"])
    assert not any(same(a[key], b[key]) or same(b[key], c[key]) for key in ("0.weight", "2.weight"))
    assert not same(a["2.weight"], c["2.weight"])


def test_copies_one_above_the_other_are_drawn_apart():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 4))
    model[2].load_state_dict(layer.state_dict())
    lsuv(model, torch.randn(50, 4))
    assert not same(weights(model[0]), weights(model[2]))


def test_towers_that_read_different_examples_stay_equal_too():
    """One factor for both: neither alone has the deviation, all their outputs together have."""
    model = TOWERED["soft"](tower())
    small, large = X[:50], 4 * X[50:100] + 1
    reached = lsuv_over(
        model, [lambda: model(small, ["a"]), lambda: model(large, ["b"])], std=1.0, tolerance=1e-3, tries=10, seed=0
    )  # fmt: skip
    first, *others = map(weights, model.side_by_side())
    assert all(same(first, other) for other in others)  # that of c, which has not run, among them
    layer = model.towers["a"][0]
    parts = [layer(part) for part in (small, large)]
    assert torch.cat(parts).std(correction=2).item() == pytest.approx(reached["towers.a.0"], rel=1e-5)
    assert reached["towers.a.0"] == pytest.approx(1, abs=1e-3)
    assert parts[0].std() < 0.7 and parts[1].std() > 1.2
    assert {f"towers.{name}.0" for name in "abc"} < reached.keys() and "heads.c" not in reached


# Several calls


def test_what_two_calls_run_through_is_measured_on_both_and_after_both():
    encoders = {"short": nn.Linear(3, 4), "long": nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))}
    model = BySource(encoders, nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    inputs = {"short": X[:40], "long": torch.randn(60, 5, generator=torch.Generator().manual_seed(1)) - 2}
    calls = [lambda name=name: model(inputs[name], name) for name in inputs]
    reached = lsuv_over(model, calls, std=2.0, tolerance=1e-3, tries=10, seed=0)
    assert list(reached).index("trunk.0") > max(
        list(reached).index(f"encoders.{n}") for n in ("short", "long.0", "long.2")
    )
    with torch.no_grad():
        read = {name: encoders[name](values) for name, values in inputs.items()}
        hidden = torch.cat([*read.values()])
        for layer in (model.trunk[0], model.trunk[2]):
            hidden = layer(hidden)
            assert hidden.std(correction=2).item() == pytest.approx(2.0, abs=1.1e-3)
            hidden = hidden.relu()
    for value in read.values():
        assert value.std().item() == pytest.approx(2.0, abs=1.1e-3)


def test_layers_that_run_in_different_orders_are_refused():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    model = nn.ModuleList([one, other])
    with pytest.raises(
        ValueError, match=r"layers must run in one order whatever the batch, found several of `[01]`, `[01]`"
    ):
        lsuv_over(model, [lambda: other(one(X)), lambda: one(other(X))], std=1.0, tolerance=0.1, tries=1, seed=0)
