"""Sources drawn by a power of their size, and how that power changes from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, final

from polytask.data.mixing.sampled import Sampled
from polytask.errors import whole


@final
@dataclass(frozen=True)
class Anneal:
    """A temperature that moves from `start` to `end` over the first `epochs` epochs, and stays there.

    The exponent moves in equal steps: 1 / T(e) = 1 / start + min(e / epochs, 1) (1 / end - 1 / start), with e the epoch
    from 0, so that either end may be infinite.

    Attributes:
        start: temperature of the first epoch, above 0; ``inf`` draws all sources alike.
        end: temperature from epoch `epochs` on, above 0.
        epochs: epochs until then, at least 1.

    Raises:
        ValueError: a temperature that is not above 0, or fewer epochs than 1.

    >>> anneal = Anneal(float("inf"), 1.0, epochs=4)
    >>> [anneal(epoch) for epoch in (0, 2, 4, 5)]
    [inf, 2.0, 1.0, 1.0]
    """

    start: float
    end: float
    epochs: int

    def __post_init__(self) -> None:
        positive("start", self.start)
        positive("end", self.end)
        whole("epochs", self.epochs, 1)

    def __call__(self, epoch: int) -> float:
        if epoch >= self.epochs:
            return self.end
        exponent = 1 / self.start + epoch / self.epochs * (1 / self.end - 1 / self.start)
        return 1 / exponent if exponent else math.inf


@final
class Temperature(Sampled):
    """Draws a source for every step with probability p_k ∝ n_k^(1/T), n_k its number of examples.

    T = 1 is `Proportional`, T = ∞ draws all sources alike, and what is between gives small sources more than their
    share. Multilingual training made it common: *Massively Multilingual Neural Machine Translation in the Wild*,
    `Arivazhagan et al. 2019 <https://arxiv.org/abs/1907.05019>`_, with T = 5.

    An epoch has as many steps as one pass over every source, or `steps`: its length does not depend on T, but how often
    each source is passed over does.

    Args:
        sources, seed, batch_size: see `polytask.data.Mixture`.
        T: the temperature, above 0, ``inf`` included, the paper's if not given; or how it changes: `Anneal` or any
            function from the epoch, from 0, to it.
        steps: steps of an epoch, at least 1; None for those of one pass over every source.

    Raises:
        ValueError: a temperature is not above 0, `steps` is below 1, or a source does not know its size; see
            `polytask.data.Mixture` for the others.
        TypeError: `T` is neither a number nor a function.

    >>> import torch
    >>> part = lambda task, n: (torch.zeros(n, 2), {task: torch.zeros(n)})
    >>> two = {"reviews": part("opinion", 90), "tickets": part("urgent", 10)}
    >>> {name: round(rate, 6) for name, rate in Temperature(two, T=2, batch_size=5).rates(0).items()}
    {'reviews': 0.75, 'tickets': 0.25}

    Without sources it is a setting for the trainer, which brings them:

    >>> Temperature(T=2, batch_size=5)(two).rates(0) == Temperature(two, T=2, batch_size=5).rates(0)
    True
    """

    def __init__(
        self,
        sources: Mapping[str, Any] | None = None,
        T: float | Anneal | Callable[[int], float] = 5.0,
        *,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(sources, steps=steps, seed=seed, batch_size=batch_size)
        if not callable(T):
            positive("T", T)
        self.T = T

    def at(self, epoch: int) -> float:
        """The temperature of epoch `epoch`, from 0."""
        return positive(f"T({epoch})", self.T(epoch)) if callable(self.T) else self.T

    def rates(self, epoch: int) -> dict[str, float]:
        return self.named(self.by_size(1 / self.at(epoch)))

    def describe(self) -> dict[str, Any]:
        by_name = callable(self.T) and not is_dataclass(self.T)
        told = getattr(self.T, "__qualname__", type(self.T).__qualname__) if by_name else repr(self.T)
        return super().describe() | {"T": told}


def positive(name: str, value: Any) -> float:
    """The number, if it is above 0; infinity is.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, found {value!r}")
    if not value > 0:
        raise ValueError(f"`{name}` must be above 0, found {value}")
    return value
