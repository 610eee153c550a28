"""A compact network is the same function with less of everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import helpers
from tests.sparsity.dying import BUILDERS, SPREADS, apart, images, kill, kill_filters, layers, residual, settle
from torch import Tensor, nn

import polytask as pt
from polytask.models import HardSharing
from polytask.sparsity.compact import Compacted, compact, predict_sizes, rebuild
from polytask.sparsity.compact_layers import CompactConv2d, CompactLinear
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.rates import macs_of, predicted


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def head(net: nn.Sequential) -> HardSharing:
    """A network of one task; its last layer is the head."""
    return HardSharing(net[:-1], {"a": net[-1]})


def checked(model: Any, x: Tensor, **options: Any) -> Compacted[Any]:
    """Compacts in float64 and compares outputs on fresh inputs, and sizes with their prediction."""
    model = model.double().eval()
    x = x.double()
    found = compact(model, x, **options)
    fresh = torch.randn_like(x)
    assert apart(found.model(fresh), model(fresh)) <= 1e-12
    assert predicted(model, x, **options) == (count(found.model), macs_of(found.model, x) // len(x))
    return found


@pytest.mark.parametrize("granularity", ["unit", "row"])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_architecture_gives_the_same_outputs_with_fewer_of_everything(name, granularity):
    model = settle(BUILDERS[name]())
    kill(model, 0.4, spreads=SPREADS[name] if granularity == "unit" else None)
    kill_filters(model, 0.2)
    before = helpers.weights(model)
    single = compact(model, images(name, 2, torch.float32))
    assert helpers.same(helpers.weights(model), before)
    fresh = images(name, 5, torch.float32, seed=7)
    assert apart(single.model(fresh), model(fresh)) <= 1e-5

    double = checked(model, images(name, 2))
    assert count(double.model) < 0.7 * count(model)
    assert macs_of(double.model, images(name, 1)) < macs_of(model, images(name, 1))
    assert double.left_dense == {}


def laid_over(form: str) -> Any:
    """The networks for a digit laid over a picture, as published: their encoders hold convolutions with BatchNorm."""
    names = ("cifar", "digit")
    tops: dict[str, nn.Module] = {name: nn.Linear(32, 10) for name in names}
    if form == "monitored":
        return pt.models.Monitored(pt.models.ConvNet(), {name: pt.models.ConvNetMonitor() for name in names}, tops)
    if form == "mtan":
        attention = {name: pt.models.ConvNetAttention() for name in names}
        return pt.models.MTAN(pt.models.ConvNet(staged=True), attention, tops)
    return getattr(pt.models, form)(pt.models.ConvNet(), tops)


@pytest.mark.parametrize("form", ["HardSharing", "SingleTask", "monitored", "mtan"])
def test_the_published_networks_for_pictures_get_smaller(form):
    model = settle(laid_over(form))
    kill(model, 0.4)
    kill_filters(model, 0.2)
    x = torch.randn(2, 3, 32, 32)
    assert apart(compact(model, x).model(x), model(x)) <= 1e-5
    found = checked(model, x)
    assert count(found.model) < 0.7 * count(model) and found.left_dense == {}


@pytest.mark.parametrize("form", ["partitioned", "single", "soft", *helpers.FEATURED])
def test_forms_of_every_kind_get_smaller(form):
    """Where units are mixed by other than a layer, they stay, and the reason is told."""
    model = settle(helpers.network("norm", "ab", form))
    kill(model, 0.4)
    kill_filters(model, 0.2)
    found = checked(model, helpers.data()[0])
    assert count(found.model) < count(model)
    mixing = {"cross-stitch", "mmoe", "cgc", "ple", "shared decision"}
    assert bool(found.left_dense) is (form in mixing), found.left_dense


# --- random networks


@st.composite
def random_networks(draw: Any) -> tuple[nn.Module, Tensor]:
    """A convolutional trunk with branches that are added or concatenated, and two heads."""
    seed = draw(st.integers(0, 2**20))
    width, padded = draw(st.integers(1, 4)), draw(st.booleans())
    normed, biased = draw(st.booleans()), draw(st.booleans())
    join, pool = draw(st.sampled_from(["add", "cat", "mul"])), draw(st.sampled_from(["none", "max", "avg"]))
    share, filters = draw(st.sampled_from([0.3, 0.6, 0.9])), draw(st.sampled_from([0.0, 0.4, 0.8]))
    torch.manual_seed(seed)
    net = Random(width, padded, normed, biased, join, pool)
    settle(net, seed)
    model = pt.models.Partitioned(net, shared=["stem", "left", "right"], specific={"a": "a", "b": "b"}).double().eval()
    kill(model, share, seed)
    kill_filters(model, filters, seed)
    return model, torch.randn(3, 2, 8, 8, dtype=torch.float64)


class Random(nn.Module):
    def __init__(self, width: int, padded: bool, normed: bool, biased: bool, join: str, pool: str) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(width) if normed else nn.Identity()
        padding = 1 if padded else 0
        self.stem = nn.Sequential(nn.Conv2d(2, width, 3, bias=biased), norm, nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(width, 3, 3, padding=padding, bias=biased), nn.Tanh())
        self.right = nn.Sequential(nn.Conv2d(width, 3, 3, padding=padding, bias=biased), nn.Sigmoid())
        pools = {
            "none": nn.Identity(), "max": nn.MaxPool2d(2, padding=1), "avg": nn.AvgPool2d(3, 1, padding=1),
        }  # fmt: skip
        self.pool = pools[pool]
        self.join = join
        with torch.no_grad():
            wide = self.flat(torch.zeros(2, 2, 8, 8)).shape[1]
        self.a = nn.Sequential(nn.Linear(wide, 4), nn.ReLU(), nn.Linear(4, 2))
        self.b = nn.Linear(wide, 3)

    def flat(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        one, other = self.pool(self.left(z)), self.pool(self.right(z))
        if self.join == "cat":
            return torch.cat([one, other], 1).flatten(1)
        return (one + other if self.join == "add" else one * other).flatten(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.flat(x)
        return {"a": self.a(z), "b": self.b(z)}


@settings(max_examples=20)
@given(random_networks())
def test_random_networks_give_the_same_outputs_and_the_predicted_sizes(case):
    model, x = case
    found = compact(model, x)
    fresh = torch.randn_like(x)
    # a head whose rows are all dead may give tiny outputs, so its scale is that of both heads
    scale = max(out.abs().max().item() for out in model(fresh).values())
    for task, out in model(fresh).items():
        assert (found.model(fresh)[task] - out).abs().max().item() <= 1e-12 * scale
    assert predicted(model, x) == (count(found.model), macs_of(found.model, x) // len(x))
    again = compact(plain(found, model), x) if not picks(found.model) else found
    assert count(again.model) == count(found.model)  # nothing is left to remove


def picks(model: nn.Module) -> bool:
    return any(isinstance(module, (CompactLinear, CompactConv2d)) for module in model.modules())


def plain(found: Compacted[Any], model: Any) -> Any:
    made = rebuild(model, found.layout)
    made.load_state_dict(found.model.state_dict())
    return made


# --- what goes and what stays


def test_a_unit_goes_only_if_it_is_dead_in_every_head():
    model = HardSharing(nn.Sequential(nn.Linear(3, 6), nn.ReLU()), {"a": nn.Linear(6, 2), "b": nn.Linear(6, 2)})
    with torch.no_grad():
        model.heads["a"].weight[:, [0, 1, 2]] = 0
        model.heads["b"].weight[:, [1, 2, 3]] = 0
    found = checked(model, torch.randn(4, 3))
    assert found.model.trunk[0].out_features == 4
    assert found.model.heads["a"].pick.picked.tolist() == [1, 2, 3]  # of units 0, 3, 4, 5
    assert found.model.heads["a"].in_features == 4 and found.model.heads["a"].weight.shape == (2, 3)
    assert found.model.heads["b"].pick.picked.tolist() == [0, 2, 3]


def test_a_filter_goes_through_a_flatten_only_with_all_its_rows():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    with torch.no_grad():
        net[4].weight[:, 0:4] = 0  # all four positions of filter 0
        net[4].weight[:, 5:8] = 0  # three of filter 1
    found = checked(head(net), torch.randn(3, 1, 4, 4))
    assert found.model.trunk[0].out_channels == found.model.trunk[1].num_features == 2
    assert found.model.trunk[4].pick.picked.tolist() == [0, 4, 5, 6, 7]


def test_what_feeds_only_removed_units_goes_too():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4) * 2)
        net[1].weight.copy_(torch.eye(4) * 3)
        net[2].weight[:, [0, 3]] = 0
    found = checked(head(net), torch.randn(3, 4))
    assert [layer.weight.shape for layer in layers(found.model).values()] == [(2, 2), (2, 2), (4, 2)]


def test_a_layer_keeps_one_unit_when_all_are_dead():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[4].weight.zero_()
    found = checked(head(net), torch.randn(3, 3))
    assert [tuple(layer.weight.shape) for layer in layers(found.model).values()] == [(1, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("between", ["relu", "norm", "pool", "sigmoid", "avg"])
def test_a_constant_filter_is_folded_into_the_next_bias(between):
    middle = {
        "relu": [nn.ReLU()], "norm": [nn.BatchNorm2d(4), nn.ReLU()], "pool": [nn.MaxPool2d(2)],
        "sigmoid": [nn.Sigmoid()], "avg": [nn.AvgPool2d(2)],
    }  # fmt: skip
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), *middle[between], nn.Conv2d(4, 3, 3, bias=False), nn.Flatten(), nn.LazyLinear(2)
    )
    x = torch.randn(3, 1, 10, 10)
    net(x)
    settle(net)
    with torch.no_grad():
        net[0].weight[[1, 2]] = 0
    found = checked(head(net), x)
    after = layers(found.model)
    assert after["trunk.0"].out_channels == 2
    second = after[list(after)[1]]
    assert type(second) is nn.Conv2d and second.bias is not None  # which it did not have


@pytest.mark.parametrize("count_pad", [True, False])
def test_zero_padding_needs_a_bias_per_position_or_leaves_the_unit(count_pad):
    pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=count_pad)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), pool, nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
    x = torch.randn(3, 1, 6, 6)
    mapped = checked(head(net), x)
    assert mapped.model.trunk[0].out_channels == 3
    assert mapped.model.trunk[2].bias_map.shape == (3, 4, 4)
    left = checked(head(net), x, padded="dense")
    assert left.model.trunk[0].out_channels == 4
    assert "each position needs its own bias" in left.left_dense["trunk.2"]
    with pytest.raises(ValueError, match=r"must keep its output size \(3, 4, 4\), found \(3, 5, 5\)"):
        mapped.model.trunk[2](torch.randn(1, 3, 5, 5).double())


def test_a_convolution_that_reflects_needs_no_map():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(48, 2)
    )
    with torch.no_grad():
        net[0].weight[1] = 0
    assert checked(head(net), torch.randn(3, 1, 6, 6), padded="dense").model.trunk[0].out_channels == 3


def test_units_added_elementwise_go_together():
    model = settle(residual(padded=False)).double()
    net: Any = model.module
    with torch.no_grad():
        net.depthwise.weight[:2] = 0
        net.depthwise.bias[:2] = 0
        net.block.beside.weight[:, :2] = 0
    found = checked(model, images("unpadded"))
    after = found.model.module
    assert after.stem.out_channels == 5  # the block's first convolution reads all of them
    with torch.no_grad():
        net.block.first.weight[:, :2] = 0
    after = checked(model, images("unpadded")).model.module
    assert after.stem.out_channels == after.block.second.out_channels == 3
    assert after.depthwise.groups == 6


def test_only_live_shared_rows_are_summed():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[2].weight[:, 0] = 0
        net[2].weight[:, 4] = net[2].weight[:, 1]
        net[2].weight[:, 5] = net[2].weight[:, 1]
    found = checked(head(net), torch.randn(4, 3))
    layer = found.model.trunk[2]
    assert layer.weight.shape == (4, 3) and layer.pick.outputs == 3
    assert checked(head(net), torch.randn(4, 3), merge=False).model.trunk[2].weight.shape == (4, 5)


def test_shared_channels_of_a_convolution_are_summed():
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        net[2].weight[:, 3] = net[2].weight[:, 1]
    found = checked(head(net), torch.randn(2, 1, 6, 6))
    assert found.model.trunk[2].weight.shape == (3, 4, 3, 3) and found.model.trunk[2].in_channels == 5


# --- what cannot be followed


class Odd(nn.Module):
    """Between two layers something that is not a plain sequence of units."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.rand(6) + 1)
        self.top = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.first(x).relu()
        match self.kind:
            case "softmax":
                z = z.softmax(1)
            case "norm":
                z = nn.functional.layer_norm(z, (6,))
            case "scale":
                z = z * self.scale
            case "slice":
                z = torch.cat([z[:, 3:], z[:, :3]], 1)
            case "view":
                z = z.view(-1, 2, 3).flatten(1)
            case "literal":
                z = z.view(-1, 6)
            case "twice":
                z = self.second(self.second(z))
            case "weight":
                z = z + self.top.weight.sum()
            case "reads":
                z = z + 0 * z.mean(1, keepdim=True)
        return {"a": self.top(z)}


