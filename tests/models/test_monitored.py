"""Monitored networks: what the head reads is trunk plus monitor."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import FEATURED, SaveAll, adam, data, heads, network, same, sgd, trainer, trunk, weights
from torch import nn

import polytask as pt
from polytask.models import ConvNet, ConvNetMonitor, HardSharing, LeNet, LeNetMonitor, Monitored, SingleTask

SETTINGS: dict[str, Any] = {
    "MultiMNIST": (LeNet, LeNetMonitor, 50, (1, 28, 28), 22_350, 311_490),
    "Cifar10Mnist": (ConvNet, ConvNetMonitor, 32, (3, 32, 32), 42_740, 505_524),
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def monitored(alpha: Any = "learned") -> Monitored:
    model = network("norm", form="monitored")
    assert isinstance(model, Monitored)
    return Monitored(model.trunk, dict(model.monitors.items()), dict(model.heads.items()), alpha)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_papers_networks_have_the_papers_numbers_of_parameters(setting: str):
    encoder, monitor, width, shape, hard, wanted = SETTINGS[setting]
    tops = {task: nn.Linear(width, 10) for task in ("left", "right")}
    assert count(HardSharing(encoder(), tops)) == hard
    fixed = Monitored(encoder(), {task: monitor() for task in tops}, tops, alpha=(0.75, 0.25))
    learned = Monitored(encoder(), {task: monitor() for task in tops}, tops)
    assert (count(fixed), count(learned)) == (wanted, wanted + 2 * 2)
    assert {task: tuple(out.shape) for task, out in learned(torch.zeros(2, *shape)).items()} == {
        "left": (2, 10), "right": (2, 10),
    }  # fmt: skip


def test_the_head_reads_the_weighted_sum():
    model = monitored((0.3, -2.0)).eval()
    x = data()[0]
    z = model.trunk(x)
    for task, out in model(x).items():
        torch.testing.assert_close(out, model.heads[task](0.3 * z - 2 * model.monitors[task](x)))


@pytest.mark.parametrize("schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1)], ids=["joint", "ate"])
def test_without_monitors_it_trains_as_hard_sharing(schedule: pt.schedules.Schedule):
    model = monitored((1.0, 0.0))
    plain = trainer(HardSharing(trunk("norm"), heads(kind="norm")), schedule=schedule)
    plain.model.load_state_dict({k: v for k, v in weights(model).items() if not k.startswith(("monitors", "mixes"))})
    run = trainer(model, schedule=schedule)
    for each in (run, plain):
        each.fit(data(), data(9, seed=1), epochs=4)
    found = weights(model)
    for name, value in weights(plain.model).items():
        torch.testing.assert_close(found[name], value)


def test_without_a_trunk_it_predicts_as_single_task_networks():
    model = monitored((0.0, 1.0)).eval()
    single = SingleTask(dict(model.monitors.items()), dict(model.heads.items())).eval()
    x = data()[0]
    for task, out in single(x).items():
        assert torch.equal(model(x)[task], out)


def test_a_learned_network_starts_as_hard_sharing_and_learns_how_much_of_the_monitor_it_wants():
    model = monitored().eval()
    hard = HardSharing(model.trunk, dict(model.heads.items())).eval()
    x, y = data()
    for task, out in hard(x).items():
        assert torch.equal(model(x)[task], out)
    trainer(model, optimizer=adam()).fit((x, y), epochs=3)
    for task in "ab":
        assert model.mixes[task].weights[1] != 0
        assert model.mixes[task].weights[0] != 1


def test_alpha_is_saved_and_belongs_to_the_task():
    learned, fixed = monitored(), monitored((0.75, 0.25))
    assert {"mixes.a.weights", "mixes.b.weights"} <= learned.state_dict().keys() & fixed.state_dict().keys()
    assert any(p is learned.mixes["a"].weights for p in learned.blocks().specific["a"].parameters)
    assert not any("mixes" in name for name, _ in fixed.named_parameters())
    trainer(fixed, optimizer=adam()).fit(data(), epochs=1)
    assert fixed.mixes["a"].weights.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("form", FEATURED)
def test_cached_and_recomputed_features_give_the_same_training(form: str):
    runs = []
    for cached in (True, False):
        run = trainer(network("norm", form=form), schedule=pt.schedules.AlternateEpochs(1, 2), cache_features=cached)
        run.fit(data(), data(9, seed=1), epochs=6)
        runs.append(run)
    for one, other in zip(*(run.history for run in runs), strict=True):
        for name, value in one.items():
            if isinstance(value, float) and not name.endswith("seconds"):
                assert value == pytest.approx(other[name], rel=1e-5)
    for one, other in zip(*(weights(run.model).values() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FEATURED)
def test_a_resumed_run_ends_with_the_same_bits(form: str, tmp_path: Any):
    def run(resume: Any = None) -> SaveAll:
        keeper = SaveAll(None if resume else tmp_path)
        schedule = pt.schedules.AlternateEpochs(1, 1)
        fit = trainer(network("dropout", form=form), schedule=schedule, callbacks=[keeper], optimizer=sgd(momentum=0.9))
        fit.fit(data(), epochs=4, resume=resume)
        return keeper

    assert same(run().state, run(tmp_path / "3.ckpt").state)


@pytest.mark.parametrize(("alpha", "wanted"), [({}, 505_528), ({"alpha": [0.75, 0.25]}, 505_524)])
def test_configurations_can_name_it(alpha: dict[str, Any], wanted: int):
    from polytask.studies import spec

    top = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 32, "out_features": 10}}
    parts = {
        "trunk": {"class_path": "ConvNet"},
        "monitors": {task: {"class_path": "ConvNetMonitor"} for task in ("cifar", "digit")},
        "heads": dict.fromkeys(("cifar", "digit"), top),
    }
    config = {"data": "Cifar10Mnist", "model": {"class_path": "Monitored", "init_args": parts | alpha}, "epochs": 1}
    assert count(spec.build(spec.resolve(config)).trainer.model) == wanted


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: Monitored(trunk(), {}, {}), ValueError, "`heads` must name a module for at least one task, found none"),
        (lambda: Monitored(trunk(), {"a": trunk()}, heads()), ValueError,
         "found ['a'] in `monitors` and heads for ['a', 'b']"),
        (lambda: Monitored(trunk(), {"a": 3, "b": trunk()}, heads()), TypeError, "found int for task `a`"),
        (lambda: monitored("fixed"), ValueError, "`alpha` must be 'learned' or a pair of finite numbers, found 'fixed'"),
        (lambda: monitored((1.0,)), ValueError, "found (1.0,)"),
        (lambda: monitored((1.0, float("nan"))), ValueError, "found (1.0, nan)"),
        (lambda: Monitored(trunk(), {n: trunk(width=1) for n in "ab"}, heads())(torch.zeros(4, 3)), ValueError,
         "a monitor must give what the trunk gives, (4, 6), found (4, 1) for task `a`"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
