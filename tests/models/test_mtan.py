"""MTAN: attention per task over any list of stages."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import adam, data, heads, network, same, trainer, trunk, weights
from torch import nn

import polytask as pt
from polytask.models import MTAN, ConvNet, ConvNetAttention, HardSharing, LeNet, LeNetAttention

SETTINGS: dict[str, Any] = {
    "MultiMNIST": (LeNet, LeNetAttention, 50, (1, 28, 28), [(10, 12, 12), (20, 4, 4), (50,)]),
    "Cifar10Mnist": (ConvNet, ConvNetAttention, 32, (3, 32, 32), [(16, 15, 15), (32, 6, 6), (32,)]),
}


class Ones(nn.Module):
    """A mask that lets everything through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(len(x), self.width)


def three_stages() -> list[nn.Module]:
    return [nn.Linear(3, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 6)]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_papers_attention_fits_the_stages_of_the_encoders(setting: str):
    encoder, attention, width, shape, stages = SETTINGS[setting]
    tops = {task: nn.Linear(width, 10) for task in ("left", "right")}
    model = MTAN(encoder(staged=True), {task: attention() for task in tops}, tops)
    x = torch.rand(2, *shape)
    assert [tuple(part.shape[1:]) for part in model.features(x)] == stages
    assert [tuple(out.shape) for out in model(x).values()] == [(2, 10), (2, 10)]


@pytest.mark.parametrize("encoder", [LeNet, ConvNet])
def test_stages_are_the_encoder_cut_in_three(encoder: Any):
    torch.manual_seed(0)
    whole = encoder()
    torch.manual_seed(0)
    staged = encoder(staged=True)
    x = torch.rand(2, *((1, 28, 28) if encoder is LeNet else (3, 32, 32)))
    assert len(staged) == 3
    assert torch.equal(whole(x), staged(x))


def test_open_masks_make_it_hard_sharing():
    stages, tops = three_stages(), heads()
    model = MTAN(stages, {task: [Ones(5), Ones(6)] for task in tops}, tops)
    hard = HardSharing(nn.Sequential(*stages), tops)
    x = data()[0]
    for task, out in hard(x).items():
        assert torch.equal(model(x)[task], out)


def test_a_mask_sees_what_earlier_masks_left():
    """z_1 = u_1, z_{i+1} = a_i(z_i) * u_{i+1}, written out."""
    stages, tops = three_stages(), heads()
    masks = {task: [nn.Linear(6, 5), nn.Linear(5, 6)] for task in tops}
    model = MTAN(stages, masks, tops)
    x = data()[0]
    first = stages[0](x)
    second = stages[1](first)
    third = stages[2](second)
    for task, (one, two) in masks.items():
        torch.testing.assert_close(model(x)[task], tops[task](two(one(first) * second) * third))


def test_attention_of_one_task_has_no_gradient_from_another():
    model = network(form="mtan")
    model(data()[0])["a"].sum().backward()
    assert all(p.grad is not None for p in model.attention["a"].parameters())
    assert all(p.grad is None for p in model.attention["b"].parameters())


def test_attention_trains_in_specific_phases_and_stages_in_shared_ones():
    model, moved = network(form="mtan"), []

    class Look(pt.Callback):
        def on_fit_start(self, run: Any) -> None:
            self.before = weights(model)

        def on_epoch_end(self, run: Any, row: Any) -> None:
            now = weights(model)
            moved.append({name.split(".")[0] for name in now if not same(now[name], self.before[name])})
            self.before = now

    schedule = pt.schedules.AlternateEpochs(1, 1)
    trainer(model, schedule=schedule, callbacks=[Look()], optimizer=adam()).fit(data(), epochs=4)
    assert moved == [{"stages"}, {"attention", "heads"}] * 2


def _shared() -> MTAN:
    mask = nn.Linear(6, 6)
    return MTAN([trunk(), trunk(width=6)], {"a": [mask], "b": [mask]}, heads())


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: MTAN([trunk()], {}, heads()), ValueError, "`stages` must hold at least 2 modules, found 1"),
        (lambda: MTAN(trunk, {}, heads()), TypeError, "`stages` must hold lists of modules, found function"),
        (lambda: MTAN(three_stages(), {"a": [Ones(5)] * 2}, heads()), ValueError,
         "found ['a'] in `attention` and heads for ['a', 'b']"),
        (lambda: MTAN(three_stages(), {n: [Ones(5)] for n in "ab"}, heads()), ValueError,
         "one module for each of the 2 stages after the first, found 1 for task `a`"),
        (lambda: MTAN(three_stages(), {n: [Ones(5), 3] for n in "ab"}, heads()), TypeError, "must hold lists of modules"),
        (_shared, ValueError, "found a parameter of task `a` in that of task `b`"),
        (lambda: MTAN(three_stages(), {n: [Ones(1), Ones(6)] for n in "ab"}, heads())(torch.zeros(4, 3)), ValueError,
         "a mask must have the shape of its stage's output, (4, 5), found (4, 1) from attention 1 of task `a`"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
