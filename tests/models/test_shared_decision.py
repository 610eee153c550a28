"""A shared decision layer: hard sharing that learns to correct itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.helpers import adam, data, heads, network, same, sgd, trainer, trunk, weights
from torch import nn

import polytask as pt
from polytask.models import HardSharing, SharedDecision


def decided(kind: str = "norm+dropout") -> SharedDecision:
    model = network(kind, form="shared decision")
    assert isinstance(model, SharedDecision)
    return model


def hard(model: SharedDecision) -> HardSharing:
    return HardSharing(copy.deepcopy(model.trunk), copy.deepcopy(dict(model.heads.items())))


def test_it_starts_as_hard_sharing_to_the_bit():
    model = decided().eval()
    x = data()[0]
    for task, out in hard(model).eval()(x).items():
        assert torch.equal(model(x)[task], out)


@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["momentum", "adam"])
def test_with_its_readouts_at_rest_it_trains_as_hard_sharing(optimizer: Any):
    model = decided("norm")
    model.readouts.requires_grad_(False)
    plain = hard(model)
    for each in (model, plain):
        trainer(each, optimizer=optimizer).fit(data(), epochs=3)
    assert same(weights(model.trunk), weights(plain.trunk))
    assert same(weights(model.heads), weights(plain.heads))


def test_the_outputs_are_opinions_and_corrections():
    model = decided("plain")
    for readout in model.readouts.values():
        nn.init.normal_(readout[-1].weight)
    x = data()[0]
    opinions = {task: head(model.trunk(x)) for task, head in model.heads.items()}
    decision = model.decision(torch.cat([opinions["a"], opinions["b"]], 1))
    for task, out in model(x).items():
        torch.testing.assert_close(out, opinions[task] + model.readouts[task](decision))
    assert model.representation("b", model.features(x), None).shape == (24, 3 + 4)


def test_a_head_of_one_output_may_give_a_vector():
    tops = {"a": nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), "b": nn.Linear(6, 3)}
    readouts = {"a": nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), "b": nn.Linear(5, 3)}
    model = SharedDecision(trunk(), tops, nn.Linear(4, 5), readouts)
    assert {task: tuple(out.shape) for task, out in model(data()[0]).items()} == {"a": (24,), "b": (24, 3)}
    assert model.representation("a", model.features(data()[0]), None).shape == (24, 1 + 5)


def test_tasks_learn_from_each_other_s_opinions():
    """Task b's label is a's, and only a's head can see it: b learns it through the decision, not through its head."""
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(3))
    y = {"a": (x[:, 0] > 0).float(), "b": (x[:, 0] > 0).long()}
    blind = nn.Linear(1, 3)
    blind.weight.data.zero_()
    blind.weight.requires_grad_(False)
    tops = {"a": nn.Linear(1, 1), "b": blind}
    scores = []
    for model in (
        HardSharing(nn.Identity(), copy.deepcopy(tops)),
        SharedDecision(nn.Identity(), tops, nn.Linear(4, 4), {"a": nn.Linear(4, 1), "b": nn.Linear(4, 3)}),
    ):
        run = trainer(model, optimizer=adam(0.05))
        run.fit((x, y), epochs=20)
        scores.append(run.evaluate((x, y))["b/accuracy"])
    assert scores[0] < 0.7 and scores[1] > 0.9


def test_only_the_readouts_are_the_tasks_own():
    model = decided()
    own = model.blocks().specific
    for task in "ab":
        assert {id(p) for p in own[task].parameters} == {id(p) for p in model.readouts[task].parameters()}
    before = weights(model)
    trainer(model, schedule=pt.schedules.AlternateEpochs(0, 1), optimizer=adam()).fit(data(), epochs=2)
    moved = {name.split(".")[0] for name, value in weights(model).items() if not same(value, before[name])}
    assert moved == {"readouts"}


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: SharedDecision(trunk(), {}, trunk(), {}), ValueError, "`heads` must name a module"),
        (lambda: SharedDecision(trunk(), heads(), nn.Linear(4, 5), {"a": nn.Linear(5, 1)}), ValueError,
         "found ['a'] in `readouts` and heads for ['a', 'b']"),
        (lambda: SharedDecision(trunk(), heads("a"), nn.Linear(1, 5), {"a": nn.Tanh()}), ValueError,
         "a readout must end in a linear layer, which starts from zero, found none for task `a`"),
        (lambda: SharedDecision(trunk(), heads("a"), nn.Linear(1, 5), {"a": nn.Linear(5, 2)})(torch.zeros(4, 3)),
         ValueError, "the shape of its opinion, (4, 1), found (4, 2) from the readout of task `a`"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
