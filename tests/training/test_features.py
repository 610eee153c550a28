"""Features of a frozen trunk, cached where that is exact: same results, decisions said aloud."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Rows, SaveAll, adam, data, loader, network, same, trainer, weights
from torch import Tensor, nn

import polytask as pt

ATE = pt.schedules.AlternateEpochs(1, 2)


class Counting(nn.Module):
    """Counts the examples that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x


class Pair(nn.Module):
    """Features that are a tuple, a dictionary or nested."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.layer = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Any:
        z = self.layer(x).tanh()
        if self.form == "tuple":
            return z[:, :2], z[:, 2:]
        if self.form == "dict":
            return {"left": z[:, :2], "right": z[:, 2:]}
        return {"both": (z[:, :2], z[:, 2:])}


class Join(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(6, outputs)

    def forward(self, z: Any) -> Tensor:
        if isinstance(z, dict):
            z = z["both"] if "both" in z else tuple(z.values())
        return self.layer(torch.cat(z, 1))


@pytest.mark.parametrize("kind", ["plain", "norm", "norm+dropout"])
def test_cached_and_recomputed_runs_agree_to_rounding(kind: str):
    runs = []
    for cache in (True, False):
        run = trainer(network(kind), schedule=ATE, cache_features=cache, optimizer=adam())
        run.fit(data(40), data(12, seed=1), epochs=6)
        runs.append(run)
    for name, value in weights(runs[0].model).items():
        torch.testing.assert_close(value, runs[1].model.state_dict()[name], rtol=0, atol=1e-5)
    for column in ("train/loss", "validation/loss", "validation/a/loss"):
        assert runs[0].history.column(column) == pytest.approx(runs[1].history.column(column), abs=1e-5)


@pytest.mark.parametrize("form", ["tuple", "dict", "nested"])
def test_structured_features_are_cached(form: str):
    def run(cache: bool) -> pt.Trainer:
        torch.manual_seed(1)
        model = pt.models.HardSharing(Pair(form), {"a": Join(1), "b": Join(3)})
        fit = trainer(model, schedule=ATE, cache_features=cache)
        fit.fit(data(24), data(8, seed=1), epochs=3)
        return fit

    cached, recomputed = run(True), run(False)
    for name, value in weights(cached.model).items():
        torch.testing.assert_close(value, recomputed.model.state_dict()[name], rtol=0, atol=1e-6)


def test_the_trunk_runs_once_per_specific_phase():
    def seen(cache: bool, epochs: int) -> int:
        model = network()
        counter = Counting()
        model.trunk.append(counter)
        trainer(model, schedule=pt.schedules.AlternateEpochs(0, 1), cache_features=cache).fit(
            data(100), data(70, seed=1), epochs=epochs
        )
        return counter.seen

    assert seen(True, 5) == seen(True, 2)
    assert seen(False, 5) == 5 * 170


def test_every_phase_has_features_of_its_own():
    """A cache that outlived a shared phase would train heads on features of another trunk."""
    cached, recomputed = (
        trainer(schedule=pt.schedules.AlternateEpochs(1, 1), cache_features=cache, optimizer=adam(0.1))
        for cache in (True, False)
    )
    for run in (cached, recomputed):
        run.fit(data(), data(8, seed=1), epochs=8)
    assert cached.history.column("train/loss") == pytest.approx(recomputed.history.column("train/loss"), abs=1e-4)


def _fails(x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x, 0.5, training=True)


class Always(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _fails(x)


def _random_trunk() -> pt.models.Model:
    model = network()
    model.trunk.append(Always())
    return model


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "augmented": (network, lambda: pt.Arrays(*data(), batch_size=8, augment=lambda x, g: x), {}, "streams or augments"),
    "streaming": (network, loader, {}, "streams or augments"),
    "data set": (network, lambda: Rows(*data()), {}, "streams or augments"),
    "dropout kept on": (lambda: network("dropout"), data, {"frozen_dropout": True}, "not deterministic"),
    "functional dropout": (_random_trunk, data, {}, "not deterministic"),
    "too large": (network, data, {"cache_limit": 24 * 6 * 4 - 1}, r"take 576 bytes, above `cache_limit` = 575"),
    "no boundary": (lambda: network(form="partitioned"), data, {}, "no feature boundary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_caching_is_refused_where_it_is_not_exact_or_not_affordable(case: str, caplog: pytest.LogCaptureFixture):
    model, source, options, reason = REFUSED[case]
    caplog.set_level(logging.INFO, "polytask")
    trainer(model(), schedule=ATE, **options).fit(source(), epochs=3)
    lines = [r.getMessage() for r in caplog.records if "features" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("train features are recomputed at every visit: ")
    with pytest.raises(ValueError, match=f"`cache_features=True` needs exact, affordable features, found .*{reason}"):
        trainer(model(), schedule=ATE, cache_features=True, **options).fit(source(), epochs=3)


def test_caching_is_said_once_and_its_size(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "polytask")
    trainer(schedule=ATE, cache_limit=24 * 6 * 4).fit(data(), epochs=6)
    assert [r.getMessage() for r in caplog.records] == ["train features are cached in each specific phase: 0.0 MiB"]


def test_no_caching_where_it_is_forbidden(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "polytask")
    trainer(schedule=ATE, cache_features=False).fit(data(), epochs=3)
    assert [r.getMessage() for r in caplog.records] == [
        "train features are recomputed at every visit: `cache_features` is False"
    ]


def test_validation_features_count_towards_the_limit(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "polytask")
    trainer(schedule=ATE, cache_limit=24 * 24 + 10).fit(data(24), data(10, seed=1), epochs=3)
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0].startswith("train features are cached")
    assert "validation features are recomputed" in lines[1]
    assert "they take 816 bytes, above `cache_limit` = 586" in lines[1]


def test_joint_training_says_nothing_of_features(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "polytask")
    trainer().fit(data(), data(8), epochs=2)
    trainer(schedule=pt.schedules.AlternateBatches()).fit(data(), data(8), epochs=2)
    assert not caplog.records


def test_cached_runs_resume_exactly_inside_a_specific_phase(tmp_path: Path):
    def run(keep: Path | None = None, resume: Path | None = None) -> tuple[SaveAll, pt.History]:
        keeper = SaveAll(keep)
        fit = trainer(
            network("norm+dropout"), schedule=pt.schedules.AlternateEpochs(1, 3), callbacks=[keeper],
            cache_features=True, optimizer=adam(),
        )  # fmt: skip
        return keeper, fit.fit(data(), data(9, seed=1), epochs=5, resume=resume)

    kept, history = run(tmp_path)
    for epoch in range(1, 5):
        again, rows = run(resume=tmp_path / f"{epoch}.ckpt")
        assert rows == history
        assert same(again.state, kept.state)


class Reading(pt.models.Model):
    """Heads that look at the raw inputs beside the features."""

    heads_read_inputs = True

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.tops = nn.ModuleDict({"a": nn.Linear(7, 1), "b": nn.Linear(7, 3)})
        self.task_names = ("a", "b")

    def features(self, inputs: Any, source: str = "") -> Tensor:
        return self.trunk(inputs).tanh()

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.tops[task](torch.cat([features, inputs], 1))

    def blocks(self) -> pt.models.Blocks:
        block = pt.models.Block
        return pt.models.Blocks(block.of(self.trunk), {k: block.of(m) for k, m in self.tops.items()})


def test_heads_may_read_the_inputs_beside_cached_features():
    runs = []
    for cache in (True, False):
        torch.manual_seed(2)
        run = trainer(Reading(), schedule=ATE, cache_features=cache)
        run.fit(data(), data(8, seed=1), epochs=4)
        runs.append(weights(run.model))
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=0, atol=1e-6)
