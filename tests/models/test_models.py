"""Which parameters are whose."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.helpers import FEATURED, Whole, data, heads, network, same, trainer, trunk, weights
from torch import nn

import polytask as pt
from polytask.models import MLP, HardSharing, LeNet, Partitioned, SingleTask

FORMS = ["hard", "partitioned", "partitioned by shared only", "single", "soft", *FEATURED]


@pytest.mark.parametrize("form", FORMS)
def test_blocks_hold_every_parameter_and_outputs_fit(form: str):
    model = network("norm+dropout", "abc", form)
    model.bind(("a", "b", "c"))
    blocks = model.blocks()
    held = {id(p) for b in (blocks.shared, *blocks.specific.values()) for p in b.parameters}
    assert held == {id(p) for p in model.parameters()}
    assert not {id(p) for p in blocks.shared.parameters} & {id(p) for p in blocks.specific_parameters()}
    shapes = {name: tuple(out.shape) for name, out in model(torch.randn(5, 3)).items()}
    assert shapes == {"a": (5, 1), "b": (5, 3), "c": (5, 1)}
    assert list(model(torch.randn(5, 3), ["c", "a"])) == ["c", "a"]


@pytest.mark.parametrize("form", ["hard", "partitioned", "single", "soft", *FEATURED])
def test_every_module_with_buffers_belongs_to_one_block(form: str):
    model = network("norm+dropout", "abc", form)
    blocks = model.blocks()
    owners = [id(m) for b in (blocks.shared, *blocks.specific.values()) for m in b.modules]
    for module in model.modules():
        if list(module.buffers(recurse=False)) or isinstance(module, nn.Dropout):
            assert owners.count(id(module)) == 1


def test_a_wrapped_module_trains_as_the_same_network_with_a_boundary():
    runs = [trainer(network(form=form)) for form in ("hard", "partitioned", "partitioned by shared only")]
    for run in runs:
        run.fit(data(), epochs=2)
    states = [[*weights(run.model).values()] for run in runs]
    assert same(states[0], states[1])
    assert same(states[0], states[2])


def test_shared_parameters_may_be_told_by_a_function_or_several_prefixes():
    whole = Whole(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6)), heads())
    by_function = Partitioned(whole, shared=lambda name: name.startswith("trunk"), tasks=["a", "b"])
    by_prefixes = Partitioned(whole, shared=["trunk.0", "trunk.1."], tasks=["a", "b"])
    for model in (by_function, by_prefixes):
        assert len(model.blocks().shared.parameters) == 4


class Mixed(nn.Module):
    """Modules without parameters, with buffers or without, in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU())
        self.between = nn.BatchNorm1d(6, affine=False)
        self.a = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.BatchNorm1d(4, affine=False)), nn.Linear(4, 1))
        self.b = nn.Linear(6, 3)

    def forward(self, x: Any) -> dict[str, torch.Tensor]:
        z = self.between(self.trunk(x))
        return {"a": self.a(z), "b": self.b(z)}


CUTS: dict[str, Any] = {
    "the layer": "trunk.0",
    "the trunk": "trunk",
    "a function": lambda name: {"trunk.0.weight": True, "trunk.0.bias": True, "a.0.weight": False, "a.0.bias": False,
                                "a.2.weight": False, "a.2.bias": False, "b.weight": False, "b.bias": False}[name],
}  # fmt: skip


@pytest.mark.parametrize("specific", [None, {"a": "a", "b": "b"}], ids=["one rest", "each its own"])
@pytest.mark.parametrize("cut", CUTS)
def test_modules_without_parameters_belong_to_the_parameters_around_them(cut: str, specific: Any):
    module = Mixed()
    model = Partitioned(module, CUTS[cut], specific, tasks=["a", "b"])
    model.bind(["a", "b"])
    blocks = model.blocks()
    shared, own = ({id(m) for m in block.modules} for block in (blocks.shared, blocks.specific["a"]))
    assert {id(module.trunk[1]), id(module.trunk[2])} <= shared
    assert {id(module.a[1]), id(module.a[1][0])} <= own
    assert {id(module), id(module.between)} <= shared - own  # around them are parameters of several blocks
    assert not shared & own
    before = weights(module)
    trainer(model, schedule=pt.schedules.AlternateEpochs(0, 1)).fit(data(), epochs=1)
    moved = {name for name, value in module.state_dict().items() if not same(value, before[name])}
    assert not {name for name in moved if name.startswith(("trunk", "between"))}
    assert {name for name in moved if name.startswith("a.1")}


