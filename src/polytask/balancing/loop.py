"""Balancing in other people's loops: what stands where ``loss.backward()`` stood."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from polytask.balancing.base import Aggregator, Balancer, CotangentAggregator
from polytask.balancing.gradients import MODES, Backward
from polytask.balancing.parallel import ParallelBackward
from polytask.balancing.sharded import is_sharded, parallel_backward, reshard
from polytask.errors import one_of
from polytask.models.base import Block
from polytask.ranks import Ranks

# the objectives whose losses were looked at once, where looking waits for the device
_SEEN: WeakKeyDictionary[Balancer, set[str]] = WeakKeyDictionary()


class Accumulator:
    """`balance` over several micro-batches: replaces ``loss.backward()`` where gradients are accumulated.

    Objective k is the sum of its losses over the calls of `add`; the balancer sees the accumulated gradients
    once, in `finish`, which is the same as one call of `balance` on the concatenated batch. (Calling
    `balance` per micro-batch adds up several balanced gradients instead, which is something else: a common
    descent direction of each part is not one of the whole.) Divide the losses as for ``backward``, by the
    number of micro-batches if they are means over equally many examples. A task may be absent from some.

    In the mode ``exact`` K shared gradients are kept from the first `add` on, and each graph is freed at
    once; the other modes, and balancers that work at the features, keep all graphs until `finish`.

    Args:
        shared: the shared parameters: a block of a model, a module, or parameters.
        balancer: for example ``pt.aggregation.MGDA()``; its own state advances once per `finish`.
        gradients: ``exact``, ``features`` or ``low_memory``; see `Backward`.
        scaler: the loop's gradient scaler, for float16: give `add` the plain losses. Gradients are taken
            scaled, compared unscaled, and left scaled in `.grad`, as ``scaler.step`` expects.
        ranks: the processes that each hold a part of the batch, see `balance`. `add` then exchanges nothing,
            and may be called differently often on each rank, or never; every rank must call `finish`, and it
            is there that every rank raises what was wrong on one. The counts of several calls add up, and
            weigh the rank's sum of losses.
        specific: all other parameters, see `balance`.

    Raises:
        ValueError: an unknown mode, no shared parameter requires a gradient, or `ranks` without `specific`.
        TypeError: `balancer`, `shared` or `specific` is not what it must be.

    >>> import torch, polytask as pt
    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> accumulator = pt.Accumulator(shared=[w], balancer=pt.aggregation.MGDA())
    >>> for _ in range(2):
    ...     accumulator.add({"a": (w[0] - 3) ** 2 / 2, "b": (w[1] + 1) ** 2 / 2})
    >>> accumulator.finish()
    tensor([0.5000, 0.5000])
    >>> w.grad
    tensor([-2.,  2.])
    """

    def __init__(
        self,
        *,
        shared: Block | nn.Module | Iterable[Parameter],
        balancer: Balancer,
        gradients: str = "exact",
        scaler: torch.amp.GradScaler | None = None,
        ranks: Ranks | None = None,
        specific: nn.Module | Iterable[Parameter] | None = None,
    ) -> None:
        _check_balancer(balancer)
        one_of("gradients", gradients, MODES)
        if ranks is not None and specific is None:
            raise ValueError(
                "with `ranks`, `specific` must hold the other parameters, in the same order on every rank (the model "
                "itself will do), found None"
            )
        if ranks is not None and isinstance(shared, nn.Module):
            reshard(shared)
        self._balancer = balancer
        self._shared = _shared_parameters(shared)
        self._mode = gradients
        self._scaler = scaler
        self._ranks = None if ranks is None or ranks.alone else ranks
        self._specific = [] if specific is None else _others(specific, self._shared)
        self._start_over()

    def add(
        self,
        losses: Mapping[str, Tensor],
        features: Tensor | Sequence[Tensor] = (),
        counts: Mapping[str, float] | None = None,
    ) -> None:
        """Takes one micro-batch's losses.

        Args:
            losses: {name: scalar that requires a gradient}.
            features: the shared features, for ``gradients="features"`` and for balancers that work there.
            counts: {name: how many examples the loss is a mean over}, see `balance`.

        Raises:
            ValueError: see `balance`; nothing is added then.
        """
        self._add(losses, features, 2, counts)

    def finish(self) -> Tensor:
        """Fills `.grad` and starts over.

        Returns:
            (K,) the weights used, detached, in the order in which names came; 1 where the balancer gives a
            gradient. With ranks, of all names that any rank gave, the first rank's first.

        Raises:
            ValueError: nothing was added.
        """
        if self._ranks is not None:
            return self._finish_together(self._ranks)
        if self._work is None:
            raise ValueError("`add` must be called before `finish`, found no losses")
        work, names = self._work, self._names
        self._start_over()
        weights = work.finish()
        return _stacked(weights, names)

    def _start_over(self) -> None:
        self._work: Backward | None = None
        self._own: list[Parameter] = []
        self._names: list[str] = []
        self._counts: dict[str, float] = {}
        self._trouble: Exception | None = None

    def _add(
        self,
        losses: Mapping[str, Tensor],
        features: Tensor | Sequence[Tensor],
        batches: int,
        counts: Mapping[str, float] | None,
    ) -> None:
        boundary = [features] if isinstance(features, Tensor) else list(features)
        if self._ranks is not None:
            self._add_part(self._ranks, losses, boundary, batches, counts)
            return
        self._check(losses, boundary)
        own = _reached(losses, self._shared, boundary, isinstance(self._balancer, Aggregator))
        names = list(dict.fromkeys((*self._names, *losses)))
        self._set_up(names)
        if self._work is None:
            self._work = Backward(
                self._balancer, self._shared, self._own, mode=self._mode, batches=batches, factor=self._factor()
            )
        known = {id(p) for p in self._own}
        self._own.extend(p for p in own if id(p) not in known)  # the work holds this very list
        self._names = names
        self._work.add(list(losses), list(losses.values()), [1.0] * len(losses), boundary)

    def _add_part(
        self,
        ranks: Ranks,
        losses: Mapping[str, Tensor],
        boundary: Sequence[Tensor],
        batches: int,
        counts: Mapping[str, float] | None,
    ) -> None:
        """What is wrong here is raised by every rank, in `finish`: alone, this one would leave the others waiting."""
        if self._trouble is not None or (isinstance(losses, Mapping) and not losses):
            return
        try:
            self._check(losses, boundary)
            if not any(map(is_sharded, self._shared)):  # graphs hold what FSDP gathers, not the parameters
                own = _reached(losses, self._shared, boundary, isinstance(self._balancer, Aggregator))
                _check_known(own, self._specific)
            for name, count in _checked_counts(counts, losses).items():
                self._counts[name] = self._counts.get(name, 0) + count
        except (TypeError, ValueError) as error:
            self._trouble = error
            return
        if self._work is None:
            self._work = self._parallel(ranks, batches)
        self._names = list(dict.fromkeys((*self._names, *losses)))
        self._work.add(list(losses), list(losses.values()), [1.0] * len(losses), boundary)

    def _parallel(self, ranks: Ranks, batches: int) -> ParallelBackward:
        return parallel_backward(
            self._balancer, self._shared, self._specific, ranks=ranks, mode=self._mode, batches=batches,
            factor=self._factor(),
        )  # fmt: skip

    def _finish_together(self, ranks: Ranks) -> Tensor:
        work, trouble = self._work, self._trouble
        told = ranks.objects((self._counts, type(trouble).__name__, "" if trouble is None else str(trouble)))
        self._start_over()
        for rank, (_, kind, text) in enumerate(told):
            if kind != "NoneType":
                raise (TypeError if kind == "TypeError" else ValueError)(f"rank {rank}: {text}") from trouble
        totals: dict[str, float] = {}
        for counts, *_ in told:
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
        if not totals:
            raise ValueError("a rank must have called `add` before `finish`, found no losses on any")
        names = [name for name in self._balancer.objectives if name in totals]
        names += [name for name in totals if name not in names]
        self._set_up(names)
        if not isinstance(work, ParallelBackward):  # this rank has no losses
            work = self._parallel(ranks, 1)
        shares = {name: count / totals[name] for name, count in told[ranks.index][0].items()}
        return _stacked(work.finish(names, shares), names)

    def _check(self, losses: Mapping[str, Tensor], boundary: Sequence[Tensor]) -> None:
        device = self._shared[0].device
        _check_losses(losses, device)
        seen = _SEEN.setdefault(self._balancer, set())
        if device.type == "cpu" or not seen.issuperset(losses):
            _check_finite(losses)
            seen.update(losses)
        at_features = self._mode == "features" or isinstance(self._balancer, CotangentAggregator)
        if not at_features:
            return
        if not boundary:
            raise ValueError(
                f"`features` must be given to {type(self._balancer).__name__} with gradients={self._mode!r}, which "
                "works on the gradients there, found none"
            )
        if not all(isinstance(f, Tensor) and f.requires_grad for f in boundary):
            raise ValueError("`features` must be tensors that require a gradient, found others")

    def _factor(self) -> Tensor | None:
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        return self._scaler.scale(torch.ones((), device=self._shared[0].device))

    def _set_up(self, names: list[str]) -> None:
        known = self._balancer.objectives
        if not set(names) <= set(known):  # told of all it has met: a loss may be absent without starting anew
            every = (*known, *(name for name in names if name not in known))
            self._balancer.setup(every)
            self._balancer.objectives = every  # a balancer of the user's may not note them itself


def balance(
    losses: Mapping[str, Tensor],
    *,
    shared: Block | nn.Module | Iterable[Parameter],
    balancer: Balancer,
    gradients: str = "exact",
    features: Tensor | Sequence[Tensor] = (),
    scaler: torch.amp.GradScaler | None = None,
    ranks: Ranks | None = None,
    specific: nn.Module | Iterable[Parameter] | None = None,
    counts: Mapping[str, float] | None = None,
) -> Tensor:
    """Replaces ``loss.backward()`` in a loop of your own: fills `.grad` of every parameter the losses reach.

    Shared parameters get what the balancer makes of the losses; all others get the gradient of their own
    losses (of the weighted sum, under a scalarizer). Gradients add to those already there, as with
    ``backward``; to balance gradients accumulated over micro-batches see `Accumulator`. Clip afterwards. A
    balancer that wants the losses after the step (FAMO) is told by the caller: ``balancer.after(losses)``.

    On a CPU every loss is checked to be finite; on other devices only in the first call with a balancer,
    since looking waits for the device.

    With several `ranks` (never inside a DDP wrapper) each computes the losses of its own part of the batch, and
    every rank calls this function: L_k is the mean of the ranks' losses weighted by `counts`, the balancer acts
    on the gradients of that, and every rank ends with the same `.grad`. A rank may lack a loss, or give none.
    Parameters, and the balancer's seed and settings, must be the same on all ranks from the start.

    Args:
        losses: {name: scalar that requires a gradient}.
        shared: the shared parameters: a block of a model, a module, or parameters (under FSDP2 the module, or
            parameters listed before the forward pass, which hides them).
        balancer: for example ``pt.aggregation.MGDA()``; its own state advances.
        gradients: ``exact``, ``features`` or ``low_memory``; see `Backward`.
        features: the shared features, for ``gradients="features"`` and for balancers that work there.
        scaler: the loop's gradient scaler, for float16; give the plain losses, see `Accumulator`.
        ranks: the processes that each hold a part of the batch, ``pt.Ranks()`` after
            ``torch.distributed.init_process_group``; None for this one alone.
        specific: with `ranks`, all other parameters that may get a gradient, in the same order on every rank: the
            model itself, or parameters; shared ones among them are passed over.
        counts: with `ranks`, {name: how many examples this rank's loss is a mean over}; 1 each if None, which
            fits parts of equal size.

    Returns:
        (K,) the weights used, detached, in the order of `losses`; 1 where the balancer gives a gradient. With
        ranks, of all names that any rank gave, the first rank's first.

    Raises:
        ValueError: no loss; one that is not a scalar, does not require a gradient, is not finite, is given
            twice, or does not depend on the shared parameters (named); tensors on several devices; no
            shared parameter requires a gradient; features missing where they are needed, or not those of
            the losses; `ranks` without `specific`, a parameter in neither, or a count that is not above 0.
            `.grad` is untouched then. What is wrong on one rank is raised on all.
        TypeError: `balancer`, `losses`, `shared` or `specific` is not what it must be.

    >>> import torch, polytask as pt
    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> losses = {"a": (w[0] - 3) ** 2, "b": (w[1] + 1) ** 2}
    >>> pt.balance(losses, shared=[w], balancer=pt.aggregation.MGDA())
    tensor([0.5000, 0.5000])
    >>> w.grad
    tensor([-2.,  2.])
    """
    work = Accumulator(
        shared=shared, balancer=balancer, gradients=gradients, scaler=scaler, ranks=ranks, specific=specific
    )
    work._add(losses, features, 1, counts)
    return work.finish()


def _stacked(weights: Mapping[str, Any], names: Iterable[str]) -> Tensor:
    device = next((w.device for w in weights.values() if isinstance(w, Tensor)), torch.device("cpu"))
    return torch.stack([_number(weights[name], device) for name in names])


def _number(value: float | Tensor, device: torch.device) -> Tensor:
    """A weight as a scalar on the device, without a copy to it."""
    return value.detach().float() if isinstance(value, Tensor) else torch.full((), float(value), device=device)


def _check_balancer(balancer: Any) -> None:
    if isinstance(balancer, type):
        raise TypeError(f"`balancer` must be a polytask balancer, found the class {balancer.__name__}: call it")
    if not isinstance(balancer, Balancer):
        raise TypeError(f"`balancer` must be a polytask balancer, found {type(balancer).__name__}")


def _others(specific: nn.Module | Iterable[Parameter], shared: Sequence[Parameter]) -> list[Parameter]:
    """The parameters of `specific` that require a gradient and are not shared, each once."""
    if isinstance(specific, nn.Module):
        specific = specific.parameters()
    elif isinstance(specific, Tensor | str) or not isinstance(specific, Iterable):
        raise TypeError(f"`specific` must be a module or parameters, found {type(specific).__name__}")
    common = {id(p) for p in shared}
    return list({id(p): p for p in specific if p.requires_grad and id(p) not in common}.values())


def _check_known(reached: Iterable[Parameter], specific: Iterable[Parameter]) -> None:
    known = {id(p) for p in specific}
    for p in reached:
        if id(p) not in known:
            raise ValueError(
                "with `ranks`, every parameter that a loss reaches must be among `shared` or `specific`, found one of "
                f"shape {tuple(p.shape)} in neither"
            )


def _checked_counts(counts: Mapping[str, float] | None, losses: Iterable[str]) -> dict[str, float]:
    names = list(losses)
    if counts is None:
        return dict.fromkeys(names, 1)
    for name in names:
        if not 0 < counts.get(name, 0) < math.inf:
            raise ValueError(f"`counts` must be above 0 for every loss, found {counts.get(name)} for `{name}`")
    return {name: counts[name] for name in names}


def _shared_parameters(shared: Block | nn.Module | Iterable[Parameter]) -> list[Parameter]:
    if isinstance(shared, nn.Module):
        shared = shared.parameters()
    elif isinstance(shared, Block):
        shared = shared.parameters
    elif isinstance(shared, Tensor | str) or not isinstance(shared, Iterable):
        raise TypeError(f"`shared` must be a block, a module or parameters, found {type(shared).__name__}")
    every = list(shared)
    for p in every:
        if not isinstance(p, Tensor) or not p.is_leaf:
            found = "a tensor that is not a leaf" if isinstance(p, Tensor) else type(p).__name__
            raise TypeError(f"`shared` must hold parameters, found {found}")
    wanted = list({id(p): p for p in every if p.requires_grad}.values())
    if not wanted:
        raise ValueError("`shared` must hold at least one parameter that requires a gradient, found none")
    devices = sorted({str(p.device) for p in wanted})
    if len(devices) > 1:
        raise ValueError(f"all shared parameters must be on one device, found {', '.join(devices)}")
    return wanted


def _check_losses(losses: Mapping[str, Tensor], device: torch.device) -> None:
    if not isinstance(losses, Mapping):
        raise TypeError(f"`losses` must be a mapping of names to scalars, found {type(losses).__name__}")
    if not losses:
        raise ValueError("there must be at least one loss, found none")
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"a loss must be a scalar tensor, found {found} for `{name}`")
        if not loss.requires_grad:
            raise ValueError(f"a loss must require a gradient, found that `{name}` does not")
        if loss.device != device:
            raise ValueError(
                f"losses and shared parameters must be on one device, found `{name}` on {loss.device} and parameters "
                f"on {device}"
            )
    if len({id(loss) for loss in losses.values()}) < len(losses):
        raise ValueError(f"every loss must be given once, found one tensor under two names among {list(losses)}")


def _check_finite(losses: Mapping[str, Tensor]) -> None:
    for name, loss in losses.items():
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"a loss must be finite, found {value} for `{name}`")


def _reached(
    losses: Mapping[str, Tensor], shared: Sequence[Parameter], features: Sequence[Tensor], must_share: bool
) -> list[Parameter]:
    """The leaf tensors other than the shared ones that the losses reach, found by walking the graph once.

    Raises:
        ValueError: a loss that does not reach a shared parameter where it must, or features that none reaches.
    """
    identities = {id(p) for p in shared}
    leaves: dict[int, Parameter] = {}
    reaches: dict[Any, bool] = {}  # node of the graph: whether a shared parameter lies behind it
    for name, loss in losses.items():
        if loss.grad_fn is None:  # a bare parameter
            leaves[id(loss)] = cast(Parameter, loss)
            found = id(loss) in identities
        else:
            found = _walk(loss.grad_fn, identities, leaves, reaches)
        if must_share and not found:
            raise ValueError(f"every loss must depend on the shared parameters, found that `{name}` does not")
    if any(f.grad_fn is not None and f.grad_fn not in reaches for f in features):
        raise ValueError("`features` must be what the losses are computed from, found a tensor that no loss depends on")
    return [p for key, p in leaves.items() if key not in identities]


def _walk(root: Any, identities: set[int], leaves: dict[int, Parameter], reaches: dict[Any, bool]) -> bool:
    """Visits what lies behind `root`, children before parents, without recursion."""
    stack: list[tuple[Any, list[Any] | None]] = [(root, None)]
    while stack:
        node, parents = stack.pop()
        if parents is not None:
            reaches[node] = any(reaches[parent] for parent in parents)
        elif node not in reaches:
            parents = [parent for parent, _ in node.next_functions if parent is not None]
            if parents:
                stack.append((node, parents))
                stack.extend((parent, None) for parent in parents if parent not in reaches)
            else:
                variable = getattr(node, "variable", None)
                reaches[node] = variable is not None and id(variable) in identities
                if variable is not None:
                    leaves[id(variable)] = variable
    return reaches[root]
