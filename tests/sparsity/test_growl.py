"""GrOWL as an objective, its proximal step, and rows that die for good."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tests.helpers import SaveAll, adam, data, same, sgd, tasks, weights
from torch import nn

import polytask as pt
from polytask.objective import Context
from polytask.sparsity import GrOWL, KeepDead, Magnitude, Proximal, layers_in_play, owl
from polytask.sparsity.rows import to_rows

OPTIMIZERS = {
    "sgd": sgd(0.1),
    "momentum": sgd(0.05, momentum=0.9, weight_decay=1e-3),
    "adam": adam(0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.5),
}


def _network(seed=0, width=10):
    """In play: trunk.2 (one row per unit), and heads.a.0 and heads.b.0."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        heads = {
            name: nn.Sequential(nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, size))
            for name, size in (("a", 1), ("b", 3))
        }
        return pt.models.HardSharing(trunk, heads)


def _images(seed=0):
    """In play: trunk.2 (4 rows) and trunk.4 (6 units of 4 rows)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 8), nn.Tanh()
        )
        return pt.models.HardSharing(trunk, {"a": nn.Linear(8, 1)})


def _fit(model=None, callbacks=(), objectives=(), epochs=4, optimizer="adam", resume=None, **options):
    model = _network() if model is None else model
    names = "".join(model.task_names)
    given = options.pop("data", None) or data(24, names)
    trainer = pt.Trainer(
        model, options.pop("tasks", tasks(names)), OPTIMIZERS.get(optimizer, optimizer), callbacks=callbacks,
        objectives=objectives, batch_size=8, progress=False, **options,
    )  # fmt: skip
    trainer.fit(given, epochs=epochs, resume=resume)
    return trainer


def _context(model, x):
    class Given:
        inputs = x

    return Context(model, Given(), None, {})


def _dead(layers):
    return [~layer.alive() for layer in layers]


# The penalty


@pytest.mark.parametrize("pattern", owl.PATTERNS)
@pytest.mark.parametrize("granularity", ["unit", "row"])
def test_its_gradient_is_that_of_finite_differences(pattern: str, granularity: str):
    model, x = _images().double(), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    penalty = GrOWL(pattern=pattern, beta1=0.7, beta2=0.3, granularity=granularity)
    context = _context(model, x)
    for layer in penalty.layers(model, x):
        penalty(context).backward()
        weight = layer.weight
        with torch.no_grad():
            for place in torch.randperm(weight.numel())[:12].tolist():
                values = []
                for step in (1e-6, -2e-6):
                    weight.view(-1)[place] += step
                    values.append(penalty(context).item())
                weight.view(-1)[place] += 1e-6
                assert weight.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)
        model.zero_grad()


def test_its_value_pairs_the_largest_norm_with_the_largest_weight():
    """Written out; a group of four rows counts twice (√4)."""
    model, x = _images(), torch.randn(2, 1, 6, 6)
    penalty = GrOWL(pattern="linear")
    wanted = 0.0
    for name, size in (("trunk.2", 1), ("trunk.4", 4)):
        norms = to_rows(model.get_submodule(name)).reshape(-1, size, 8 if size == 4 else 54).norm(dim=(1, 2))
        for i, value in enumerate(sorted(norms.tolist(), reverse=True), 1):
            wanted += size**0.5 * (0.8 + 0.2 * (len(norms) - i) / len(norms)) * value
    assert penalty(_context(model, x)).item() == pytest.approx(wanted)


def test_dead_rows_have_no_gradient_and_none_is_nan():
    model, x = _images(), torch.randn(2, 1, 6, 6)
    penalty = GrOWL()
    for layer in penalty.layers(model, x):
        factors = torch.ones(layer.groups)
        factors[1::2] = 0
        layer.scale_(factors)
    penalty(_context(model, x)).backward()
    for layer in penalty.layers(model, x):
        rows = to_rows(layer.module, layer.weight.grad).reshape(layer.groups, -1)
        assert torch.isfinite(rows).all()
        assert (rows[1::2] == 0).all()
        assert (rows[::2].norm(dim=1) > 0).all()


def test_it_trains_as_an_objective_by_its_gradient():
    before = _network()
    plain, penalised = _network(), _network()
    _fit(plain)
    trainer = _fit(penalised, objectives=[GrOWL(weight=0.3)])
    assert "train/sparsity/loss" in trainer.history[-1]
    x = data()[0]
    value = {
        name: GrOWL()(_context(m, x)).item() for name, m in (("start", before), ("plain", plain), ("pen", penalised))
    }
    assert value["pen"] < min(value["start"], value["plain"])


# The proximal step


def test_one_step_is_the_optimizers_followed_by_the_prox():
    """Strength: learning rate × balancer's weight × fixed weight; and the penalty's gradient does not act as well."""
    plain, shrunk = _network(), _network()
    given = data(8)
    _fit(plain, epochs=1, optimizer="sgd", data=given)
    penalty = GrOWL(pattern="linear", weight=0.5)
    balancer = pt.scalarization.Linear({"a": 1.0, "b": 1.0, "sparsity": 0.2})
    _fit(
        shrunk, [Proximal(penalty, cap=1.0, until=1.0, rises=1)], [penalty], epochs=1, optimizer="sgd", data=given,
        balancer=balancer,
    )  # fmt: skip
    for layer in layers_in_play(plain, given[0]):
        norms = layer.norms().detach()
        layer.scale_(owl.prox(norms, 0.1 * 0.2 * 0.5 * penalty.weights(layer)) / norms)
    torch.testing.assert_close(shrunk.state_dict(), plain.state_dict())
    assert not penalty.proximal


def test_an_epochs_step_has_the_strength_of_its_updates():
    """Where rates and weights stay, once an epoch is one prox of the summed strength, after the last update."""
    plain, shrunk = _network(), _network()
    _fit(plain, epochs=1, optimizer="sgd")
    penalty = GrOWL(beta1=0.0, beta2=0.1)
    _fit(shrunk, [Proximal(penalty, every="epoch")], [penalty], epochs=1, optimizer="sgd")
    for layer in layers_in_play(plain, data()[0]):
        norms = layer.norms().detach()
        layer.scale_(owl.prox(norms, 3 * 0.1 * penalty.weights(layer)) / norms)
    torch.testing.assert_close(shrunk.state_dict(), plain.state_dict())


@pytest.mark.parametrize("optimizer", [adam(0.003), sgd(0.01, momentum=0.9)])
def test_the_preconditioned_step_is_in_the_optimizers_own_measure(optimizer):
    """By its gradient and by its prox a penalty comes to like norms; a step in another measure does not."""

    def total(**options):
        model, penalty = _network(), GrOWL(beta1=0.0, beta2=0.02)
        proximal = options.pop("proximal", None)
        callbacks = [] if proximal is None else [Proximal(penalty, cap=0.01, **proximal)]
        _fit(model, callbacks, [penalty], epochs=60, optimizer=optimizer)
        return penalty(_context(model, data()[0])).item()

    by_gradient, by_prox = total(), total(proximal={})
    bare = total(proximal={"preconditioned": False})
    assert abs(by_prox - by_gradient) < 0.35 * by_gradient
    assert abs(by_prox - by_gradient) < abs(bare - by_gradient)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["magnitude", "proximal"])
def test_the_sparsity_asked_for_is_reached_whatever_the_optimizer(kind: str, optimizer: str):
    """Not one group too many, never above the rising line, and dead is dead."""
    penalty = GrOWL()
    callback = Magnitude(0.5, until=0.75) if kind == "magnitude" else Proximal(penalty, 0.5)

    class Watch(pt.Callback):
        def on_fit_start(self, run):
            self.dead = None

        def on_update(self, run, info):
            now = _dead(callback.layers)
            if self.dead is not None:
                assert all((after | ~before).all() for before, after in zip(self.dead, now, strict=True))
            self.dead = now
            rows = sum(int(mask.sum()) for mask in now)
            done = (3 * run.epoch + run.step_in_epoch + 1) / 24
            assert rows <= math.ceil(30 * 0.5 * min(1, done / 0.75))

    _fit(callbacks=[callback, Watch()], objectives=[penalty] * (kind == "proximal"), epochs=8, optimizer=optimizer)
    assert callback.trace[5:] == [0.5, 0.5, 0.5]
    assert sorted(callback.trace) == callback.trace


def test_a_sparsity_that_is_reached_but_for_rounding_is_reached(caplog):
    """0.1 + 0.2 is a little above 0.3, which is 9 of the 30 rows."""
    callback = Magnitude(0.1 + 0.2)
    _fit(callbacks=[callback])
    assert callback.trace[-1] == 0.3 and "were to be dead" not in caplog.text


def test_units_die_whole():
    """A filter of the convolution before the `Flatten` is free once its unit is dead."""
    model = _images()
    x, y = torch.randn(24, 1, 6, 6), {"a": (torch.arange(24) % 2).float()}
    callback = Magnitude(0.5)
    _fit(model, [callback], epochs=4, data=(x, y))
    layer = callback.layers[1]
    assert layer.size == 4
    dead = ~layer.alive()
    assert dead.any()
    before = model(x)["a"]
    with torch.no_grad():
        model.trunk[2].weight[dead] += 1
    assert torch.equal(model(x)["a"], before)


def test_caps_hold_and_the_largest_rows_are_kept():
    """However strong the penalty: at most the cap dies, one group lives, and those that live are the largest."""
    penalty = GrOWL(beta1=0.0, beta2=100.0)
    model = _network()
    norms = []

    class Before(pt.Callback):
        def on_update(self, run, info):
            if not norms:
                norms.extend(layer.norms().detach() for layer in layers_in_play(run.model, data()[0]))

    callback = Proximal(penalty, cap={"trunk.2": 0.3, "heads.a.0": 1.0, "heads.b.0": 0.5}, until=1.0, rises=1)
    _fit(model, [Before(), callback], [penalty], epochs=1, data=data(8), optimizer="sgd")
    dead = _dead(callback.layers)
    assert [int(mask.sum()) for mask in dead] == [3, 9, 5]
    for size, mask in zip(norms, dead, strict=True):
        assert size[mask].max() < size[~mask].min()


def test_caps_rise():
    penalty = GrOWL(beta1=0.0, beta2=100.0)
    counts = []

    class Count(pt.Callback):
        def on_update(self, run, info):
            counts.append([int(mask.sum()) for mask in _dead(callback.layers)])

    callback = Proximal(penalty, cap=0.8, until=1.0, rises=4)
    _fit(callbacks=[callback, Count()], objectives=[penalty], epochs=4, optimizer="sgd")
    assert counts[2:] == [[8 * stage // 4] * 3 for stage in (1, 1, 1, 2, 2, 2, 3, 3, 3, 4)]


def test_a_frozen_layer_does_not_move_and_dies_when_it_next_does():
    from tests.helpers import Witness

    callback = Magnitude(0.5, until=0.5)
    schedule = pt.schedules.AlternateEpochs(1, 1)
    _fit(callbacks=[callback, Witness()], epochs=8, schedule=schedule)
    assert callback.trace[-1] == 0.5


@pytest.mark.parametrize("kind", ["magnitude", "proximal", "epoch"])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path):
    def run(resume=None, keep=None):
        penalty = GrOWL()
        callback = {
            "magnitude": lambda: Magnitude(0.5), "proximal": lambda: Proximal(penalty, 0.5),
            "epoch": lambda: Proximal(penalty, cap=0.5, every="epoch"),
        }[kind]()  # fmt: skip
        keeper = SaveAll(keep)
        trainer = _fit(callbacks=[callback, keeper], objectives=[penalty], epochs=5, resume=resume,
                       balancer=pt.scalarization.Chebyshev([0.4, 0.5, 0.1], normalise=["sparsity"]))  # fmt: skip
        return keeper, trainer, callback

    whole, first, one = run(keep=tmp_path)
    again, second, other = run(tmp_path / "3.ckpt")
    assert first.history == second.history
    assert same(again.state, whole.state)
    assert one.trace == other.trace


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dead_rows_stay_dead_in_another_fit(optimizer: str):
    model = _network()
    first = Magnitude(0.5)
    _fit(model, [first])
    dead, before = _dead(first.layers), weights(model)
    _fit(model, [KeepDead()], optimizer=optimizer)
    for mask, after in zip(dead, _dead(first.layers), strict=True):
        assert torch.equal(mask, after)
    assert not same(weights(model), before)


def test_under_chebyshev_the_penalty_counts_once_with_its_current_weight():
    """The coefficient in `info.weights` is the strength; the same run with a penalty that has no say differs."""
    seen = []

    class Look(pt.Callback):
        def on_update(self, run, info):
            seen.append(float(info.weights["sparsity"]))

    penalty = GrOWL()
    balancer = pt.scalarization.Chebyshev({"a": 0.4, "b": 0.4, "sparsity": 0.2}, normalise=["sparsity"])
    model, free = _network(), _network()
    trainer = _fit(model, [Proximal(penalty, cap=0.1), Look()], [penalty], balancer=balancer)
    assert all(0 < value < 1 for value in seen)
    balancer = pt.scalarization.Chebyshev({"a": 0.4, "b": 0.4, "sparsity": 0.2}, normalise=["sparsity"])
    _fit(free, [], [penalty], balancer=balancer)
    assert not same(weights(model), weights(free))
    assert trainer.history[-1]["train/sparsity/loss"] < trainer.history[0]["train/sparsity/loss"]


# Bad input


def test_more_than_the_caps_allow_is_refused_before_training(caplog):
    model = _network()
    before = weights(model)
    with pytest.raises(ValueError, match=r"`sparsity` must be at most 0.3, .*trunk.2 3 of 10.*found 0.5"):
        _fit(model, [Magnitude(0.5, cap=0.3)])
    assert same(weights(model), before)
    with caplog.at_level(logging.INFO, "polytask"):
        _fit(model, [Magnitude(0.3, cap=0.35)], epochs=1)
    assert "in play: 30 rows; at most 0.3 of them may die" in caplog.text


def test_refusals_at_the_door():
    for options, rule in (
        ({"sparsity": 1.0}, "`sparsity` must be between 0 and 1, found 1.0"),
        ({"sparsity": 0.0}, "`sparsity` must be between 0 and 1, found 0.0"),
        ({"sparsity": 0.5, "cap": 0.0}, "`cap` must be above 0 and at most 1, found 0.0"),
        ({"sparsity": 0.5, "cap": {"x": 2.0}}, "`cap` must be above 0 and at most 1, found 2.0 for `x`"),
        ({"sparsity": 0.5, "until": 0.0}, "`until` must be above 0 and at most 1, found 0.0"),
        ({"sparsity": 0.5, "rises": 0}, "`rises` must be at least 1, found 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            Magnitude(**options)
    with pytest.raises(ValueError, match="`pattern` must be one of"):
        GrOWL(pattern="flat")
    with pytest.raises(ValueError, match="`granularity` must be one of"):
        GrOWL(granularity="filter")
    with pytest.raises(ValueError, match="`every` must be one of 'step', 'epoch', found 'batch'"):
        Proximal(GrOWL(), every="batch")


def test_refusals_at_the_start_of_a_fit():
    penalty = GrOWL()
    with pytest.raises(ValueError, match="needs its penalty among the trainer's objectives, found no such `sparsity`"):
        _fit(callbacks=[Proximal(penalty)])
    with pytest.raises(ValueError, match="a penalty must have one Proximal, found several for `sparsity`"):
        _fit(callbacks=[Proximal(penalty), Proximal(penalty)], objectives=[penalty])
    assert not penalty.proximal
    with pytest.raises(ValueError, match="needs a scalarizer, whose weights are coefficients, found MGDA"):
        _fit(callbacks=[Proximal(penalty)], objectives=[penalty], balancer=pt.aggregation.MGDA())
    with pytest.raises(ValueError, match=r"a layer that is not in play, `trunk.1`: did you mean `trunk.2`"):
        _fit(callbacks=[Magnitude(0.1, cap={"trunk.1": 0.5})])
    with pytest.raises(ValueError, match=r"`cap` must name every layer in play, found none for `heads.a.0`"):
        _fit(callbacks=[Magnitude(0.1, cap={"trunk.2": 0.5})])
    bare = pt.models.HardSharing(nn.Linear(3, 4), {"a": nn.Linear(4, 1), "b": nn.Linear(4, 3)})
    for callback in (Magnitude(0.1), KeepDead()):
        with pytest.raises(ValueError, match="at least one layer must be in play"):
            _fit(bare, [callback])
    tied = _network()
    nn.utils.parametrize.register_parametrization(tied.trunk[2], "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"that holds its own weights, found `trunk\.2` parametrised"):
        _fit(tied, [Magnitude(0.1)])


def test_a_layer_of_zeros_may_learn():
    """Zeros of an initialisation are not deaths."""
    model = _network()
    nn.init.zeros_(model.heads["a"][0].weight)
    callback = Magnitude(0.2)
    _fit(model, [callback])
    assert callback.layers[1].alive().any()
