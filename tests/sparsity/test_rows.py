"""Rows: reshaping, groups, and the layers in play."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import data, network
from torch import nn
from torch.nn import functional as F

import polytask as pt
from polytask.models import HardSharing
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.rows import Layer, from_rows, to_rows

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, (3, 2)), (2, 6, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2), (2, 6, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 7, 7)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    make, shape = LAYERS[request.param]
    return make(), shape


def test_from_rows_undoes_to_rows(case):
    module, _ = case
    rows = to_rows(module)
    assert rows.shape[0] == 6
    assert rows.numel() == module.weight.numel()
    assert torch.equal(from_rows(module, rows), module.weight)
    assert torch.equal(to_rows(module, module.weight**2), rows**2)


@pytest.mark.parametrize("unit", range(6))
def test_row_i_is_all_that_input_unit_i_meets(case, unit: int):
    """With row i zero the output does not depend on unit i; with every other row zero, on no other."""
    module, shape = case
    x = torch.randn(shape)
    other = x.clone()
    other[:, unit] += torch.randn_like(x[:, unit])
    mask = torch.ones(6)
    mask[unit] = 0
    with torch.no_grad():
        layer = Layer("x", module)
        whole = module.weight.clone()
        layer.scale_(mask)
        assert torch.equal(to_rows(module), from_scratch := to_rows(module, whole) * mask[:, None]), from_scratch
        torch.testing.assert_close(module(x), module(other), atol=1e-6, rtol=0)
        assert layer.alive().tolist() == mask.bool().tolist()
        module.weight.copy_(whole)
        layer.scale_(1 - mask)
        torch.testing.assert_close(module(torch.zeros_like(x)), module((mask.view(6, *[1] * (x.dim() - 2))) * x))
        assert not torch.allclose(module(x), module(other))


def test_norms_are_those_of_the_rows(case):
    module, _ = case
    for size in (1, 2) if module.__class__ is nn.Linear else (1,):
        layer = Layer("x", module, size=size)
        wanted = to_rows(module).reshape(6 // size, -1).norm(dim=1)
        torch.testing.assert_close(layer.norms(), wanted)
        assert layer.by_row(layer.norms()).shape == (6,)


def test_the_norms_gradient_at_a_dead_group_is_zero(case):
    module, _ = case
    layer = Layer("x", module)
    layer.scale_(torch.tensor([0.0, 1, 1, 0, 1, 1]))
    layer.norms().sum().backward()
    gradient = to_rows(module, module.weight.grad)
    assert torch.isfinite(gradient).all()
    assert gradient.norm(dim=1).tolist() == pytest.approx([0, 1, 1, 0, 1, 1], abs=1e-6)


def test_layers_without_rows_are_refused():
    with pytest.raises(TypeError, match="must be one of Linear, Conv1d, Conv2d, Conv3d, found ConvTranspose2d for `x`"):
        Layer("x", nn.ConvTranspose2d(3, 3, 2))
    with pytest.raises(ValueError, match="the 6 rows of `x` must divide into groups of equal size, found a size of 4"):
        Layer("x", nn.Linear(6, 2), size=4)


class Net(nn.Module):
    """A trunk with the ways in which convolutions reach linear layers, written as functions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.depth = nn.Conv2d(4, 4, 1, groups=4)
        self.second = nn.Conv2d(4, 6, 3)
        self.flat, self.turned, self.pooled, self.joined = (nn.Linear(n, 5) for n in (24, 24, 6, 29))

    def forward(self, x):
        z = self.second(self.depth(F.relu(self.norm(self.first(x)))))  # (B, 6, 2, 2)
        flat = self.flat(F.dropout(torch.flatten(z, 1), 0.5, self.training).relu())
        turned = self.turned(z.permute(0, 2, 3, 1).reshape(len(z), -1))
        pooled = self.pooled(F.adaptive_avg_pool2d(z, 1).flatten(1))
        return self.joined(torch.cat([z.flatten(1), flat + turned], 1)) + pooled


def _net():
    head = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    return HardSharing(Net(), heads={"a": head, "b": nn.Linear(5, 2)})


