"""Gradients of several objectives where the shared parameters themselves are sharded over ranks (FSDP2)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from polytask.balancing.base import Balancer, CotangentAggregator, JacobianAggregator
from polytask.balancing.flat import accumulate, widest
from polytask.balancing.parallel import ParallelBackward
from polytask.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def parallel_backward(
    balancer: Balancer,
    shared: Sequence[Parameter],
    specific: Sequence[Parameter],
    *,
    ranks: Ranks,
    mode: str = "exact",
    batches: int = 1,
    factor: Tensor | None = None,
    settled: Sequence[str] | None = None,
) -> ParallelBackward:
    """The backward passes of one update over several ranks; see `ParallelBackward` and `ShardedBackward`."""
    kind = ShardedBackward if any(is_sharded(p) for p in (*shared, *specific)) else ParallelBackward
    return kind(balancer, shared, specific, ranks=ranks, mode=mode, batches=batches, factor=factor, settled=settled)


def is_sharded(parameter: Tensor) -> bool:
    """Whether FSDP2 holds a part of it on each rank."""
    return hasattr(parameter, "placements")  # a DTensor, whose class takes a while to import


def reshard(module: nn.Module) -> None:
    """Puts the shards back where a forward pass has left FSDP2's gathered parameters in their place."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # imported by whoever has sharded anything
    if fsdp is not None:
        sharded = [each for each in module.modules() if isinstance(each, fsdp.FSDPModule)]
        for each in cast("list[Any]", sharded):
            each.reshard()


