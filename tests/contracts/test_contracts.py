"""Every exported balancer, schedule and callback keeps its contract; new ones are found by `__all__`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torchjd.aggregation
from tests.helpers import FEATURED, SaveAll, Witness, adam, data, network, same, tasks, trainer, weights
from tests.inputs import HARD
from tests.parameters import in_turn

import polytask as pt
from polytask.balancing import Aggregator, Evidence, Scalarizer
from polytask.balancing.base import CotangentAggregator, JacobianAggregator
from polytask.schedules import Schedule


def _exported(package: Any, base: type) -> dict[str, type]:
    found = {name: getattr(package, name) for name in package.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind) and kind is not base
    }


def _built(kind: type, tmp_path: Any = None) -> Any:
    """An instance from defaults; names, counts and folders are given where there is none."""
    given = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            given[name] = tmp_path / name if name in ("path", "folder") else ["a", "b"]
    if kind is pt.aggregation.TorchJD:
        given["aggregator"] = torchjd.aggregation.UPGrad()
    if kind is pt.schedules.BySimilarity:
        given |= {"primary": "b", "similarity": {"a": 0.5}}
    if kind is pt.scalarization.EpsilonConstraint:
        given["bounds"] = 0.5
    return kind(**given)


SCALARIZERS = _exported(pt.scalarization, Scalarizer)
AGGREGATORS = _exported(pt.aggregation, Aggregator)
BALANCERS = SCALARIZERS | AGGREGATORS
SCHEDULES = _exported(pt.schedules, Schedule)
CALLBACKS = _exported(pt.callbacks, pt.Callback)


def _sort(kind: type) -> Any:
    """What decides how the engine serves a balancer."""
    return issubclass(kind, Aggregator), issubclass(kind, JacobianAggregator), kind.needs


def _pairs() -> list[Any]:
    """Every balancer with a schedule that alternates or not, and with one that chooses tasks; the rest are slow."""
    choosing = [kind for kind in SCHEDULES.values() if issubclass(kind, pt.schedules.TaskSchedule)]
    plain = [kind for kind in SCHEDULES.values() if kind not in choosing]
    return [*in_turn(BALANCERS.values(), plain, _sort), *in_turn(BALANCERS.values(), choosing)]


def test_the_packages_hold_what_their_names_say():
    assert set(SCALARIZERS) == set(pt.scalarization.__all__)
    assert set(AGGREGATORS) == set(pt.aggregation.__all__)
    assert {"Joint", "AlternateEpochs", "AlternateBatches"} <= set(SCHEDULES)
    assert {"EarlyStopping", "Checkpoint"} <= set(CALLBACKS)


@pytest.mark.parametrize("kind", [*BALANCERS.values(), *SCHEDULES.values(), *CALLBACKS.values()])
def test_methods_are_final_and_documented(kind: type):
    assert getattr(kind, "__final__", False), f"{kind.__name__} must be abstract or final"
    assert ">>>" in inspect.getdoc(kind) or kind in CALLBACKS.values()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        kind(no_such_argument=1)


@pytest.mark.parametrize("kind", AGGREGATORS.values())
@pytest.mark.parametrize("name", HARD)
def test_aggregators_give_finite_weights_on_hard_inputs(kind: type, name: str):
    jacobian = HARD[name]
    names = [str(k) for k in range(len(jacobian))]
    values = [torch.tensor(1.0 + k) for k in range(len(jacobian))]
    balancer = _built(kind)
    balancer.setup(names)
    found = torch.as_tensor(balancer.combine(Evidence(names, values, jacobian, cotangents=jacobian, examples=1)))
    whole = issubclass(kind, (JacobianAggregator, CotangentAggregator))
    assert found.shape == (jacobian.shape[1] if whole else len(names),)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("kind", "schedule"), _pairs())
def test_balancers_train_under_every_schedule_and_are_deterministic(kind: type, schedule: type):
    results = []
    for _ in range(2):
        witness = Witness()
        run = trainer(
            network("norm+dropout"),
            balancer=_built(kind),
            schedule=_built(schedule),
            callbacks=[witness],
            optimizer=adam(),
        )
        run.fit(data(), data(8, seed=1), epochs=3)
        results.append(weights(run.model))
        assert witness.live_seen
    assert same(*results)
    assert all(torch.isfinite(value).all() for value in results[0].values())


@pytest.mark.parametrize(("kind", "form"), in_turn(BALANCERS.values(), FEATURED, _sort))
def test_balancers_train_networks_whose_heads_do_more(kind: type, form: str):
    """Heads that read the inputs, and features that are several tensors; updates of both blocks in every epoch."""
    witness = Witness()
    run = trainer(
        network("norm", form=form),
        balancer=_built(kind),
        schedule=pt.schedules.AlternateBatches(),
        callbacks=[witness],
        optimizer=adam(),
    )
    run.fit(data(), data(8, seed=1), epochs=2)
    assert witness.live_seen
    assert all(torch.isfinite(value).all() for value in weights(run.model).values())


@pytest.mark.parametrize("kind", BALANCERS.values())
def test_balancers_work_with_absent_tasks(kind: type):
    x, y = data(24, "abc")
    y["a"][:16] = torch.nan
    y["b"][8:] = -100
    witness = Witness()
    run = trainer(network("norm", "abc"), "abc", balancer=_built(kind), callbacks=[witness], optimizer=adam())
    run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=2)
    assert [names for _, _, names in witness.updates] == [("b", "c"), ("c",), ("a", "c")] * 2


@pytest.mark.parametrize("kind", BALANCERS.values())
def test_balancers_leave_one_task_alone(kind: type):
    results = []
    for balancer in (_built(kind), None):
        run = trainer(network(names="a"), "a", balancer=balancer)
        run.fit(data(names="a"), epochs=2)
        results.append(run.model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


@pytest.mark.parametrize("kind", BALANCERS.values())
def test_the_order_of_the_tasks_does_not_matter(kind: type):
    results = []
    for names in ("ab", "ba"):
        run = trainer(network(), tasks=tasks(names), balancer=_built(kind))
        run.fit(data(), epochs=1)
        results.append(run.model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BALANCERS.values())
def test_a_balancers_state_comes_back(kind: type):
    one, other = _built(kind), _built(kind)
    trainer(balancer=one).fit(data(), epochs=2)
    other.setup(["a", "b"], {"a": 24, "b": 24})
    other.load_state_dict(one.state_dict())
    assert same(other.state_dict(), one.state_dict())
    assert other.describe() == one.describe()
    assert other.describe()["balancer"] == kind.__name__


@pytest.mark.parametrize(("kind", "schedule"), _pairs())
def test_every_method_resumes_exactly(kind: type, schedule: type, tmp_path: Path):
    def run(resume: Path | None = None) -> tuple[SaveAll, pt.History]:
        keeper = SaveAll(None if resume else tmp_path)
        fit = trainer(network("dropout"), balancer=_built(kind), schedule=_built(schedule), callbacks=[keeper])
        return keeper, fit.fit(data(), epochs=3, resume=resume)

    whole, history = run()
    again, rows = run(tmp_path / "2.ckpt")
    assert rows == history
    assert same(again.state, whole.state)


@pytest.mark.parametrize("kind", SCHEDULES.values())
def test_schedules_keep_their_contract(kind: type):
    schedule = _built(kind)
    schedule.setup(["a", "b"], {"a": 24, "b": 24}, {})
    assert schedule.cycle >= 1
    for epoch in range(schedule.lead, schedule.lead + 3 * schedule.cycle):
        assert isinstance(schedule.phase(epoch), str)
        assert schedule.phase(epoch) == schedule.phase(epoch + schedule.cycle)
        updates = [schedule.updates(epoch, step) for step in range(4)]
        assert all(updates)
        if not schedule.moves_shared(epoch):
            assert not any(update.shared for step in updates for update in step)
    other = _built(kind)
    other.setup(["a", "b"], {"a": 24, "b": 24}, {})
    other.load_state_dict(schedule.state_dict())
    assert same(other.state_dict(), schedule.state_dict())
    assert other.describe() == schedule.describe()
    assert repr(other) == repr(schedule)


@pytest.mark.parametrize("kind", CALLBACKS.values())
def test_callbacks_serve_several_fits_and_restore_their_state(kind: type, tmp_path: Path):
    callback = _built(kind, tmp_path)
    callback.folder = getattr(callback, "folder", None) or tmp_path
    if kind is pt.callbacks.TensorBoard:
        pytest.importorskip("tensorboard")
    given = [callback]
    histories = []
    for _ in range(2):
        run = trainer(network("dropout"), callbacks=given)
        histories.append(run.fit(data(), data(8, seed=1), epochs=3))
    assert histories[0] == histories[1]
    assert given == [callback]
    state = callback.state_dict()
    callback.load_state_dict(state)
    assert same(callback.state_dict(), state)
