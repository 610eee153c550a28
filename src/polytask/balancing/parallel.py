"""Gradients of several objectives where every rank holds a part of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from polytask.balancing import flat
from polytask.balancing.base import Balancer, CotangentAggregator, JacobianAggregator
from polytask.balancing.gradients import Backward
from polytask.balancing.keyed import to_device
from polytask.ranks import Ranks


class ParallelBackward(Backward):
    """`Backward` over the parts of several ranks, as one process would do it on all of them together.

    Each rank differentiates its own part, and what the balancer sees is summed over ranks before it looks:
    losses, Jacobian, Gramian. So every rank is given the same evidence, finds the same weights and ends with
    the same `.grad`. Where the gradients themselves are wanted, what travels is the Jacobian (K shared
    gradients); where weights are known before, one gradient. The mode ``features`` sums Gramians, as
    different ranks hold different examples, and methods that transform the gradients there are given those
    of all examples.

    `add` exchanges nothing, so ranks may call it differently often, or never; `finish` does, and every rank
    must call it. An objective takes part if any rank gave it, a parameter gets a gradient if it has one on
    any rank; the other ranks count as zero.

    Args:
        balancer: see `Backward`; in the same state on every rank.
        shared: see `Backward`; in the same order on every rank.
        specific: likewise; all that live, whether or not this rank's objectives reach them.
        ranks: the processes.
        mode: see `Backward`.
        batches: how often this rank will call `add`.
        factor: see `Backward`; the same on every rank.
        settled: the objectives that will take part, if all ranks know them beforehand. With several batches
            and a balancer that looks at nothing this saves one backward pass per objective.
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
        super().__init__(balancer, shared, specific, mode=mode, factor=factor)
        self._ranks = ranks
        self._ahead = self._direct or self._blind  # weights come before gradients
        self._whole = self._at_features or (self._aggregates and mode == "low_memory")
        self._parameters = (*shared, *specific)
        self._sums: list[Tensor | None] = [None] * len(self._parameters)
        self._several = batches > 1
        self._drawn = False
        if settled and self._ahead and not (self._losses and not self._rests):
            self._draw(settled)

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """After `finish`: {objective: its loss over all ranks}, of those that take part."""
        return self._values

    def add(
        self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float], features: Sequence[Tensor] = ()
    ) -> None:
        if self._at_features:
            flat.check_examples(features)
        for name, total, scale in zip(names, totals, scales, strict=True):
            value = total.detach() * scale
            self._values[name] = self._values[name] + value if name in self._values else value
        if self._drawn:
            self._weigh_part(names, totals, scales)
        elif self._whole or (self._ahead and not self._several):
            self._kept.append((list(names), totals, scales, list(features)))
        else:
            self._gather(names, totals, scales)

    def finish(self, names: Sequence[str] = (), shares: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Fills `.grad`, the same on every rank.

        Args:
            names: the objectives that any rank may have given, in the same order on every rank.
            shares: {objective this rank gave: a factor on it}; 1 if None.

        Returns:
            {objective that takes part: weight}.
        """
        if not self._parameters:
            return {}
        if shares is not None:
            self._scale(shares)
        present, reached, examples = self._agree(names)
        if not present:
            return {}
        if self._ahead:
            self._finish_ahead(present)
        elif self._at_features:
            self._finish_examples(present, examples)
        elif self._whole:
            self._finish_in_pairs_together(present)
        else:
            self._finish_sums(present, reached)
        self._kept.clear()
        return self._weights

    def _scale(self, shares: Mapping[str, float]) -> None:
        self._values = {name: value * shares[name] for name, value in self._values.items()}
        for name, row in self._rows.items():
            self._jacobian[row] *= shares[name]
        for name, own in self._own.items():
            self._own[name] = {position: gradient * shares[name] for position, gradient in own.items()}
        self._kept = [
            (names, totals, [s * shares[n] for n, s in zip(names, scales, strict=True)], features)
            for names, totals, scales, features in self._kept
        ]

    def _agree(self, names: Sequence[str]) -> tuple[list[str], list[str], Tensor]:
        """Which objectives take part, which of them reach the shared block, and how many examples there are.

        A rank that has them all knows the answer, and does not wait for its device to tell.
        """
        device = self._parameters[0].device
        marks = [name in self._values for name in names]
        marks += marks if self._ahead or self._whole else [name in self._rows for name in names]
        lacking = self._at_features and not all(features for *_, features in self._kept)
        examples = 0 if lacking else sum(features[0].shape[0] for *_, features in self._kept if features)
        told = to_device(torch.tensor([*marks, lacking, examples], dtype=torch.float64), device)
        nothing = told.new_zeros(())
        told = torch.cat([told, torch.stack([self._values.get(name, nothing).double() for name in names] or [nothing])])
        self._ranks.sum(told)
        if self._at_features and told[len(marks)]:
            raise self._no_boundary()
        flags = marks if all(marks) else told[: len(marks)].tolist()
        count = len(names)
        present = [name for name, flag in zip(names, flags[:count], strict=True) if flag]
        reached = [name for name, flag in zip(names, flags[count:], strict=True) if flag]
        values = told[-max(count, 1) :].to(flat.widest(self._parameters)).unbind()
        self._values = {name: value for name, value in zip(names, values, strict=False) if name in present}
        return present, reached, told[len(marks) + 1]

    def _total(self, gradients: flat.Gradients, parameters: Sequence[Parameter]) -> list[Tensor | None]:
        """Gradients summed over ranks in one piece; None where no rank has one."""
        if not parameters:
            return []
        flags = [gradient is not None for gradient in gradients]
        like = parameters[0].new_empty(0, dtype=flat.widest(parameters))
        joined = torch.cat([*flat.flat_parts(gradients, parameters), like.new_tensor(flags)])
        self._ranks.sum(joined)
        given = flags if all(flags) else joined[-len(flags) :].tolist()
        pieces = flat.unflatten(joined[: -len(flags)], parameters)
        return [piece if flag else None for piece, flag in zip(pieces, given, strict=True)]

    # Weights first

    def _draw(self, names: Sequence[str]) -> None:
        """Asks the balancer; what follows needs one gradient only."""
        self._drawn = True
        weights: Any = [1.0] * len(names) if self._rests else self._balancer.combine(self._evidence(names))
        self._weights = dict(zip(names, weights, strict=True))

    def _finish_ahead(self, present: Sequence[str]) -> None:
        if not self._drawn:
            self._draw(present)
        for names, totals, scales, _ in self._kept:
            self._weigh_part(names, totals, scales)
        if self._rows:
            weights = torch.stack([torch.as_tensor(self._weights[name]) for name in self._rows]).to(self._jacobian)
            _merge(self._sums, flat.unflatten(weights @ self._jacobian[: len(self._rows)], self._shared))
        self._merge_own(self._weights if self._direct else {})
        flat.accumulate(self._parameters, self._total(self._sums, self._parameters))

    def _weigh_part(self, names: Sequence[str], totals: Sequence[Tensor], scales: Sequence[float]) -> None:
        """The weighted gradient of one batch of this rank."""
        for name in names:
            if name not in self._weights:
                raise ValueError(f"whether an objective can move a parameter must not change, found `{name}` did")
        starts = [self._start(t, self._weights[n], s) for n, t, s in zip(names, totals, scales, strict=True)]
        if self._direct:
            _merge(self._sums, torch.autograd.grad(totals, self._parameters, starts, allow_unused=True))
            return
        shared = torch.autograd.grad(totals, tuple(self._shared), starts, retain_graph=True, allow_unused=True)
        _merge(self._sums, (*shared, *self._own_part(totals, scales)))

    def _own_part(self, totals: Sequence[Tensor], scales: Sequence[float]) -> flat.Gradients:
        """Every task-specific parameter's gradient of its own losses, of one batch."""
        if not self._specific:
            return ()
        starts = [self._start(t, 1.0, s) for t, s in zip(totals, scales, strict=True)]
        return torch.autograd.grad(totals, tuple(self._specific), starts, allow_unused=True)

    def _merge_own(self, weights: Mapping[str, Any]) -> None:
        """Adds up what was kept per objective, times its weight."""
        cut = len(self._shared)
        for name, own in self._own.items():
            for position, gradient in own.items():
                part = gradient * weights[name] if name in weights else gradient
                _merge(self._sums, [part], cut + position)

    def _accumulate_own(self) -> None:
        flat.accumulate(self._specific, self._total(self._sums[len(self._shared) :], self._specific))

    # The Jacobian

    def _finish_sums(self, present: Sequence[str], reached: list[str]) -> None:
        weights: dict[str, Any] = dict.fromkeys(present, 1.0)
        if reached:
            evidence = self._evidence(reached)
            evidence.jacobian = self._ranks.sum(self._complete(reached))
            gradient = self._combine(evidence, evidence.jacobian, weights)
            flat.accumulate(self._shared, self._where_reached(flat.unflatten(gradient, self._shared)))
        self._merge_own({} if self._aggregates else weights)
        self._accumulate_own()
        self._weights = weights

    def _where_reached(self, gradients: list[Tensor]) -> list[Tensor | None]:
        """None for a parameter that no objective of any rank reaches: an optimizer leaves it alone."""
        missed = set(range(len(gradients))) if self._missed is None else self._missed
        marks = torch.tensor([float(position not in missed) for position in range(len(gradients))])
        told = self._ranks.sum(to_device(marks, gradients[0].device))
        flags = told.tolist() if missed else [1.0] * len(gradients)
        return [gradient if flag else None for gradient, flag in zip(gradients, flags, strict=True)]

    def _complete(self, names: list[str]) -> Tensor:
        """(K, P) this rank's rows for all names, zero where it has none."""
        if list(self._rows) == names:
            return self._jacobian[: len(names)]
        width = sum(p.numel() for p in self._shared)
        rows = torch.zeros(len(names), width, dtype=flat.widest(self._shared), device=self._shared[0].device)
        for name, row in self._rows.items():
            rows[names.index(name)] = self._jacobian[row]
        return rows

    # The feature boundary

    def _finish_examples(self, present: list[str], examples: Tensor) -> None:
        dtype, device = flat.widest(self._shared), self._shared[0].device
        parts = [self._boundary_rows(present, *batch).to(dtype) for batch in self._kept]
        own = torch.cat(parts, dim=1) if parts else torch.zeros(len(present), 0, dtype=dtype, device=device)
        self._weights = dict.fromkeys(present, 1.0)
        if isinstance(self._balancer, JacobianAggregator | CotangentAggregator):
            combined = self._combine_examples(present, own, int(examples))
        else:
            combined = self._weigh_examples(present, own)
        pieces = combined.split([part.shape[1] for part in parts]) if parts else ()
        shared: list[Tensor | None] = [None] * len(self._shared)
        for (_, _, _, features), piece in zip(self._kept, pieces, strict=True):
            starts = flat.split_examples(piece, features)
            _merge(shared, torch.autograd.grad(features, tuple(self._shared), starts, allow_unused=True))
        self._sums[: len(shared)] = shared
        flat.accumulate(self._parameters, self._total(self._sums, self._parameters))

    def _boundary_rows(
        self, every: list[str], names: list[str], totals: Sequence[Tensor], scales: Sequence[float],
        features: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """(K, Z) gradients at the boundary of one batch, by example; task-specific ones are added up on the way."""
        rows = torch.zeros(
            len(every), sum(f.numel() for f in features), dtype=flat.widest(features), device=features[0].device
        )
        inputs, cut = (*features, *self._specific), len(features)
        for name, total, scale in zip(names, totals, scales, strict=True):
            start = self._start(total, 1.0, scale)
            pulled = torch.autograd.grad(total, inputs, start, retain_graph=True, allow_unused=True)
            flat.put_examples(rows[every.index(name)], pulled[:cut], features)
            _merge(self._sums, pulled[cut:], len(self._shared))
        return rows

    def _combine_examples(self, names: list[str], own: Tensor, examples: int) -> Tensor:
        """(Z,) this rank's part of what the balancer makes of all examples' gradients."""
        gathered = self._ranks.gather(own.T.contiguous())
        matrix = torch.cat(gathered).T.contiguous()
        evidence = self._evidence(names)
        evidence.examples = examples
        if isinstance(self._balancer, CotangentAggregator):
            evidence.cotangents = matrix
        else:
            evidence.jacobian = matrix
        combined = self._combine(evidence, matrix, self._weights)
        return combined.split([len(part) for part in gathered])[self._ranks.index]

    def _weigh_examples(self, names: list[str], own: Tensor) -> Tensor:
        """(Z,) the weighted gradient; ranks hold different coordinates, so their Gramians add up."""
        gram = self._ranks.sum(own @ own.T)
        if self._factor is not None:
            if not torch.isfinite(gram).all():
                return own.new_full((own.shape[1],), torch.nan)
            gram = gram / self._factor**2
        evidence = self._evidence(names)
        evidence.gram = gram
        weights = torch.as_tensor(self._balancer.combine(evidence)).to(own)
        self._weights.update(zip(names, weights.unbind(), strict=True))
        return weights @ own

    # Pairs of gradients

    def _finish_in_pairs_together(self, present: list[str]) -> None:
        gram, reached = self._products(present)
        self._weights = dict.fromkeys(present, 1.0)
        if reached:
            evidence = self._evidence([present[i] for i in reached])
            evidence.gram = gram if len(reached) == len(present) else gram[reached][:, reached]
            combined = self._weights_from(evidence, gram)
            self._weights.update(zip(evidence.names, combined.unbind(), strict=True))
            flat.accumulate(self._shared, self._total(self._pull(self._weights, self._shared), self._shared))
        for _, totals, scales, _ in self._kept:
            _merge(self._sums, self._own_part(totals, scales), len(self._shared))
        self._accumulate_own()

    def _products(self, names: Sequence[str]) -> tuple[Tensor, list[int]]:
        """As in one process; the first of a pair is the gradient over all ranks, the second this rank's."""
        gram = torch.zeros(len(names), len(names), dtype=flat.widest(self._shared), device=self._shared[0].device)
        reached: set[int] = set()
        for group in flat.halves(self._shared):
            some: list[int] = []
            for i, first in enumerate(names):
                held = self._total(self._pull({first: 1.0}, group), group)
                if all(gradient is None for gradient in held):
                    continue
                if self._ranks.first:  # the same on every rank, and to be counted once
                    gram[i, i] += flat.inner(held, held)
                for j in some:
                    product = flat.inner(held, self._pull({names[j]: 1.0}, group))
                    gram[i, j] += product
                    gram[j, i] += product
                some.append(i)
                del held
            reached.update(some)
        self._ranks.sum(gram)
        return gram if self._factor is None else gram / self._factor**2, sorted(reached)

    def _pull(self, weights: Mapping[str, Any], inputs: Sequence[Parameter]) -> flat.Gradients:
        if not any(name in weights for names, *_ in self._kept for name in names):
            return [None] * len(inputs)
        return super()._pull(weights, inputs)


def _merge(sums: list[Tensor | None], gradients: Iterable[Tensor | None], start: int = 0) -> None:
    for position, gradient in enumerate(gradients, start):
        if gradient is not None:
            before = sums[position]
            sums[position] = gradient if before is None else before + gradient
