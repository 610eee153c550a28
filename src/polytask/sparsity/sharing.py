"""Sharing: rows of a layer that look alike become one parameter."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from polytask.errors import nearest, number, whole
from polytask.sparsity.rows import Layer, check, from_rows, inputs_of, parts_of, to_rows, weight_of

DEAD = -1
"""The label of a group of rows that is zero and stays zero."""

TIE_BREAK = 1e-4
"""Span of the preferences, falling from the first row to the last.

The similarity is symmetric, so two rows that are most alike can each stand for the other: with equal preferences
the messages then oscillate, or stop at every row by itself (measured on 40 noisy pairs, damping 0.5 to 0.9, preference
0.3 to 0.98: 7 of 15 runs did not converge; with this span all did, at most preferences in the 40 pairs)."""

PATIENCE = 50
"""Iterations without a change at damping 0.5 after which the answer stands; in proportion more at a slower pace."""


class NotConverged(ValueError):
    """Affinity propagation did not come to an answer."""


@dataclass(frozen=True)
class Sharing:
    """Which groups of rows share one parameter.

    Attributes:
        labels: {layer: (groups,) number of each group's cluster, 0..c-1, or `DEAD`}. A layer in `apart` has a
            cluster for each group that is not dead.
        apart: {layer: why its rows were not shared}.
    """

    labels: dict[str, Tensor]
    apart: dict[str, str]


def similarity(rows: Tensor) -> Tensor:
    """How alike rows are: S_ij = w_i · w_j / max(‖w_i‖², ‖w_j‖²), in [-1, 1], 1 for equal rows.

    Zhang et al., "Learning to Share", ICLR 2018 (https://openreview.net/forum?id=rypT3fb0b). Unlike a cosine, it is
    also low for rows of one direction and different lengths.

    Args:
        rows: (n, D), none of them zero.

    Returns:
        (n, n), symmetric.

    Raises:
        ValueError: a row of zeros, which is like nothing, or numbers that are not finite.

    >>> similarity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    squares = rows.square().sum(1)
    if not bool(squares.isfinite().all()):
        raise ValueError(f"rows to compare must be finite, found {int((~squares.isfinite()).sum())} of {len(rows)} not")
    if not bool((squares > 0).all()):
        zeros = int((squares == 0).sum())
        raise ValueError(f"rows to compare must not be zero, found {zeros} of {len(rows)} that are")
    return (rows @ rows.T) / torch.maximum(squares[:, None], squares[None, :])


def cluster(
    rows: Tensor, preference: float | None = None, damping: float = 0.5, iterations: int = 1000, seed: int = 0
) -> Tensor:
    """Clusters of rows that are alike, by affinity propagation on `similarity`.

    Frey and Dueck, "Clustering by Passing Messages Between Data Points", Science 315 (2007)
    (https://doi.org/10.1126/science.1136800), as in scikit-learn. How many clusters there are follows from
    `preference`. Memory is O(n²), time O(n² · iterations).

    Args:
        rows: (n, D), none of them zero.
        preference: how readily a row stands for itself, on the scale of the similarities: above 1 every row
            does; lower ones give fewer clusters. None takes the median similarity.
        damping: of the messages, in [0.5, 1); larger ones stop oscillations.
        iterations: at most so many, at least 1.
        seed: of the tiny noise that scikit-learn adds, at least 0; of larger ones the rest modulo 2**32 counts.

    Returns:
        (n,) cluster numbers 0..c-1, in the order of their first rows.

    Raises:
        ValueError: a row of zeros or of numbers that are not finite, a number out of its range, or no convergence
            (`NotConverged`).

    >>> cluster(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.01, 0.0], [0.0, 0.99]]), preference=0.5)
    tensor([0, 1, 0, 1])
    """
    check_affinity(preference, damping, iterations)
    whole("seed", seed, 0)
    alike = similarity(rows.detach().double())
    if len(rows) < 2:
        return torch.zeros(len(rows), dtype=torch.long)
    return _in_order(torch.as_tensor(_propagate(alike, preference, damping, iterations, seed), dtype=torch.long))


def check_affinity(preference: float | None, damping: float, iterations: int) -> None:
    """Raises `ValueError` unless the settings of `cluster` are in their ranges, `TypeError` where one is no number."""
    if preference is not None:
        number("preference", preference)
        if not math.isfinite(preference):
            raise ValueError(f"`preference` must be finite, found {preference}")
    number("damping", damping)
    if not 0.5 <= damping < 1:
        raise ValueError(f"`damping` must be in [0.5, 1), found {damping}")
    whole("iterations", iterations, 1)


def _propagate(alike: Tensor, preference: float | None, damping: float, iterations: int, seed: int) -> Any:
    import numpy as np
    from sklearn.cluster import AffinityPropagation
    from sklearn.exceptions import ConvergenceWarning

    level = alike.median().item() if preference is None else preference
    method = AffinityPropagation(
        affinity="precomputed", preference=level - np.linspace(0, TIE_BREAK, len(alike)), damping=damping,
        max_iter=iterations, convergence_iter=round(PATIENCE * 0.5 / (1 - damping)), random_state=seed % 2**32,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels = method.fit(alike.cpu().numpy()).labels_
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            raise NotConverged(
                f"affinity propagation must converge, found that it did not within {iterations} iterations for "
                f"{len(alike)} rows: raise `damping` (now {damping}) or `iterations`, or change `preference`"
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return labels


def _in_order(labels: Tensor) -> Tensor:
    """Renumbered by first appearance."""
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels.tolist()], dtype=torch.long)


def find_sharing(
    layers: Iterable[Layer],
    preference: float | Mapping[str, float] | None = None,
    damping: float = 0.5,
    iterations: int = 1000,
    seed: int = 0,
) -> Sharing:
    """Clusters the live groups of rows of each layer; nothing is changed.

    Args:
        layers: layers in play, see `polytask.sparsity.layers.layers_in_play`. Under granularity ``unit`` whole groups
            of rows are compared, else single rows.
        preference, damping, iterations, seed: see `cluster`; the preference may be given by layer, and is the median
            similarity for layers that are not named.

    Returns:
        The clusters. A layer whose affinity propagation does not converge is not shared, which `Sharing.apart`
        says; so is a grouped convolution, whose rows meet different filters.

    Raises:
        ValueError: a number out of its range, a preference for no layer, or weights that are not finite.

    >>> layer = Layer("head", nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = layer.module.weight.copy_(torch.tensor([[1.0, 0.0, 1.1], [1.0, 0.0, 1.0]]))
    >>> find_sharing([layer], preference=0.5).labels["head"]
    tensor([ 0, -1,  0])
    """
    labels: dict[str, Tensor] = {}
    apart: dict[str, str] = {}
    layers = list(layers)
    if isinstance(preference, Mapping):
        known = [layer.name for layer in layers]
        for name in preference:
            if name not in known:
                raise ValueError(f"`preference` names a layer that is not in play, `{name}`: {nearest(name, known)}")
    for layer in layers:
        wanted = preference.get(layer.name) if isinstance(preference, Mapping) else preference
        rows = _groups(layer.module, layer.size)
        alive = (rows != 0).any(1).cpu()
        numbers = torch.arange(int(alive.sum()))
        if parts_of(layer.module) > 1:
            apart[layer.name] = "rows of a grouped convolution meet different filters"
        else:
            try:
                numbers = cluster(rows[alive.to(rows.device)].cpu(), wanted, damping, iterations, seed)
            except NotConverged as error:
                apart[layer.name] = str(error)
        labels[layer.name] = torch.full((len(rows),), DEAD).masked_scatter(alive, numbers)
    return Sharing(labels, apart)


class TiedRows(nn.Module):
    """A parametrisation: a weight made of one row per cluster, and zeros for dead rows.

    The parameter is (clusters, size · D), so that an optimizer holds one state per cluster, and its gradient is the sum
    over the cluster's members.

    Args:
        module: the layer whose weight it makes.
        labels: (groups,) cluster of each group of rows, or `DEAD`.
    """

    labels: Tensor

    def __init__(self, module: nn.Module, labels: Tensor) -> None:
        super().__init__()
        # rows are read and made by the shape of a layer: a copy without storage, in a tuple to keep it out of the model
        self._like = (copy.deepcopy(module).to("meta"),)
        self.clusters = int(labels.max()) + 1
        self.register_buffer("labels", labels.to(weight_of(module).device))

    def forward(self, shared: Tensor) -> Tensor:
        rows = torch.cat([shared, shared.new_zeros(1, shared.shape[1])])[self.labels]  # DEAD is the last: zeros
        return from_rows(self._like[0], rows)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The mean of each cluster's rows."""
        rows = to_rows(self._like[0], weight).reshape(len(self.labels), -1)
        alive = self.labels >= 0
        members = self.labels[alive]
        sums = rows.new_zeros(self.clusters, rows.shape[1]).index_add(0, members, rows[alive])
        return sums / torch.bincount(members, minlength=self.clusters)[:, None].to(rows)


def tie(model: nn.Module, labels: Mapping[str, Tensor | Sequence[int]]) -> list[str]:
    """Ties rows for training: in place, each cluster becomes one parameter, started at the mean of its rows.

    The layers' weights are parametrised (`torch.nn.utils.parametrize`); `polytask.sparsity.compact.compact` makes
    smaller layers of them, `untie` plain ones. Optimizers made before hold the old parameters: make new ones.

    Args:
        model: its layers named in `labels` change.
        labels: {layer: (groups,) cluster numbers 0..c-1, each in use, or `DEAD`}, such as `Sharing.labels`. Dead
            groups of rows become and stay zero.

    Returns:
        Names of the tied layers.

    Raises:
        ValueError: no such layer, one tied already, or labels that do not fit it.

    >>> net = nn.Sequential(nn.Linear(3, 2))
    >>> tie(net, {"0": [0, -1, 0]})
    ['0']
    >>> [tuple(p.shape) for p in net.parameters()], torch.equal(net[0].weight[:, 0], net[0].weight[:, 2])
    ([(2,), (1, 2)], True)
    """
    named = dict(model.named_modules())
    checked = {name: _check_labels(name, named.get(name), torch.as_tensor(given)) for name, given in labels.items()}
    for name, given in checked.items():
        parametrize.register_parametrization(named[name], "weight", TiedRows(named[name], given))
    return list(checked)


def untie(model: nn.Module) -> None:
    """Makes tied weights plain parameters again, in place, with the values they have."""
    for module in model.modules():
        if is_tied(module):
            unparametrise(module)


def unparametrise(module: nn.Module) -> None:
    """Makes a module's parametrised tensors plain ones, in place, with the values they have.

    Unlike torch's `remove_parametrizations` it leaves the module's class alone: copies of the module share it, and
    would lose their weights with it.
    """
    steps: Any = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in steps}
    learned = {name: any(p.requires_grad for p in step.parameters()) for name, step in steps.items()}
    kept = dict(module._parameters)
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module._parameters.clear()
    for name, value in values.items():  # before the others, as weights come before biases
        module.register_parameter(name, nn.Parameter(value, requires_grad=learned[name]))
    module._parameters.update(kept)


def is_tied(module: nn.Module) -> bool:
    """Whether a layer's rows are tied."""
    if not parametrize.is_parametrized(module, "weight"):
        return False
    lists: Any = module.parametrizations  # a ModuleDict of lists, which torch annotates as a tensor or module
    return any(isinstance(step, TiedRows) for step in lists["weight"])


def _groups(module: nn.Module, size: int) -> Tensor:
    """(groups, size · D) rows, those of a group side by side."""
    rows = to_rows(module, weight_of(module).detach())
    return rows.reshape(len(rows) // size, -1)


def _check_labels(name: str, module: nn.Module | None, labels: Tensor) -> Tensor:
    if module is None:
        raise ValueError(f"a layer to tie must exist, found none named `{name}`")
    check(module, name)
    if parametrize.is_parametrized(module, "weight"):
        raise ValueError(f"a layer to tie must have a plain weight, found `{name}` parametrised already")
    rows = inputs_of(module)
    if labels.dim() != 1 or not len(labels) or rows % len(labels):
        raise ValueError(
            f"labels must be one per row or per group of rows of equal size, found {tuple(labels.shape)} for the "
            f"{rows} rows of `{name}`"
        )
    used = sorted(set(labels.tolist()) - {DEAD})
    if used != list(range(len(used))) or not used:
        raise ValueError(
            f"labels must number clusters 0, 1, ... without a gap, with at least one, found {used[:5]} for `{name}`"
        )
    return labels.long()
