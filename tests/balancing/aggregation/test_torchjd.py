"""The adapter for TorchJD's methods."""

from __future__ import annotations

import copy
import sys
from unittest import mock

import pytest
import torch
import torchjd.aggregation as aggregation
import torchjd.scalarization as scalarization
from tests.helpers import data, network, same, trainer, weights
from tests.scalarizers import LOSSES, NAMES, evidence, gradient

import polytask as pt
from polytask.balancing import Evidence
from polytask.balancing.base import Aggregator, JacobianAggregator, Needs, Scalarizer

TorchJD = pt.aggregation.TorchJD
JACOBIAN = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _evidence(names=NAMES, jacobian=JACOBIAN):
    return Evidence(names, [torch.tensor(loss) for loss in LOSSES], jacobian)


@pytest.mark.parametrize(
    "method", [aggregation.UPGrad(), aggregation.CAGrad(0.5), aggregation.ConFIG(), aggregation.TrimmedMean(1)]
)
def test_an_aggregator_is_called_with_the_jacobian(method):
    balancer = TorchJD(method)
    assert isinstance(balancer, JacobianAggregator) and balancer.needs == Needs.JACOBIAN
    assert torch.equal(balancer.combine(_evidence()), method(JACOBIAN))


@pytest.mark.parametrize("method", [aggregation.UPGradWeighting(), aggregation.MGDAWeighting()])
def test_a_weighting_is_called_with_the_gramian(method):
    balancer = TorchJD(method)
    assert isinstance(balancer, Aggregator) and not isinstance(balancer, JacobianAggregator)
    assert balancer.needs == Needs.GRAMIAN
    assert torch.equal(balancer.combine(_evidence()), method(JACOBIAN @ JACOBIAN.T))


@pytest.mark.parametrize("method", [scalarization.STCH(0.5), scalarization.GeometricMean(), scalarization.Mean()])
def test_a_scalarizers_weights_are_its_derivatives(method):
    balancer = TorchJD(method)
    assert isinstance(balancer, Scalarizer) and balancer.needs == Needs.LOSSES
    torch.testing.assert_close(balancer.combine(evidence()), gradient(method))


def test_a_scalarizers_own_parameters_learn_and_resume():
    ours = pt.scalarization.Uncertainty(lr=0.1)
    ours.setup(NAMES)
    one, other = (TorchJD(scalarization.UW(3), lr=0.1) for _ in range(2))
    for _ in range(4):
        torch.testing.assert_close(one.combine(evidence()), ours.combine(evidence()))
    other.load_state_dict(one.state_dict())
    assert same([one.combine(evidence()) for _ in range(3)], [other.combine(evidence()) for _ in range(3)])


def test_its_other_hooks_are_called():
    losses = dict(zip(NAMES, torch.tensor([0.1, 1.6, 3.9]), strict=True))
    ours, theirs = pt.scalarization.FAMO(lr=0.1), TorchJD(scalarization.FAMO(3, lr=0.1))
    assert Needs.LOSSES_AFTER in theirs.needs
    ours.setup(NAMES)
    for _ in range(3):
        torch.testing.assert_close(theirs.combine(evidence()), ours.combine(evidence()))
        ours.after(losses)
        theirs.after(losses)
    ours, theirs = pt.scalarization.DynamicWeightAverage(), TorchJD(scalarization.DWA())
    ours.setup(NAMES)
    for factor in (1.0, 0.5, 0.4):
        parts = [factor**k * loss for k, loss in enumerate(LOSSES)]
        found = theirs.combine(evidence(parts))
        assert found.tolist() == pytest.approx(ours.combine(evidence(parts)))
        row = {f"train/{name}/loss": part for name, part in zip(NAMES, parts, strict=True)}
        ours.observe(row)
        theirs.observe(row)


@pytest.mark.parametrize(
    ("method", "ours"),
    [
        (aggregation.Sum(), pt.scalarization.Linear),
        (aggregation.SumWeighting(), pt.scalarization.Linear),
        (scalarization.Sum(), pt.scalarization.Linear),
        (scalarization.GeometricMean(), pt.scalarization.GeometricMean),
    ],
)
def test_every_kind_trains(method, ours):
    runs = []
    for balancer in (TorchJD(method), ours()):
        run = trainer(network(), balancer=balancer)
        run.fit(data(), epochs=2)
        runs.append(weights(run.model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [aggregation.UPGrad(), aggregation.UPGradWeighting(), scalarization.Sum()])
def test_it_can_be_copied_and_says_what_it_is(method):
    balancer = TorchJD(method)
    copied = copy.deepcopy(balancer)
    assert type(copied) is type(balancer)
    assert torch.equal(copied.combine(_evidence()), balancer.combine(_evidence()))
    assert balancer.describe() == {"balancer": "TorchJD", "method": repr(method), "seed": 0}


@pytest.mark.parametrize("method", [aggregation.Random(), aggregation.RandomWeighting(), scalarization.Random()])
def test_draws_are_the_balancer_s_own_and_resume(method):
    """The global generator, which differs between ranks, neither tells nor is touched."""
    one, other, third = TorchJD(method), TorchJD(method), TorchJD(method, seed=1)
    found = []
    for balancer, seed in ((one, 1), (other, 2), (third, 1)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append([balancer.combine(_evidence()) for _ in range(3)])
        assert torch.equal(torch.get_rng_state(), before)
    assert same(found[0], found[1]) and not same(found[0], found[2]) and not torch.equal(found[0][0], found[0][1])
    resumed = TorchJD(method, seed=5)
    resumed.load_state_dict(one.state_dict())
    assert same(resumed.combine(_evidence()), other.combine(_evidence()))


def test_refusals():
    with pytest.raises(TypeError, match="must be an aggregator, weighting or scalarizer of TorchJD, found str"):
        TorchJD("UPGrad")
    with pytest.raises(TypeError, match="of TorchJD, found the class UPGrad"):
        TorchJD(aggregation.UPGrad)
    with pytest.raises(ValueError, match="`seed` must be at least 0, found -1"):
        TorchJD(aggregation.PCGrad(), seed=-1)
    with (
        mock.patch.dict(sys.modules, {"torchjd.aggregation": None}),
        pytest.raises(ImportError, match="needs the library TorchJD, found none: pip install torchjd"),
    ):
        TorchJD(aggregation.UPGrad())


def test_importing_polytask_does_not_import_torchjd():
    import subprocess

    code = "import sys, polytask; sys.exit('torchjd' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
