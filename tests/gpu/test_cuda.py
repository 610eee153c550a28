"""On a GPU: no step waits for the device, the answers are the CPU's, and a step can be captured in a CUDA graph.

Run with `pytest -m gpu tests/gpu`; skipped where there is no GPU. What is excepted is in `exceptions.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.contracts.test_balancers import MODES, TRUNKS, Net, built, flat, inputs, refused_in
from tests.gpu.exceptions import HOST_DRAWS, OF_ANOTHER_LIBRARY, WAITS
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence, Needs
from polytask.catalog import Entry, catalog

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use, found none"),
]
ENTRIES = [entry for entry in catalog("balancer") if entry.name not in OF_ANOTHER_LIBRARY]
every_balancer = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
every_count = pytest.mark.parametrize("names", ["ab", "abc"])


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """Switches torch's watch over synchronising calls on; off again afterwards, whatever happened."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def excepted(listed: dict[str, tuple[int, str]], entry: Entry, names: str) -> bool:
    return entry.name in listed and len(names) >= listed[entry.name][0]


def step(net: Net, balancer: Any, x: Tensor, names: str, mode: str = "exact") -> Tensor:
    losses, features = net.losses(x, names)
    found = pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features)
    if Needs.LOSSES_AFTER in balancer.needs:
        balancer.after({name: loss.detach() for name, loss in losses.items()})
    return found


@every_count
@pytest.mark.parametrize("mode", MODES)
@every_balancer
def test_no_step_waits_for_the_device(entry: Entry, mode: str, names: str, no_waiting: Any):
    net, balancer = Net(TRUNKS["plain"]).cuda(), built(entry, names)
    if refused_in(balancer, mode):
        return
    batches = [inputs(64, seed).cuda() for seed in range(4)]
    step(net, balancer, batches[0], names, mode)
    net.zero_grad()
    step(net, balancer, batches[1], names, mode)
    torch.cuda.synchronize()
    if excepted(WAITS, entry, names):
        pytest.skip(WAITS[entry.name][1])
    no_waiting()
    for x in batches[2:]:
        net.zero_grad()
        step(net, balancer, x, names, mode)


@every_count
@pytest.mark.parametrize("mode", MODES)
@every_balancer
def test_the_answers_are_the_cpu_s(entry: Entry, mode: str, names: str):
    """Over three steps, so that what is learned agrees too. GradDrop draws from the device's own stream."""
    found = []
    for device in ("cpu", "cuda"):
        net, balancer = Net(TRUNKS["plain"]).to(device), built(entry, names)
        if refused_in(balancer, mode) or (device == "cuda" and hasattr(balancer, "_draw") and entry.name == "GradDrop"):
            return
        for seed in range(3):
            net.zero_grad()
            used = step(net, balancer, inputs(64, seed).to(device), names, mode)
        found.append((flat(net.parameters()).cpu(), used.cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@every_balancer
def test_a_checkpoint_goes_from_one_device_to_the_other(entry: Entry):
    net, balancer = Net(TRUNKS["plain"]).cuda(), built(entry)
    for seed in range(2):
        step(net, balancer, inputs(64, seed).cuda(), "abc")
    state = {key: _on_cpu(value) for key, value in balancer.state_dict().items()}
    if entry.name == "GradDrop":  # its stream is the device's own
        return
    here, again = Net(TRUNKS["plain"]), built(entry)
    again.load_state_dict(state)
    here.zero_grad()
    used = step(here, again, inputs(64, 5), "abc")
    torch.testing.assert_close(used, step(net, balancer, inputs(64, 5).cuda(), "abc").cpu(), rtol=1e-4, atol=1e-6)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value


@every_count
@every_balancer
def test_a_step_can_be_captured(entry: Entry, names: str):
    """A graph replayed on another batch gives what the step gives there."""
    for listed in (WAITS, HOST_DRAWS):
        if excepted(listed, entry, names):
            pytest.skip(listed[entry.name][1])
    if entry.name == "GradDrop":
        pytest.skip("draws from a stream of its own, which the graph would have to be told of")
    net, balancer, twin = Net(TRUNKS["plain"]).cuda(), built(entry, names), built(entry, names)
    x = inputs(64).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            for each in (balancer, twin):
                net.zero_grad()
                step(net, each, x, names)
    torch.cuda.current_stream().wait_stream(side)
    net.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        used = step(net, balancer, x, names)
    captured = [p.grad for p in net.parameters() if p.grad is not None]
    for seed in (2, 3):
        x.copy_(inputs(64, seed))
        graph.replay()
        gradients, weights = [g.clone() for g in captured], used.clone()
        net.zero_grad()
        expected = step(net, twin, x, names)
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
        for one, p in zip(gradients, (p for p in net.parameters() if p.grad is not None), strict=True):
            torch.testing.assert_close(one, p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [2, 3, 5, 10, 40])
@every_balancer
def test_weights_of_a_gramian_are_the_cpu_s(entry: Entry, size: int):
    names = [str(k) for k in range(size)]
    jacobian = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    balancers = built(entry, names), built(entry, names)
    if not isinstance(balancers[0], pt.balancing.Aggregator) or entry.name in ("GradDrop", "GREAT"):
        return
    found = [
        torch.as_tensor(balancer.combine(Evidence(names, jacobian=jacobian.to(device)))).cpu().double() @ jacobian
        for balancer, device in zip(balancers, ("cpu", "cuda"), strict=True)
    ]
    assert (found[0] - found[1]).norm() <= 1e-6 * found[0].norm()
