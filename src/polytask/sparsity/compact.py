"""Physical removal: from a network with dead rows to a smaller network with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import parametrize

from polytask.batch import map_inputs, tensors_of
from polytask.errors import one_of
from polytask.sparsity.compact_layers import COMPACT, CompactLinear, InputPick, blank_pick
from polytask.sparsity.follow import INPUT, NORMS, Followed, TracedLayer, follow
from polytask.sparsity.rows import check_one_encoder, weight_of
from polytask.sparsity.sharing import unparametrise

ModelT = TypeVar("ModelT", bound=nn.Module)
Layout = dict[str, dict[str, Any]]
"""{path of a changed layer: its sizes}, see `Compacted.layout`; JSON can hold it."""

TOLERANCE = {torch.float64: 1e-12}
"""Largest difference of outputs, relative to the largest output; 1e-5 in every other dtype."""


@dataclass(frozen=True)
class Size:
    """What is left of a layer.

    Attributes:
        units: inputs that arrive.
        reads: inputs that enter the weights: after dead ones are skipped and shared ones summed.
        outputs: units it makes.
        bias: whether it has one.
        kernel: weights per pair of units: 1, or the kernel's area; 0 for a BatchNorm, which has a weight and a
            bias per unit where `bias` is set.
        positions: uses of each weight per example, over all calls.
    """

    units: int
    reads: int
    outputs: int
    bias: bool
    kernel: int
    positions: int

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        if not self.kernel:
            return 2 * self.outputs * self.bias
        return self.outputs * (self.reads * self.kernel + self.bias)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per example; sums of shared inputs and biases are not counted."""
        return self.outputs * self.reads * self.kernel * self.positions


@dataclass(frozen=True)
class Compacted(Generic[ModelT]):
    """A compact network and how it came about.

    Attributes:
        model: the smaller network, of the same class, with the same heads, and layers of the same names.
        layout: sizes of the layers that changed; with `rebuild` it makes the same shapes from a fresh dense
            network, into which the weights can then be loaded.
        left_dense: {layer: why it, or something dead in it, could not be removed}.
        sizes: {layer: its size now}, of all layers that were followed.
        difference: largest difference of the outputs for the example, relative to the largest output.
    """

    model: ModelT
    layout: Layout
    left_dense: dict[str, str]
    sizes: dict[str, Size]
    difference: float


