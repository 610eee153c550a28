"""No step waits for the device: shown without one, on `meta` tensors, which hold no numbers.

Whatever reads a number of theirs raises (`item`, `tolist`, `bool`, a boolean index), they take the solvers' device
path, and a watch refuses every other way between host and device: copies, and operations that would copy an index.
`tests/gpu/test_cuda.py` shows the same on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contracts.test_balancers import MODES, TRUNKS, Net, built, refused_in
from tests.gpu.exceptions import OF_ANOTHER_LIBRARY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polytask as pt
from polytask.balancing import Evidence, Needs, loop, solvers
from polytask.balancing.aggregation.orders import Orders
from polytask.balancing.keyed import FirstLook, Learned
from polytask.catalog import Entry, catalog

META = torch.device("meta")
ENTRIES = [entry for entry in catalog("balancer") if entry.name not in OF_ANOTHER_LIBRARY]


class Watch(TorchDispatchMode):
    """Raises where tensors of host and device meet, but for copies that do not wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if not kwargs.get("non_blocking"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
            places = {tensor.device.type for tensor in tensors}
            assert len(places) < 2, f"{function} makes host and device meet"
        return found


@pytest.fixture
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a first call does, or what `meta` cannot, is taken as done."""
    monkeypatch.setattr(loop, "_check_finite", lambda losses: None)
    monkeypatch.setattr(FirstLook, "__call__", lambda self, names, losses: None)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *given, fused, **options: adam(*given, foreach=False, **options))
    rand = torch.rand  # no generator is of this device
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None, **options: rand(*size, **options))
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": Stream(device))
    add = Learned.add  # made where a GPU's are after the first call
    monkeypatch.setattr(Learned, "add", lambda self, name, initial: name in self or add(self, name, initial.to(META)))
    for steps in ("_INTERIOR_STEPS", "_NEWTON_STEPS", "_RADIUS_STEPS"):  # all are alike
        monkeypatch.setattr(solvers, steps, 2)
    yield


class Stream:
    """A generator's place without a generator."""

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> Stream:
        return self


def on_meta(entry: Entry) -> tuple[Net, Any]:
    with META:
        net = Net(TRUNKS["plain"])
    return net, built(entry)


def step(net: Net, balancer: Any, mode: str, names: str) -> None:
    x = torch.empty(8, 3, dtype=torch.float64, device=META)
    losses, features = net.losses(x, names)
    returned = pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features)
    assert returned.shape == (len(names),)
    if Needs.LOSSES_AFTER in balancer.needs:
        balancer.after({name: loss.detach() for name, loss in losses.items()})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_a_step_does_not_wait_for_the_device(entry: Entry, mode: str, no_numbers: None):
    net, balancer = on_meta(entry)
    if refused_in(balancer, mode):
        return
    step(net, balancer, mode, "abc")
    with Watch():
        for names in ("abc", "ca", "bca"):
            net.zero_grad()
            step(net, balancer, mode, names)
    assert all(p.grad is not None and p.grad.device == META for p in net.parameters())


@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_mgda_s_normalisations_do_not_wait_either(normalization: str, no_numbers: None):
    balancer = pt.aggregation.MGDA(normalization)
    with META:
        net = Net(TRUNKS["plain"])
    with Watch():
        for names in ("ab", "abc"):
            step(net, balancer, "exact", names)


@pytest.mark.parametrize("option", ["preference", "leak", "lower_bounds"])
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_settings_by_name_are_copied_without_waiting(entry: Entry, option: str, no_numbers: None):
    try:
        balancer = entry.cls(**{option: {"a": 0.2, "b": 0.3, "c": 0.5}})
    except TypeError:  # has no such setting
        return
    balancer.setup("abc")
    with META:
        net = Net(TRUNKS["plain"])
    with Watch():
        for names in ("abc", "ca"):
            step(net, balancer, "exact", names)


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("kind", [pt.aggregation.NashMTL, pt.aggregation.GradVac])
def test_objectives_in_another_order_are_looked_up_without_waiting(kind: Any, size: int, no_numbers: None):
    names = [str(k) for k in range(size)]
    balancer = kind(update_every=5) if kind is pt.aggregation.NashMTL else kind()
    balancer.setup(names)
    jacobian = torch.empty(size, 20, device=META)
    balancer.combine(Evidence(names, jacobian=jacobian))
    with Watch():
        balancer.combine(Evidence(names[::-1], jacobian=jacobian))


SOLVERS: dict[str, Any] = {
    "min norm": solvers.min_norm_weights,
    "dual cone": lambda g: solvers.dual_cone_weights(g, torch.eye(len(g), dtype=g.dtype, device=g.device)),
    "Nash": solvers.fair_weights,
    "fair, 2": lambda g: solvers.fair_weights(g, 2.0),
    "conflict averse": lambda g: solvers.conflict_averse_weights(g, 0.5),
    "equal projections": solvers.equal_projection_weights,
    "inverse gradient": solvers.inverse_gradient_weights,
    "aligned": lambda g: solvers.aligned_weights(g, g.new_ones(len(g)), "median"),
    "surgery": lambda g: solvers.surgery_weights(g, Orders(0)(len(g), g.device))[0],
    "projection": lambda g: solvers.project_to_simplex(g),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_do_not_wait(solver: str, size: int, no_numbers: None):
    with Watch():
        assert SOLVERS[solver](torch.empty(size, size, device=META)).device == META


def _waits(act: Any) -> None:
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError, TypeError)), Watch():
        act(torch.ones(3, device=META))


@pytest.mark.parametrize(
    "act",
    [
        lambda t: t[0].item(),
        lambda t: t.tolist(),
        lambda t: bool(t[0] > 0),
        lambda t: float(t.sum()),
        lambda t: t.cpu(),
        lambda t: t.numpy(),
        lambda t: t[t > 0],
        lambda t: t[torch.tensor([0, 2])],
        lambda t: torch.tensor([1.0, 2.0]).to(t),
        lambda t: torch.tensor(1.0).to(t.device),
        lambda t: t.copy_(torch.zeros(3)),
    ],
)
def test_the_watch_sees_what_it_should(act: Any):
    _waits(act)


def test_nothing_is_made_on_the_device_of_the_host_s_numbers():
    """`torch.tensor(..., device=...)` waits, which the watch cannot see; `keyed.to_device` does not."""
    for file in Path(pt.balancing.__file__).parent.rglob("*.py"):
        found = re.findall(r"(?:as_tensor|torch\.tensor)\([^\n]*device=", file.read_text())
        assert not found, f"{file.name}: {found}"


def names_of(items: Sequence[Entry]) -> list[str]:
    return [item.name for item in items]


def test_only_another_library_is_left_out():
    assert set(names_of(catalog("balancer"))) - set(names_of(ENTRIES)) == set(OF_ANOTHER_LIBRARY) == {"TorchJD"}
