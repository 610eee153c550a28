"""The engine: every mode gives the gradient it promises, and accumulation equals the concatenated batch."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import data, network, same, sgd, trainer, weights
from torch import Tensor, nn

import polytask as pt
from polytask.balancing.gradients import Backward
from polytask.balancing.solvers import min_norm_weights

MGDA = pt.aggregation.MGDA


class Net(nn.Module):
    """A trunk and heads in float64, with what a test needs to differentiate by hand."""

    def __init__(self, tasks: int, trunk: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = trunk or nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(tasks))
        self.double()

    def losses(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(x)
        return z, [(head(z) - k).square().sum() for k, head in enumerate(self.heads)]


def filled(net: Net, mode: str, parts: int = 1, balancer: pt.balancing.Balancer | None = None) -> dict[str, Tensor]:
    """The gradients of all parameters, by name, and the weights."""
    x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names = [f"task {k}" for k in range(len(net.heads))]
    net.zero_grad()
    work = Backward(
        balancer or MGDA(), list(net.trunk.parameters()), list(net.heads.parameters()), mode=mode, batches=parts
    )
    for part in x.chunk(parts):
        z, losses = net.losses(part)
        work.add(names, losses, [1 / 12] * len(names), [z])
    found = {f"weight of {name}": torch.as_tensor(w).double() for name, w in work.finish().items()}
    return found | {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def by_hand(net: Net) -> tuple[Tensor, Tensor]:
    """The Jacobians (K, P) at the trunk's parameters and (K, Z) at its features."""
    x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z, losses = net.losses(x)
    trunk = list(net.trunk.parameters())
    rows, cotangents = [], []
    for loss in losses:
        pulled = torch.autograd.grad(loss / 12, [*trunk, z], retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in pulled[:-1]]))
        cotangents.append(pulled[-1].flatten())
    return torch.stack(rows), torch.stack(cotangents)


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("tasks", [1, 2, 3, 10])
@pytest.mark.parametrize("parts", [1, 3])
def test_low_memory_gives_the_exact_gradients(tasks: int, parts: int):
    net = Net(tasks)
    close(filled(net, "exact"), filled(net, "low_memory", parts))


@pytest.mark.parametrize("mode", ["exact", "features", "low_memory"])
def test_accumulated_batches_equal_the_concatenated_one(mode: str):
    net = Net(3)
    close(filled(net, mode), filled(net, mode, parts=4))


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_boundary_s_weights_are_those_of_the_gramian_there(tasks: int):
    """MGDA-UB: weights from the cotangents, applied to the exact gradients."""
    net = Net(tasks)
    jacobian, cotangents = by_hand(net)
    found = filled(net, "features")
    chosen = torch.stack([found[f"weight of task {k}"] for k in range(tasks)])
    expected = min_norm_weights(cotangents @ cotangents.T)
    torch.testing.assert_close(chosen, expected)
    gradient = torch.cat([found[f"trunk.{name}"].flatten() for name, _ in net.trunk.named_parameters()])
    torch.testing.assert_close(gradient, expected @ jacobian)


@pytest.mark.parametrize("mode", ["exact", "features", "low_memory"])
def test_heads_get_their_own_loss_s_gradient(mode: str):
    net = Net(3)
    found = filled(net, mode)
    net.zero_grad()
    x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (sum(net.losses(x)[1]) / 12).backward()
    for name, parameter in net.heads.named_parameters():
        torch.testing.assert_close(found[f"heads.{name}"], parameter.grad)


def test_low_memory_keeps_at_most_two_shared_gradients():
    from polytask.training.cost import peak_memory

    trunk = nn.Sequential(*[nn.Linear(300, 300) for _ in range(4)], nn.Linear(300, 4))
    net = nn.ModuleList([trunk, *[nn.Linear(4, 1) for _ in range(10)]])
    x, names = torch.randn(4, 300), [str(k) for k in range(10)]
    size = sum(p.numel() * p.element_size() for p in trunk.parameters())

    def step(mode: str) -> None:
        for parameter in net.parameters():
            parameter.grad = None
        z = trunk(x)
        work = Backward(MGDA(), list(trunk.parameters()), list(net[1:].parameters()), mode=mode)
        work.add(names, [head(z).square().sum() for head in net[1:]], [1.0] * 10, [z])
        work.finish()

    peaks = {mode: peak_memory(lambda mode=mode: step(mode)) / size for mode in ("low_memory", "exact", "features")}
    assert peaks["low_memory"] < 2.2
    assert peaks["features"] < 2
    assert peaks["exact"] > 10


def test_a_model_without_boundary_is_refused_where_one_is_needed():
    x, y = data(8)
    module = pt.models.Partitioned(network(), shared="trunk")
    fit = trainer(module, balancer=MGDA(), gradients="features")
    with pytest.raises(ValueError, match="works at the feature boundary, found a model"):
        fit.fit((x, y), epochs=1)


@pytest.mark.parametrize("mode", ["exact", "low_memory"])
def test_a_model_without_boundary_gives_the_same_as_one_with(mode: str):
    runs = []
    for wrap in (False, True):
        model = network()
        if wrap:
            model = pt.models.Partitioned(model, shared="trunk", specific={"a": "heads.a", "b": "heads.b"})
        fit = trainer(model, balancer=MGDA(), gradients=mode)
        fit.fit(data(16), epochs=2)
        runs.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("balancer", [pt.scalarization.Linear, MGDA])
@pytest.mark.parametrize("missing", [False, True])
def test_accumulating_two_batches_trains_like_one_twice_as_large(balancer: type, missing: bool):
    found = []
    for size, accumulate in ((8, 1), (4, 2), (2, 4)):
        fit = trainer(network(), balancer=balancer(), batch_size=size, accumulate=accumulate, optimizer=sgd(0.1))
        fit.fit(data(22, missing=missing), epochs=3)  # 22 examples: the last step is smaller
        found.append(weights(fit.model))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


def test_accumulating_resumes_exactly(tmp_path):
    def run(resume=None):
        fit = trainer(
            network("dropout"), accumulate=3, batch_size=4, callbacks=[pt.callbacks.Checkpoint(tmp_path, every=1)]
        )
        return fit.fit(data(22), epochs=2 if resume is None else 4, resume=resume), weights(fit.model)

    whole = trainer(network("dropout"), accumulate=3, batch_size=4, callbacks=[pt.callbacks.Checkpoint(tmp_path / "x")])
    history = whole.fit(data(22), epochs=4)
    run()
    again, found = run(tmp_path / "last.ckpt")
    assert again == history
    assert same(found, weights(whole.model))


@pytest.mark.parametrize(("name", "value"), [("gradients", "fast"), ("accumulate", 0)])
def test_wrong_settings_are_refused(name: str, value: object):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        trainer(network(), **{name: value})


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, None].expand(-1, 3, -1))[0][:, -1]


@pytest.mark.parametrize("mode", ["exact", "features", "low_memory"])
def test_recurrent_and_normalised_trunks(mode: str):
    for trunk in (Recurrent(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())):
        net = Net(2, trunk)
        found = filled(net, mode)
        assert all(torch.isfinite(g).all() for g in found.values())
        if mode == "low_memory":
            torch.testing.assert_close(found, filled(net, "exact"))