def compact(model: ModelT, example: Any, *, merge: bool = True, padded: str = "map") -> Compacted[ModelT]:
    """Removes what is dead in a network, and sums what it shares.

    Dead is what the weights say: rows and filters of zeros. A unit goes if every layer that reads it has a row of
    zeros for it: its filter, bias and BatchNorm channel with it, through a Flatten too, and what then feeds nothing
    goes as well. A unit with a filter of zeros is a constant: it is folded into the next biases, exactly, whatever
    BatchNorm (in eval mode), activation or pooling is between. A layer that alone ignores a unit
    skips it; under granularity ``row`` that is most of what happens after a Flatten. Rows that are equal become
    one, y = Σ_c w_c (Σ_{i in c} x_i). Units added or multiplied elementwise go together or not at all, and a unit
    that an unknown operation reads stays. Each layer keeps at least one unit.

    The outputs are compared on the example, and are equal to 1e-5 of the largest (1e-12 in float64) or an
    error says so. They are those of eval mode: a BatchNorm that trains on would see a folded constant no more.

    Args:
        model: stays as it is. Parametrisations, such as those of `polytask.sparsity.sharing`, are made plain weights.
        example: inputs of one example or a few, of the size that the network is used with.
        merge: sum shared rows. Parameters and multiply-accumulates fall, but on a CPU the sums may take
            longer than the products they save.
        padded: a constant unit before a convolution with zero padding (or behind a pooling that counts it) adds
            another constant at each position: ``map`` stores them as a buffer (out, H', W'), after which the input's
            size is fixed; ``dense`` leaves the unit where it is, and says so.

    Raises:
        ValueError: an unknown `padded`, an example without tensors, a network with an encoder for each source, or
            outputs that differ: the model then depends on the sizes of its layers in a way that its trace does not
            show.

    >>> trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    >>> from polytask.models import HardSharing
    >>> model = HardSharing(trunk, heads={"digit": nn.Linear(8, 10)})
    >>> with torch.no_grad():
    ...     _ = trunk[3].weight[:, 16:48].zero_()  # what filters 1 and 2 feed
    >>> compact(model, torch.rand(2, 1, 6, 6)).model.trunk[0]
    Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    one_of("padded", padded, ("map", "dense"))
    inputs = _two_examples(example)
    check_one_encoder(model)
    work = baked(model)
    modes = {name: module.training for name, module in work.named_modules()}
    work.eval()
    with torch.no_grad():
        before = work(map_inputs(torch.clone, inputs))
        followed = follow(work, map_inputs(torch.clone, inputs))
        plan = _Plan(followed, padded == "map", merge)
        layout = {name: _cut(work, layer, plan) for name, layer in followed.layers.items()}
        _keep_format(work, model)
        difference = _compare(work, inputs, before)
    for name, module in work.named_modules():
        module.training = modes.get(name, model.training)
    return Compacted(work, {n: e for n, e in layout.items() if e}, plan.left_dense, plan.sizes, difference)


def rebuild(model: ModelT, layout: Mapping[str, Mapping[str, Any]]) -> ModelT:
    """A network with the shapes of a compact one, whose weights are still to be loaded.

    Args:
        model: the dense network that the compact one was made from, with any weights; stays as it is.
        layout: `Compacted.layout`.

    Raises:
        ValueError: the layout names a layer that the network does not have, or one of another kind.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> rebuild(net, {"0": {"kind": "Linear", "units": 2, "reads": 2, "outputs": 3, "bias": True}})[0]
    Linear(in_features=2, out_features=3, bias=True)
    """
    work = baked(model)
    known = dict(work.named_modules())
    for name, entry in layout.items():
        if name not in known or type(known[name]).__name__ != entry["kind"]:
            found = type(known[name]).__name__ if name in known else "none"
            raise ValueError(f"a layout must fit its network: `{name}` must be a {entry['kind']}, found {found}")
        _replace(work, name, _resized(known[name], entry))
    _keep_format(work, model)
    return work


def baked(model: ModelT) -> ModelT:
    """A copy of a network in which parametrised weights (shared, masked) are plain parameters."""
    work = copy.deepcopy(model)
    for module in list(work.modules()):
        if parametrize.is_parametrized(module):
            unparametrise(module)
    return work


def predict_sizes(model: nn.Module, example: Any, *, merge: bool = True, padded: str = "map") -> dict[str, Size]:
    """The sizes that `compact` would leave, without making the network; same arguments."""
    one_of("padded", padded, ("map", "dense"))
    check_one_encoder(model)
    work = baked(model).eval()
    with torch.no_grad():
        return _Plan(follow(work, _two_examples(example)), padded == "map", merge).sizes


class _Plan:
    """What is to be done to each layer, decided before anything is changed.

    Attributes:
        cut: (lanes,) units that are removed.
        skipped: {reader: (in,) inputs that add nothing but a constant}.
        folded: {reader: (in,) inputs whose constant goes into the bias}.
        mapped: {reader: (in,) inputs whose constant goes into a bias per position}.
        groups: {reader: (read,) number of the distinct row of each input that is read}, where rows are shared.
        gains_bias: layers without bias that need one for the constants folded into them.
        sizes: {layer: what is left of it}.
        left_dense: {layer: why it, or something dead in it, could not be removed}.
    """

    def __init__(self, followed: Followed, maps: bool, merge: bool) -> None:
        self._layers, self._refused = followed.layers, followed.refused
        self._lanes = followed.lanes
        self._outs = {n: _roots(followed, layer.outs) for n, layer in self._layers.items()}
        self._ins = {n: _roots(followed, layer.ins) for n, layer in self._layers.items()}
        self._even = {n: _even_constants(layer) for n, layer in self._layers.items() if layer.reads}
        self._uneven = {n: _constants(self._layers[n]) & ~even for n, even in self._even.items()}
        self._locked = torch.tensor(
            [bool(followed.lanes.reason(i)) for i in range(len(followed.lanes))], dtype=torch.bool
        )
        self._maps = maps
        self.gone = self._remove(maps)
        self._choose(maps, merge)

    def _remove(self, maps: bool, heed_locks: bool = True) -> Tensor:
        """(lanes,) units without which the outputs are the same; the largest such set."""
        gone = torch.zeros(len(self._locked), dtype=torch.bool)
        while True:
            free = ~self._locked if heed_locks else torch.ones_like(gone)
            for name, even in self._even.items():
                needed = self._live(name, gone) & ~even
                needed &= ~self._uneven[name] if maps else True
                free[self._ins[name][needed]] = False
            if torch.equal(free, gone):
                return gone
            gone = free

    def _live(self, name: str, gone: Tensor) -> Tensor:
        """(in,) inputs with a weight other than 0 to an output that stays."""
        weight = weight_of(self._layers[name].module)
        used = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0  # (out, in)
        return used.cpu()[~gone[self._outs[name]]].any(0)

    def _choose(self, maps: bool, merge: bool) -> None:
        self.cut = self._with_stubs()
        self.skipped, self.folded, self.mapped = {}, {}, {}
        self.groups: dict[str, Tensor] = {}
        for name, even in self._even.items():
            live, gone = self._live(name, self.gone), self.gone[self._ins[name]]
            self.skipped[name] = ~live | even | gone
            self.folded[name] = live & even
            self.mapped[name] = live & self._uneven[name] & gone
        if merge:
            self.groups = {name: group for name in self._even if (group := self._shared(name)) is not None}
        self.gains_bias = {n for n in self._even if self._layers[n].module.bias is None and self.folded[n].any()}
        self.sizes = {name: self._size(name) for name in self._layers}
        self.left_dense = self._left_dense()

    def _with_stubs(self) -> Tensor:
        """Units to remove, but for one in each layer that would have none left."""
        cut, before = self.gone.clone(), None
        while before is None or not torch.equal(cut, before):
            before = cut.clone()
            for lanes in (*self._outs.values(), *self._ins.values()):
                if cut[lanes].all():
                    cut[lanes[0]] = False
        return cut

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        """Indices of the inputs and of the outputs that physically stay."""
        ins, outs = (~self.cut[lanes[name]] for lanes in (self._ins, self._outs))
        return ins.nonzero().flatten(), outs.nonzero().flatten()

    def read(self, name: str) -> Tensor:
        """Indices, among the inputs that stay, of those that enter the weights."""
        ins = self.kept(name)[0]
        if name not in self.skipped:
            return torch.arange(len(ins))
        wanted = (~self.skipped[name][ins]).nonzero().flatten()
        return wanted if len(wanted) else torch.zeros(1, dtype=torch.long)

    def dead_outputs(self, name: str) -> Tensor:
        """(out,) outputs that nobody reads, removed or not."""
        return self.gone[self._outs[name]]

    def _shared(self, name: str) -> Tensor | None:
        """(read,) which distinct row each input that is read has; None if all differ."""
        ins, outs = self.kept(name)
        weight = weight_of(self._layers[name].module).detach()
        live_outs = outs[~self.dead_outputs(name)[outs]]
        if not len(live_outs):
            return None
        rows = weight[live_outs.to(weight.device)].transpose(0, 1).flatten(1)[ins[self.read(name)].to(weight.device)]
        distinct, groups = torch.unique(rows, dim=0, return_inverse=True)
        return groups.cpu() if len(distinct) < len(rows) else None

    def _size(self, name: str) -> Size:
        layer = self._layers[name]
        module: Any = layer.module
        ins, outs = (len(kept) for kept in self.kept(name))
        if isinstance(module, NORMS):
            return Size(outs, outs, outs, module.affine, 0, 0)
        kernel, positions = module.weight[0, 0].numel(), sum(call.positions for call in layer.calls)
        if not layer.reads:  # depthwise: one filter per unit
            return Size(outs, 1, outs, module.bias is not None, kernel, positions)
        reads = int(self.groups[name].max()) + 1 if name in self.groups else len(self.read(name))
        return Size(ins, reads, outs, module.bias is not None or name in self.gains_bias, kernel, positions)

    def _left_dense(self) -> dict[str, str]:
        """Reasons, by layer."""
        left = dict(self._refused)
        lost = self._remove(self._maps, heed_locks=False) & ~self.gone
        for name in self._even:
            lanes = self._ins[name]
            reasons = [self._lanes.reason(lane) for lane in lanes[lost[lanes]].tolist() if self._locked[lane]]
            reasons = [reason for reason in reasons if reason != INPUT]
            if reasons:
                left.setdefault(name, f"units before it that nothing needs stay: {reasons[0]}")
        if not self._maps:
            could = self._remove(maps=True) & ~self.gone
            for name, uneven in self._uneven.items():
                if (could[self._ins[name]] & uneven).any():
                    left.setdefault(
                        name, "constant units before it stay: with padding each position needs its own bias"
                    )
        return left


def _roots(followed: Followed, lanes: list[int]) -> Tensor:
    return torch.tensor([followed.lanes.root(lane) for lane in lanes], dtype=torch.long)


def _constants(layer: TracedLayer) -> Tensor:
    """(in,) inputs that are the same constant in every call."""
    if len(layer.calls) != 1:  # another call may bring another constant
        return torch.zeros(len(layer.ins), dtype=torch.bool)
    return layer.calls[0].constant.cpu()


def _even_constants(layer: TracedLayer) -> Tensor:
    """(in,) constants that add the same to every position."""
    constant = _constants(layer)
    if not constant.any() or isinstance(layer.module, nn.Linear):
        return constant
    value = layer.calls[0].value.flatten(1)
    module: Any = layer.module
    unpadded = module.padding_mode != "zeros" or module.padding == "valid" or not any(_numbers(module.padding))
    same = (value == value[:, :1]).all(1) & torch.tensor(unpadded)
    return constant & (same | (value == 0).all(1)).cpu()


def _numbers(padding: Any) -> tuple[int, ...]:
    return (1,) if isinstance(padding, str) else tuple(padding)


def _cut(work: nn.Module, layer: TracedLayer, plan: _Plan) -> dict[str, Any]:
    """Changes one layer of the network; returns its entry in the layout, empty if it is as it was."""
    bias_map = _fold(layer, plan) if layer.reads else None
    ins, outs = plan.kept(layer.name)
    whole = len(ins) == len(layer.ins) and len(outs) == len(layer.outs)
    _shrink(layer, ins, outs)
    pick = _pick(layer, plan) if layer.reads else None
    if pick is not None or bias_map is not None:
        kept_map = None if bias_map is None else bias_map[outs.to(bias_map.device)]
        _replace(work, layer.name, _compacted(layer.module, pick, kept_map))
    elif whole and layer.name not in plan.gains_bias:
        return {}
    return _entry(layer, plan, pick, bias_map)


def _fold(layer: TracedLayer, plan: _Plan) -> Tensor | None:
    """Moves constants out of the weights; returns the bias per position (out, ...), None if all are even."""
    module: Any = layer.module
    name, weight = layer.name, module.weight
    device = weight.device
    even, uneven, skipped = (which[name].to(device) for which in (plan.folded, plan.mapped, plan.skipped))
    bias_map = None
    if even.any():
        total = weight[:, even].flatten(2).sum(2) if weight.dim() > 2 else weight[:, even]
        value = layer.calls[0].value.to(device)[even].reshape(int(even.sum()), -1)[:, 0]
        folded = total @ value
        module.bias = Parameter(folded if module.bias is None else module.bias + folded)
    if uneven.any():
        call = layer.calls[0]
        value = torch.where(uneven.reshape(-1, *[1] * (call.value.dim() - 1)), call.value, 0)
        bias_map = call.fold(value[None], weight)[0]
    weight[:, skipped] = 0
    dead = plan.dead_outputs(name).to(device)
    weight[dead] = 0
    if module.bias is not None:
        module.bias[dead] = 0
    return bias_map


def _shrink(layer: TracedLayer, ins: Tensor, outs: Tensor) -> None:
    """Takes units out of a module's parameters and buffers, in place."""
    import torch_pruning as tp

    module: Any = layer.module
    gone_in = sorted(set(range(len(layer.ins))) - set(ins.tolist()))
    gone_out = sorted(set(range(len(layer.outs))) - set(outs.tolist()))
    if isinstance(module, NORMS):
        pruners = [(tp.prune_batchnorm_out_channels, gone_out)]
    elif isinstance(module, nn.Linear):
        pruners = [(tp.prune_linear_out_channels, gone_out), (tp.prune_linear_in_channels, gone_in)]
    elif layer.reads:
        pruners = [(tp.prune_conv_out_channels, gone_out), (tp.prune_conv_in_channels, gone_in)]
    else:
        pruners = [(tp.prune_depthwise_conv_out_channels, gone_out)]
    for prune, gone in pruners:
        if gone:
            prune(module, gone)


