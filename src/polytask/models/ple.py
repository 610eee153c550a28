"""CGC and PLE: experts of each task beside shared ones, on one level or on several."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from polytask.errors import whole
from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_apart, check_heads, check_list, check_mapping
from polytask.models.experts import LinearGate, check_encoder, check_experts, gates_for, mixed, run_experts, stacked

Experts = Sequence[nn.Module]


class _Level(nn.Module):
    """One level: shared experts, each task's own, and the gates that mix them.

    Attributes:
        shared: experts that all tasks may use.
        own: {task: experts that only it may use}.
        gates: {task: gate over its own experts, then the shared ones}.
        gate: the gate over all experts, which makes what the next level's shared experts read; None at the last.
    """

    gate: nn.Module | None

    def __init__(self, shared: Experts, own: Mapping[str, Experts], gates: int | Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.shared = nn.ModuleList(shared)
        self.own = nn.ModuleDict({task: nn.ModuleList(experts) for task, experts in own.items()})
        self.gates = gates_for(gates, {task: len(experts) + len(shared) for task, experts in own.items()})
        self.gate = None

    def add_gate(self, width: int) -> None:
        """Gives it the gate over all experts, one that reads `width` numbers."""
        self.gate = LinearGate(width, len(self.shared) + sum(len(self.experts(task)) for task in self.own))

    def experts(self, task: str) -> nn.ModuleList:
        experts = self.own[task]
        assert isinstance(experts, nn.ModuleList)
        return experts

    def task_output(self, task: str, read: Any, own: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
        """The average that task k's gate makes of its own experts' outputs and the shared ones'."""
        return mixed(self.gates[task](read), stacked([*own, *shared]), f"the gate of task `{task}`")

    def forward(self, reads: Mapping[str, Any], common: Any, source: str) -> tuple[dict[str, Tensor], Tensor]:
        """What each task's and what the shared experts of the next level read."""
        assert self.gate is not None
        shared = run_experts(self.shared, common, source)
        own = {task: run_experts(self.experts(task), read, source) for task, read in reads.items()}
        outputs = {task: self.task_output(task, read, own[task], shared) for task, read in reads.items()}
        every = stacked([*(output for each in own.values() for output in each), *shared])
        return outputs, mixed(self.gate(common), every, "the shared gate")


class _Extraction(Model, ABC):
    """What CGC and PLE have in common: levels, of which the first ones are shared as a whole.

    A task's own expert is its own only where nothing that other tasks read depends on it. A gate over all experts
    feeds the shared experts of the next level, hence all tasks, so all levels that have one belong to the shared block.
    Of the others, shared experts do; a task's own experts and gates are its own.
    """

    def _build(self, levels: Sequence[_Level], heads: Mapping[str, nn.Module], encoder: nn.Module | None) -> None:
        check_encoder(encoder)
        self.encoder = encoder
        self.levels = nn.ModuleList(levels)
        self.heads = nn.ModuleDict(heads)
        self.task_names = tuple(heads)
        self._common = sum(level.gate is not None for level in levels)  # how many levels are shared as a whole
        self.heads_read_inputs = encoder is None and not self._common

    def features(self, inputs: Any, source: str = "") -> tuple[Any, ...]:
        """What the tasks' own experts read, unless it is the raw inputs, and the outputs of the last shared experts.

        The first is the encoder's output or, after levels that are shared, {task: (B, F)}; the second a list.
        """
        read = inputs if self.encoder is None else encode(self.encoder, inputs, source)
        reads, common = dict.fromkeys(self.task_names, read), read
        for level in self._levels[: self._common]:
            reads, common = level(reads, common, source)
        outputs = tuple(run_experts(self._levels[self._common].shared, common, source))
        if self.heads_read_inputs:
            return outputs
        return (reads if self._common else read, outputs)

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        read, shared = (inputs, features) if self.heads_read_inputs else features
        read = read[task] if self._common else read
        for level in self._levels[self._common :]:
            read = level.task_output(task, read, run_experts(level.experts(task), read), shared)
            shared = ()
        return read

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](self.representation(task, features, inputs))

    def blocks(self) -> Blocks:
        common, rest = self._levels[: self._common], self._levels[self._common :]
        encoders = [] if self.encoder is None else [self.encoder]
        shared = Block.of(*encoders, *common, *(level.shared for level in rest))
        own = {
            task: Block.of(*(part for level in rest for part in (level.own[task], level.gates[task])), self.heads[task])
            for task in self.task_names
        }
        return Blocks(shared, own)

    @property
    def _levels(self) -> list[_Level]:
        return [level for level in self.levels if isinstance(level, _Level)]


