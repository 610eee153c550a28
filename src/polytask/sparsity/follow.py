"""Follows the units of a network from the layers that make them to those that read them.

The network is traced once with `torch.export`; every operation of the trace is either known to keep units
apart, and then two questions are answered exactly: which units of which layers must stay or go together, and
which activations are constants; or it is not, and then what it touches is locked, with the reason in words.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

INPUT = "they are the network's input"
"""The reason that locks what the network reads."""

_UNARY = frozenset({
    "_to_copy", "abs", "alias", "alpha_dropout", "celu", "clamp", "clamp_max", "clamp_min", "clone", "contiguous",
    "detach", "dropout", "elu", "erf", "exp", "feature_dropout", "gelu", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "lift_fresh_copy", "log", "log_sigmoid", "mish", "neg", "pow", "reciprocal", "relu", "relu6", "rsqrt",
    "selu", "sigmoid", "sign", "silu", "softplus", "sqrt", "square", "tanh", "to",
})  # fmt: skip
_BINARY = frozenset({"add", "div", "maximum", "minimum", "mul", "rsub", "sub"})
_MAX_POOLS = frozenset({"max_pool1d", "max_pool2d", "max_pool3d"})
_LANEWISE = frozenset({
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
})  # fmt: skip
_VIEWS = frozenset({
    "alias", "detach", "expand", "flatten", "permute", "reshape", "select", "slice", "squeeze", "transpose",
    "unsqueeze", "view",
})  # fmt: skip


@dataclass
class Call:
    """One use of a Linear or a convolution.

    Attributes:
        constant: (in,) which inputs are the same whatever the network reads.
        value: (in, ...) their values, per position for a convolution; of no meaning elsewhere.
        fold: the layer's linear map without bias, (1, in, ...) to (1, out, ...).
        positions: products of a weight per example: 1, or H' * W' of a convolution.
    """

    constant: Tensor
    value: Tensor
    fold: Callable[[Tensor, Tensor], Tensor]
    positions: int


@dataclass
class TracedLayer:
    """A Linear, convolution or BatchNorm of the network, and the lanes of its inputs and outputs.

    Attributes:
        name: path of the module.
        module: the module.
        ins: lane of each input; equal to `outs` for BatchNorm and depthwise convolutions.
        outs: lane of each output.
        calls: its uses, empty for BatchNorm.
    """

    name: str
    module: nn.Module
    ins: list[int]
    outs: list[int]
    calls: list[Call] = field(default_factory=list)

    @property
    def reads(self) -> bool:
        """Whether it mixes its inputs into new units."""
        return isinstance(self.module, nn.Linear) or (isinstance(self.module, CONVOLUTIONS) and self.module.groups == 1)


class Lanes:
    """Union-find over units that must stay or go together; a locked one must stay, for a reason."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int, locked: str = "") -> list[int]:
        """Makes lanes; with a reason, locked ones."""
        fresh = list(range(len(self._parent), len(self._parent) + count))
        self._parent += fresh
        if locked:
            self._reasons.update(dict.fromkeys(fresh, locked))
        return fresh

    def root(self, lane: int) -> int:
        """The lane that stands for all that are tied to this one."""
        while self._parent[lane] != lane:
            self._parent[lane] = self._parent[self._parent[lane]]
            lane = self._parent[lane]
        return lane

    def tie(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Ties lanes pair by pair."""
        for a, b in zip(one, other, strict=True):
            first, second = sorted((self.root(a), self.root(b)))
            if first != second:
                self._parent[second] = first
                reason = self._reasons.pop(second, "")
                if reason:
                    self._reasons.setdefault(first, reason)

    def lock(self, lanes: Iterable[int], reason: str) -> None:
        """Locks lanes; the first reason stays."""
        for lane in lanes:
            self._reasons.setdefault(self.root(lane), reason)

    def reason(self, lane: int) -> str:
        """Why a lane must stay, "" if nothing says so."""
        return self._reasons.get(self.root(lane), "")


@dataclass
class _Value:
    """What is known of a tensor of the trace.

    Attributes:
        tensor: its value for the example.
        varies: 1 where the value depends on the network's input, else 0; None for parameters and constants.
        lanes: the lane of each index of dimension 1; None where the tensor does not depend on the input.
        parameter: full name of the parameter or buffer it is, "" if it is none.
    """

    tensor: Tensor
    varies: Tensor | None = None
    lanes: list[int] | None = None
    parameter: str = ""


@dataclass
class Followed:
    """What was found; see `follow`.

    Attributes:
        layers: {path: layer} of all Linear, convolution and BatchNorm layers that could be followed.
        lanes: which units hang together.
        refused: {path: reason} of the layers that could not.
    """

    layers: dict[str, TracedLayer]
    lanes: Lanes
    refused: dict[str, str]


def follow(network: nn.Module, example: Any) -> Followed:
    """Traces a network in eval mode and follows its units.

    Args:
        network: left in eval mode; its parameters are not changed.
        example: inputs of at least 2 examples.

    Returns:
        Layers, lanes and refusals. A network that `torch.export` cannot trace has no layers, and each of its
        layers is refused with the reason.
    """
    network.eval()
    every: dict[str, nn.Module] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS, *NORMS))
    }
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), strict=False)
    except Exception as error:  # whatever a network does that a trace cannot hold
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Followed({}, Lanes(), dict.fromkeys(every, f"torch.export cannot trace the network: {first}"))
    walker = _Walker(network, every)
    walker.refuse_tied()
    with torch.no_grad():
        walker.walk(program)
    return walker.result()


class _Walker:
    """Goes through the trace once, in order."""

    def __init__(self, network: nn.Module, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._network = network
        self._lanes = Lanes()
        self._layers: dict[str, TracedLayer] = {}
        self._refused: dict[str, str] = {}
        self._values: dict[Node, Any] = {}
        self._batch = 0
        self._own = {name: f"{name}.weight" for name in modules}

    def walk(self, program: Any) -> None:
        kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        stored = {**program.constants, **program.state_dict}
        flat = iter(tree_leaves(program.example_inputs))
        tensors = [leaf for leaf in tree_leaves(program.example_inputs) if isinstance(leaf, Tensor)]
        self._batch = len(tensors[0])
        nodes = list(program.graph.nodes)
        for place, node in enumerate(nodes):
            if node.op == "placeholder":
                self._values[node] = self._placeholder(kinds[node.name], stored, flat)
            elif node.op == "call_function":
                self._check_in_place(node, nodes[place + 1 :])
                self._values[node] = self._call(node)
            elif node.op == "output":
                self._lock(self._known(node.args), "its units are an output of the network")

    def result(self) -> Followed:
        for name in self._modules:
            if name not in self._layers:
                self._refused.setdefault(name, "the forward pass does not go through it")
        for name in self._refused:
            layer = self._layers.pop(name, None)
            if layer is not None:
                self._lanes.lock([*layer.ins, *layer.outs], f"`{name}` stays as it is: {self._refused[name]}")
        return Followed(self._layers, self._lanes, self._refused)

    # --- inputs and parameters

    def _placeholder(self, spec: Any, stored: dict[str, Any], inputs: Any) -> Any:
        if spec.target is not None:
            return _Value(stored[spec.target], parameter=spec.target)
        value = next(inputs)
        if not isinstance(value, Tensor):
            return value
        lanes = self._lanes.new(value.shape[1], INPUT) if value.dim() > 1 else None
        varies = torch.ones_like(value, dtype=torch.float32)
        return _Value(value, varies, lanes)

    def refuse_tied(self) -> None:
        owners: dict[int, str] = {}
        for name, module in self._network.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                first = owners.setdefault(id(parameter), name)
                if first != name:
                    for one, other in ((name, first), (first, name)):
                        self._refused.setdefault(one, f"its {key} is also that of `{other}`")

    # --- operations

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            return self._opaque(node)
        name = node.target._opname if isinstance(node.target, torch._ops.OpOverload) else ""
        known = self._known((node.args, node.kwargs))
        if not any(value.varies is not None for value in known):
            return self._constant(node)
        plain = name.removesuffix("_")
        if name == "linear":
            return self._linear(node)
        if name in ("conv1d", "conv2d", "conv3d"):
            return self._convolution(node)
        if name == "batch_norm":
            return self._norm(node)
        if plain in _UNARY and len(known) == 1:
            return self._unary(node)
        if plain in _BINARY and len(known) <= 2:
            return self._binary(node, plain)
        if name in _MAX_POOLS:
            return self._same_lanes(node, self._run(node, _mask))
        if name in _LANEWISE or (name == "mean" and _is_spatial(node)):
            return self._lanewise(node)
        if name in ("flatten", "view", "reshape", "_unsafe_view"):
            return self._flatten(node, name)
        if name == "pad" and _is_spatial_pad(node):
            return self._pad(node)
        if name == "cat":
            return self._concatenate(node)
        return self._opaque(node)

    def _check_in_place(self, node: Node, later: Sequence[Node]) -> None:
        name = getattr(node.target, "_opname", "")
        if not name.endswith("_") or name.startswith("__"):
            return
        changed = node.args[0]
        assert isinstance(changed, Node)
        seen_again = any(changed in other.all_input_nodes for other in later)
        viewed = any(getattr(user.target, "_opname", "") in _VIEWS for user in changed.users)
        is_view = getattr(changed.target, "_opname", "") in _VIEWS
        if name.removesuffix("_") not in _UNARY | _BINARY or seen_again or viewed or is_view:
            self._refuse_all(f"{_where(node)} changes a tensor in place that is read elsewhere")

    def _refuse_all(self, reason: str) -> None:
        for name in self._modules:
            self._refused.setdefault(name, reason)

    def _linear(self, node: Node) -> Any:
        inputs, weight, bias = (self._argument(node, i) for i in range(3))
        layer = self._layer(weight, bias, (nn.Linear,))
        if layer is None or inputs.lanes is None or inputs.tensor.dim() != 2:
            return self._opaque(node, "reads tensors of other than two dimensions")
        self._lanes.tie(inputs.lanes, layer.ins)
        varies = _any(inputs.varies @ (weight.tensor != 0).float().t())
        layer.calls.append(_call_record(inputs, lambda x, w: x @ w.t(), 1))
        return _Value(self._run(node), varies, list(layer.outs))

    def _convolution(self, node: Node) -> Any:
        inputs, weight, bias = (self._argument(node, i) for i in range(3))
        layer = self._layer(weight, bias, CONVOLUTIONS)
        rank = weight.tensor.dim() - 2
        if layer is None or inputs.lanes is None or inputs.tensor.dim() != rank + 2:
            return self._opaque(node)
        rest = node.args[3:]
        target: Any = node.target
        self._lanes.tie(inputs.lanes, layer.ins)
        result = self._run(node)
        varies = _any(target(inputs.varies, (weight.tensor != 0).float(), None, *rest))
        if layer.reads:
            positions = result[0, 0].numel()
            layer.calls.append(_call_record(inputs, lambda x, w: target(x, w, None, *rest), positions))
        elif layer.ins is not layer.outs:
            reason = f"a convolution of {layer.module.groups} groups, neither plain nor depthwise, cannot be cut"
            self._refused.setdefault(layer.name, reason)
        else:
            layer.calls.append(_call_record(inputs, lambda x, w: target(x, w, None, *rest), result[0, 0].numel()))
        return _Value(result, varies, list(layer.outs))

    def _norm(self, node: Node) -> Any:
        inputs, weight, bias, mean = (self._argument(node, i) for i in range(4))
        layer = self._layer(mean if mean is not None else weight, bias, NORMS)
        if layer is None or inputs.lanes is None or bool(node.args[5]):
            return self._opaque(node, "normalises with the statistics of the batch")
        self._lanes.tie(inputs.lanes, layer.outs)
        varies = inputs.varies
        if weight is not None:
            varies = varies * (weight.tensor != 0).float().reshape(-1, *[1] * (varies.dim() - 2))
        return _Value(self._run(node), varies, list(layer.outs))

    def _layer(
        self, first: _Value | None, bias: _Value | None, kinds: tuple[type[nn.Module], ...]
    ) -> TracedLayer | None:
        """The layer whose parameters an operation reads, if they are one layer's own."""
        if first is None or not first.parameter:
            return None
        path = first.parameter.rpartition(".")[0]
        module = self._modules.get(path)
        same = bias is None or bias.parameter == f"{path}.bias"
        if type(module) not in kinds or not same or getattr(module, "pick", None) is not None:
            return None
        assert module is not None
        if path not in self._layers:
            self._layers[path] = self._make(path, module)
        return self._layers[path]

    def _make(self, path: str, module: Any) -> TracedLayer:
        if isinstance(module, NORMS):
            lanes = self._lanes.new(module.num_features)
            return TracedLayer(path, module, lanes, lanes)
        if isinstance(module, nn.Linear):
            return TracedLayer(path, module, self._lanes.new(module.in_features), self._lanes.new(module.out_features))
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            lanes = self._lanes.new(module.out_channels)
            return TracedLayer(path, module, lanes, lanes)
        return TracedLayer(path, module, self._lanes.new(module.in_channels), self._lanes.new(module.out_channels))

    def _unary(self, node: Node) -> _Value:
        value = self._only(node)
        result = self._run(node)
        return _Value(result, value.varies, value.lanes)

    def _binary(self, node: Node, name: str) -> Any:
        sides = [self._known(argument) for argument in node.args[:2]]
        if not all(sides):  # with a number
            return self._unary(node)
        one, other = sides[0][0], sides[1][0]
        changing = [value for value in (one, other) if value.varies is not None]
        if not self._broadcasts(changing, one, other):
            return self._opaque(node)
        varies = _any(_effect(one, other, name) + _effect(other, one, name))
        result = self._run(node)
        wide = max(changing, key=lambda value: value.tensor.shape[1])
        return _Value(result, varies.expand(result.shape), wide.lanes)

    def _broadcasts(self, changing: list[_Value], one: _Value, other: _Value) -> bool:
        """Ties what an elementwise operation pairs; whether its units stay units."""
        if any(value.lanes is None for value in changing):
            return False
        if len(changing) == 2:
            if one.tensor.dim() != other.tensor.dim():
                return False
            assert one.lanes is not None and other.lanes is not None
            if len(one.lanes) == len(other.lanes):
                self._lanes.tie(one.lanes, other.lanes)
            else:
                narrow = min(changing, key=lambda value: value.tensor.shape[1])
                assert narrow.lanes is not None
                self._lanes.lock(narrow.lanes, "one unit acts on all units of another layer")
            return True
        constant = other if changing[0] is one else one
        rank = changing[0].tensor.dim()
        if constant.tensor.dim() > rank:
            return False
        return constant.tensor.dim() < rank - 1 or constant.tensor.shape[1 - rank] == 1  # not a number per unit

    def _same_lanes(self, node: Node, varies: Tensor) -> _Value:
        return _Value(self._run(node), varies, self._only(node).lanes)

    def _lanewise(self, node: Node) -> Any:
        value = self._only(node)
        if value.lanes is None or value.tensor.dim() < 3:
            return self._opaque(node)
        result = self._run(node)
        changing = value.varies.flatten(2).amax(2)  # (B, C)
        return _Value(
            result, changing.reshape(*changing.shape, *[1] * (result.dim() - 2)).expand(result.shape), value.lanes
        )

    def _flatten(self, node: Node, name: str) -> Any:
        value = self._only(node)
        result = self._run(node)
        keeps_batch = result.dim() > 1 and result.shape[0] == value.tensor.shape[0]
        if value.lanes is None or not keeps_batch:
            return self._opaque(node)
        positions = value.tensor[0, 0].numel()
        whole = result.shape[1] == value.tensor.shape[1]
        if not whole and (result.dim() != 2 or result.shape[1] != len(value.lanes) * positions):
            return self._opaque(node)
        shape: Any = node.args[1]
        if name != "flatten" and shape[1] != -1:
            self._lanes.lock(value.lanes, f"{_where(node)} gives their number as {result.shape[1]}: use flatten or -1")
        if whole:
            return _Value(result, self._run(node, _mask), value.lanes)
        return _Value(result, self._run(node, _mask), [lane for lane in value.lanes for _ in range(positions)])

    def _pad(self, node: Node) -> _Value:
        args = [_mask(self._only(node)), node.args[1], *node.args[2:3]]
        return self._same_lanes(node, torch.ops.aten.pad.default(*args))

    def _concatenate(self, node: Node) -> Any:
        values: list[_Value] = self._known(node.args[0])
        rank = values[0].tensor.dim()
        if (node.args[1] if len(node.args) > 1 else 0) not in (1, 1 - rank) or any(v.lanes is None for v in values):
            return self._opaque(node)
        lanes = [lane for value in values for lane in value.lanes or ()]
        return _Value(self._run(node), torch.cat([_mask(value) for value in values], 1), lanes)

    def _constant(self, node: Node) -> Any:
        """Of parameters only: a constant, whose parameters keep their shape."""
        known = self._known((node.args, node.kwargs))
        self._keep_parameters(known, node)
        result = self._run(node)
        return tree_map_only(Tensor, _Value, result)

    def _opaque(self, node: Node, why: str = "is not an operation whose units can be followed") -> Any:
        """Locks what an operation touches and makes."""
        known = self._known((node.args, node.kwargs))
        reason = f"{_where(node)} {why}"
        self._lock(known, reason)
        self._keep_parameters(known, node)

        def made(tensor: Tensor) -> _Value:
            varies = torch.ones_like(tensor, dtype=torch.float32)
            return _Value(tensor, varies, self._lanes.new(tensor.shape[1], reason) if tensor.dim() > 1 else None)

        return tree_map_only(Tensor, made, self._run(node))

    def _keep_parameters(self, known: list[_Value], node: Node) -> None:
        for value in known:
            path = value.parameter.rpartition(".")[0]
            if path in self._modules:
                self._refused.setdefault(path, f"{_where(node)} reads its parameters")

    def _lock(self, known: list[_Value], reason: str) -> None:
        for value in known:
            self._lanes.lock(value.lanes or (), reason)

    # --- reading arguments

    def _known(self, tree: Any) -> list[_Value]:
        nodes: list[Node] = []
        torch.fx.map_arg(tree, lambda node: nodes.append(node) or node)
        values: list[_Value] = []
        for node in nodes:
            leaves = tree_leaves(self._values[node])
            values += [leaf for leaf in leaves if isinstance(leaf, _Value)]
        return values

    def _argument(self, node: Node, index: int) -> Any:
        argument = node.args[index] if index < len(node.args) else None
        return self._values[argument] if isinstance(argument, Node) else None

    def _only(self, node: Node) -> Any:
        return self._known((node.args, node.kwargs))[0]

    def _run(self, node: Node, part: Callable[[_Value], Tensor] | None = None) -> Any:
        """The operation on the values, or on what `part` takes of them."""

        def taken(argument: Node) -> Any:
            read = part or (lambda value: value.tensor)
            is_value = lambda leaf: isinstance(leaf, _Value)  # noqa: E731
            return tree_map(
                lambda leaf: read(leaf) if is_value(leaf) else leaf, self._values[argument], is_leaf=is_value
            )

        target: Any = node.target
        return target(*torch.fx.map_arg(node.args, taken), **torch.fx.map_arg(dict(node.kwargs), taken))


def _call_record(inputs: _Value, fold: Callable[[Tensor, Tensor], Tensor], positions: int) -> Call:
    assert inputs.varies is not None, "a layer is called on what follows the network's inputs"
    constant = ~inputs.varies.transpose(0, 1).flatten(1).bool().any(1)
    return Call(constant, inputs.tensor[0].clone(), fold, positions)


def _mask(value: _Value) -> Tensor:
    return value.varies if value.varies is not None else torch.zeros_like(value.tensor, dtype=torch.float32)


def _any(counts: Tensor) -> Tensor:
    return (counts > 0).float()


def _effect(one: _Value, other: _Value, name: str) -> Tensor:
    """Where the result follows `one`: everywhere, but for a product with a constant zero."""
    if one.varies is None:
        return torch.zeros(())
    if name == "mul":
        return one.varies * _any(_mask(other) + (other.tensor != 0).float())
    return one.varies


def _is_spatial(node: Node) -> bool:
    first = node.args[0]
    assert isinstance(first, Node)
    rank = first.meta["val"].dim()
    dims: Any = node.args[1] if len(node.args) > 1 else None
    return isinstance(dims, (list, tuple)) and all(dim % rank >= 2 for dim in dims)


def _is_spatial_pad(node: Node) -> bool:
    first, padding = node.args[:2]
    assert isinstance(first, Node) and isinstance(padding, (list, tuple))
    return len(padding) // 2 <= first.meta["val"].dim() - 2


def _where(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    name = getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))
    return f"`{name}` in `{path or 'forward'}`"
