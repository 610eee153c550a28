"""LSUV: every layer's outputs get the wanted standard deviation on the given batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import FEATURED, data, network, same, weights
from torch import nn

from polytask.models import ConvNet, LeNet, lsuv

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
