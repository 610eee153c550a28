"""The only place that takes gradients of several objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from polytask.balancing.base import Aggregator, Balancer, CotangentAggregator, Evidence, JacobianAggregator, Needs
from polytask.errors import one_of
from polytask.models.base import Block

MODES = ("exact", "features", "low_memory")

Gradients = Sequence[Tensor | None]


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
            ``low_memory``: the Gramian is gathered from pairs of gradients that are not kept, then one
            weighted pass; two shared gradients alive at most, K (K + 1) / 2 + 1 passes through the trunk.
        batches: how many times `add` will be called.

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
    ) -> None:
        one_of("gradients", mode, MODES)
        self._balancer = balancer
        self._shared = shared
        self._specific = specific
        self._mode = mode
        self._aggregates = isinstance(balancer, Aggregator) and len(shared) > 0
        self._rests = isinstance(balancer, Aggregator) and not self._aggregates
        look = Needs.LOSSES in balancer.needs
        norms = Needs.NORMS in balancer.needs and len(shared) > 0
        self._direct = not self._aggregates and not norms and (self._rests or batches == 1 or not look)
        self._values: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._own: dict[str, list[Tensor | None]] = {}
        self._kept: list[tuple[list[str], Sequence[Tensor], Sequence[float], list[Tensor]]] = []
        self._weights: dict[str, Any] = {}

    @property
    def looks_again(self) -> bool:
        """Whether the balancer wants the losses after the step as well."""
        return Needs.LOSSES_AFTER in self._balancer.needs and not self._rests

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
        if Needs.LOSSES in self._balancer.needs and not self._rests:
            for name, total, scale in zip(names, totals, scales, strict=True):
                value = total.detach() * scale
                self._values[name] = self._values[name] + value if name in self._values else value
        if self._direct:
            self._weigh(names, totals, scales)
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
        else:
            weights = self._balancer.combine(self._evidence(names))
        starts = [_start(t, w, s) for t, w, s in zip(totals, weights, scales, strict=True)]
        torch.autograd.backward(tuple(totals), tuple(starts))
        self._weights.update(zip(names, weights, strict=True))

    def _evidence(self, names: Sequence[str]) -> Evidence:
        looks = Needs.LOSSES in self._balancer.needs
        return Evidence(names, [self._values[name] for name in names] if looks else None)

    # One gradient of the shared block per objective

    def _gather(self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float]) -> None:
        for index, (name, total, scale) in enumerate(zip(names, totals, scales, strict=True)):
            gradients = torch.autograd.grad(
                total, (*self._shared, *self._specific), _start(total, 1.0, scale),
                retain_graph=index < len(totals) - 1, allow_unused=True,
            )  # fmt: skip
            shared, own = gradients[: len(self._shared)], gradients[len(self._shared) :]
            if any(gradient is not None for gradient in shared):
                row = _flatten(shared, self._shared)
                self._rows[name] = self._rows[name] + row if name in self._rows else row
            before = self._own.get(name)
            self._own[name] = list(own) if before is None else [_sum(a, b) for a, b in zip(before, own, strict=True)]

    def _finish_rows(self) -> None:
        """Objectives that the shared block cannot serve have no say in how it moves."""
        names = [name for name in self._own if name in self._rows]
        weights: dict[str, Any] = dict.fromkeys(self._own, 1.0)
        if names:
            evidence = self._evidence(names)
            evidence.jacobian = torch.stack([self._rows[name] for name in names])
            self._rows.clear()
            combined = torch.as_tensor(self._balancer.combine(evidence)).to(evidence.jacobian)
            if isinstance(self._balancer, JacobianAggregator):
                gradient = combined
            else:
                gradient = combined @ evidence.jacobian
                weights.update(zip(names, combined.unbind(), strict=True))
            _accumulate(self._shared, _unflatten(gradient, self._shared))
        for name, own in self._own.items():
            scaled = own if self._aggregates else [None if g is None else g * weights[name] for g in own]
            _accumulate(self._specific, scaled)
        self._weights = weights

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
        combined = self._combine_cotangents(evidence, cotangents)
        for (_, _, _, features), part in zip(self._kept, combined.split([p.shape[1] for p in parts]), strict=True):
            pieces = part.split([f.numel() for f in features])
            starts = [piece.view_as(f) for piece, f in zip(pieces, features, strict=True)]
            pulled = torch.autograd.grad(features, tuple(self._shared), starts, allow_unused=True)
            _accumulate(self._shared, pulled)
        self._kept.clear()

    def _combine_cotangents(self, evidence: Evidence, cotangents: Tensor) -> Tensor:
        if isinstance(self._balancer, CotangentAggregator):
            evidence.cotangents = cotangents
            self._weights = dict.fromkeys(evidence.names, 1.0)
            return torch.as_tensor(self._balancer.combine(evidence)).to(cotangents)
        evidence.jacobian = cotangents
        combined = torch.as_tensor(self._balancer.combine(evidence)).to(cotangents)
        if isinstance(self._balancer, JacobianAggregator):
            self._weights = dict.fromkeys(evidence.names, 1.0)
            return combined
        self._weights = dict(zip(evidence.names, combined.unbind(), strict=True))
        return combined @ cotangents

    def _cotangents(
        self, every: Sequence[str], names: list[str], totals: Sequence[Tensor], scales: Sequence[float],
        features: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """(K, Z) gradients at the boundary; task-specific gradients are filled on the way."""
        rows = {name: features[0].new_zeros(sum(f.numel() for f in features)) for name in every}
        for name, total, scale in zip(names, totals, scales, strict=True):
            inputs = (*features, *self._specific)
            gradients = torch.autograd.grad(
                total, inputs, _start(total, 1.0, scale), retain_graph=True, allow_unused=True
            )  # fmt: skip
            rows[name] = _flatten(gradients[: len(features)], features)
            _accumulate(self._specific, gradients[len(features) :])
        return torch.stack([rows[name] for name in every])

    # Gradients in pairs, none kept

    def _finish_in_pairs(self) -> None:
        if isinstance(self._balancer, JacobianAggregator):
            raise ValueError(
                f"gradients='low_memory' gathers a Gramian, found {type(self._balancer).__name__}, which needs the "
                "Jacobian itself"
            )
        names = list(dict.fromkeys(name for batch in self._kept for name in batch[0]))
        gram = torch.zeros(len(names), len(names), dtype=self._shared[0].dtype, device=self._shared[0].device)
        for i, first in enumerate(names):
            held = self._pull({first: 1.0})
            gram[i, i] = _inner(held, held)
            for j in range(i):
                gram[i, j] = gram[j, i] = _inner(held, self._pull({names[j]: 1.0}))
            del held
        reached = [i for i in range(len(names)) if gram[i, i] != 0]
        weights: dict[str, Any] = dict.fromkeys(names, 1.0)
        if reached:
            evidence = self._evidence([names[i] for i in reached])
            evidence.gram = gram[reached][:, reached]
            combined = torch.as_tensor(self._balancer.combine(evidence)).to(gram)
            weights.update(zip(evidence.names, combined.unbind(), strict=True))
            _accumulate(self._shared, self._pull(weights))
        self._fill_specific()
        self._weights = weights
        self._kept.clear()

    def _pull(self, weights: Mapping[str, Any]) -> Gradients:
        """The gradient of the weighted sum on the shared block; not flattened, which would copy it."""
        starts, roots = [], []
        for names, totals, scales, _ in self._kept:
            for name, total, scale in zip(names, totals, scales, strict=True):
                if name in weights:
                    roots.append(total)
                    starts.append(_start(total, weights[name], scale))
        return torch.autograd.grad(roots, tuple(self._shared), starts, retain_graph=True, allow_unused=True)

    def _fill_specific(self) -> None:
        for _, totals, scales, _ in self._kept:
            if self._specific:
                starts = [_start(t, 1.0, s) for t, s in zip(totals, scales, strict=True)]
                gradients = torch.autograd.grad(totals, tuple(self._specific), starts, allow_unused=True)
                _accumulate(self._specific, gradients)


def _start(total: Tensor, weight: float | Tensor, scale: float) -> Tensor:
    value = weight * scale
    if isinstance(value, Tensor):
        return value.to(total)
    return torch.full((), value, dtype=total.dtype, device=total.device)


def _inner(first: Gradients, second: Gradients) -> Tensor | float:
    pairs = zip(first, second, strict=True)
    return sum((torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs if a is not None and b is not None), 0.0)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first + second


def _flatten(gradients: Gradients, likes: Sequence[Tensor]) -> Tensor:
    parts = (p.new_zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(gradients, likes, strict=True))
    return torch.cat(list(parts))  # (P,)


def _unflatten(vector: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def _accumulate(parameters: Sequence[Parameter], gradients: Iterable[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


# the objectives that `balance` has told each balancer of; the trainer tells its own
_SET_UP: WeakKeyDictionary[Balancer, list[str]] = WeakKeyDictionary()


def balance(
    losses: Mapping[str, Tensor],
    *,
    shared: Block | nn.Module | Iterable[Parameter],
    balancer: Balancer,
    gradients: str = "exact",
    features: Tensor | Sequence[Tensor] = (),
) -> Tensor:
    """Replaces ``loss.backward()`` in a loop of your own: fills `.grad` of every parameter the losses reach.

    A balancer that looks at the losses again (FAMO) is shown them by ``balancer.after({name: loss})``, which
    is yours to call after the optimizer's step.

    Shared parameters get what the balancer makes of the losses; all others get the gradient of their own
    losses (of the weighted sum, under a scalarizer). Gradients add to those already there, as with
    ``backward``.

    Args:
        losses: {name: scalar that requires a gradient}.
        shared: the shared parameters: a block of a model, a module, or parameters.
        balancer: for example ``pt.aggregation.MGDA()``; its own state advances.
        gradients: ``exact``, ``features`` or ``low_memory``; see `Backward`.
        features: the shared features, for ``gradients="features"`` and for balancers that work there.

    Returns:
        (K,) the weights used, detached, in the order of `losses`; 1 where the balancer gives a gradient.

    Raises:
        ValueError: no loss; one that is not a scalar, does not require a gradient, is not finite, or does
            not depend on the shared parameters (named); no shared parameter requires a gradient. `.grad` is
            untouched then.
        TypeError: `balancer` is not a balancer.

    >>> import torch, polytask as pt
    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> losses = {"a": (w[0] - 3) ** 2, "b": (w[1] + 1) ** 2}
    >>> pt.balance(losses, shared=[w], balancer=pt.aggregation.MGDA())
    tensor([0.5000, 0.5000])
    >>> w.grad
    tensor([-2.,  2.])
    """
    if not isinstance(balancer, Balancer):
        raise TypeError(f"`balancer` must be a polytask balancer, found {type(balancer).__name__}")
    wanted = _shared_parameters(shared)
    leaves = {name: _leaves(name, loss) for name, loss in _checked(losses).items()}
    identities = {id(p) for p in wanted}
    for name, reached in leaves.items():
        if isinstance(balancer, Aggregator) and not identities & reached.keys():
            raise ValueError(f"every loss must depend on the shared parameters, found that `{name}` does not")
    own = {key: p for reached in leaves.values() for key, p in reached.items() if key not in identities}
    names = list(losses)
    known = _SET_UP.setdefault(balancer, [])
    if any(name not in known for name in names):  # a loss may be absent from a step without starting anew
        known += [name for name in names if name not in known]
        balancer.setup(known)
    work = Backward(balancer, wanted, list(own.values()), mode=gradients)
    boundary = [features] if isinstance(features, Tensor) else list(features)
    work.add(names, list(losses.values()), [1.0] * len(names), boundary)
    weights = work.finish()
    return torch.stack([torch.as_tensor(weights[name]).detach().float() for name in names])


def _shared_parameters(shared: Block | nn.Module | Iterable[Parameter]) -> list[Parameter]:
    if isinstance(shared, nn.Module):
        shared = shared.parameters()
    elif isinstance(shared, Block):
        shared = shared.parameters
    wanted = [p for p in shared if p.requires_grad]
    if not wanted:
        raise ValueError("`shared` must hold at least one parameter that requires a gradient, found none")
    return wanted


def _checked(losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not losses:
        raise ValueError("there must be at least one loss, found none")
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"a loss must be a scalar tensor, found {found} for `{name}`")
        if not loss.requires_grad:
            raise ValueError(f"a loss must require a gradient, found that `{name}` does not")
        if not torch.isfinite(loss):
            raise ValueError(f"a loss must be finite, found {loss.item()} for `{name}`")
    if len({id(loss) for loss in losses.values()}) < len(losses):
        raise ValueError(f"every loss must be given once, found one tensor under two names among {list(losses)}")
    return losses


def _leaves(name: str, loss: Tensor) -> dict[int, Parameter]:
    """The leaf tensors that `loss` reaches, by id, found by walking the graph."""
    found: dict[int, Parameter] = {}
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        stack.extend(parent for parent, _ in node.next_functions)
    return found