@pytest.mark.parametrize("kind", ["softmax", "norm", "scale", "slice", "view", "literal", "weight", "reads"])
def test_what_cannot_be_followed_stays_and_says_why(kind):
    model = pt.models.Partitioned(Odd(kind), shared="first", tasks=["a"])
    with torch.no_grad():
        model.module.top.weight[:, :2] = 0
    found = checked(model, torch.randn(4, 3))
    assert found.model.module.first.out_features == 6
    reasons = {name: reason for name, reason in found.left_dense.items() if name != "module.second"}
    assert set(reasons) == {"module.top"} and "in `module`" in reasons["module.top"]
    assert "does not go through" in found.left_dense["module.second"]


def test_a_layer_used_twice_keeps_what_either_use_needs():
    model = pt.models.Partitioned(Odd("twice"), shared="first", tasks=["a"])
    with torch.no_grad():
        model.module.second.weight[:, :2] = 0
        model.module.top.weight[:, 1] = 0
    found = checked(model, torch.randn(4, 3))
    assert found.model.module.first.out_features == found.model.module.second.out_features == 5
    assert found.model.module.second.pick.picked.tolist() == [1, 2, 3, 4]


def test_grouped_convolutions_stay_and_depthwise_ones_follow():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 1),
        nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    with torch.no_grad():
        net[2].weight[:, 0] = 0
        net[5].weight[:, :4] = 0
    found = checked(head(net), torch.randn(2, 1, 8, 8))
    assert "2 groups" in found.left_dense["trunk.2"]
    assert found.model.trunk[0].out_channels == 4 and found.model.trunk[3].out_channels == 3


