"""The only place that takes gradients of several objectives."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from polytask.balancing.base import Aggregator, Balancer, CotangentAggregator, Evidence, JacobianAggregator, Needs
from polytask.balancing.flat import (
    Gradients,
    accumulate,
    check_examples,
    flat_parts,
    halves,
    inner,
    put_examples,
    split_examples,
    unflatten,
    widest,
)  # fmt: skip
from polytask.errors import one_of

MODES = ("exact", "features", "low_memory")

_EMPTY = torch.empty(0)


@functools.cache
def _flags(needs: Needs) -> tuple[bool, bool, bool, bool]:
    """Whether losses, norms, a second look, and nothing at all of a step are needed; flags are slow to compare."""
    seen = Needs.LOSSES | Needs.NORMS | Needs.GRAMIAN | Needs.JACOBIAN | Needs.COTANGENTS
    return Needs.LOSSES in needs, Needs.NORMS in needs, Needs.LOSSES_AFTER in needs, not needs & seen


def check_mode(balancer: Balancer, mode: str) -> None:
    """Refuses a mode that a balancer cannot work in, or that would not save what it is there to save.

    Raises:
        ValueError: an unknown mode; ``low_memory`` where there is no Gramian to gather; any but ``exact`` for a
            scalarizer that looks at the shared gradients, all of which it is given in every mode.
    """
    if mode == "exact":
        return
    one_of("gradients", mode, MODES)
    name = type(balancer).__name__
    if mode == "low_memory" and isinstance(balancer, JacobianAggregator | CotangentAggregator):
        wants = (
            "needs the Jacobian itself"
            if isinstance(balancer, JacobianAggregator)
            else ("works on the gradients at the features in every mode")
        )
        raise ValueError(f"gradients='low_memory' gathers a Gramian, found {name}, which {wants}")
    if not isinstance(balancer, Aggregator) and _flags(balancer.needs)[1]:
        raise ValueError(
            f"gradients={mode!r} is for aggregators, found {name}, which is given every objective's gradient of the "
            "shared parameters in any mode: leave it at 'exact'"
        )


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
        ValueError: an unknown mode, or one that the balancer cannot work in or would not heed, see `check_mode`.
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
        check_mode(balancer, mode)
        self._balancer = balancer
        self._shared = shared
        self._specific = specific
        self._mode = mode
        self._factor = factor
        self._aggregates = isinstance(balancer, Aggregator) and len(shared) > 0
        self._rests = isinstance(balancer, Aggregator) and not self._aggregates
        self._at_features = self._aggregates and (mode == "features" or isinstance(balancer, CotangentAggregator))
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
        elif self._at_features or (self._aggregates and self._mode != "exact"):
            if self._at_features:
                check_examples(features)
            self._kept.append((list(names), totals, scales, list(features)))
        else:
            self._gather(names, totals, scales)

    def finish(self) -> dict[str, Any]:
        """Fills `.grad`; gives {objective: weight}, 1 where the balancer gives a gradient and no weights."""
        if self._kept and self._at_features:
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
        accumulate(self._shared, torch.autograd.grad(totals, inputs, starts, retain_graph=True, allow_unused=True))
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
        parts = flat_parts(gradients, self._shared)
        if name in self._rows:
            self._jacobian[self._rows[name]] += torch.cat(parts)
            return
        row = self._rows[name] = len(self._rows)
        if row == len(self._jacobian):  # the first row, or one that only a later batch has
            rows = max(1, expected - row)
            more = torch.empty(rows, sum(p.numel() for p in parts), dtype=widest(self._shared), device=parts[0].device)
            self._jacobian = more if row == 0 else torch.cat((self._jacobian, more))
        torch.cat(parts, out=self._jacobian[row])

    def _finish_rows(self) -> None:
        """Objectives that the shared block cannot serve have no say in how it moves."""
        weights: dict[str, Any] = dict.fromkeys(self._own, 1.0)
        if self._rows:
            evidence = self._evidence(list(self._rows))
            evidence.jacobian = self._jacobian[: len(self._rows)]
            gradient = self._combine(evidence, evidence.jacobian, weights)
            parts: list[Tensor | None] = [*unflatten(gradient, self._shared)]
            for position in self._missed or ():
                parts[position] = None  # as after `backward`: an optimizer leaves it alone
            accumulate(self._shared, parts)
        for name, own in self._own.items():
            parameters = [self._specific[position] for position in own]
            scaled = own.values() if self._aggregates else [gradient * weights[name] for gradient in own.values()]
            accumulate(parameters, scaled)
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
            raise self._no_boundary()
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
            starts = split_examples(part, features)
            pulled = torch.autograd.grad(features, tuple(self._shared), starts, allow_unused=True)
            accumulate(self._shared, pulled)
        self._kept.clear()

    def _no_boundary(self) -> ValueError:
        return ValueError(
            f"{type(self._balancer).__name__} with gradients={self._mode!r} works at the feature boundary, found a "
            "model (or losses) without one"
        )

    def _cotangents(
        self, every: Sequence[str], names: list[str], totals: Sequence[Tensor], scales: Sequence[float],
        features: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """(K, Z) gradients at the boundary, by example; task-specific gradients are filled on the way."""
        width = sum(f.numel() for f in features)
        rows = torch.zeros(len(every), width, dtype=widest(features), device=features[0].device)
        for name, total, scale in zip(names, totals, scales, strict=True):
            inputs, cut = (*features, *self._specific), len(features)
            gradients = torch.autograd.grad(
                total, inputs, self._start(total, 1.0, scale), retain_graph=True, allow_unused=True
            )  # fmt: skip
            put_examples(rows[every.index(name)], gradients[:cut], features)
            accumulate(self._specific, gradients[cut:])
        return rows

    # Gradients in pairs, none kept

    def _finish_in_pairs(self) -> None:
        names = list(dict.fromkeys(name for batch in self._kept for name in batch[0]))
        gram, reached = self._products(names)
        weights: dict[str, Any] = dict.fromkeys(names, 1.0)
        if reached:
            evidence = self._evidence([names[i] for i in reached])
            evidence.gram = gram if len(reached) == len(names) else gram[reached][:, reached]
            combined = self._weights_from(evidence, gram)
            weights.update(zip(evidence.names, combined.unbind(), strict=True))
            accumulate(self._shared, self._pull(weights, self._shared))
        self._fill_specific()
        self._weights = weights
        self._kept.clear()

    def _weights_from(self, evidence: Evidence, gram: Tensor) -> Tensor:
        """The balancer's weights; where a scaled gradient overflowed it is not asked, and they are NaN."""
        if self._factor is not None and not torch.isfinite(gram).all():
            return gram.new_full((len(evidence.names),), torch.nan)
        return torch.as_tensor(self._balancer.combine(evidence)).to(gram)

    def _products(self, names: Sequence[str]) -> tuple[Tensor, list[int]]:
        """(K, K) inner products of the shared gradients, and which of the K exist at all."""
        gram = torch.zeros(len(names), len(names), dtype=widest(self._shared), device=self._shared[0].device)
        reached: set[int] = set()
        for group in halves(self._shared):
            some: list[int] = []  # those that reach this group
            for i, first in enumerate(names):
                held = self._pull({first: 1.0}, group)
                if all(gradient is None for gradient in held):
                    continue
                gram[i, i] += inner(held, held)
                for j in some:
                    product = inner(held, self._pull({names[j]: 1.0}, group))
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
            accumulate(self._specific, gradients)

    def _start(self, total: Tensor, weight: float | Tensor, scale: float) -> Tensor | None:
        """What starts the backward pass; None for 1."""
        value = weight * scale if self._factor is None else weight * scale * self._factor
        if isinstance(value, Tensor):
            return value.to(total)
        return None if value == 1.0 else torch.full((), value, dtype=total.dtype, device=total.device)