class ShardedBackward(ParallelBackward):
    """`ParallelBackward` for a trunk under FSDP2: ``fully_shard`` applied to its layers.

    Each rank holds its shard of every shared gradient only. An objective's backward pass leaves its sharded
    gradient in `.grad`, which is taken from there; the Gramian is the sum over ranks of the shards' Gramians,
    and the balancer's weights are applied to the shards, so that no gradient is ever gathered. Shared parameters
    that are not sharded, and the task-specific ones, are summed over ranks as ever.

    FSDP's passes exchange data themselves, so every rank must give the same objectives in as many calls of `add`.
    It averages gradients over ranks, which is undone here: leave its division factor as it is.

    Raises:
        ValueError: a mode other than ``exact``, a balancer that needs the gradients themselves (Jacobian or
            features), a gradient scaler, task-specific parameters that are sharded, a mesh that is not all
            ranks in one dimension, or a pass that reaches a parameter which is neither shared nor specific.
    """

    def __init__(
        self,
        balancer: Balancer,
        shared: Sequence[Parameter],
        specific: Sequence[Parameter],
        *,
        ranks: Ranks,
        mode: str = "exact",
        batches: int = 1,
        factor: Tensor | None = None,
        settled: Sequence[str] | None = None,
    ) -> None:
        super().__init__(balancer, shared, specific, ranks=ranks, mode=mode, batches=batches, factor=factor)
        if mode != "exact":
            raise ValueError(f"with sharded parameters `gradients` must be 'exact', found {mode!r}")
        if isinstance(balancer, JacobianAggregator | CotangentAggregator):
            raise ValueError(
                "with sharded parameters a balancer must work on losses or on the Gramian, found "
                f"{type(balancer).__name__}, which needs whole gradients"
            )
        if factor is not None:
            raise ValueError("with sharded parameters there must be no gradient scaler, found one: use bfloat16")
        if any(is_sharded(p) for p in specific):
            raise ValueError("only the shared parameters may be sharded, found task-specific ones that are")
        for p in shared:
            if is_sharded(p) and cast("DTensor", p).device_mesh.shape != (ranks.count,):
                found = tuple(cast("DTensor", p).device_mesh.shape)
                raise ValueError(f"parameters must be sharded over all {ranks.count} ranks, found a mesh of {found}")
        self._whole = True  # graphs are kept until `finish`, where ranks agree before they pull
        self._sharded = [is_sharded(p) for p in shared]
        self._strays: dict[int, Tensor] = {}

    def watch(self, leaves: Iterable[Tensor]) -> None:
        """Takes the leaves of the losses' graphs: those neither shared nor specific must be FSDP's own.

        Which they are shows in the passes only: FSDP takes the gradients of what it has gathered, and what it
        leaves would never be summed over ranks.
        """
        known = {id(p) for p in self._parameters}
        self._strays |= {id(leaf): leaf for leaf in leaves if id(leaf) not in known}

    def finish(self, names: Sequence[str] = (), shares: Mapping[str, float] | None = None) -> dict[str, Any]:
        kept, before = list(self._kept), [p.grad for p in self._parameters]
        self._insist(names)
        if shares is not None:
            self._scale(shares)
            kept = list(self._kept)
        present, *_ = self._agree(names)
        if not present:
            return {}
        strays = [(leaf, leaf.grad) for leaf in self._strays.values()]
        for p in (*self._parameters, *self._strays.values()):
            p.grad = None
        try:
            found = self._weighted(present, kept) if self._ahead else self._balanced(present, kept)
            self._insist_known()
        finally:
            for p, gradient in (*zip(self._parameters, before, strict=True), *strays):
                p.grad = gradient
        accumulate(self._parameters, found)
        self._kept.clear()
        return self._weights

    def _insist(self, names: Sequence[str]) -> None:
        """Raises on every rank unless all gave the same."""
        calls = [sum(name in batch for batch, *_ in self._kept) for name in names]
        told = self._ranks.objects(calls)
        if any(other != told[0] for other in told):
            raise ValueError(
                "with sharded parameters every rank must give the same losses, as often, found "
                + "; ".join(f"rank {rank}: {dict(zip(names, other, strict=True))}" for rank, other in enumerate(told))
            )

    def _insist_known(self) -> None:
        """Raises on every rank if a pass has left a gradient at a stray of one."""
        found = [tuple(leaf.shape) for leaf in self._strays.values() if leaf.grad is not None]
        for rank, shapes in enumerate(self._ranks.objects(found)):
            for shape in shapes:
                raise ValueError(
                    f"rank {rank}: every parameter that a loss reaches must be among `shared` or `specific`, found one "
                    f"of shape {shape} in neither"
                )

    # One pass

    def _weighted(self, present: list[str], kept: Sequence[Any]) -> list[Tensor | None]:
        self._draw(present)
        if not self._blind:
            self._pass(kept, self._weights)
            return self._taken()
        self._pass(kept, self._weights, own=False)
        shared = self._taken()[: len(self._shared)]
        own = self._own_of(kept)
        return [*shared, *own]

    def _pass(self, kept: Sequence[Any], weights: Mapping[str, Any], own: bool = True, again: bool = False) -> None:
        roots, starts = [], []
        for names, totals, scales, _ in kept:
            for name, total, scale in zip(names, totals, scales, strict=True):
                if name in weights:
                    roots.append(total)
                    starts.append(self._start(total, weights[name], scale))
        torch.autograd.backward(roots, starts, retain_graph=again or not own)

    def _own_of(self, kept: Sequence[Any]) -> list[Tensor | None]:
        sums: list[Tensor | None] = [None] * len(self._specific)
        for _, totals, scales, _ in kept:
            for position, gradient in enumerate(self._own_part(totals, scales)):
                if gradient is not None:
                    held = sums[position]
                    sums[position] = gradient if held is None else held + gradient
        return self._total(sums, self._specific)

    def _taken(self) -> list[Tensor | None]:
        """What a pass left in `.grad`, of the global losses; cleared."""
        found = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        plain = [i for i, p in enumerate(self._parameters) if not is_sharded(p)]
        summed = self._total([found[i] for i in plain], [self._parameters[i] for i in plain])
        for i, gradient in zip(plain, summed, strict=True):
            found[i] = gradient
        for i, gradient in enumerate(found):
            if gradient is not None and is_sharded(gradient):
                found[i] = gradient * self._ranks.count  # FSDP has averaged
        return found

    # One pass per objective

    def _balanced(self, present: list[str], kept: Sequence[Any]) -> list[Tensor | None]:
        cut = len(self._shared)
        rows: dict[str, list[Tensor | None]] = {}
        for index, name in enumerate(present):
            self._pass(kept, {name: 1.0}, again=index < len(present) - 1)
            rows[name] = self._taken()
        reached = [name for name in present if any(g is not None for g in rows[name][:cut])]
        weights: dict[str, Any] = dict.fromkeys(present, 1.0)
        if reached:
            evidence = self._evidence(reached)
            evidence.gram = self._gramian([rows[name][:cut] for name in reached])
            combined = torch.as_tensor(self._balancer.combine(evidence)).to(evidence.gram)
            weights.update(zip(reached, combined.unbind(), strict=True))
        self._weights = weights
        shared = [_combined([(rows[n][i], weights[n]) for n in present]) for i in range(cut)]
        ones = dict.fromkeys(present, 1.0) if self._aggregates else weights
        own = [_combined([(rows[n][i], ones[n]) for n in present]) for i in range(cut, len(self._parameters))]
        return [*shared, *own]

    def _gramian(self, rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """(K, K) the shards' products, summed; what is not sharded is the same on every rank and counts once."""
        dtype, device = widest(self._shared), self._shared[0].device
        gram = torch.zeros(len(rows), len(rows), dtype=dtype, device=device)
        for position, sharded in enumerate(self._sharded):
            if not sharded and not self._ranks.first:
                continue
            column = [_local(row[position]) for row in rows]
            like = next((part for part in column if part is not None), None)
            if like is not None:
                flat = torch.stack([torch.zeros_like(like) if part is None else part for part in column])
                flat = flat.reshape(len(rows), -1).to(dtype)
                gram += flat @ flat.T
        return self._ranks.sum(gram)


def _local(gradient: Tensor | None) -> Tensor | None:
    """This rank's shard."""
    return cast("DTensor", gradient).to_local() if gradient is not None and is_sharded(gradient) else gradient


def _combined(parts: Sequence[tuple[Tensor | None, Any]]) -> Tensor | None:
    """The weighted sum; shards stay what they are."""
    kept = [(gradient, weight) for gradient, weight in parts if gradient is not None]
    if not kept:
        return None
    total = _local(kept[0][0])
    assert total is not None
    total = total * kept[0][1]
    for gradient, weight in kept[1:]:
        part = _local(gradient)
        assert part is not None
        total = total + part * weight
    first = kept[0][0]
    assert first is not None
    if not is_sharded(first):
        return total
    like = cast("DTensor", first)
    return type(like).from_local(
        total, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
