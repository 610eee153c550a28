"""The trainer: evaluation, prediction, clipping, groups, objectives, history."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import NAN, Rows, adam, data, loader, network, same, sgd, tasks, trainer, weights
from torch import nn
from torch.nn import functional as F

import polytask as pt

X, Y = data(30, "abc", missing=True)


def _manual(model: Any, x: torch.Tensor, y: dict[str, torch.Tensor]) -> dict[str, float]:
    outputs = model(x)
    a, b, c = ~torch.isnan(y["a"]), y["b"] != -100, ~torch.isnan(y["c"])
    residual = (outputs["c"].squeeze(1) - y["c"])[c]
    found = {
        "a/loss": F.binary_cross_entropy_with_logits(outputs["a"].squeeze(1)[a], y["a"][a]),
        "a/accuracy": ((outputs["a"].squeeze(1) > 0) == y["a"])[a].float().mean(),
        "b/loss": F.cross_entropy(outputs["b"][b], y["b"][b]),
        "b/accuracy": (outputs["b"].argmax(1) == y["b"])[b].float().mean(),
        "c/loss": residual.square().mean(),
        "c/r2": 1 - residual.square().sum() / (y["c"][c] - y["c"][c].mean()).square().sum(),
    }
    figures = {name: value.item() for name, value in found.items()}
    return figures | {"loss": figures["a/loss"] + 3 * figures["b/loss"] + figures["c/loss"]}


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("form", ["arrays", "numpy", "loader", "data set"])
def test_evaluation_equals_a_manual_computation_whatever_is_missing(form: str, chunk: int):
    model = network("norm+dropout", "abc")
    chosen = [pt.binary("a"), pt.classification("b", 3, weight=3.0), pt.regression("c")]
    run = trainer(model, tasks=chosen, evaluation_batch_size=chunk)
    given: Any = {
        "arrays": lambda: (X, Y),
        "numpy": lambda: (X.double().numpy(), {k: v.numpy() for k, v in Y.items()}),
        "loader": lambda: torch.utils.data.DataLoader(Rows(X, Y), batch_size=9),
        "data set": lambda: Rows(X, Y),
    }[form]()
    figures = run.evaluate(given)
    model.eval()
    expected = _manual(model, X, Y)
    assert set(figures) == set(expected)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-5), name


def test_evaluation_and_prediction_change_nothing():
    model = network("norm+dropout", "abc")
    run = trainer(model, "abc")
    before, state = weights(model), torch.random.get_rng_state()
    model.heads["a"].eval()
    run.evaluate((X, Y))
    run.predict(X)
    assert same(weights(model), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.heads["a"].training
    assert model.trunk.training


def test_evaluation_of_some_tasks_only():
    run = trainer(network(names="abc"), "abc")
    assert set(run.evaluate((X, {"c": Y["c"]}))) == {"loss", "c/loss", "c/r2"}


def test_predictions():
    run = trainer(network("norm+dropout", "abc"), "abc")
    run.fit((X, Y), epochs=1)
    found = run.predict(X)
    assert list(found) == ["a", "b", "c"]
    torch.testing.assert_close(found["b"].probabilities.sum(1), torch.ones(30))
    assert torch.equal(found["a"].labels, (found["a"].probabilities > 0.5).long())
    assert found["c"].probabilities is None
    for chunk in (1, 7, 30):
        run.evaluation_batch_size = chunk
        for name, prediction in run.predict(X.numpy()).items():
            torch.testing.assert_close(prediction.outputs, found[name].outputs, rtol=1e-5, atol=1e-6)
    assert run.predict(X[:0])["b"].values.shape == (0,)


def test_training_figures_are_those_of_the_batches_as_they_were_trained_on():
    x, y = data(24, missing=True)
    run = trainer(optimizer=sgd(0.0))
    row = run.fit((x, y), (x, y), epochs=1)[0]
    for name in ("a/loss", "b/loss", "a/accuracy", "b/accuracy", "loss"):
        assert row[f"train/{name}"] == pytest.approx(row[f"validation/{name}"], rel=1e-6)


@pytest.mark.parametrize("schedule", [pt.schedules.Joint(), pt.schedules.AlternateBatches()], ids=["joint", "sat"])
def test_training_metrics_may_be_left_out(schedule: Any):
    one = trainer(schedule=schedule)
    other = trainer(schedule=schedule, train_metrics=False)
    for run in (one, other):
        run.fit(data(), data(8, seed=1), epochs=2)
    missing = {"train/a/accuracy", "train/b/accuracy"}
    assert set(one.history.columns) - set(other.history.columns) == missing
    assert same(weights(one.model), weights(other.model))


class Gradients(torch.optim.SGD):
    seen: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:
        live = [p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None]
        type(self).seen.append(torch.cat(live))
        super().step()


def _gradients(**options: Any) -> list[torch.Tensor]:
    Gradients.seen = []
    trainer(optimizer=lambda p: Gradients(p, lr=0.0), **options).fit(data(), epochs=2)
    return Gradients.seen


@pytest.mark.parametrize("schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1)], ids=["joint", "ate"])
def test_gradients_are_clipped_after_balancing(schedule: Any):
    plain = _gradients(schedule=schedule)
    bound = plain[0].norm().item() / 2
    for raw, clipped in zip(plain, _gradients(schedule=schedule, clip_norm=bound), strict=True):
        torch.testing.assert_close(clipped, raw * min(1.0, bound / raw.norm().item()), rtol=1e-4, atol=1e-7)
    for raw, clipped in zip(plain, _gradients(schedule=schedule, clip_value=0.01), strict=True):
        torch.testing.assert_close(clipped, raw.clamp(-0.01, 0.01))


def test_groups_have_their_own_rates_and_columns():
    x, y = data(16)
    model = network()
    before = weights(model)
    run = trainer(model, groups={"trunk": {"lr": 0.01}, "heads.a": {"lr": 0.0}})
    history = run.fit(pt.Arrays(x, y, batch_size=16, shuffle=False), epochs=1)
    assert {k: v for k, v in history[0].items() if k.startswith("lr")} == {
        "lr/trunk": 0.01, "lr/heads.a": 0.0, "lr/rest": 0.1,
    }  # fmt: skip
    plain = trainer(network())
    plain.fit(pt.Arrays(x, y, batch_size=16, shuffle=False), epochs=1)
    after, full = weights(model), weights(plain.model)
    for name, start in before.items():
        factor = 0.1 if name.startswith("trunk") else 0.0 if name.startswith("heads.a") else 1.0
        torch.testing.assert_close(after[name] - start, factor * (full[name] - start), rtol=1e-3, atol=1e-7)


def test_groups_may_be_the_blocks():
    run = trainer(groups={"shared": {"lr": 0.2}, "specific": {"lr": 0.3}})
    row = run.fit(data(), epochs=1)[0]
    assert (row["lr/shared"], row["lr/specific"]) == (0.2, 0.3)
    two = trainer(optimizer=sgd(0.5), specific_optimizer=adam(0.25)).fit(data(), epochs=1)[0]
    assert (two["lr/shared"], two["lr/specific"]) == (0.5, 0.25)
    assert trainer().fit(data(), epochs=1)[0]["lr"] == 0.1


def test_groups_of_two_optimizers_do_not_hide_one_another():
    run = trainer(optimizer=sgd(0.5), specific_optimizer=adam(0.25), groups={"trunk.0.bias": {"lr": 0.1}})
    row = run.fit(data(), epochs=1)[0]
    assert sorted(v for k, v in row.items() if k.startswith("lr")) == [0.1, 0.25, 0.5]


def test_warm_up_rises_linearly_and_composes_with_a_scheduler():
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step()

    halve = lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)  # noqa: E731
    history = trainer(optimizer=lambda p: Spy(p, lr=1.0), warmup=6, scheduler=halve).fit(data(), epochs=3)
    expected = [1 / 6, 2 / 6, 3 / 6, 0.5 * 4 / 6, 0.5 * 5 / 6, 0.5, 0.25, 0.25, 0.25]
    assert rates == pytest.approx(expected)
    assert history.column("lr") == [1.0, 0.5, 0.25]


def test_schedulers_count_through_phases():
    halve = lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)  # noqa: E731
    run = trainer(
        optimizer=sgd(1.0), specific_optimizer=sgd(1.0), scheduler=halve, schedule=pt.schedules.AlternateEpochs(2, 1)
    )
    history = run.fit(data(), epochs=4)
    assert history.column("lr/shared") == history.column("lr/specific") == [1.0, 0.5, 0.25, 0.125]


class Penalty(pt.Objective):
    """Squared weights of the parameters whose name starts with a prefix."""

    def __init__(self, prefix: str, weight: float = 1.0) -> None:
        super().__init__("penalty", weight)
        self.prefix = prefix

    def forward(self, context: Any) -> torch.Tensor:
        named = context.model.named_parameters()
        return torch.stack([p.square().sum() for n, p in named if n.startswith(self.prefix)]).sum()


def test_objectives_take_part_where_they_depend_on_live_parameters():
    seen = []

    class Look(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            seen.append((info.update.shared, "penalty" in info.losses, len(info.weights) == 3))

    run = trainer(objectives=[Penalty("trunk")], schedule=pt.schedules.AlternateEpochs(1, 1), callbacks=[Look()])
    history = run.fit(data(8), epochs=2)
    assert seen == [(True, True, True), (False, False, False)]
    assert "train/penalty/loss" in history[0]
    assert "train/penalty/loss" not in history[1]
    assert math.isnan(history.column("train/penalty/loss")[1])


def test_objectives_are_added_with_their_weight():
    x, y = data(16)
    one = network()
    before = Penalty("trunk")(type("C", (), {"model": one})).item()
    run = trainer(one, objectives=[Penalty("trunk", weight=0.5)], batch_size=16)
    row = run.fit((x, y), epochs=1)[0]
    assert row["train/penalty/loss"] == pytest.approx(before, rel=1e-5)
    assert row["train/loss"] == pytest.approx(row["train/a/loss"] + row["train/b/loss"] + 0.5 * before, rel=1e-5)
    bare = network()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    outputs = bare(x)
    loss = F.binary_cross_entropy_with_logits(outputs["a"].squeeze(1), y["a"]) + F.cross_entropy(outputs["b"], y["b"])
    (loss + 0.5 * sum(p.square().sum() for p in bare.trunk.parameters())).backward()
    optimizer.step()
    for name, value in weights(bare).items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=0, atol=1e-6)


def test_balancers_weigh_objectives_as_tasks():
    balancer = pt.scalarization.Linear({"a": 1.0, "b": 1.0, "penalty": 0.0})
    with_penalty, without = trainer(objectives=[Penalty("trunk")], balancer=balancer), trainer()
    for run in (with_penalty, without):
        run.fit(data(), epochs=2)
    assert same(weights(with_penalty.model), weights(without.model))


def test_sample_weights_weigh_the_losses_in_training():
    x, y = data(16)
    only = torch.zeros(16)
    only[:4] = 4.0  # four examples at weight four equal a batch of those four
    weighted = trainer(names="a", model=network(names="a"), batch_size=16)
    weighted.fit(pt.Arrays(x, {"a": y["a"]}, batch_size=16, weights={"a": only}, shuffle=False), epochs=1)
    subset = trainer(names="a", model=network(names="a"), batch_size=4)
    subset.fit(pt.Arrays(x[:4], {"a": y["a"][:4]}, batch_size=4, shuffle=False), epochs=1)
    for name, value in weights(weighted.model).items():
        torch.testing.assert_close(value, subset.model.state_dict()[name])


def test_missing_targets_train_as_if_those_examples_were_not_there():
    x, y = data(16, "a")
    y["a"][8:] = NAN
    one, other = (trainer(network(names="a"), "a", batch_size=16) for _ in range(2))
    one.fit(pt.Arrays(x, y, batch_size=16, shuffle=False), epochs=3)
    other.fit(pt.Arrays(x[:8], {"a": y["a"][:8]}, batch_size=16, shuffle=False), epochs=3)
    for name, value in weights(one.model).items():
        torch.testing.assert_close(value, other.model.state_dict()[name])
    assert one.history.column("train/a/accuracy") == other.history.column("train/a/accuracy")


def test_each_fit_is_a_run_of_its_own():
    run = trainer()
    first = run.fit(data(), epochs=2)
    second = run.fit(data(), epochs=3)
    assert (len(first), len(second)) == (2, 3)
    assert run.history is second
    twice = trainer(run.model)
    assert twice.evaluate(data())["loss"] < trainer().evaluate(data())["loss"]


def test_mixed_precision_trains():
    run = trainer(precision="bf16-mixed", balancer=pt.aggregation.MGDA(), schedule=pt.schedules.AlternateEpochs(1, 1))
    history = run.fit(data(), data(8, seed=1), epochs=4)
    assert all(math.isfinite(v) for v in history.column("validation/loss"))
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert run.predict(data()[0])["b"].probabilities.dtype == torch.float32


def test_the_default_optimizer_is_plain_sgd():
    default = pt.Trainer(network(), tasks(), batch_size=8, progress=False)
    named = trainer(optimizer=lambda p: torch.optim.SGD(p, lr=default.fit(data(), epochs=1)[0]["lr"]))
    named.fit(data(), epochs=1)
    assert same(weights(default.model), weights(named.model))


def test_history_is_a_table(tmp_path: Path):
    history = trainer(schedule=pt.schedules.AlternateEpochs(1, 1)).fit(loader(), data(8), epochs=3)
    assert history == pt.History(history)
    changed = [dict(row) for row in history]
    changed[1]["seconds"] = 99.0
    assert history == pt.History(changed)
    changed[1]["train/loss"] = np.nextafter(changed[1]["train/loss"], 9)
    assert history != pt.History(changed)
    frame = history.frame()
    assert frame.index.tolist() == [1, 2, 3]
    assert frame["phase"].tolist() == ["shared", "specific", "shared"]
    history.write_csv(tmp_path / "h.csv")
    with (tmp_path / "h.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/loss"]) for row in rows] == history.column("train/loss")
    assert list(tmp_path.iterdir()) == [tmp_path / "h.csv"]
    partly = pt.History([*history, {"epoch": 4, "late": 2.0}])
    assert [math.isnan(value) for value in partly.column("late")] == [True, True, True, False]
    with pytest.raises(KeyError, match="found `train/los`: did you mean `train/loss`"):
        history.column("train/los")
    with pytest.raises(KeyError, match="found `train/loss`: it has no epochs yet"):
        pt.History().column("train/loss")
    assert "3 epochs" in repr(history)


def test_a_metric_with_too_few_examples_is_nan():
    """R² of one labelled example is undefined; that must not end the run."""
    x = torch.rand(6, 2)
    y = torch.full((6,), float("nan"))
    y[0] = 1.0
    trainer = pt.Trainer(
        pt.models.HardSharing(nn.Linear(2, 3), {"age": nn.Linear(3, 1)}), [pt.regression("age")], progress=False
    )
    history = trainer.fit((x, {"age": y}), epochs=1)
    assert math.isnan(history[0]["train/age/r2"])
    assert math.isfinite(history[0]["train/age/loss"])


@pytest.mark.parametrize("epochs", [2.5, "3", True])
def test_epochs_must_be_a_whole_number(epochs):
    trainer = pt.Trainer(
        pt.models.HardSharing(nn.Linear(2, 3), {"a": nn.Linear(3, 1)}), [pt.binary("a")], progress=False
    )
    with pytest.raises(TypeError, match=f"`epochs` must be a whole number, found {epochs!r}"):
        trainer.fit((torch.rand(4, 2), {"a": torch.ones(4)}), epochs=epochs)