@final
class CGC(_Extraction):
    """Customized gate control: each task averages experts of its own and shared ones; one level of `PLE`.

    Paper: Tang, Liu, Zhao and Gong, *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations*, RecSys 2020, `doi:10.1145/3383313.3412236
    <https://doi.org/10.1145/3383313.3412236>`_.

    With e = encoder(x), or x itself, task k's experts t_k1 .. and the shared ones s_1 .., and the task's gate g_k, head
    k reads the average of all t_ki(e) and s_i(e) with the weights softmax(g_k(e)). Without experts of the tasks' own it
    is `MMoE`; with one own expert each and no shared ones it is single-task training.

    Shared experts (and the encoder) are the shared block, and their outputs the features; a task's own experts, gate
    and head are its own, and read the raw inputs where there is no encoder.

    Args:
        shared: modules from e to outputs (B, F), of one shape for all experts; may be empty.
        specific: {task: its own experts}, likewise; a list may be empty, but each task must have an expert to use.
        gates: how many numbers of e a gate reads (e is flattened), for the paper's linear gates; or {task: module from
            e to logits (B, n)}, its own experts first.
        heads: {task: module from (B, F) to outputs (B, C)}.
        encoder: what experts and gates all read from; None for the raw inputs. Sources whose inputs differ in kind
            need one: `BySource`.

    Raises:
        ValueError: there is no head, a task without any expert, modules with a parameter in common, `specific` or gates
            that are not for the heads' tasks, a width below 1, or (at the first call) outputs of experts or logits of a
            gate that do not fit.
        TypeError: something is not a module.

    >>> import torch
    >>> shared, own = [nn.Linear(2, 8)], {"circle": [nn.Linear(2, 8)], "rhombus": [nn.Linear(2, 8)]}
    >>> model = CGC(shared, own, gates=2, heads={"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)})
    >>> model(torch.zeros(5, 2))["circle"].shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        shared: Experts,
        specific: Mapping[str, Experts],
        gates: int | Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_heads(heads)
        check_mapping("specific", specific, "tasks to lists of modules")
        _check_levels([shared], {task: [experts] for task, experts in specific.items()}, heads)
        self._build([_Level(shared, {task: specific[task] for task in heads}, gates)], heads, encoder)


@final
class PLE(_Extraction):
    """Progressive layered extraction: levels of shared and task-specific experts, one above the other.

    Paper: Tang, Liu, Zhao and Gong, *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations*, RecSys 2020, `doi:10.1145/3383313.3412236
    <https://doi.org/10.1145/3383313.3412236>`_.

    On each level task k's gate averages its own experts and the shared ones, as in `CGC`; on all levels but the last a
    shared gate averages all experts. The former is what task k's experts and gate read on the next level, the latter
    what the shared ones read. Head k reads task k's average on the last level. With one level it is `CGC`; without
    shared experts, and one own expert a level for each task, it is single-task training.

    What a task's expert makes on a level below the last reaches all tasks through the shared gate. So no such
    expert is its task's own: frozen blocks stay frozen, and an absent task's block untouched, only because those levels
    are the shared block as a whole, together with the shared experts of the last. Task k's own are its experts and gate
    on the last level and its head. (A shared gate that no shared expert above would read is left out, and what is
    above the last one is not shared. The gate of task k on the last shared level serves k alone; it is shared
    for the sake of simple features.) Features are what comes out of the shared levels.

    Args:
        shared: for each level, its shared experts: modules to outputs (B, F), of one shape within the level. A
            level's list may be empty.
        specific: {task: for each level, its own experts}, likewise.
        gates: for each level, how many numbers its gates read (flattened): the width of e = encoder(x), or of x, then
            the widths of the levels' outputs.
        heads: {task: module from the last level's (B, F) to outputs (B, C)}.
        encoder: what the first level reads from; None for the raw inputs. Sources whose inputs differ in kind need one:
            `BySource`.

    Raises:
        ValueError: there is no head or no level, a task without any expert on a level, numbers of levels that differ,
            modules with a parameter in common, `specific` that is not for the heads' tasks, a width below 1, or (at
            the first call) outputs of experts that do not fit.
        TypeError: something is not a module, or a width is not a whole number.

    >>> import torch
    >>> def level(inputs):
    ...     return [nn.Sequential(nn.Linear(inputs, 8), nn.ReLU())]
    >>> own = {task: [level(2), level(8)] for task in ("circle", "rhombus")}
    >>> heads = {"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)}
    >>> model = PLE([level(2), level(8)], own, gates=[2, 8], heads=heads)
    >>> model(torch.zeros(5, 2))["circle"].shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        shared: Sequence[Experts],
        specific: Mapping[str, Sequence[Experts]],
        gates: Sequence[int],
        heads: Mapping[str, nn.Module],
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_heads(heads)
        check_list("shared", shared, "lists of modules, one for each level")
        check_mapping("specific", specific, "tasks to lists of modules, one for each level")
        for levels in specific.values():
            check_list("specific", levels, "lists of modules, one for each level and task")
        _check_levels(shared, specific, heads)
        check_list("gates", gates, f"widths, one for each of {len(shared)} levels")
        if len(gates) != len(shared):
            raise ValueError(f"`gates` must hold a width for each of {len(shared)} levels, found {len(gates)}")
        levels = []
        for place, (experts, width) in enumerate(zip(shared, gates, strict=True)):
            whole("gates", width, 1)
            level = _Level(experts, {task: specific[task][place] for task in heads}, width)
            if any(len(above) for above in shared[place + 1 :]):
                level.add_gate(width)
            levels.append(level)
        self._build(levels, heads, encoder)


def _check_levels(
    shared: Sequence[Experts], specific: Mapping[str, Sequence[Experts]], heads: Mapping[str, nn.Module]
) -> None:
    if set(specific) != set(heads):
        raise ValueError(
            f"every task must have a head and an entry in `specific`, found {sorted(specific)} in `specific` and heads "
            f"for {sorted(heads)}"
        )
    counts = {"`shared`": len(shared)} | {f"task `{task}`": len(levels) for task, levels in specific.items()}
    if len(set(counts.values())) > 1 or not len(shared):
        raise ValueError(f"shared and specific experts must have as many levels, at least 1, found {counts}")
    groups: dict[str, Experts] = {}
    for place, experts in enumerate(shared):
        groups[f"shared on level {place}"] = experts
        groups |= {f"of task `{task}` on level {place}": levels[place] for task, levels in specific.items()}
    check_experts("specific", {whose: experts for whose, experts in groups.items() if whose.startswith("of")})
    check_experts("shared", {whose: experts for whose, experts in groups.items() if whose.startswith("shared")})
    check_apart("shared and specific", {w: nn.ModuleList(experts) for w, experts in groups.items()})
    for place, experts in enumerate(shared):
        for task, levels in specific.items():
            if not len(experts) and not len(levels[place]):
                raise ValueError(f"every task must have an expert on every level, found none for `{task}` on {place}")
