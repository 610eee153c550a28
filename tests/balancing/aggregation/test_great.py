"""GREAT."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import data, same, trainer, weights
from tests.inputs import HARD
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence

GREAT = pt.aggregation.GREAT
BATCH, WIDTH = 64, 8
SHAPES = torch.tensor([[2.0, 2, 2, 2, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5, 2, 2, 2, 2]])


def _evidence(step: int, names: str = "ab") -> Evidence:
    """Two tasks whose gradients differ in which features they are large at."""
    noise = torch.randn(2, BATCH, WIDTH, generator=torch.Generator().manual_seed(step))
    rows = ["ab".index(name) for name in names]
    return Evidence(list(names), cotangents=(SHAPES[:, None] * noise).reshape(2, -1)[rows], examples=BATCH)


def _built(**options):
    balancer = GREAT(**options)
    balancer.setup(["a", "b"])
    return balancer


def _train(balancer, steps: int, start: int = 0):
    return [balancer.combine(_evidence(start + step)) for step in range(steps)]


def _accuracy(balancer) -> float:
    guesses = torch.stack([balancer.guesses(_evidence(10_000 + k)) for k in range(5)])  # (5, K, B)
    return (guesses == torch.arange(2)[:, None]).float().mean().item()


@pytest.mark.parametrize("name", HARD)
def test_without_alignment_it_is_the_sum(name: str):
    jacobian = HARD[name]
    names = [str(k) for k in range(len(jacobian))]
    balancer = GREAT(alignment_lr=0.0, lr=0.01)
    balancer.setup(names)
    for _ in range(3):
        found = balancer.combine(Evidence(names, cotangents=jacobian, examples=1))
        assert torch.equal(found, jacobian.sum(0))


def test_without_alignment_it_trains_as_the_sum():
    runs = []
    for balancer in (GREAT(alignment_lr=0.0), pt.scalarization.Linear()):
        run = trainer(balancer=balancer)
        run.fit(data(), epochs=2)
        runs.append(weights(run.model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-4, atol=1e-6)


def test_alignment_fools_the_discriminator():
    """Left alone it learns to tell the tasks apart; an alignment that learns brings it back towards chance."""
    alone = _built(alignment_lr=0.0, lr=0.01)
    _train(alone, 150)
    assert _accuracy(alone) > 0.9
    against = _built(alignment_lr=0.003, lr=0.01)
    _train(against, 250)
    assert abs(_accuracy(against) - 0.5) < 0.1
    scales = against.get_extra_state()["scales"]
    wanted = SHAPES.flip(0) / SHAPES.mean()  # what makes both tasks' gradients alike
    found = torch.stack([scales[name]["value"] for name in "ab"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.2)
    fresh = _built(alignment_lr=0.0, lr=0.01)  # nor can a new discriminator tell the aligned gradients apart
    fresh.set_extra_state(_built().get_extra_state() | {"scales": scales})
    _train(fresh, 150)
    assert _accuracy(fresh) < 0.65


def test_scales_are_positive_with_a_mean_of_one():
    balancer = _built(alignment_lr=0.3, lr=0.01)
    _train(balancer, 30)
    for saved in balancer.get_extra_state()["scales"].values():
        assert (saved["value"] >= 0).all()
        assert saved["value"].mean().item() == pytest.approx(1, rel=1e-4)


def test_the_adversaries_pull_opposite_ways_on_one_loss():
    """Both first steps against the written-out cross-entropy, once the last layer has left zero."""
    balancer = _built(alignment_lr=0.0, lr=0.01)
    _train(balancer, 3)
    parts = balancer.get_extra_state()
    for name in "ab":
        parts["scales"][name]["value"] = parts["scales"][name]["value"].clone()
    free = _built(alignment_lr=0.01, lr=0.0)
    free.set_extra_state({key: _values(part) for key, part in parts.items()})
    free.combine(_evidence(5))
    scales = torch.ones(2, WIDTH, requires_grad=True)
    aligned = scales[:, None] * _evidence(5).cotangents.reshape(2, BATCH, WIDTH)
    units = WIDTH**0.5 * aligned / aligned.norm(dim=2, keepdim=True)
    hidden = units @ parts["layer"]["weight"]["value"].T + parts["layer"]["bias"]["value"]
    rows = torch.stack([parts["rows"][name]["value"] for name in "ab"])
    logits = torch.where(hidden > 0, hidden, 0.2 * hidden) @ rows[:, :-1].T + rows[:, -1]
    truth = torch.arange(2).repeat_interleave(BATCH)
    (up,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits.reshape(-1, 2), truth), scales)
    moved = 1 + 0.01 * up.sign()  # Adam's first step
    moved = moved / moved.mean(1, keepdim=True)
    found = torch.stack([free.get_extra_state()["scales"][name]["value"] for name in "ab"])
    torch.testing.assert_close(found, moved, rtol=1e-4, atol=1e-5)


def _values(part):
    return part if isinstance(part, list) else {name: {"value": saved["value"]} for name, saved in part.items()}


def test_absent_objectives_and_missing_targets_do_not_learn():
    balancer = _built(alignment_lr=0.01)
    _train(balancer, 3)
    before = balancer.get_extra_state()
    found = balancer.combine(_evidence(3, "b"))
    torch.testing.assert_close(found.reshape(BATCH, WIDTH), before["scales"]["b"]["value"] * _example(3)[1])
    assert same(balancer.get_extra_state(), before)
    evidence = _evidence(4)
    evidence.cotangents = torch.zeros_like(evidence.cotangents)
    assert torch.equal(balancer.combine(evidence), torch.zeros(BATCH * WIDTH))
    after = balancer.get_extra_state()
    assert all(torch.isfinite(saved["value"]).all() for part in ("rows", "scales") for saved in after[part].values())


def _example(step: int) -> Tensor:
    return _evidence(step).cotangents.reshape(2, BATCH, WIDTH)


def test_the_order_of_the_tasks_does_not_matter():
    one, other = _built(alignment_lr=0.01), _built(alignment_lr=0.01)
    for step in range(5):
        torch.testing.assert_close(
            one.combine(_evidence(step)), other.combine(_evidence(step, "ba")), rtol=1e-3, atol=1e-4
        )


def test_it_resumes_to_the_bit_and_draws_nothing_from_outside():
    before = torch.get_rng_state()
    whole = _built(alignment_lr=0.01)
    _train(whole, 4)
    resumed = _built(alignment_lr=0.01)
    resumed.load_state_dict(whole.state_dict())
    assert same(_train(whole, 4, 4), _train(resumed, 4, 4))
    assert same(whole.state_dict(), resumed.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("power", [-100, -70, 70, 100])
def test_what_is_learned_does_not_depend_on_lengths(power: int):
    """Directions alone are compared, even where squares leave float32, as those of confident examples do."""
    learned = []
    for factor in (1.0, 2.0**power):
        balancer = _built(alignment_lr=0.01)
        for step in range(5):
            evidence = _evidence(step)
            evidence.cotangents = evidence.cotangents * factor
            found = balancer.combine(evidence)
            assert torch.isfinite(found).all()
        learned.append(balancer.state_dict())
    assert same(*learned)


def test_refusals():
    with pytest.raises(ValueError, match="`lr` must be at least 0, found -1"):
        GREAT(lr=-1)
    with pytest.raises(ValueError, match="`alignment_lr` must be at least 0, found -1"):
        GREAT(alignment_lr=-1)
    with pytest.raises(ValueError, match="`hidden` must be at least 1, found 0"):
        GREAT(hidden=0)
    balancer = _built()
    _train(balancer, 1)
    with pytest.raises(ValueError, match="features must be of one size per example, found 8, then 4"):
        balancer.combine(Evidence(["a", "b"], cotangents=torch.ones(2, 8), examples=2))
    with pytest.raises(ValueError, match="of the same objectives"):
        other = GREAT()
        other.setup(["a", "b", "c"])
        other.load_state_dict(balancer.state_dict())


def test_an_example_that_both_tasks_have_learned_breaks_nothing():
    """The gradient of such an example is tiny, not zero: its length squared is 0 in float32."""
    balancer, plain = _built(), _built()
    for step in range(5):
        evidence, same_without = _evidence(step), _evidence(step)
        faded = evidence.cotangents.reshape(2, BATCH, WIDTH).clone()
        faded[:, 0] *= 1e-20
        evidence.cotangents = faded.reshape(2, -1)
        found, expected = balancer.combine(evidence), plain.combine(same_without)
        assert torch.isfinite(found).all()
        # what is learned looks at directions alone, so length changes nothing but that example's own gradient
        torch.testing.assert_close(found.reshape(BATCH, -1)[1:], expected.reshape(BATCH, -1)[1:], rtol=1e-4, atol=1e-5)