def test_tied_parameters_stay():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    with torch.no_grad():
        first.weight[:, 1] = 0
    found = checked(head(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 2))), torch.randn(3, 4))
    assert "also that of" in found.left_dense["trunk.0"] and "also that of" in found.left_dense["trunk.2"]
    assert found.model.trunk[0].weight is found.model.trunk[2].weight


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.top = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {"a": self.top(z if z.sum() > 0 else -z)}


def test_a_network_that_cannot_be_traced_is_left_as_it_is():
    found = checked(pt.models.Partitioned(Branching(), shared="trunk", tasks=["a"]), torch.randn(3, 3))
    assert set(found.left_dense) == {"module.trunk", "module.top"}
    assert all(reason.startswith("torch.export cannot trace") for reason in found.left_dense.values())


class Stubborn(nn.Module):
    """Its forward pass states the width of a layer in a way that no trace shows."""

    def __init__(self, refusal: Exception) -> None:
        super().__init__()
        self.refusal = refusal
        self.trunk, self.top = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x).relu()
        if z.shape[1] != 4:
            raise self.refusal
        return {"a": self.top(z)}


@pytest.mark.parametrize(
    ("refusal", "told"),
    [(ValueError("4 features are expected"), "4 features are expected"), (AssertionError(), "Asse")],
)
def test_a_network_that_insists_on_its_sizes_is_refused(refusal, told):
    model = pt.models.Partitioned(Stubborn(refusal), shared="trunk", tasks=["a"])
    with torch.no_grad():
        model.module.top.weight[:, 0] = 0
    with pytest.raises(ValueError, match=rf"must take its layers' sizes from them, found .*smaller: {told}"):
        compact(model, torch.randn(3, 3))