def _pick(layer: TracedLayer, plan: _Plan) -> InputPick | None:
    """What is left to skip or to sum among the inputs that arrive; narrows the weight to it."""
    module: Any = layer.module
    width, read, groups = module.weight.shape[1], plan.read(layer.name), plan.groups.get(layer.name)
    if len(read) == width and groups is None:
        return None
    device = module.weight.device
    first = read if groups is None else read[_first_of_each(groups)]
    module.weight = Parameter(module.weight[:, first.to(device)].clone(), module.weight.requires_grad)
    return InputPick(width, read.to(device), None if groups is None else groups.to(device))


def _first_of_each(groups: Tensor) -> Tensor:
    places = torch.arange(len(groups)).flip(0)
    return torch.empty(int(groups.max()) + 1, dtype=torch.long).scatter_(0, groups.flip(0), places)


def _entry(layer: TracedLayer, plan: _Plan, pick: InputPick | None, bias_map: Tensor | None) -> dict[str, Any]:
    size = plan.sizes[layer.name]
    entry: dict[str, Any] = {"kind": type(layer.module).__name__, "units": size.units, "reads": size.reads}
    entry |= {"outputs": size.outputs, "bias": size.bias}
    if pick is not None:
        entry |= {"picked": len(pick.picked), "groups": pick.outputs if pick.groups is not None else None}
    if bias_map is not None:
        entry["map"] = list(bias_map.shape[1:])
    return entry


