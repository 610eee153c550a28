"""The only place that takes gradients of several objectives."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from polytask.balancing.base import Aggregator, Balancer, CotangentAggregator, Evidence, JacobianAggregator, Needs
from polytask.errors import one_of
from polytask.models.base import Block

MODES = ("exact", "features", "low_memory")

Gradients = Sequence[Tensor | None]


_EMPTY = torch.empty(0)


@functools.cache
def _flags(needs: Needs) -> tuple[bool, bool, bool, bool]:
    """Whether losses, norms, a second look, and nothing at all of a step are needed; flags are slow to compare."""
    seen = Needs.LOSSES | Needs.NORMS | Needs.GRAMIAN | Needs.JACOBIAN | Needs.COTANGENTS
    return Needs.LOSSES in needs, Needs.NORMS in needs, Needs.LOSSES_AFTER in needs, not needs & seen


class Backward:
    """The backward passes of one update, over one or several batches.

    Objective k is L_k = Σ over batches of scale * total; keeping the factor apart lets it ride on the
    gradient that starts the backward pass, at no cost. With several batches gradients are accumulated per
    objective, and the balancer sees them once, when all are in: it balances the accumulated gradients, the
    same as those of the concatenated batch.

    Args:
        balancer: how the objectives share the shared block.
        shared: the shared parameters that require a gradient; empty if the block is frozen.
        specific: the task-specific parameters that require a gradient.
        mode: ``exact``: one backward pass through the trunk per objective, Jacobian kept (K gradients).
            ``features``: the gradients at the feature boundary stand in for those at the parameters, whose
            norms they bound (MGDA-UB, Sener and Koltun 2018); one pass through the trunk, whatever K.
            ``low_memory``: the Gramian is gathered from pairs of gradients that are not kept, for half of the
            shared parameters at a time (less where single parameters are large), then one weighted pass: about
            one shared gradient alive, and K (K + 1) / 2 passes through the trunk for each part.
        batches: how many times `add` will be called.
        factor: what the caller's loss scaling multiplies gradients by while they are taken (float16). The
            balancer sees them without it, and `.grad` holds it, as the scaler expects. Where a shared
            gradient overflows, `.grad` becomes NaN and the balancer is not asked.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        balancer: Balancer,
        shared: Sequence[Parameter],
        specific: Sequence[Parameter],
        *,
        mode: str = "exact",
        batches: int = 1,
        factor: Tensor | None = None,
    ) -> None:
        if mode not in MODES:
            one_of("gradients", mode, MODES)
        self._balancer = balancer
        self._shared = shared
        self._specific = specific
        self._mode = mode
        self._factor = factor
        self._aggregates = isinstance(balancer, Aggregator) and len(shared) > 0
        self._rests = isinstance(balancer, Aggregator) and not self._aggregates
        self._losses, norms, self._again, blind = _flags(balancer.needs)
        self._blind = self._aggregates and blind
        norms = norms and len(shared) > 0
        self._direct = not self._aggregates and not norms and (self._rests or batches == 1 or not self._losses)
        self._values: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._missed: set[int] | None = None  # positions in `shared` that no objective has reached
        self._jacobian = _EMPTY
        self._own: dict[str, dict[int, Tensor]] = {}  # by position in `specific`, which may grow
        self._kept: list[tuple[list[str], Sequence[Tensor], Sequence[float], list[Tensor]]] = []
        self._weights: dict[str, Any] = {}
        self._batches = batches
        self._answers: dict[str, Any] = {}

    @property
    def looks_again(self) -> bool:
        """Whether the balancer wants the losses after the step as well."""
        return self._again and not self._rests

    def add(
        self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float], features: Sequence[Tensor] = ()
    ) -> None:
        """Takes one batch's objectives.

        Args:
            names: the objectives present.
            totals: a scalar attached to the graph for each.
            scales: a factor for each (fixed weight over number of examples in all batches).
            features: the tensors at the model's boundary, where there is one; needed by the mode
                ``features`` and by balancers that work there.
        """
        if self._losses and not self._rests:
            for name, total, scale in zip(names, totals, scales, strict=True):
                value = total.detach() * scale
                self._values[name] = self._values[name] + value if name in self._values else value
        if self._direct:
            self._weigh(names, totals, scales)
        elif self._blind:
            self._weigh_shared(names, totals, scales)
        elif self._aggregates and (self._mode != "exact" or isinstance(self._balancer, CotangentAggregator)):
            self._kept.append((list(names), totals, scales, list(features)))
        else:
            self._gather(names, totals, scales)

    def finish(self) -> dict[str, Any]:
        """Fills `.grad`; gives {objective: weight}, 1 where the balancer gives a gradient and no weights."""
        if self._kept and (self._mode == "features" or isinstance(self._balancer, CotangentAggregator)):
            self._finish_at_features()
        elif self._kept:
            self._finish_in_pairs()
        elif self._rows or self._own:
            self._finish_rows()
        return self._weights

    # Losses only: one backward pass

    def _weigh(self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float]) -> None:
        if self._rests:
            weights: Any = [1.0] * len(names)
        elif self._losses or self._batches == 1:
            weights = self._balancer.combine(self._evidence(names))
        else:
            weights = self._answer_once(names)
        starts = [self._start(t, w, s) for t, w, s in zip(totals, weights, scales, strict=True)]
        torch.autograd.backward(tuple(totals), tuple(starts))
        self._weights.update(zip(names, weights, strict=True))

    def _answer_once(self, names: Sequence[str]) -> list[Any]:
        """One answer for all batches of the update, whichever objectives the first one has."""
        every = dict.fromkeys((*self._balancer.objectives, *names))
        asked = [name for name in every if name not in self._answers]
        if not set(names) <= self._answers.keys():
            self._answers.update(zip(asked, self._balancer.combine(self._evidence(asked)), strict=True))
        return [self._answers[name] for name in names]

    def _weigh_shared(self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float]) -> None:
        """Two backward passes, for an aggregator whose weights depend on no gradient."""
        weights: Any = self._balancer.combine(self._evidence(names))
        starts = [self._start(t, w, s) for t, w, s in zip(totals, weights, scales, strict=True)]
        inputs = tuple(self._shared)
        _accumulate(self._shared, torch.autograd.grad(totals, inputs, starts, retain_graph=True, allow_unused=True))
        self._own_gradients(totals, scales)
        self._weights.update(zip(names, weights, strict=True))

    def _evidence(self, names: Sequence[str]) -> Evidence:
        looks = self._losses
        return Evidence(names, [self._values[name] for name in names] if looks else None)

    # One gradient of the shared block per objective

    def _gather(self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float]) -> None:
        inputs, cut = (*self._shared, *self._specific), len(self._shared)
        for index, (name, total, scale) in enumerate(zip(names, totals, scales, strict=True)):
            gradients = torch.autograd.grad(
                total, inputs, self._start(total, 1.0, scale), retain_graph=index < len(totals) - 1, allow_unused=True
            )
            missed = {position for position, gradient in enumerate(gradients[:cut]) if gradient is None}
            if len(missed) < cut:
                self._put(name, gradients[:cut], len(names))
                self._missed = missed if self._missed is None else self._missed & missed
            own = self._own.setdefault(name, {})
            for position, gradient in enumerate(gradients[cut:]):
                if gradient is not None:
                    own[position] = own[position] + gradient if position in own else gradient

    def _put(self, name: str, gradients: Gradients, expected: int) -> None:
        """Writes or adds a row of the Jacobian, which is one buffer so that no gradient is copied twice."""
        parts = _parts(gradients, self._shared)
        if name in self._rows:
            self._jacobian[self._rows[name]] += torch.cat(parts)
            return
        row = self._rows[name] = len(self._rows)
        if row == len(self._jacobian):  # the first row, or one that only a later batch has
            rows = max(1, expected - row)
            more = torch.empty(rows, sum(p.numel() for p in parts), dtype=_wide(self._shared), device=parts[0].device)
            self._jacobian = more if row == 0 else torch.cat((self._jacobian, more))
        torch.cat(parts, out=self._jacobian[row])

    def _finish_rows(self) -> None:
        """Objectives that the shared block cannot serve have no say in how it moves."""
        weights: dict[str, Any] = dict.fromkeys(self._own, 1.0)
        if self._rows:
            evidence = self._evidence(list(self._rows))
            evidence.jacobian = self._jacobian[: len(self._rows)]
            gradient = self._combine(evidence, evidence.jacobian, weights)
            parts: list[Tensor | None] = [*_unflatten(gradient, self._shared)]
            for position in self._missed or ():
                parts[position] = None  # as after `backward`: an optimizer leaves it alone
            _accumulate(self._shared, parts)
        for name, own in self._own.items():
            parameters = [self._specific[position] for position in own]
            scaled = own.values() if self._aggregates else [gradient * weights[name] for gradient in own.values()]
            _accumulate(parameters, scaled)
        self._weights = weights

    def _combine(self, evidence: Evidence, matrix: Tensor, weights: dict[str, Any]) -> Tensor:
        """The balancer's answer as one gradient (the matrix' width); its weights are written into `weights`."""
        if self._factor is not None:
            if not torch.isfinite(matrix).all():
                return matrix.new_full((matrix.shape[1],), torch.nan)
            matrix /= self._factor
        combined = torch.as_tensor(self._balancer.combine(evidence)).to(matrix)
        if not isinstance(self._balancer, JacobianAggregator | CotangentAggregator):
            weights.update(zip(evidence.names, combined.unbind(), strict=True))
            combined = combined @ matrix
        return combined if self._factor is None else combined * self._factor

    # The feature boundary stands in for the parameters

    def _finish_at_features(self) -> None:
        names = list(dict.fromkeys(name for batch in self._kept for name in batch[0]))
        if not all(features for _, _, _, features in self._kept):
            raise ValueError(
                f"{type(self._balancer).__name__} with gradients={self._mode!r} works at the feature boundary, found a "
                "model (or losses) without one"
            )
        parts = [self._cotangents(names, *batch) for batch in self._kept]  # (K, Z) per batch
        cotangents = torch.cat(parts, dim=1)
        evidence = self._evidence(names)
        evidence.examples = sum(features[0].shape[0] for _, _, _, features in self._kept)
        if isinstance(self._balancer, CotangentAggregator):
            evidence.cotangents = cotangents
        else:
            evidence.jacobian = cotangents
        self._weights = dict.fromkeys(names, 1.0)
        combined = self._combine(evidence, cotangents, self._weights)
        for (_, _, _, features), part in zip(self._kept, combined.split([p.shape[1] for p in parts]), strict=True):
            pieces = part.split([f.numel() for f in features])
            starts = [piece.view_as(f).to(f) for piece, f in zip(pieces, features, strict=True)]
            pulled = torch.autograd.grad(features, tuple(self._shared), starts, allow_unused=True)
            _accumulate(self._shared, pulled)
        self._kept.clear()

    def _cotangents(
        self, every: Sequence[str], names: list[str], totals: Sequence[Tensor], scales: Sequence[float],
        features: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """(K, Z) gradients at the boundary; task-specific gradients are filled on the way."""
        width = sum(f.numel() for f in features)
        rows = torch.zeros(len(every), width, dtype=_wide(features), device=features[0].device)
        for name, total, scale in zip(names, totals, scales, strict=True):
            inputs, cut = (*features, *self._specific), len(features)
            gradients = torch.autograd.grad(
                total, inputs, self._start(total, 1.0, scale), retain_graph=True, allow_unused=True
            )  # fmt: skip
            torch.cat(_parts(gradients[:cut], features), out=rows[every.index(name)])
            _accumulate(self._specific, gradients[cut:])
        return rows

    # Gradients in pairs, none kept

    def _finish_in_pairs(self) -> None:
        if isinstance(self._balancer, JacobianAggregator):
            raise ValueError(
                f"gradients='low_memory' gathers a Gramian, found {type(self._balancer).__name__}, which needs the "
                "Jacobian itself"
            )
        names = list(dict.fromkeys(name for batch in self._kept for name in batch[0]))
        gram, reached = self._products(names)
        weights: dict[str, Any] = dict.fromkeys(names, 1.0)
        if reached:
            evidence = self._evidence([names[i] for i in reached])
            evidence.gram = gram if len(reached) == len(names) else gram[reached][:, reached]
            if self._factor is not None and not torch.isfinite(gram).all():
                combined = gram.new_full((len(reached),), torch.nan)
            else:
                combined = torch.as_tensor(self._balancer.combine(evidence)).to(gram)
            weights.update(zip(evidence.names, combined.unbind(), strict=True))
            _accumulate(self._shared, self._pull(weights, self._shared))
        self._fill_specific()
        self._weights = weights
        self._kept.clear()

    def _products(self, names: Sequence[str]) -> tuple[Tensor, list[int]]:
        """(K, K) inner products of the shared gradients, and which of the K exist at all."""
        gram = torch.zeros(len(names), len(names), dtype=_wide(self._shared), device=self._shared[0].device)
        reached: set[int] = set()
        for group in _halves(self._shared):
            some: list[int] = []  # those that reach this group
            for i, first in enumerate(names):
                held = self._pull({first: 1.0}, group)
                if all(gradient is None for gradient in held):
                    continue
                gram[i, i] += _inner(held, held)
                for j in some:
                    product = _inner(held, self._pull({names[j]: 1.0}, group))
                    gram[i, j] += product
                    gram[j, i] += product
                some.append(i)
                del held
            reached.update(some)
        return gram if self._factor is None else gram / self._factor**2, sorted(reached)

    def _pull(self, weights: Mapping[str, Any], inputs: Sequence[Parameter]) -> Gradients:
        """The gradient of the weighted sum on some shared parameters; not flattened, which would copy it."""
        starts, roots = [], []
        for names, totals, scales, _ in self._kept:
            for name, total, scale in zip(names, totals, scales, strict=True):
                if name in weights:
                    roots.append(total)
                    starts.append(self._start(total, weights[name], scale))
        return torch.autograd.grad(roots, tuple(inputs), starts, retain_graph=True, allow_unused=True)

    def _fill_specific(self) -> None:
        for _, totals, scales, _ in self._kept:
            self._own_gradients(totals, scales)

    def _own_gradients(self, totals: Sequence[Tensor], scales: Sequence[float]) -> None:
        if self._specific:
            starts = [self._start(t, 1.0, s) for t, s in zip(totals, scales, strict=True)]
            gradients = torch.autograd.grad(totals, tuple(self._specific), starts, allow_unused=True)
            _accumulate(self._specific, gradients)

    def _start(self, total: Tensor, weight: float | Tensor, scale: float) -> Tensor | None:
        """What starts the backward pass; None for 1."""
        value = weight * scale if self._factor is None else weight * scale * self._factor
        if isinstance(value, Tensor):
            return value.to(total)
        return None if value == 1.0 else torch.full((), value, dtype=total.dtype, device=total.device)


def _inner(first: Gradients, second: Gradients) -> Tensor | float:
    pairs = zip(first, second, strict=True)
    return sum((torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs if a is not None and b is not None), 0.0)


def _halves(parameters: Sequence[Parameter]) -> list[tuple[Parameter, ...]]:
    """Consecutive groups of at most half of all numbers each, as far as single parameters allow."""
    limit = sum(p.numel() for p in parameters) / 2
    groups: list[tuple[Parameter, ...]] = []
    filled = math.inf
    for p in parameters:
        if filled + p.numel() > limit:
            groups.append(())
            filled = 0
        groups[-1] += (p,)
        filled += p.numel()
    return groups


def _wide(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype that holds them all, float32 at least: inner products need the digits."""
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)


def _parts(gradients: Gradients, likes: Sequence[Tensor]) -> list[Tensor]:
    """Flat gradients, zero where there is none; cat makes the row of them."""
    return [p.new_zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(gradients, likes, strict=True)]


def _unflatten(vector: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]


def _accumulate(parameters: Sequence[Parameter], gradients: Iterable[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


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

    Raises:
        ValueError: an unknown mode, or no shared parameter requires a gradient.
        TypeError: `balancer` or `shared` is not what it must be.

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
    ) -> None:
        _check_balancer(balancer)
        one_of("gradients", gradients, MODES)
        self._balancer = balancer
        self._shared = _shared_parameters(shared)
        self._mode = gradients
        self._scaler = scaler
        self._start_over()

    def add(self, losses: Mapping[str, Tensor], features: Tensor | Sequence[Tensor] = ()) -> None:
        """Takes one micro-batch's losses.

        Args:
            losses: {name: scalar that requires a gradient}.
            features: the shared features, for ``gradients="features"`` and for balancers that work there.

        Raises:
            ValueError: see `balance`; nothing is added then.
        """
        self._add(losses, features, batches=2)

    def finish(self) -> Tensor:
        """Fills `.grad` and starts over.

        Returns:
            (K,) the weights used, detached, in the order in which names came; 1 where the balancer gives a
            gradient.

        Raises:
            ValueError: nothing was added.
        """
        if self._work is None:
            raise ValueError("`add` must be called before `finish`, found no losses")
        work, names = self._work, self._names
        self._start_over()
        weights = work.finish()
        device = next((w.device for w in weights.values() if isinstance(w, Tensor)), torch.device("cpu"))
        return torch.stack([_number(weights[name], device) for name in names])

    def _start_over(self) -> None:
        self._work: Backward | None = None
        self._own: list[Parameter] = []
        self._names: list[str] = []

    def _add(self, losses: Mapping[str, Tensor], features: Tensor | Sequence[Tensor], batches: int) -> None:
        boundary = [features] if isinstance(features, Tensor) else list(features)
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
) -> Tensor:
    """Replaces ``loss.backward()`` in a loop of your own: fills `.grad` of every parameter the losses reach.

    Shared parameters get what the balancer makes of the losses; all others get the gradient of their own
    losses (of the weighted sum, under a scalarizer). Gradients add to those already there, as with
    ``backward``; to balance gradients accumulated over micro-batches see `Accumulator`. Clip afterwards. A
    balancer that wants the losses after the step (FAMO) is told by the caller: ``balancer.after(losses)``.

    On a CPU every loss is checked to be finite; on other devices only in the first call with a balancer,
    since looking waits for the device.

    Args:
        losses: {name: scalar that requires a gradient}.
        shared: the shared parameters: a block of a model, a module, or parameters.
        balancer: for example ``pt.aggregation.MGDA()``; its own state advances.
        gradients: ``exact``, ``features`` or ``low_memory``; see `Backward`.
        features: the shared features, for ``gradients="features"`` and for balancers that work there.
        scaler: the loop's gradient scaler, for float16; give the plain losses, see `Accumulator`.

    Returns:
        (K,) the weights used, detached, in the order of `losses`; 1 where the balancer gives a gradient.

    Raises:
        ValueError: no loss; one that is not a scalar, does not require a gradient, is not finite, is given
            twice, or does not depend on the shared parameters (named); tensors on several devices; no
            shared parameter requires a gradient; features missing where they are needed, or not those of
            the losses. `.grad` is untouched then.
        TypeError: `balancer`, `losses` or `shared` is not what it must be.

    >>> import torch, polytask as pt
    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> losses = {"a": (w[0] - 3) ** 2, "b": (w[1] + 1) ** 2}
    >>> pt.balance(losses, shared=[w], balancer=pt.aggregation.MGDA())
    tensor([0.5000, 0.5000])
    >>> w.grad
    tensor([-2.,  2.])
    """
    work = Accumulator(shared=shared, balancer=balancer, gradients=gradients, scaler=scaler)
    work._add(losses, features, batches=1)
    return work.finish()


def _number(value: float | Tensor, device: torch.device) -> Tensor:
    """A weight as a scalar on the device, without a copy to it."""
    return value.detach().float() if isinstance(value, Tensor) else torch.full((), float(value), device=device)


def _check_balancer(balancer: Any) -> None:
    if isinstance(balancer, type):
        raise TypeError(f"`balancer` must be a polytask balancer, found the class {balancer.__name__}: call it")
    if not isinstance(balancer, Balancer):
        raise TypeError(f"`balancer` must be a polytask balancer, found {type(balancer).__name__}")


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
