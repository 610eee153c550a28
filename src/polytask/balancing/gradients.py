"""The only place that takes gradients of several objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from polytask.balancing.base import Aggregator, Balancer, Evidence, Needs
from polytask.models.base import Block


def backward(
    balancer: Balancer,
    names: Sequence[str],
    totals: Sequence[Tensor],
    scales: Sequence[float],
    shared: Sequence[Parameter],
    specific: Sequence[Parameter],
) -> Sequence[float] | Tensor:
    """Fills `.grad` from several objectives, as the balancer decides.

    Objective k is L_k = scales[k] * totals[k]; keeping the factor apart lets it ride on the gradient that
    starts the backward pass, at no cost.

    Args:
        balancer: how the objectives share the shared block.
        names: the K objectives that are present.
        totals: K scalars attached to the graph.
        scales: K factors (fixed weight over number of examples).
        shared: the shared parameters that require a gradient; empty if the block is frozen.
        specific: the task-specific parameters that require a gradient.

    Returns:
        The K weights.
    """
    evidence = Evidence(names)
    aggregates = isinstance(balancer, Aggregator) and len(shared) > 0
    if Needs.LOSSES in balancer.needs:
        evidence.values = [total.detach() * scale for total, scale in zip(totals, scales, strict=True)]
    if aggregates:
        return _aggregate(balancer, evidence, totals, scales, shared, specific)
    weights = [1.0] * len(names) if isinstance(balancer, Aggregator) else balancer.combine(evidence)
    starts = [_start(total, weight, scale) for total, weight, scale in zip(totals, weights, scales, strict=True)]
    torch.autograd.backward(tuple(totals), tuple(starts))
    return weights


def _start(total: Tensor, weight: float | Tensor, scale: float) -> Tensor:
    value = weight * scale
    if isinstance(value, Tensor):
        return value.to(total)
    return torch.full((), value, dtype=total.dtype, device=total.device)


def _aggregate(
    balancer: Balancer,
    evidence: Evidence,
    totals: Sequence[Tensor],
    scales: Sequence[float],
    shared: Sequence[Parameter],
    specific: Sequence[Parameter],
) -> Tensor:
    rows: list[Tensor] = []
    reaching: list[int] = []  # an objective that the shared block cannot serve has no say in how it moves
    for index, (total, scale) in enumerate(zip(totals, scales, strict=True)):
        gradients = torch.autograd.grad(
            total, (*shared, *specific), _start(total, 1.0, scale),
            retain_graph=index < len(totals) - 1, allow_unused=True,
        )  # fmt: skip
        if any(gradient is not None for gradient in gradients[: len(shared)]):
            rows.append(_flatten(gradients[: len(shared)], shared))
            reaching.append(index)
        _accumulate(specific, gradients[len(shared) :])
    everywhere = torch.ones(len(totals), dtype=shared[0].dtype, device=shared[0].device)
    if not rows:
        return everywhere
    if len(rows) < len(totals):
        evidence.names = [evidence.names[index] for index in reaching]
        evidence.values = None if evidence.values is None else [evidence.values[index] for index in reaching]
    evidence.jacobian = torch.stack(rows)
    weights = torch.as_tensor(balancer.combine(evidence)).to(evidence.jacobian)
    _accumulate(shared, _unflatten(weights @ evidence.jacobian, shared))
    if len(rows) == len(totals):
        return weights
    return everywhere.index_copy(0, torch.tensor(reaching, device=everywhere.device), weights)


def _flatten(gradients: Iterable[Tensor | None], parameters: Sequence[Parameter]) -> Tensor:
    parts = (p.new_zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(gradients, parameters, strict=True))
    return torch.cat(list(parts))  # (P,)


def _unflatten(vector: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def _accumulate(parameters: Sequence[Parameter], gradients: Iterable[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def balance(
    losses: Mapping[str, Tensor], *, shared: Block | nn.Module | Iterable[Parameter], balancer: Balancer
) -> Tensor:
    """Replaces ``loss.backward()`` in a loop of your own: fills `.grad` of every parameter the losses reach.

    Shared parameters get what the balancer makes of the losses; all others get the gradient of their own
    losses (of the weighted sum, under a scalarizer). Gradients add to those already there, as with
    ``backward``.

    Args:
        losses: {name: scalar that requires a gradient}.
        shared: the shared parameters: a block of a model, a module, or parameters.
        balancer: for example ``pt.aggregation.MGDA()``; its own state advances.

    Returns:
        (K,) the weights used, detached, in the order of `losses`.

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
    if getattr(balancer, "_names", None) != names:
        balancer.setup(names)
        object.__setattr__(balancer, "_names", names)
    weights = backward(balancer, names, list(losses.values()), [1.0] * len(names), wanted, list(own.values()))
    return torch.as_tensor(weights)


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
