"""LSUV as a callback: the function's weights, before the first update, and never on resuming."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.data import two_sources
from tests.helpers import SaveAll, data, network, same, trainer, weights
from torch import nn

import polytask as pt
from polytask.models import lsuv
from polytask.studies import run
from polytask.studies.store import read_history


def still(p: Any) -> torch.optim.SGD:
    return torch.optim.SGD(p, lr=0.0)


@pytest.mark.parametrize("form", ["hard", "partitioned", "monitored"])
def test_a_fit_begins_with_the_functions_weights(form: str):
    examples, (x, y) = 16, data()
    fit = trainer(network(form=form), optimizer=still, callbacks=[pt.callbacks.LSUV(examples, std=2.0)], seed=7)
    fit.fit((x, y), epochs=1)
    expected = network(form=form)
    lsuv(expected, x[:examples], std=2.0, seed=7)
    assert same(weights(fit.model), weights(expected))


def test_a_fit_is_the_same_twice_and_resumes_to_the_bit(tmp_path):
    def fit(resume: Any = None, seed: int = 0) -> Any:
        keeper = SaveAll(None if resume else tmp_path)
        made = trainer(network("norm+dropout"), callbacks=[pt.callbacks.LSUV(16), keeper], seed=seed)
        return made.fit(data(), epochs=3, resume=resume), weights(made.model)

    rows, whole = fit()
    again = fit(tmp_path / "2.ckpt")
    assert again[0] == rows and same(again[1], whole)
    assert not same(fit(seed=1)[1], whole)


def test_frozen_weights_and_statistics_are_left_alone():
    model = network("norm")
    for parameter in model.heads["a"].parameters():
        parameter.requires_grad = False
    before = weights(model)
    found: dict[str, Any] = {}

    class Look(pt.Callback):
        def on_fit_start(self, run: Any) -> None:
            found.update(weights(run.model))

    trainer(model, callbacks=[pt.callbacks.LSUV(16), Look()]).fit(data(), epochs=1)
    kept = [name for name in before if name.startswith("heads.a") or "running" in name]
    moved = [name for name in before if name.endswith("weight") and before[name].dim() > 1 and name not in kept]
    assert kept and moved
    assert all(torch.equal(found[name], before[name]) for name in kept)
    assert not any(torch.equal(found[name], before[name]) for name in moved)


def test_a_configuration_names_it(tmp_path):
    head = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 1}}
    trunk = {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [8]}}
    model = {"class_path": "HardSharing", "init_args": {"trunk": trunk, "heads": {"circle": head, "rhombus": head}}}
    config = {"data": {"class_path": "CircleRhombus"}, "model": model, "epochs": 1}
    plain = run(config, tmp_path / "plain")
    named = {"callbacks": [{"class_path": "LSUV", "init_args": {"examples": 100}}], "batch_size": 64}
    record = run(config | {"trainer": named}, tmp_path / "lsuv")
    assert (record.state, plain.state) == ("done", "done")
    again = run(config | {"trainer": named}, tmp_path / "again")
    assert again.metrics == record.metrics != plain.metrics
    assert len(read_history(tmp_path / "lsuv" / "history.csv")) == 1


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"examples": 1}, "`examples` must be at least 2, found 1"),
        ({"std": 0.0}, "`std` must be a finite number above 0, found 0"),
        ({"tolerance": -1.0}, "`tolerance` must be a finite number above 0, found -1"),
        ({"tries": 0}, "`tries` must be at least 1, found 0"),
    ],
)
def test_settings_out_of_range_are_refused(given: Any, rule: str):
    with pytest.raises(ValueError, match=rule):
        pt.callbacks.LSUV(**given)


def test_constant_inputs_are_refused():
    model = pt.models.HardSharing(nn.Linear(3, 4), heads={"a": nn.Linear(4, 2), "b": nn.Linear(4, 1)})
    x, y = data()
    with pytest.raises(ValueError, match="must vary and be finite on the given inputs"):
        trainer(model, callbacks=[pt.callbacks.LSUV(16)]).fit((torch.zeros_like(x), y), epochs=1)


class Seen(pt.Callback):
    """Keeps the weights as they are before the first update."""

    def on_fit_start(self, run: Any) -> None:
        self.weights = weights(run.model)


def test_every_source_is_seen_though_the_first_has_every_task(caplog):
    model, look = two_sources.network(), Seen()
    before = weights(model)
    sources = {"left": two_sources.part(40, 3, "abc"), "right": two_sources.part(24, 5, "b", 1)}
    fit = pt.Trainer(
        model,
        two_sources.tasks(),
        optimizer=still,
        batch_size=8,
        progress=False,
        callbacks=[pt.callbacks.LSUV(16), look],
    )
    fit.fit(sources, epochs=1)
    drawn = [name for name, value in before.items() if name.endswith("weight") and value.dim() > 1]
    assert any("right" in name for name in drawn)
    assert not any(torch.equal(look.weights[name], before[name]) for name in drawn)
    assert "keep their weights" not in caplog.text


def test_a_trunk_that_sources_share_is_scaled_on_all_of_them():
    encoders = {"left": nn.Linear(3, 4), "right": nn.Sequential(nn.Linear(5, 4), nn.Tanh())}
    trunk = pt.models.BySource(encoders, nn.Linear(4, 4))
    model, look = (
        pt.models.HardSharing(trunk, {"a": nn.Linear(4, 1), "b": nn.Linear(4, 3), "c": nn.Linear(4, 1)}),
        Seen(),
    )
    (x, y), right = two_sources.part(40, 3, "abc"), two_sources.part(24, 5, "b", 1)
    sources = {"left": (x + 5, y), "right": right}
    callbacks = [pt.callbacks.LSUV(16, tolerance=1e-3), look]
    trainer(model, tasks=two_sources.tasks(), optimizer=still, callbacks=callbacks).fit(sources, epochs=1)
    model.load_state_dict(look.weights)
    with torch.no_grad():
        parts = [model.features(inputs[:16], name) for name, (inputs, _) in sources.items()]
    assert torch.cat(parts).std(correction=2).item() == pytest.approx(1.0, abs=1.1e-3)
    assert all(abs(part.std().item() - 1) > 0.05 for part in parts)


def test_a_task_whose_targets_come_late_is_seen():
    x, y = data(24)
    y["b"][:20] = -100
    model, look = network(form="single"), Seen()
    before = weights(model)
    trainer(model, optimizer=still, callbacks=[pt.callbacks.LSUV(8), look]).fit((x, y), epochs=1)
    drawn = [name for name, value in before.items() if name.endswith("weight") and value.dim() > 1]
    assert not any(torch.equal(look.weights[name], before[name]) for name in drawn)


def test_layers_that_do_not_run_are_named(caplog):
    model = network()
    model.heads["a"].add_module("spare", Spare())
    trainer(model, optimizer=still, callbacks=[pt.callbacks.LSUV(8)]).fit(data(), epochs=1)
    (warning,) = [record.getMessage() for record in caplog.records if "keep their weights" in record.getMessage()]
    assert warning.endswith(": heads.a.spare.unused")


class Spare(nn.Module):
    """Passes everything by its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return x
