"""The ordered weighted ℓ1 norm and its prox."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quadprog import solve_qp
from scipy.optimize import minimize

from polytask.sparsity import owl


def _cases(count, largest, seed):
    """Values and weights with ties, zeros, equal weights, zero weights, both signs, and shrinkage from none to all."""
    random = np.random.default_rng(seed)
    for number in range(count):
        n = int(random.integers(1, largest + 1))
        values = random.standard_normal(n)
        if number % 3 == 0:
            values = np.round(2 * values) / 2
        if number % 5 == 0:
            values[random.random(n) < 0.4] = 0
        weights = np.sort(random.random(n))[::-1].copy()
        if number % 4 == 1:
            weights[:] = weights[0]
        if number % 4 == 2:
            weights[n // 2 :] = 0
        if number % 7 == 0:
            weights = owl.pattern(("spike", "linear", "pld")[number % 3], n).numpy()
        yield values, weights * random.choice([0.01, 0.3, 1.0, 5.0])


def _norm(x, weights):
    return np.sort(np.abs(x))[::-1] @ weights


def test_the_prox_equals_a_generic_solvers_minimiser():
    """500 cases. Sorted, the problem is a quadratic program over x_1 ≥ … ≥ x_n ≥ 0, which Goldfarb and Idnani's
    active-set method ends exactly."""
    for values, weights in _cases(500, 30, 0):
        sizes = np.abs(values)
        order = np.argsort(-sizes, kind="stable")
        falls = np.eye(len(sizes)) - np.eye(len(sizes), k=-1)
        wanted = np.empty(len(sizes))
        wanted[order] = solve_qp(np.eye(len(sizes)), sizes[order] - weights, falls, np.zeros(len(sizes)))[0]
        found = owl.prox(torch.from_numpy(values), torch.from_numpy(weights)).numpy()
        np.testing.assert_allclose(found, np.sign(values) * wanted, atol=1e-8, rtol=0)


def test_the_prox_carries_a_certificate():
    """v − x is a subgradient of Ω at x: its dual norm is at most 1 and its product with x is Ω(x). Nothing is assumed
    about the order of x, so this proves optimality of the problem as stated."""
    for values, weights in _cases(500, 60, 1):
        x = owl.prox(torch.from_numpy(values), torch.from_numpy(weights)).numpy()
        rest = values - x
        assert (np.sort(np.abs(rest))[::-1].cumsum() <= weights.cumsum() + 1e-10).all()
        assert rest @ x == pytest.approx(_norm(x, weights), abs=1e-10)


def test_the_prox_equals_the_minimum_over_the_epigraph():
    """Ω(x) is the largest product of |x| with a permutation of θ; each is one linear constraint of a smooth program."""
    for values, weights in _cases(40, 4, 2):
        n = len(values)
        rows = np.array(
            [np.append(-np.array(order) * sign, 1.0)
             for order in set(itertools.permutations(weights)) for sign in itertools.product((1, -1), repeat=n)]
        )  # fmt: skip
        start = np.append(values, _norm(values, weights))
        solved = minimize(
            lambda z, v=values: 0.5 * ((z[:-1] - v) ** 2).sum() + z[-1], start,
            jac=lambda z, v=values: np.append(z[:-1] - v, 1.0), method="SLSQP",
            constraints={"type": "ineq", "fun": lambda z, a=rows: a @ z, "jac": lambda z, a=rows: a},
            options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        found = owl.prox(torch.from_numpy(values), torch.from_numpy(weights)).numpy()
        np.testing.assert_allclose(found, solved.x[:-1], atol=1e-6, rtol=0)


def test_fixed_values():
    """The tie that a loop over adjacent pairs gets wrong."""
    spike = owl.pattern("spike", 3)
    found = owl.prox(torch.tensor([1.0, 0.9, 0.5], dtype=torch.float64), spike)
    torch.testing.assert_close(found, torch.tensor([0.35, 0.35, 0.3], dtype=torch.float64))


values = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


@given(values, st.floats(0, 5))
def test_equal_weights_are_soft_thresholding(v, level):
    v = torch.tensor(v, dtype=torch.float64)
    found = owl.prox(v, torch.full_like(v, level))
    torch.testing.assert_close(found, v.sign() * (v.abs() - level).clamp(min=0))


@given(values, st.floats(0, 3), st.randoms())
def test_order_and_permutations(v, step, random):
    v = torch.tensor(v, dtype=torch.float64)
    weights = step * owl.pattern("linear", len(v))
    found = owl.prox(v, weights)
    assert (found.abs() <= v.abs() + 1e-12).all()
    assert (found * v >= 0).all()
    by_size = v.abs().argsort(stable=True)
    assert (found.abs()[by_size].diff() >= -1e-12).all()
    shuffled = list(range(len(v)))
    random.shuffle(shuffled)
    torch.testing.assert_close(owl.prox(v[shuffled], weights), found[shuffled])


def test_the_prox_keeps_type_and_leaves_its_arguments():
    v = torch.randn(9)
    weights = owl.pattern("pld", 9)
    before = v.clone(), weights.clone()
    assert owl.prox(v, weights).dtype == torch.float32
    assert torch.equal(v, before[0])
    assert torch.equal(weights, before[1])


def test_the_norms_gradient_pairs_the_largest_value_with_the_largest_weight():
    v = torch.tensor([0.5, -3.0, 0.0, 1.0], requires_grad=True)
    owl.norm(v, torch.tensor([4.0, 3.0, 2.0, 1.0])).backward()
    assert v.grad.tolist() == [2.0, -4.0, 0.0, 3.0]


@pytest.mark.parametrize("kind", owl.PATTERNS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_patterns_do_not_rise_and_follow_their_formulas(kind: str, n: int):
    found = owl.pattern(kind, n, 0.7, 0.3, tau=0.5)
    assert found.dtype == torch.float64
    assert (found.diff() <= 0).all()
    p = n // 2
    for i in range(1, n + 1):
        wanted = {
            "spike": 0.3 + 0.7 * (i == 1), "linear": 0.7 + 0.3 * (n - i) / n,
            "pld": 0.7 + 0.3 * (p - i + 1) * (i <= p),
        }[kind]  # fmt: skip
        assert found[i - 1].item() == pytest.approx(wanted)


def test_refusals():
    one = torch.ones(3)
    for weights, rule in (
        (torch.ones(2), "one weight per value"),
        (torch.tensor([1.0, 2.0, 3.0]), "must not rise"),
        (torch.tensor([1.0, 0.0, -1.0]), "at least 0"),
        (torch.tensor([float("inf"), 1.0, 0.0]), "must be finite"),
    ):
        with pytest.raises(ValueError, match=rule):
            owl.prox(one, weights)
    with pytest.raises(ValueError, match="at least one value, found none"):
        owl.prox(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match="`pattern` must be one of 'spike', 'linear', 'pld', found 'flat'"):
        owl.pattern("flat", 3)
    for options, rule in (
        ({"beta1": -1.0}, "`beta1` must be at least 0, found -1"),
        ({"beta1": 0.0, "beta2": 0.0}, "`beta1` or `beta2` must be above 0"),
        ({"tau": 1.5}, "`tau` must be at most 1, found 1.5"),
        ({"beta2": float("inf")}, "`beta2` must be finite, found inf"),
    ):
        with pytest.raises(ValueError, match=rule):
            owl.pattern("spike", 3, **options)
