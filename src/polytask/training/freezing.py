"""Which blocks are live: the switch that makes a frozen block frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import Parameter

from polytask.models.base import Block, Blocks, Model
from polytask.objective import Objective

_DROPOUT = (nn.modules.dropout._DropoutNd,)


@dataclass
class Live:
    """What an update moves.

    Attributes:
        shared: live parameters of the shared block.
        specific: live parameters of the live tasks' blocks.
    """

    shared: list[Parameter]
    specific: list[Parameter]
    states: list[tuple[Parameter, bool]]
    modes: list[tuple[nn.Module, bool]]


def blocks_with(model: Model, objectives: Iterable[Objective]) -> Blocks:
    """The model's blocks, each with the objectives' own parameters and modules that join it.

    What an objective holds of the model itself stays where the model puts it.
    """
    blocks = model.blocks()
    theirs = {id(part) for part in (*model.parameters(), *model.modules())}
    shared, specific = blocks.shared, dict(blocks.specific)
    for objective in objectives:
        whole = Block.of(objective)
        parameters = tuple(p for p in whole.parameters if id(p) not in theirs)
        modules = tuple(m for m in whole.modules if id(m) not in theirs)
        before = shared if objective.block is None else specific[objective.block]
        joined = Block((*before.parameters, *parameters), (*before.modules, *modules))
        if objective.block is None:
            shared = joined
        else:
            specific[objective.block] = joined
    return Blocks(shared, specific)


class Freezer:
    """Switches blocks between live and frozen, and puts everything back at the end.

    A frozen block's parameters have `requires_grad` off and its modules are in eval mode, so neither
    gradients nor running statistics touch it. Parameters that the user froze stay frozen, and a module that
    its own `train()` keeps in eval mode (as frozen BatchNorms do) stays there. A parameter that belongs to
    the shared block and to a task's (tied weights) counts as shared.

    Args:
        model: its blocks must hold every parameter; modules outside all blocks are always live.
        objectives: terms beside the losses; what they own moves with the block they name.
        keep_dropout: leave the dropout modules of frozen blocks active.

    Raises:
        ValueError: a parameter belongs to no block.
    """

    def __init__(self, model: Model, objectives: Iterable[Objective] = (), keep_dropout: bool = False) -> None:
        outside = list(objectives)
        blocks = self._blocks = blocks_with(model, outside)
        self._keep_dropout = keep_dropout
        every = [blocks.shared, *blocks.specific.values()]
        self._parameters = {id(p): p for block in every for p in block.parameters}
        for name, parameter in model.named_parameters():
            if id(parameter) not in self._parameters:
                raise ValueError(f"every parameter must belong to a block, found `{name}` in none")
        self._modules = {id(m): m for module in (model, *outside) for m in module.modules()}
        self._unowned = self._modules.keys() - {id(m) for block in every for m in block.modules}
        self._trainable = {key: p.requires_grad for key, p in self._parameters.items()}
        self._training = {key: m.training for key, m in self._modules.items()}
        self._plans: dict[tuple[bool, frozenset[str]], Live] = {}
        self._current: Live | None = None

    def switch(self, shared: bool, tasks: frozenset[str]) -> Live:
        """Makes exactly these blocks live.

        Returns:
            What moves; nothing, if the user froze all of it.
        """
        key = (shared, tasks)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(shared, tasks)
        if plan is not self._current:
            self._current = plan
            for parameter, flag in plan.states:
                parameter.requires_grad_(flag)
            _set_modes(plan.modes)
        return plan

    def check(self, shared: bool, tasks: frozenset[str]) -> None:
        """Raises `ValueError` if an update of these blocks could not move any parameter."""
        live = self._plan(shared, tasks)
        if not live.shared and not live.specific:
            wanted = "the shared block" if shared and not tasks else f"the blocks of {sorted(tasks)}"
            raise ValueError(
                f"an update must touch at least one trainable parameter, found none in {wanted} "
                f"({len(self._blocks.shared.parameters)} shared parameters)"
            )

    def evaluate(self) -> None:
        """Every module in eval mode, until the next `switch`."""
        self._current = None
        for module in self._modules.values():
            module.__dict__["training"] = False

    def restore(self) -> None:
        """Everything as it was found, and no gradient left on a block."""
        self._current = None
        for key, parameter in self._parameters.items():
            parameter.requires_grad_(self._trainable[key])
        _set_modes([(m, self._training[key]) for key, m in self._modules.items()])

    def _plan(self, shared: bool, tasks: frozenset[str]) -> Live:
        common = {id(p) for p in self._blocks.shared.parameters}
        live_shared = [p for p in self._blocks.shared.parameters if shared and self._trainable[id(p)]]
        # in the blocks' order: a set's differs from process to process, and ranks must agree
        acting = [block for task, block in self._blocks.specific.items() if task in tasks]
        own = {id(p): p for block in acting for p in block.parameters}
        live_specific = [p for key, p in own.items() if key not in common and self._trainable[key]]
        live = {id(p) for p in (*live_shared, *live_specific)}
        blocks = [self._blocks.shared] * shared + [self._blocks.specific[task] for task in tasks]
        awake = self._unowned | {id(m) for block in blocks for m in block.modules}
        if not shared:  # a module that a trunk and a head both hold rests with the trunk, as its parameters do
            awake -= {id(m) for m in self._blocks.shared.modules}
        return Live(
            live_shared,
            live_specific,
            [(p, key in live) for key, p in self._parameters.items()],
            [(m, self._mode(key, m, awake)) for key, m in self._modules.items()],
        )

    def _mode(self, key: int, module: nn.Module, awake: set[int]) -> bool:
        kept = self._keep_dropout and isinstance(module, _DROPOUT)
        return self._training[key] and (key in awake or kept)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    # past nn.Module.__setattr__, which costs a microsecond a module, twice per step under SAT-SG
    for module, mode in modes:
        module.__dict__["training"] = mode


def reset_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Gradients to None, never to zero: a zero gradient moves weights under Adam."""
    for parameter in parameters:
        parameter.grad = None
