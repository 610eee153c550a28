"""Modified weighted Chebyshev by an augmented Lagrangian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from tests.helpers import data, same, trainer
from tests.scalarizers import LOSSES, NAMES, built, evidence

import polytask as pt

Chebyshev = pt.scalarization.Chebyshev
PREFERENCES = (0.1, 0.3, 0.5, 0.7, 0.9)
TARGET = 3**-0.5
PAIR = ["a", "b"]


def _losses(x):
    """Two losses of x (3,) whose Pareto front is concave, and their gradients (2, 3)."""
    apart = np.stack([x - TARGET, x + TARGET])
    heights = np.exp(-np.square(apart).sum(1))
    return 1 - heights, 2 * apart * heights[:, None]


def _train(weigh, steps=1500, rate=0.01, scale=1.0, noise=0.0, preference=None, falling=False, seed=0):
    """Adam from one start; `noise` is the standard deviation of g_i, in units of the unscaled losses."""
    random = np.random.default_rng(seed)
    x, m, v = np.array([0.5, 0.2, -0.1]), np.zeros(3), np.zeros(3)
    for step in range(1, steps + 1):
        losses, gradients = _losses(x)
        shown = losses if not noise else losses + noise * random.standard_normal(2) / preference
        gradient = weigh(scale * shown) @ (scale * gradients)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        lr = rate * (1 + math.cos(math.pi * step / steps)) / 2 if falling else rate
        x = x - lr * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8 * scale)
    return _losses(x)[0]


def _by(balancer):
    return lambda losses: np.asarray(balancer.combine(evidence(losses.tolist(), PAIR)))


def _front(k, **options):
    """(k_1 L_1, k_2 L_2) at the end."""
    preference = np.array([k, 1 - k])
    return preference * _train(_by(built(Chebyshev, preference.tolist(), names=PAIR)), preference=preference, **options)


def _best(k):
    """The least max_i k_i L_i; the Pareto set is the segment between the targets."""
    line = np.linspace(-TARGET, TARGET, 200001)
    one, other = (1 - np.exp(-3 * (line - side) ** 2) for side in (TARGET, -TARGET))
    return np.maximum(k * one, (1 - k) * other).min()


@pytest.mark.parametrize("k", PREFERENCES)
def test_it_reaches_every_point_of_a_concave_front(k: float):
    ends = _front(k)
    assert abs(ends[0] - ends[1]) <= 0.005
    assert ends.max() <= 1.01 * _best(k)


@pytest.mark.parametrize("k", PREFERENCES)
def test_the_linear_sum_collapses_to_an_end(k: float):
    losses = _train(
        _by(built(pt.scalarization.Linear, dict(zip(PAIR, (k, 1 - k), strict=True)), names=PAIR)), steps=3000
    )
    assert losses.min() < 0.01
    assert losses.max() > 0.95


@pytest.mark.parametrize("scale", [1e-3, 100.0])
@pytest.mark.parametrize("k", PREFERENCES)
def test_the_front_does_not_depend_on_the_losses_scale(k: float, scale: float):
    assert _front(k, scale=scale, steps=1000).max() <= 1.01 * _best(k)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_weights_do_not_depend_on_the_losses_scale(scale: float):
    one, other = (built(Chebyshev, [0.5, 0.2, 0.3]) for _ in range(2))
    for losses in _course(60):
        wanted = one.combine(evidence(losses))
        torch.testing.assert_close(
            other.combine(evidence([scale * loss for loss in losses])), wanted, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("k", PREFERENCES)
def test_noise_costs_at_most_three_percent(k: float):
    """Noise of .05 on every g, which is up to a third of them, and a learning rate that falls to 0."""
    assert _front(k, noise=0.05, steps=3000, falling=True).max() <= 1.03 * _best(k)


def _course(steps, count=3, seed=0):
    """Losses that fall and jitter."""
    random = np.random.default_rng(seed)
    start = random.uniform(0.5, 3, count)
    for step in range(steps):
        yield (start * (0.1 + 0.97**step) * random.uniform(0.8, 1.2, count)).tolist()


@pytest.mark.parametrize(
    "options", [{}, {"mu": 1.0, "eta": 0.5}, {"weight_average": 0.6}, {"every": 7}, {"epsilon": 0.1}]
)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_without_t_it_equals_the_explicit_t_at_every_step(options: dict, count: int):
    names = [str(i) for i in range(count)]
    preference = np.random.default_rng(count).dirichlet(np.ones(count)).tolist()
    one, other = (built(Chebyshev, preference, names=names, form=form, **options) for form in ("projected", "explicit"))
    for losses in _course(200, count):
        weights = [balancer.combine(evidence(losses, names)) for balancer in (one, other)]
        torch.testing.assert_close(*weights, rtol=0, atol=1e-6)
        states = [balancer.get_extra_state()["kept"]["multiplier"] for balancer in (one, other)]
        torch.testing.assert_close(*states, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["projected", "explicit"])
def test_the_weights_are_those_of_the_minimum_over_t(form: str):
    """t minimised numerically, and the gradient of the Lagrangian there by finite differences."""
    k, epsilon, mu = np.array([0.5, 0.2, 0.3]), 0.05, 3.0
    balancer = built(Chebyshev, k.tolist(), epsilon=epsilon, mu=mu, form=form)
    found = balancer.combine(evidence())
    scale = balancer.get_extra_state()["kept"]["scale"].item()

    def lagrangian(losses):
        g = k * (losses + epsilon * losses.sum()) / scale

        def at(t):
            return t + (np.maximum(0, 1 / 3 + mu * (g - t)) ** 2 - 1 / 9).sum() / (2 * mu)

        return scale * minimize_scalar(at, bracket=(g.min(), g.max()), tol=1e-12).fun

    losses = np.array(LOSSES)
    for j, step in enumerate(1e-4 * np.eye(3)):
        slope = (lagrangian(losses + step) - lagrangian(losses - step)) / 2e-4
        assert found[j].item() == pytest.approx(slope, abs=1e-5)


def test_the_weights_formula():
    """∂S/∂L_j = (p_j k_j + ε Σ p_i k_i) / n_j, with p on the simplex."""
    k, n = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([2.0, 1.0, 4.0])
    plain = built(Chebyshev, k.tolist(), epsilon=0.0, normalise=dict(zip(NAMES, n.tolist(), strict=True)))
    p = plain.combine(evidence()) * n / k
    assert p.sum().item() == pytest.approx(1)
    assert (p >= 0).all()
    modified = built(Chebyshev, k.tolist(), epsilon=1e-3, normalise=dict(zip(NAMES, n.tolist(), strict=True)))
    weights = modified.combine(evidence())
    torch.testing.assert_close(weights, (p * k + 1e-3 * (p @ k)) / n, rtol=1e-2, atol=1e-4)
    assert (weights > 0).all()


def test_a_penalty_of_another_scale_by_its_first_value():
    """Divided by its first value it weighs as one that starts at 1; without, it takes everything."""
    names, k = ["sparsity", "a"], [0.5, 0.5]
    scaled, unit = (built(Chebyshev, k, names=names, normalise=which) for which in (["sparsity"], None))
    for fraction, loss in ((1.0, 0.9), (0.8, 0.7), (0.7, 0.75)):
        big = scaled.combine(evidence([120 * fraction, loss], names))
        small = unit.combine(evidence([fraction, loss], names))
        torch.testing.assert_close(big * torch.tensor([120.0, 1.0]), small)
    raw = built(Chebyshev, k, names=names, epsilon=0.0)
    assert raw.combine(evidence([120.0, 0.9], names))[1] == 0


def test_initial_values_make_objectives_fractions():
    one, other = built(Chebyshev, normalise="initial"), built(Chebyshev)
    first = torch.tensor(LOSSES)
    for fractions in ([1.0, 1.0, 1.0], [0.5, 0.8, 0.9]):
        losses = (first * torch.tensor(fractions)).tolist()
        torch.testing.assert_close(one.combine(evidence(losses)) * first, other.combine(evidence(fractions)))


def test_a_fixed_reference_shifts_the_losses():
    low = {"a": 0.2, "b": -1.0, "c": 3.0}
    one, other = built(Chebyshev, reference=low), built(Chebyshev)
    for losses in _course(20):
        shifted = [loss + low[name] for loss, name in zip(losses, NAMES, strict=True)]
        torch.testing.assert_close(
            one.combine(evidence(shifted)), other.combine(evidence(losses)), rtol=1e-4, atol=1e-5
        )


def test_the_running_best_is_the_least_seen():
    """Once each loss has been at its bound, it goes on as with that fixed reference."""
    one, other = built(Chebyshev, reference="best"), built(Chebyshev, reference=[1.0, 2.0, 0.0])
    for losses in ([1.0, 5.0, 0.0], [4.0, 2.0, 3.0]):
        one.combine(evidence(losses))
    other.load_state_dict(one.state_dict())
    for losses in ([2.0, 2.5, 0.5], [1.5, 3.0, 1.0]):
        assert torch.equal(one.combine(evidence(losses)), other.combine(evidence(losses)))
    one.combine(evidence(LOSSES))
    assert one.get_extra_state()["kept"]["best"].tolist() == pytest.approx([0.3, 1.7, 0.0])


def test_the_multipliers_move_every_n_batches_alone():
    balancer = built(Chebyshev, [0.5, 0.2, 0.3], every=4)
    seen = []
    for losses in _course(12):
        balancer.combine(evidence(losses))
        seen.append(balancer.get_extra_state()["kept"]["multiplier"].tolist())
    assert [seen[i] != seen[i - 1] for i in range(1, 12)] == [i % 4 == 3 for i in range(1, 12)]
    assert all(sum(multipliers) == pytest.approx(1) and min(multipliers) >= 0 for multipliers in seen)


def test_absent_objectives_keep_their_part():
    """Shown in turn, each gets the weight that it gets when all are shown at those values."""
    k = [0.5, 0.2, 0.3]
    whole, turns = (built(Chebyshev, k, every=10**6, weight_average=0.0) for _ in range(2))
    for _ in range(2):
        every = whole.combine(evidence())
        found = [turns.combine(evidence([loss], [name])) for name, loss in zip(NAMES, LOSSES, strict=True)]
    torch.testing.assert_close(torch.cat(found), every)


def test_the_preference_belongs_to_names():
    named = built(Chebyshev, {"c": 0.3, "a": 0.5, "b": 0.2})
    listed = built(Chebyshev, [0.5, 0.2, 0.3])
    for losses in _course(5):
        turned = named.combine(evidence(losses[::-1], NAMES[::-1]))
        torch.testing.assert_close(turned.flip(0), listed.combine(evidence(losses)))


def test_a_resumed_state_goes_on_exactly():
    one = built(Chebyshev, [0.5, 0.2, 0.3], reference="best", normalise="initial", weight_average=0.3, every=3)
    other = built(Chebyshev, [0.5, 0.2, 0.3], reference="best", normalise="initial", weight_average=0.3, every=3)
    course = list(_course(20))
    for losses in course[:8]:
        one.combine(evidence(losses))
    other.load_state_dict(one.state_dict())
    for losses in course[8:]:
        assert same(one.combine(evidence(losses)), other.combine(evidence(losses)))


def test_the_trainer_tells_callbacks_the_current_weights():
    seen = []

    class Look(pt.Callback):
        def on_update(self, run, info):
            seen.append({name: float(weight) for name, weight in info.weights.items()})

    balancer = Chebyshev([0.7, 0.3])
    trainer(balancer=balancer, callbacks=[Look()]).fit(data(), epochs=2)
    assert len(seen) == 6
    assert all(set(weights) == {"a", "b"} and sum(weights.values()) > 0 for weights in seen)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"preference": [0.5, 0.5]}, "`preference` must hold one value per objective (`a`, `b`, `c`), found 2"),
        ({"preference": [1.5, -0.5, 0]}, "every value of `preference` must be finite and at least 0, found -0.5 for "),
        ({"preference": [0.0, 0.0, 0.0]}, "`preference` must sum to 1, found a sum of 0"),
        ({"preference": [0.3, 0.3, 0.3]}, "`preference` must sum to 1, found a sum of 0.9"),
        ({"preference": {"a": 1.0, "b": 0.0}}, "`preference` must name every objective, found none for `c`"),
        ({"preference": {"a": 1.0, "bb": 0.0}}, "`preference` names an unknown objective `bb`: did you mean `b`?"),
        ({"reference": [0.0]}, "`reference` must hold one value per objective (`a`, `b`, `c`), found 1"),
        ({"reference": "worst"}, "`reference` must be one of 'best', found 'worst'"),
        ({"epsilon": -1.0}, "`epsilon` must be at least 0, found -1.0"),
        ({"mu": 0.0}, "`mu` must be above 0 and finite, found 0.0"),
        ({"eta": -1.0}, "`eta` must be above 0 and finite, found -1.0"),
        ({"every": 0}, "`every` must be at least 1, found 0"),
        ({"form": "implicit"}, "`form` must be one of 'projected', 'explicit', found 'implicit'"),
        ({"normalise": ["d"]}, "`normalise` names an unknown objective `d`"),
        ({"normalise": "first"}, "`normalise` names an unknown objective `first`"),
        ({"normalise": {"a": 0.0}}, "every value of `normalise` must be above 0, found 0 for `a`"),
        ({"average": 1.0}, "`average` must be at least 0 and below 1, found 1.0"),
        ({"weight_average": -0.1}, "`weight_average` must be at least 0 and below 1, found -0.1"),
    ],
)
def test_refusals(given: dict, rule: str):
    with pytest.raises(ValueError) as caught:
        built(Chebyshev, **given)
    assert str(caught.value).startswith(rule)


def test_other_refusals():
    with pytest.raises(ValueError, match="first value of a normalised objective must not be 0, found 0 for `b`"):
        built(Chebyshev, normalise="initial").combine(evidence([1.0, 0.0, 2.0]))
    used = built(Chebyshev, names=PAIR)
    used.combine(evidence([1.0, 2.0], PAIR))
    with pytest.raises(ValueError, match=r"unknown objective `b`|of the same objectives"):
        built(Chebyshev, names=["a", "z"]).load_state_dict(used.state_dict())