@pytest.mark.parametrize("example", [(), torch.tensor(1.0)])
def test_an_example_needs_a_batch(example):
    with pytest.raises(ValueError, match="`example` must be inputs of at least one example"):
        compact(helpers.network(), example)


def test_an_unknown_handling_of_padding_is_refused():
    with pytest.raises(ValueError, match="`padded` must be one of 'map', 'dense', found 'fold'"):
        compact(helpers.network(), torch.randn(2, 3), padded="fold")


# --- the compact network in the rest of polytask


def test_a_compact_network_trains_saves_and_loads(tmp_path):
    model = helpers.network("norm")
    kill(model, 0.4)
    found = compact(model, helpers.data()[0])
    assert found.model.training == model.training and found.model.task_names == model.task_names
    trainer = helpers.trainer(found.model)
    trainer.fit(helpers.data(), epochs=2)
    trainer.save(tmp_path)
    layout = json.loads(json.dumps(found.layout))
    loaded = pt.load(tmp_path, model=rebuild(helpers.network("norm", seed=9), layout), tasks=helpers.tasks())
    x = helpers.data(seed=3)[0]
    for task, prediction in trainer.predict(x).items():
        assert torch.equal(loaded.predict(x)[task].outputs, prediction.outputs)


@pytest.mark.parametrize("name", ["residual", "monitored", "normed"])
def test_rebuilt_shapes_take_the_compact_weights(name):
    model = settle(BUILDERS[name]())
    kill(model, 0.4)
    kill_filters(model, 0.3)
    x = images(name, 2, torch.float32)
    found = compact(model, x)
    again = rebuild(settle(BUILDERS[name](), seed=5), json.loads(json.dumps(found.layout)))
    again.load_state_dict(found.model.state_dict())
    for task, out in found.model.eval()(x).items():
        assert torch.equal(again.eval()(x)[task], out)


