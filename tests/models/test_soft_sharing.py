"""Soft sharing: towers between single-task training and hard sharing, by the weight of a penalty."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from tests.helpers import SaveAll, Witness, adam, data, heads, network, same, sgd, trainer, trunk, weights
from tests.models.limits import close
from torch import Tensor, nn

import polytask as pt
from polytask.models import BySource, HardSharing, SingleTask, SoftSharing, TowerDistance, TowerTraceNorm

PENALTIES = [TowerDistance, TowerTraceNorm]


def soft(kind: str = "plain", names: str = "ab") -> SoftSharing:
    model = network(kind, names, "soft")
    assert isinstance(model, SoftSharing)
    return model


class Names(pt.Callback):
    """Notes which objectives took part in which kind of update."""

    def on_fit_start(self, run: Any) -> None:
        self.seen: set[tuple[bool, tuple[str, ...]]] = set()

    def on_update(self, run: Any, info: Any) -> None:
        self.seen.add((info.update.shared, tuple(info.losses)))


@pytest.mark.parametrize("penalty", [None, *PENALTIES])
@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["momentum", "adam"])
def test_weight_zero_is_single_task_training_to_the_bit(optimizer: Any, penalty: Any):
    """Dropout, batch statistics and absent tasks included."""
    x, y = data(24, "abc")
    y["a"][:8] = torch.nan
    y["b"][8:16] = -100
    runs = []
    single = network("norm+dropout", "abc", "single")
    together = SoftSharing(copy.deepcopy(dict(single.towers.items())), copy.deepcopy(dict(single.heads.items())))
    for model, terms in ((single, []), (together, [penalty(weight=0)] if penalty else [])):
        run = trainer(model, "abc", optimizer=optimizer, objectives=terms)
        run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), data(9, "abc", seed=1), epochs=3)
        runs.append(run)
    assert same(weights(runs[0].model), weights(runs[1].model))
    assert same(list(runs[0].history), list(runs[1].history))


AIMS = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0], [-1.0, 1.0, 2.0]])


def quadratic(weight: float, start: Tensor, epochs: int) -> Tensor:
    """Towers w_k after training on L_k = ‖w_k - a_k‖² and the penalty, (3, 3); a_k are the rows of AIMS."""
    x = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])  # orthogonal columns: X'X = 4 I
    names = ["p", "q", "r"]
    towers = {name: nn.Linear(3, 1, bias=False) for name in names}
    for tower in towers.values():
        tower.weight.data = start.clone()[None]
    model = SoftSharing(towers, {name: nn.Identity() for name in names})
    run = pt.Trainer(
        model, [pt.regression(name) for name in names], optimizer=sgd(0.5 / (1 + 3 * weight)), batch_size=4,
        objectives=[TowerDistance(weight)], progress=False,
    )  # fmt: skip
    run.fit((x, {name: x @ aim for name, aim in zip(names, AIMS, strict=True)}), epochs=epochs)
    return torch.cat([tower.weight.detach() for tower in towers.values()])


@pytest.mark.parametrize(("weight", "epochs"), [(0.0, 3), (0.1, 20), (1.0, 60)])
def test_the_minimum_of_a_quadratic_problem_is_the_closed_form(weight: float, epochs: int):
    """w_k = mean of a + (a_k - mean of a) / (1 + K λ)."""
    mean = AIMS.mean(0)
    expected = mean + (AIMS - mean) / (1 + 3 * weight)
    torch.testing.assert_close(quadratic(weight, torch.zeros(3), epochs), expected, atol=1e-5, rtol=0)


def test_towers_become_equal_as_the_weight_grows():
    """At the minimum the towers' spread is that of weight 0 over 1 + K λ, and so goes to zero: hard sharing."""
    mean = AIMS.mean(0)
    spreads = []
    for weight in (10.0, 1e2, 1e3, 1e4):
        towers = quadratic(weight, mean, 3)
        torch.testing.assert_close(towers.mean(0), mean, atol=1e-5, rtol=0)
        spreads.append(float((towers - towers.mean(0)).norm()) * (1 + 3 * weight))
    assert spreads == pytest.approx([float((AIMS - mean).norm())] * 4, rel=2e-2)


