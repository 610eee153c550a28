"""MMoE: hard sharing with one expert, single-task networks with one expert each."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.helpers import adam, data, heads, sgd, trunk
from tests.models.limits import Fixed, close, expert, fitted, fresh
from torch import nn

import polytask as pt
from polytask.models import BySource, HardSharing, MMoE, SingleTask

OPTIMIZERS = pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["momentum", "adam"])


@OPTIMIZERS
@pytest.mark.parametrize("schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1)], ids=["joint", "ate"])
def test_one_expert_is_hard_sharing(schedule: Any, optimizer: Any):
    model = MMoE([expert()], gates=3, heads=heads())
    hard = HardSharing(copy.deepcopy(model.experts[0]), copy.deepcopy(dict(model.heads.items())))
    fitted(model, hard, optimizer=optimizer, schedule=schedule)
    close(model(fresh()), hard(fresh()))
    close(model.experts.parameters(), hard.trunk.parameters())
    close(model.heads.parameters(), hard.heads.parameters())


@OPTIMIZERS
def test_gates_that_choose_an_expert_each_are_single_task_networks(optimizer: Any):
    model = MMoE([expert() for _ in "abc"], {n: Fixed(i, 3) for i, n in enumerate("abc")}, heads("abc"))
    towers = dict(zip("abc", copy.deepcopy(model.experts), strict=True))
    alone = SingleTask(towers, copy.deepcopy(dict(model.heads.items())))
    fitted(model, alone, names="abc", optimizer=optimizer)
    close(model(fresh()), alone(fresh()))
    close(model.experts.parameters(), alone.towers.parameters())


@pytest.mark.parametrize("encoder", [None, trunk()], ids=["raw inputs", "an encoder"])
def test_a_head_reads_the_gate_s_average(encoder: Any):
    width = 6 if encoder else 3
    model = MMoE([expert(width), expert(width)], gates=width, heads=heads(), encoder=encoder).eval()
    x = data()[0]
    e = encoder(x) if encoder else x
    for task, out in model(x).items():
        share = (e @ model.gates[task][1].weight.T).softmax(1)
        z = share[:, :1] * model.experts[0](e) + share[:, 1:] * model.experts[1](e)
        torch.testing.assert_close(out, model.heads[task](z))
        torch.testing.assert_close(model.representation(task, model.features(x), x), z)
    assert model.heads_read_inputs is (encoder is None)


def test_experts_may_give_maps():
    """Outputs of any shape: what is mixed is whole feature maps."""
    x = torch.rand(4, 1, 8, 8)
    tops = {name: nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 6, 1)) for name in "ab"}
    model = MMoE([nn.Conv2d(1, 2, 3) for _ in range(3)], gates=64, heads=tops)
    assert model.features(x).shape == (4, 3, 2, 6, 6)
    assert model(x)["a"].shape == (4, 1)


def test_sources_of_several_kinds_share_experts_behind_their_encoders():
    encoder = BySource({"wide": nn.Linear(9, 6), "narrow": nn.Linear(2, 6)})
    model = MMoE([expert(6), expert(6)], gates=6, heads=heads(), encoder=encoder)
    assert model(torch.zeros(4, 9), ["a"], "wide")["a"].shape == (4, 1)
    assert model(torch.zeros(4, 2), ["b"], "narrow")["b"].shape == (4, 3)


def twice() -> MMoE:
    one = expert()
    return MMoE([one, one], 3, heads())


def one_gate() -> MMoE:
    gate = nn.Linear(3, 1)
    return MMoE([expert()], {"a": gate, "b": gate}, heads())


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: MMoE([expert()], 3, {}), ValueError, "`heads` must name a module for at least one task, found none"),
        (lambda: MMoE([], 3, heads()), ValueError, "`experts` must hold at least 1 module, found none"),
        (lambda: MMoE(expert, 3, heads()), TypeError, "`experts` must hold lists of modules, found function"),
        (lambda: MMoE([3], 3, heads()), TypeError, "`experts` must hold lists of modules, found a list with 3"),
        (twice, ValueError, "`experts` must be modules of their own, found one parameter in expert 0 and expert 1"),
        (one_gate, ValueError, "`gates` must be modules of their own, found one parameter in that of task `a` and that of task `b`"),
        (lambda: MMoE([expert()], 0, heads()), ValueError, "`gates` must be at least 1, found 0"),
        (lambda: MMoE([expert()], {"a": nn.Linear(3, 1)}, heads()), ValueError, "every task must have a gate, found gates for ['a'] and tasks ['a', 'b']"),
        (lambda: MMoE([expert()], {"a": 3, "b": 3}, heads()), TypeError, "`gates` must map tasks to modules, found int for task `a`"),
        (lambda: MMoE([expert(), expert(3, 5)], 3, heads())(torch.zeros(4, 3)), ValueError, "outputs of one shape, found (4, 6) and (4, 5)"),
        (lambda: MMoE([expert()], {n: nn.Linear(3, 2) for n in "ab"}, heads())(torch.zeros(4, 3)), ValueError,
         "a logit for each example and expert, (4, 1), found (4, 2) from the gate of task `a`"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