def test_a_layout_of_another_network_is_refused():
    with pytest.raises(ValueError, match=r"a layout must fit its network: `trunk.9` must be a Linear, found none"):
        rebuild(helpers.network(), {"trunk.9": {"kind": "Linear"}})


@pytest.mark.parametrize("name", ["lenet", "normed"])
def test_units_that_torch_pruning_can_follow_leave_the_network_that_it_leaves(name):
    import torch_pruning as tp

    model = settle(BUILDERS[name]()).double()
    x = images(name, 2)
    producers = [layer for layer in layers(model) if layer.startswith("trunk")]
    for layer in producers:  # units 1 and 3 of every layer of the trunk die in all that read them
        _silence(model, layer, [1, 3], x, tp)
    expected = model.__class__.__name__, {n: tuple(v.shape) for n, v in _pruned(model, producers, x, tp).items()}
    found = compact(model, x)
    assert (type(found.model).__name__, {n: tuple(v.shape) for n, v in found.model.state_dict().items()}) == expected


def _group(model: Any, layer: str, units: list[int], x: Tensor, tp: Any) -> Any:
    module = layers(model)[layer]
    prune = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
    return tp.DependencyGraph().build_dependency(model, example_inputs=x).get_pruning_group(module, prune, units)


@torch.no_grad()
def _silence(model: Any, layer: str, units: list[int], x: Tensor, tp: Any) -> None:
    with torch.enable_grad():
        group = _group(model, layer, units, x, tp)
    for step, indices in group:
        if "in_channels" in step.handler.__name__ and isinstance(step.target.module, (nn.Linear, nn.Conv2d)):
            step.target.module.weight[:, indices] = 0


def _pruned(model: Any, producers: list[str], x: Tensor, tp: Any) -> dict[str, Tensor]:
    import copy

    work = copy.deepcopy(model)
    for layer in producers:
        _group(work, layer, [1, 3], x, tp).prune()
    return work.state_dict()


def test_an_encoder_for_each_source_is_refused_by_name():
    trunk = pt.models.BySource({"left": nn.Linear(3, 4), "right": nn.Linear(5, 4)}, nn.Linear(4, 4))
    model = pt.models.HardSharing(trunk, heads={"a": nn.Linear(4, 1)})
    for sparse in (compact, predict_sizes, layers_in_play):
        with pytest.raises(ValueError, match="for each source cannot be made sparse, found `BySource` in `trunk`"):
            sparse(model, torch.zeros(2, 3))