def test_the_default_filter_and_the_units_behind_a_flatten():
    """Not the first, not the heads' outputs, not grouped; H·W rows a unit only where units lie side by side."""
    x = torch.randn(2, 1, 6, 6)
    found = {layer.name: (layer.rows, layer.spread, layer.size) for layer in layers_in_play(_net(), x)}
    assert found == {
        "trunk.second": (4, 1, 1), "trunk.flat": (24, 4, 4), "trunk.turned": (24, 1, 1), "trunk.pooled": (6, 1, 1),
        "trunk.joined": (29, 1, 1), "heads.a.0": (5, 1, 1),
    }  # fmt: skip
    rows = {layer.name: layer.size for layer in layers_in_play(_net(), x, "row")}
    assert set(rows.values()) == {1}
    sources = {layer.name: set(layer.sources) for layer in layers_in_play(_net(), x)}
    assert sources["trunk.second"] == {"trunk.depth"}
    assert sources["trunk.joined"] == {"trunk.second", "trunk.flat", "trunk.turned"}
    assert sources["heads.a.0"] == {"trunk.joined", "trunk.pooled"}


def test_a_unit_of_a_layer_behind_a_flatten_is_a_filter():
    """Zeroing group i of `flat` makes filter i of `second` useless to it."""
    model = _net().eval()
    x = torch.randn(2, 1, 6, 6)
    layer = {layer.name: layer for layer in layers_in_play(model, x)}["trunk.flat"]
    seen = []
    layer.module.register_forward_hook(lambda module, args, output: seen.append(output))
    layer.scale_(torch.tensor([1.0, 1, 0, 1, 1, 1]))
    with torch.no_grad():
        model(x)
        model.trunk.second.weight[2] += 1
        model(x)
    assert torch.equal(*seen)


def test_watching_leaves_the_model_as_it_was():
    model = _net()
    model.trunk.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    layers_in_play(model, torch.randn(1, 1, 6, 6, generator=torch.Generator()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model.trunk.norm.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize(
    ("select", "wanted"),
    [
        (["heads"], ["heads.a.0", "heads.a.2", "heads.b"]),
        ("trunk.depth", ["trunk.depth"]),
        (["trunk.first", "heads.b"], ["trunk.first", "heads.b"]),
        (lambda name, module: isinstance(module, nn.Conv2d), ["trunk.first", "trunk.depth", "trunk.second"]),
    ],
)
def test_a_filter_of_ones_own(select, wanted):
    assert [layer.name for layer in layers_in_play(_net(), torch.randn(1, 1, 6, 6), select=select)] == wanted


def test_refusals():
    x = torch.randn(1, 1, 6, 6)
    with pytest.raises(ValueError, match=r"found `trunk.sekond`: did you mean `trunk.second`\?"):
        layers_in_play(_net(), x, select=["trunk.sekond"])
    with pytest.raises(TypeError, match=r"found BatchNorm2d for `trunk.norm`"):
        layers_in_play(_net(), x, select=["trunk.norm"])
    with pytest.raises(ValueError, match="`granularity` must be one of 'unit', 'row', found 'filter'"):
        layers_in_play(_net(), x, granularity="filter")
    bare = HardSharing(nn.Linear(3, 4), heads={"a": nn.Linear(4, 1)})
    with pytest.raises(
        ValueError, match=r"at least one layer must be in play .* found none among \['trunk', 'heads.a'\]"
    ):
        layers_in_play(bare, torch.randn(1, 3))
    unused = _net()
    unused.trunk.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"must take part in the model's forward pass, found `trunk.spare` unused"):
        layers_in_play(unused, x, select=["trunk.spare"])


def test_any_model_will_do():
    module = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), "top": nn.Linear(4, 1)})

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = module

        def forward(self, x):
            return {"a": self.parts["top"](self.parts["body"](x))}

    model = pt.models.Partitioned(Whole(), shared="parts.body", tasks=["a"])
    assert [layer.name for layer in layers_in_play(model, torch.randn(2, 3))] == ["module.parts.body.2"]


@pytest.mark.parametrize("form", ["cross-stitch", "mmoe", "cgc", "ple", "shared decision", "soft"])
def test_layers_are_found_in_every_architecture(form: str):
    model = network("plain", "ab", form)
    layers = layers_in_play(model, data()[0])
    named = dict(model.named_modules())
    assert layers and all(layer.module is named[layer.name] and layer.size == 1 for layer in layers)
    assert {"heads.a.0", "heads.b.0"} <= {layer.name for layer in layers}


def test_what_mixes_units_without_rows_is_a_source():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 6)
            self.top = nn.Linear(6, 4)

        def forward(self, x):
            return self.top(self.cell(x))

    model = HardSharing(Recurrent(), heads={"a": nn.Linear(4, 1)})
    (layer,) = layers_in_play(model, torch.zeros(2, 3))
    assert (layer.name, layer.rows, layer.sources) == ("trunk.top", 6, {"trunk.cell"})