def test_a_module_whose_parameters_belong_to_several_blocks_is_shared():
    module = Whole(nn.Sequential(nn.Linear(3, 6), nn.Tanh()), heads())
    model = Partitioned(module, ["trunk.0.weight"], tasks=["a", "b"])
    blocks = model.blocks()
    assert [id(p) for p in blocks.shared.parameters] == [id(module.trunk[0].weight)]
    assert any(m is module.trunk[0] for m in blocks.shared.modules)
    assert not any(m is module.trunk[0] for m in blocks.specific["a"].modules)


class Decoder(nn.Linear):
    def forward(self, x: Any) -> torch.Tensor:
        return super().forward(x).sum(1, keepdim=True)


class Tied(nn.Module):
    """Heads a and b have one weight, and head c decodes with the trunk's."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.a, self.b, self.c = nn.Linear(3, 1), nn.Linear(3, 1), Decoder(3, 3)
        self.b.weight = self.a.weight
        self.c.weight = self.trunk.weight

    def forward(self, x: Any) -> dict[str, torch.Tensor]:
        z = self.trunk(x)
        return {"a": self.a(z), "b": self.b(z), "c": self.c(z)}

    def model(self, form: str) -> pt.models.Model:
        if form == "hard":
            return HardSharing(self.trunk, {"a": self.a, "b": self.b, "c": self.c})
        return Partitioned(self, "trunk", {name: name for name in "abc"})


@pytest.mark.parametrize("form", ["hard", "partitioned"])
def test_a_tied_parameter_belongs_to_every_block_that_holds_it(form: str):
    module = Tied()
    blocks = module.model(form).blocks()
    held = {name: {id(p) for p in block.parameters} for name, block in {"": blocks.shared, **blocks.specific}.items()}
    assert held == {
        "": {id(module.trunk.weight), id(module.trunk.bias)},
        "a": {id(module.a.weight), id(module.a.bias)},
        "b": {id(module.a.weight), id(module.b.bias)},
        "c": {id(module.trunk.weight), id(module.c.bias)},
    }
    assert all(len(block.parameters) == 2 for block in blocks.specific.values())
    module.b.bias = module.a.bias  # b has nothing left of its own
    assert len(module.model(form).blocks().specific["b"].parameters) == 2


@pytest.mark.parametrize("form", ["hard", "partitioned"])
def test_weights_tied_between_trunk_and_head_move_in_shared_phases_only(form: str):
    kinds = [pt.regression(name) for name in "abc"]
    x, y = torch.randn(8, 3), {name: torch.randn(8) for name in "abc"}
    module = Tied()
    tied, own = module.trunk.weight, module.c.bias
    loss = sum(kind.total(out, y[kind.name], 8) / 8 for kind, out in zip(kinds, module(x).values(), strict=True))
    gradient = torch.autograd.grad(loss, tied)[0]  # through the trunk and through the head
    seen = [(tied.detach().clone(), own.detach().clone())]

    class Look(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            seen.append((tied.detach().clone(), own.detach().clone()))

    run = trainer(module.model(form), tasks=kinds, schedule=pt.schedules.AlternateEpochs(1, 1), callbacks=[Look()])
    run.fit((x, y), epochs=3)
    torch.testing.assert_close(seen[1][0], seen[0][0] - 0.1 * gradient)
    moves = [tuple(not torch.equal(p, q) for p, q in zip(*pair, strict=True)) for pair in itertools.pairwise(seen)]
    assert moves == [(True, False), (False, True), (True, False)]


def test_towers_start_equal_and_share_nothing():
    model = SingleTask(trunk("norm"), heads("abc"))
    towers = [weights(tower) for tower in model.towers.values()]
    assert same(towers[0], towers[1])
    with torch.no_grad():
        next(model.towers["a"].parameters()).add_(1)
    assert same(weights(model.towers["b"]), towers[1])
    assert model.blocks().shared.parameters == ()


class Sum(nn.Module):
    """Joins a tuple or dictionary of inputs."""

    def forward(self, inputs: Any) -> torch.Tensor:
        parts = inputs.values() if isinstance(inputs, dict) else inputs
        return torch.cat(list(parts), 1)


@pytest.mark.parametrize("form", ["tuple", "dictionary"])
@pytest.mark.parametrize("schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1)], ids=["joint", "ate"])
def test_inputs_may_be_a_tuple_or_a_dictionary(form: str, schedule: Any):
    x, y = data()
    plain = trainer(schedule=schedule)
    plain.fit((x, y), (x, y), epochs=2)
    parts = (x[:, :1], x[:, 1:]) if form == "tuple" else {"left": x[:, :1], "right": x[:, 1:]}
    model = network()
    wrapped = HardSharing(nn.Sequential(Sum(), *model.trunk), dict(model.heads.items()))
    run = trainer(wrapped, schedule=schedule)
    run.fit((parts, y), (parts, y), epochs=2)
    assert run.history == plain.history
    assert same([*weights(run.model).values()], [*weights(plain.model).values()])
    assert torch.equal(run.predict(parts)["a"].outputs, plain.predict(x)["a"].outputs)


def test_encoders():
    assert MLP(4, [8, 6], outputs=2, dropout=0.1)(torch.zeros(3, 2, 2)).shape == (3, 2)
    assert sum(p.numel() for p in LeNet().parameters()) == 21_330
    glorot = MLP(2, [64], outputs=1, init="glorot")
    assert not glorot[0].bias.any()
    assert glorot[0].weight.abs().max() <= (6 / 66) ** 0.5


class OwnOutput(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.trunk, self.top, self.outputs = nn.Linear(3, 2), nn.Linear(2, 1), outputs

    def forward(self, x: Any) -> Any:
        z = self.top(self.trunk(x))
        return z if self.outputs is None else dict.fromkeys(self.outputs, z)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: HardSharing(trunk(), {}), ValueError, "`heads` must name a module for at least one task, found none"),
        (lambda: HardSharing(trunk(), {"a": 3}), TypeError, "`heads` must map tasks to modules, found int for task `a`"),
        (lambda: HardSharing(trunk(), {"type": trunk()}), ValueError, "must not be an attribute of torch's ModuleDict, found `type`"),
        (lambda: SingleTask({"a": trunk()}, heads()), ValueError, "found ['a'] in `trunk` and heads for ['a', 'b']"),
        (lambda: Partitioned(OwnOutput("a"), "trnk"), ValueError, "prefix `trnk` must match a parameter, found none: did you mean `trunk`?"),
        (lambda: Partitioned(OwnOutput("a"), ["trunk", "top"]), ValueError, "found that it takes all 4"),
        (lambda: Partitioned(OwnOutput("a"), lambda n: False), ValueError, "`shared` must match at least one parameter"),
        (lambda: Partitioned(OwnOutput("a"), "trunk", {"a": "trunk"}), ValueError, "parameter `trunk.weight` must be shared or some task's own, found both"),
        (lambda: Partitioned(Whole(trunk(), heads()), "trunk", {"a": "tops.a"}), ValueError, "parameter `tops.b.0.weight` must be shared or some task's own, found neither"),
        (lambda: Partitioned(OwnOutput(None), "trunk")(torch.zeros(1, 3)), TypeError, "must return {task: outputs}, found Tensor"),
        (lambda: Partitioned(OwnOutput("a"), "trunk", tasks=["b"])(torch.zeros(1, 3)), ValueError, "the module returned no output for task `b`"),
        (lambda: SingleTask(trunk(), heads()).features(torch.zeros(1, 3)), TypeError, "SingleTask has no feature boundary"),
        (lambda: MLP(2), ValueError, "an MLP must have `widths` or `outputs`, found neither"),
        (lambda: MLP(2, [0]), ValueError, "`widths` must be at least 1, found 0"),
        (lambda: MLP(2, [4], activation="rleu"), ValueError, "`activation` must be one of 'relu', 'tanh', 'gelu', 'silu', found 'rleu'"),
        (lambda: MLP(2, [4], dropout=1.0), ValueError, "`dropout` must be in [0, 1), found 1.0"),
        (lambda: LeNet(channels=0), ValueError, "`channels` must be at least 1, found 0"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
