"""What every architecture must do: blocks that mean what they say, configurations, export, every kind of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from tests.contracts.test_contracts import BALANCERS, SCHEDULES, _built
from tests.helpers import FEATURED, Witness, adam, data, network, tasks, trainer, weights
from torch import Tensor, nn

import polytask as pt
from polytask.balancing.base import Needs
from polytask.export import export
from polytask.models import SoftSharing, TowerDistance


def reached(model: pt.models.Model) -> dict[str, set[str]]:
    """{parameter: the tasks whose outputs depend on it}, with all parameters drawn anew."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=random))
    named = dict(model.named_parameters())
    found: dict[str, set[str]] = {name: set() for name in named}
    for task, out in model(data()[0]).items():
        gradients = torch.autograd.grad(out.square().sum(), list(named.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None and bool(gradient.any()):
                found[name].add(task)
    return found


@pytest.mark.parametrize("form", ["hard", "single", *FEATURED])
def test_a_parameter_is_a_task_s_own_just_where_no_other_task_depends_on_it(form: str):
    model = network("plain", "abc", form)
    names = {id(p): name for name, p in model.named_parameters()}
    tasks_of, blocks = reached(model), model.blocks()
    for task, block in blocks.specific.items():
        assert {name: tasks_of[name] for name in (names[id(p)] for p in block.parameters)} == {
            names[id(p)]: {task} for p in block.parameters
        }
    few = {names[id(p)] for p in blocks.shared.parameters if len(tasks_of[names[id(p)]]) < 2}
    assert few == ({f"levels.0.gates.{task}.1.weight" for task in "abc"} if form == "ple" else set())


@pytest.mark.parametrize("form", [form for form in FEATURED if form not in ("monitored", "mtan")])
def test_heads_read_what_they_are_said_to_read(form: str):
    """Features computed without a graph, and inputs only where they are asked for, give the same outputs."""
    model = network("norm+dropout", "abc", form).eval()
    x = data()[0]
    whole = model(x)
    with torch.no_grad():
        features = model.features(x)
    read = x if model.heads_read_inputs else None
    for task in "abc":
        found = model.head(task, features, read)
        assert torch.equal(found, whole[task])
        found.sum().backward()
    shared = {id(p) for p in model.blocks().shared.parameters}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is (id(parameter) in shared), name


@pytest.mark.parametrize("kind", BALANCERS.values())
def test_balancers_train_softly_shared_towers(kind: Any):
    """Those that work at the feature boundary say that there is none."""
    witness = Witness()
    run = trainer(
        network("norm", form="soft"), balancer=_built(kind), objectives=[TowerDistance(0.1)], callbacks=[witness],
        schedule=pt.schedules.AlternateBatches(), optimizer=adam(),
    )  # fmt: skip
    if Needs.COTANGENTS in kind.needs:
        with pytest.raises(ValueError, match="at the feature boundary"):
            run.fit(data(), epochs=1)
        return
    run.fit(data(), epochs=1)
    assert witness.live_seen
    assert all(torch.isfinite(value).all() for value in weights(run.model).values())


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_softly_shared_towers_train_under_every_schedule(schedule: Any):
    witness = Witness()
    run = trainer(
        network("norm+dropout", form="soft"), schedule=_built(schedule), objectives=[TowerDistance(0.1)],
        callbacks=[witness], optimizer=adam(),
    )  # fmt: skip
    run.fit(data(), data(9, seed=1), epochs=4)
    assert witness.live_seen


MODELS = """
SoftSharing:
  trunk: {class_path: MLP, init_args: {inputs: 2, widths: [6]}}
  heads: &heads
    circle: {class_path: torch.nn.Linear, init_args: {in_features: 6, out_features: 1}}
    rhombus: {class_path: torch.nn.Linear, init_args: {in_features: 6, out_features: 1}}
SoftSharing of towers:
  trunk:
    circle: {class_path: MLP, init_args: {inputs: 2, widths: [6]}}
    rhombus: {class_path: MLP, init_args: {inputs: 2, widths: [6]}}
  heads: *heads
CrossStitch:
  stages: &stages
    - {class_path: MLP, init_args: {inputs: 2, widths: [5]}}
    - {class_path: MLP, init_args: {inputs: 5, widths: [6]}}
  heads: *heads
  after: [1]
CrossStitch of towers:
  stages: {circle: *stages, rhombus: *stages}
  heads: *heads
  channels: [5, 6]
MMoE:
  experts: &experts
    - &expert {class_path: MLP, init_args: {inputs: 2, widths: [6]}}
    - *expert
  gates: 2
  heads: *heads
MMoE with gates:
  experts: [{class_path: MLP, init_args: {inputs: 4, widths: [6]}}]
  gates:
    circle: {class_path: torch.nn.Linear, init_args: {in_features: 4, out_features: 1}}
    rhombus: {class_path: torch.nn.Linear, init_args: {in_features: 4, out_features: 1}}
  heads: *heads
  encoder: {class_path: MLP, init_args: {inputs: 2, widths: [4]}}
CGC:
  shared: *experts
  specific: {circle: [*expert], rhombus: []}
  gates: 2
  heads: *heads
PLE:
  shared: [[*expert], [&above {class_path: MLP, init_args: {inputs: 6, widths: [6]}}, *above]]
  specific: {circle: [[*expert], [*above]], rhombus: [[*expert], [*above]]}
  gates: [2, 6]
  heads: *heads
SharedDecision:
  trunk: {class_path: MLP, init_args: {inputs: 2, widths: [6]}}
  heads: *heads
  decision: {class_path: MLP, init_args: {inputs: 2, widths: [6]}}
  readouts: *heads
"""


@pytest.mark.parametrize("name", yaml.safe_load(MODELS))
def test_configurations_can_name_it(name: str):
    from polytask.studies import spec

    kind = name.split()[0]
    config: dict[str, Any] = {
        "data": "CircleRhombus",
        "epochs": 1,
        "model": {"class_path": kind, "init_args": yaml.safe_load(MODELS)[name]},
    }
    if kind == "SoftSharing":
        config["trainer"] = {"objectives": [{"class_path": "TowerDistance", "init_args": {"weight": 0.1}}]}
    run = spec.build(spec.resolve(config)).trainer
    assert type(run.model).__name__ == kind
    drawn = [float(p.detach()[0, 0]) for p in run.model.parameters() if p.dim() == 2 and p.any()]
    copied = name == "SoftSharing" or kind == "CrossStitch"  # the others' modules each start from weights of their own
    assert copied or len(set(drawn)) == len(drawn)
    assert run.model(torch.zeros(4, 2))["rhombus"].shape == (4, 1)


@pytest.mark.parametrize(
    ("form", "format"),
    [("cross-stitch", "onnx"), pytest.param("mmoe", "onnx", marks=pytest.mark.slow), ("mmoe", "torch"),
     ("soft", "torch"), ("cgc", "torch"), ("ple", "torch"), ("shared decision", "torch")],
)  # fmt: skip
def test_exported_networks_answer_alike_at_any_batch_size(form: str, format: str, tmp_path: Any):
    """Which the export itself checks, at two sizes."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
    model = network("norm+dropout", form=form)
    path = export(model, tmp_path / "net", format, tasks(), example=torch.randn(1, 3))
    assert path.is_file()


class Picture(nn.Module):
    """Maps and vectors, mixed by units of one matrix a channel."""

    def __init__(self) -> None:
        super().__init__()
        stages = [nn.Conv2d(1, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))]
        heads = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 3)}
        self.model = pt.models.CrossStitch(stages, heads, channels=[3, 4])


def test_units_by_channel_can_be_exported(tmp_path: Any):
    model = Picture().model
    assert export(model, tmp_path / "net", "torch", example=torch.randn(2, 1, 8, 8)).is_file()


def test_a_step_s_gradient_of_a_soft_network_is_that_of_the_sum():
    """Σ losses + weight · penalty, by autograd on the outside."""
    model = network(form="soft")
    assert isinstance(model, SoftSharing)
    x, y = data(8)
    names = list(dict(model.named_parameters()))
    out = model(x)
    loss: Tensor = nn.functional.binary_cross_entropy_with_logits(out["a"][:, 0], y["a"])
    loss = loss + nn.functional.cross_entropy(out["b"], y["b"])
    one, two = ([*model.towers[name].parameters()] for name in "ab")
    loss = loss + 0.3 * sum((p - q).square().sum() for p, q in zip(one, two, strict=True))
    wanted = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    before = weights(model)
    run = trainer(model, objectives=[TowerDistance(0.3)])
    run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=1)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, before[name] - 0.1 * wanted[name], atol=1e-6, rtol=1e-5)
