"""Inputs of a wrong width are told with the layer that refused them, wherever in a fit it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.helpers import data, tasks
from torch import Tensor, nn

import polytask as pt
from polytask.models import MLP, BySource, HardSharing, MMoE
from polytask.training.misfit import Misfit


def heads(width: int = 4) -> dict[str, nn.Module]:
    return {"a": nn.Linear(width, 1), "b": nn.Linear(width, 3)}


def trainer(model: pt.models.Model, **options: Any) -> pt.Trainer:
    return pt.Trainer(model, tasks(), batch_size=8, progress=False, **options)


def narrow() -> pt.models.Model:
    return HardSharing(MLP(2, [4]), heads())


def gated() -> pt.models.Model:
    """Gates of the user's own, of another width than the inputs; polytask's tell it by their argument."""
    return MMoE([nn.Linear(3, 4), nn.Linear(3, 4)], {name: nn.Linear(2, 2) for name in "ab"}, heads())


ALTERNATE = pt.schedules.AlternateEpochs
FIRST = r"found that `trunk.0`, Linear\(in_features=2, .*\), refuses inputs of shape \({0}, 3\), in a batch of shape "


@pytest.mark.parametrize(
    ("call", "size"),
    [
        (lambda: trainer(narrow()).fit(data(24), epochs=1), 8),
        (lambda: trainer(narrow(), schedule=ALTERNATE(), cache_features=True).fit(data(24), epochs=2), 24),
        (lambda: trainer(narrow()).evaluate(data(24)), 24),
        (lambda: trainer(narrow()).predict(data(24)[0]), 24),
    ],
)
def test_a_first_layer_of_another_width_is_named(call: Callable[[], Any], size: int):
    with pytest.raises(Misfit, match=FIRST.format(size)) as caught:
        call()
    assert caught.value.layer == "trunk.0" and isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_the_source_is_named(part: str):
    trunk = BySource({"left": nn.Linear(3, 4), "right": nn.Linear(5, 4)})
    x, y = data(16)
    good = {"left": (x, y), "right": (torch.zeros(16, 5), y)}
    bad = good | {"right": (torch.zeros(16, 6), y)}
    with pytest.raises(Misfit, match=r"`trunk.encoders.right`, .*, in a batch of shape \(\d+, 6\) from source `right`"):
        trainer(HardSharing(trunk, heads())).fit(bad if part == "train" else good, bad, epochs=1)


@pytest.mark.parametrize(
    ("model", "layer", "shape"),
    [
        (lambda: HardSharing(MLP(3, [4]), heads(6)), "heads.a", (8, 4)),
        (gated, "gates.a", (8, 3)),
        (
            lambda: HardSharing(nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(2, 4, 1)), heads()),
            "trunk.1",
            (8, 1, 3),
        ),
    ],
)
def test_a_layer_further_on_is_told_with_what_it_was_given(model: Any, layer: str, shape: tuple[int, ...]):
    with pytest.raises(Misfit) as caught:
        trainer(model()).fit(data(24), epochs=1)
    assert caught.value.layer == layer
    assert f"refuses inputs of shape {shape}, in a batch of shape (8, 3): " in str(caught.value)
    assert "MLP" not in str(caught.value)


def test_a_gate_is_named_itself():
    model = MMoE([nn.Linear(3, 4), nn.Linear(3, 4)], 2, heads())
    with pytest.raises(ValueError, match="`gates` must be how many numbers a gate reads, 3, found 2"):
        trainer(model).fit(data(24), epochs=1)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of luck")


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        trainer(HardSharing(Broken(), heads())).fit(data(24), epochs=1)


def test_a_configuration_is_advised_of_an_mlp_s_width_only_where_an_mlp_refuses():
    from polytask.studies.network import _check_source

    x = data(2)[0]
    with pytest.raises(
        ValueError, match=r"of shape \(3,\) \(`inputs: 3` of a first MLP\), as the data have, .*`trunk.0`"
    ):
        _check_source(trainer(narrow()), x, "")
    with pytest.raises(ValueError, match=r"of shape \(3,\), as the data have, .*`gates.a`") as caught:
        _check_source(trainer(gated()), x, "")
    assert "MLP" not in str(caught.value)