def test_at_the_limit_it_is_hard_sharing():
    """Equal towers give hard sharing's outputs, and their gradients add up to those of its trunk."""
    model, x = soft("norm"), data()[0]
    for tower in model.towers.values():
        tower.load_state_dict(model.towers["a"].state_dict())
    one = trunk("norm")
    one.load_state_dict(model.towers["a"].state_dict())
    hard = HardSharing(one, dict(model.heads.items()))
    close(model(x), hard(x))
    for network_ in (model, hard):
        sum(out.square().mean() for out in network_(x).values()).backward()
    for name, parameter in one.named_parameters():
        both = [tower.get_parameter(name).grad for tower in model.towers.values()]
        torch.testing.assert_close(sum(both), parameter.grad, atol=1e-6, rtol=0)


def test_training_draws_the_towers_together():
    distances = []
    for weight in (0.0, 0.1, 1.0, 3.0):
        model = soft()
        trainer(model, optimizer=sgd(0.05), objectives=[TowerDistance(weight)]).fit(data(), epochs=10)
        distances.append(float(TowerDistance()(context(model)).detach()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.1 * distances[0]


def context(model: SoftSharing) -> Any:
    nothing: Any = None
    return pt.objective.Context(model, nothing, nothing, {})


def test_the_distance_is_that_of_all_pairs():
    towers = {name: trunk() for name in "abc"}
    model = SoftSharing(towers, heads("abc"))
    pairs = itertools.combinations(towers.values(), 2)
    expected = sum(
        (p - q).square().sum() for s, t in pairs for p, q in zip(s.parameters(), t.parameters(), strict=True)
    )
    value = TowerDistance()(context(model))
    torch.testing.assert_close(value, expected)
    wanted = torch.autograd.grad(expected, list(model.towers.parameters()))
    found = torch.autograd.grad(value, list(model.towers.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_trace_norm_of_equal_towers_is_the_root_of_k_times_their_length_and_least_for_their_length():
    model = SoftSharing(trunk(), heads("abc"))
    value = TowerTraceNorm()(context(model))
    lengths = [p.norm() for p in model.towers["a"].parameters()]
    torch.testing.assert_close(value, 3**0.5 * sum(lengths))
    gradients = torch.autograd.grad(value, list(model.towers.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    stacked = torch.randn(3, 4, 5)
    assert float(TowerTraceNorm().tie(stacked)) > float(stacked.norm())  # equal only at rank one


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_penalty_moves_towers_in_shared_updates_only(kind: Any):
    names, witness = Names(), Witness()
    run = trainer(
        soft("norm+dropout"), schedule=pt.schedules.AlternateBatches(), objectives=[kind(0.1)], callbacks=[names, witness],
    )  # fmt: skip
    history = run.fit(data(), epochs=2)
    assert names.seen == {(True, ("a", "b", "soft-sharing")), (False, ("a", "b"))}
    assert witness.frozen_seen and witness.live_seen
    assert history[-1]["train/soft-sharing/loss"] > 0


def test_a_penalty_is_balanced_under_its_name():
    """Half the weight by the balancer is half the weight by the penalty."""
    results = []
    for given, weight in (({"a": 1.0, "b": 1.0, "soft-sharing": 0.5}, 0.2), (None, 0.1)):
        model = soft()
        balancer = pt.scalarization.Linear(given) if given else None
        trainer(model, balancer=balancer, objectives=[TowerDistance(weight)]).fit(data(), epochs=2)
        results.append(weights(model))
    for one, other in zip(*(result.values() for result in results), strict=True):
        torch.testing.assert_close(one, other)


def test_a_balancer_that_worsens_nothing_leaves_equal_towers_equal():
    """The penalty is at its least, so that no step is good for it: towers must start apart under such a balancer."""
    equal = SoftSharing(trunk(), heads())
    before = weights(equal.towers)
    trainer(equal, balancer=pt.aggregation.MGDA(), objectives=[TowerDistance()]).fit(data(), epochs=1)
    assert same(weights(equal.towers), before)


def test_towers_are_the_shared_block_and_absent_ones_are_not_run():
    model, ran = soft("norm"), []
    blocks = model.blocks()
    assert {id(p) for p in blocks.shared.parameters} == {id(p) for p in model.towers.parameters()}
    for task, tower in model.towers.items():
        tower.register_forward_hook(lambda *_, task=task: ran.append(task))
    assert list(model(data()[0], ["b"])) == ["b"] and ran == ["b"]


def test_towers_may_read_sources_of_their_own_and_share_what_has_the_same_name():
    encoders = {"a": nn.Linear(3, 4), "b": nn.Linear(7, 4)}
    towers = {task: BySource({f"from {task}": encoder}, nn.Linear(4, 6)) for task, encoder in encoders.items()}
    model = SoftSharing(towers, heads())
    assert list(model.corresponding()) == ["trunk.weight", "trunk.bias"]
    assert model(torch.zeros(5, 7), ["b"], "from b")["b"].shape == (5, 3)
    alike = SoftSharing(trunk(), heads())
    assert list(alike.corresponding(["0.bias"])) == ["0.bias"]
    assert list(alike.corresponding(["0"])) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_resumed_run_ends_with_the_same_bits(kind: Any, tmp_path: Any):
    def run(resume: Any = None) -> SaveAll:
        keeper = SaveAll(None if resume else tmp_path)
        fit = trainer(
            soft("dropout"), schedule=pt.schedules.AlternateEpochs(1, 1), callbacks=[keeper], objectives=[kind(0.1)],
            optimizer=sgd(momentum=0.9),
        )  # fmt: skip
        fit.fit(data(), epochs=4, resume=resume)
        return keeper

    assert same(run().state, run(tmp_path / "3.ckpt").state)


def unlike() -> SoftSharing:
    return SoftSharing({"a": nn.Linear(3, 6), "b": nn.Linear(2, 6)}, heads())


def tied() -> SoftSharing:
    one = trunk()
    return SoftSharing({"a": one, "b": one}, heads())


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: SoftSharing(trunk(), {}), ValueError, "`heads` must name a module for at least one task, found none"),
        (lambda: SoftSharing({"a": trunk()}, heads()), ValueError, "found ['a'] in `trunk` and heads for ['a', 'b']"),
        (tied, ValueError, "found one parameter in the tower of task `a` and the tower of task `b`"),
        (lambda: TowerDistance(-1), ValueError, "`weight` must be at least 0, found -1"),
        (lambda: TowerTraceNorm(float("nan")), ValueError, "`weight` must be at least 0, found nan"),
        (lambda: TowerDistance(parameters="trunk"), TypeError, "`parameters` must be a list of names or prefixes, found 'trunk'"),
        (lambda: trainer(network(form="single"), objectives=[TowerDistance()]), ValueError, "TowerDistance needs the model SoftSharing, found SingleTask"),
        (lambda: trainer(unlike(), objectives=[TowerDistance()]), ValueError, "must have one shape, found [(6, 2), (6, 3)] for `weight`"),
        (lambda: trainer(soft(), objectives=[TowerDistance(parameters=["0.wight"])]), ValueError, "found no such `0.wight`: did you mean `0.weight`?"),
        (lambda: trainer(SoftSharing(nn.Tanh(), heads()), objectives=[TowerDistance()]), ValueError, "towers must have parameters of the same name, found none"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)


def test_it_takes_the_arguments_of_single_task():
    torch.manual_seed(0)
    one = SingleTask(trunk(), heads())
    torch.manual_seed(0)
    other = SoftSharing(trunk(), heads())
    assert same(weights(one), weights(other))
