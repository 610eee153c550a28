"""Gradients of many tensors as rows of numbers, and back: what the engines of one process and of several share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

Gradients = Sequence[Tensor | None]
"""One gradient per tensor, None where there is none."""


def check_examples(features: Sequence[Tensor]) -> None:
    """Raises `ValueError` unless all features have a row for each example of one batch."""
    lengths = [f.shape[0] if f.dim() else None for f in features]
    if None in lengths or len(set(lengths)) > 1:
        shapes = ", ".join(str(tuple(f.shape)) for f in features)
        raise ValueError(f"all features must have one row per example, found shapes {shapes}")


def put_examples(row: Tensor, gradients: Gradients, features: Sequence[Tensor]) -> None:
    """Fills a row (Z,) with the gradients at the features, example after example, zero where there is none."""
    widths = [f.shape[1:].numel() for f in features]
    parts = [
        f.new_zeros(len(f), width) if g is None else g.reshape(len(f), width)
        for g, f, width in zip(gradients, features, widths, strict=True)
    ]
    torch.cat(parts, dim=1, out=row.view(len(features[0]), sum(widths)))


def split_examples(row: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `put_examples`: a gradient for each of the features, of its shape and dtype."""
    widths = [f.shape[1:].numel() for f in features]
    pieces = row.reshape(len(features[0]), sum(widths)).split(widths, dim=1)
    return [piece.reshape(f.shape).to(f) for piece, f in zip(pieces, features, strict=True)]


def inner(first: Gradients, second: Gradients) -> Tensor | float:
    """The inner product of two gradients, of the parameters that both reach."""
    pairs = zip(first, second, strict=True)
    return sum((torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs if a is not None and b is not None), 0.0)


def halves(parameters: Sequence[Parameter]) -> list[tuple[Parameter, ...]]:
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


def widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype that holds them all, float32 at least: inner products need the digits."""
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)


def flat_parts(gradients: Gradients, likes: Sequence[Tensor]) -> list[Tensor]:
    """Flat gradients, zero where there is none; cat makes the row of them."""
    return [p.new_zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(gradients, likes, strict=True)]


def unflatten(vector: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
    """A gradient for each parameter, of its shape and dtype, from one row of them all."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]


def accumulate(parameters: Sequence[Parameter], gradients: Iterable[Tensor | None]) -> None:
    """Adds gradients to `.grad`, as a backward pass would; where there is none it stays as it is."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