def _resized(module: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    """A module like `module`, of an entry's size."""
    outputs, reads, bias = entry["outputs"], entry["reads"], entry["bias"]
    like: Any = module
    if isinstance(module, NORMS):
        made = type(module)(outputs, like.eps, like.momentum, like.affine, like.track_running_stats)
    elif isinstance(module, nn.Linear):
        made = nn.Linear(reads, outputs, bias)
    else:
        depthwise = like.groups > 1
        made = type(module)(
            outputs if depthwise else reads, outputs, **_geometry(like, bias, outputs if depthwise else 1)
        )
    parameter = next(module.parameters(), next(module.buffers(), None))
    made = made.to(parameter) if parameter is not None else made
    if "picked" not in entry and "map" not in entry:
        return made.train(module.training)
    pick = blank_pick(entry["units"], entry["picked"], entry["groups"]) if "picked" in entry else None
    bias_map = None
    if "map" in entry:
        assert parameter is not None
        bias_map = parameter.new_zeros((outputs, *entry["map"]))
    pick = pick if pick is None or parameter is None else pick.to(parameter.device)
    return _compacted(made, pick, bias_map).train(module.training)


def _geometry(module: Any, bias: bool, groups: int) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {name: getattr(module, name) for name in names} | {"bias": bias, "groups": groups}


def _compacted(module: Any, pick: InputPick | None, bias_map: Tensor | None) -> nn.Module:
    """The layer that stands for a plain one of the final size, with its parameters."""
    outputs, reads = module.weight.shape[:2]
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        made: Any = CompactLinear(reads, outputs, bias, pick)
    else:
        options = _geometry(module, bias, 1)
        made = COMPACT[type(module)](reads, outputs, pick=pick, bias_map=bias_map, **options)
    made.weight, made.bias = module.weight, module.bias
    return made.train(module.training)


def _keep_format(work: nn.Module, model: nn.Module) -> None:
    """Convolutions that were stored channels last are so still, which decides how fast they are on a CPU."""
    last = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not module.weight.is_contiguous()
    }
    for name, module in work.named_modules():
        if name in last and isinstance(module.weight, Parameter):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


def _two_examples(example: Any) -> Any:
    """Detached copies of the inputs, twice over if there is one example: one would pass for a broadcast dimension."""
    tensors = list(tensors_of(example))
    if not tensors or any(tensor.dim() == 0 for tensor in tensors):
        raise ValueError("`example` must be inputs of at least one example, found no tensor with a batch dimension")
    return map_inputs(
        lambda t: t.detach().repeat(2, *[1] * (t.dim() - 1)) if len(t) == 1 else t.detach().clone(), example
    )


def _compare(work: nn.Module, inputs: Any, before: Mapping[str, Tensor]) -> float:
    try:
        after = work(inputs)
    except Exception as error:  # whatever a network says to other sizes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            "a network to compact must take its layers' sizes from them, found that it cannot run once they are "
            f"smaller: {first}"
        ) from error
    worst = 0.0
    for task, expected in before.items():
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        difference = ((after[task] - expected).abs().max() / scale).item()
        tolerance = TOLERANCE.get(expected.dtype, 1e-5)
        if not difference <= tolerance:
            raise ValueError(
                f"the outputs of the compact network must be equal to {tolerance:g} of the largest, found "
                f"{difference:.3g} for `{task}`: the network uses a layer's size or weights outside of its layers"
            )
        worst = max(worst, difference)
    return worst
