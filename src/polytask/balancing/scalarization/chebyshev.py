"""Modified weighted Chebyshev scalarization by an augmented Lagrangian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, Scalarizer
from polytask.balancing.keyed import Constants, by_name, in_range, known, plain, some_objectives, sums_to_one, to_device
from polytask.balancing.solvers import project_to_simplex
from polytask.errors import at_least, one_of, whole

_NOISE = ("looks", "before", "earlier", "noise", "noise_age")
_FORMS = ("projected", "explicit")
_SCALE_DECAY = 0.999
_NOISE_DECAY = 0.99
_JITTER = 0.2
_LONGEST = 0.5
_TINY = 1e-30


@final
class Chebyshev(Scalarizer):
    """The worst weighted objective: min_θ max_i g_i, g_i = k_i [l_i + ε Σ_j l_j], l_i = (L_i − a_i) / n_i.

    Every Pareto optimum, on non-convex fronts too, is a minimum for some preference k; where it can be had, it is
    the one at which all k_i l_i are equal. The problem min t subject to g_i ≤ t is solved by an augmented Lagrangian,
    t + (1/2μ) Σ_i [max(0, w_i + μ (g_i − t))² − w_i²]. At the best t its active weights sum to 1, so that they are

        p = Proj_simplex(w + μ g),

    and t need not be trained. The network goes down Σ_i p_i g_i with p held constant, the multipliers follow by
    w ← Proj_simplex(w + η ḡ). The weights given are ∂S/∂L_j = (p_j k_j + ε Σ_i p_i k_i) / n_j.

    μ must exceed a bound that grows as 1 / |g|, below which the sum's end points come back. So g is divided by its
    running maximum (falling by 0.1 % a step, so that it follows losses that fall) before μ and η are applied; the scale
    of the losses then does not matter.

    Papers: Hotegni, Berkemeier and Peitz 2024, `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_ (their code
        treats the inequalities as equalities and trains t by its gradient); the augmented Lagrangian is that of
        Powell, Hestenes and Rockafellar, Nocedal and Wright 2006, chapter 17.

    *Which front.* Any `normalise` traces the same front; it changes which point belongs to k: the one with equal
    k_i (L_i − a_i) / n_i. Without it objectives are compared in their own units, and one of another scale (a
    penalty of 100 beside losses of 1) takes all the weight; by their first values they are compared as fractions of
    what they were at the start, which depends on the initial weights.

    *Reference point.* ``"best"`` is the least value seen of each objective; a single lucky batch moves it for good, and
    while every objective still improves all g are near 0 and the multipliers alone decide. A fixed
    bound below all losses is safer.

    *Noise.* A noisy g makes p jump from end to end, and its mean is then biased. Averaging g for the multipliers
    (`average`) costs nothing. Averaging it inside p (`weight_average`) removes bias but lags, and at a high, constant
    learning rate the lag makes runs circle: so by default g is averaged there only where its second differences show
    noise, with a decay of at most 0.5. Larger batches and a falling learning rate are better still.

    Objectives that a step lacks are taken at their last values. An objective whose p is 0 is trained through ε alone.
    With one objective the weight is 1.

    Args:
        preference: k_i at least 0, summing to 1: {objective: k_i} or in the objectives' order; 1/K if None.
        reference: a_i, a bound below every loss, likewise; ``"best"``; 0 if None.
        epsilon: ε at least 0, small: rules out weakly optimal points.
        mu: μ > 0, on the normalised g; 5 to 20.
        eta: η > 0, likewise; μ / 200 if None. μ itself, the textbook's step, oscillates.
        every: batches between steps of the multipliers, at least 1.
        form: ``projected``: as above. ``explicit``: t is found by a one-dimensional search and p from it. Both give the
            same weights; the second is there to check the first.
        normalise: n_i: None for 1, ``"initial"`` for each objective's first value, the names of those that are
            divided by their first value (``["sparsity"]``), or {objective: n_i > 0}, 1 for others.
        average: decay of the mean of g that moves the multipliers, in [0, 1).
        weight_average: decay of the mean of g inside p, in [0, 1); None to set it by the noise, from 0 to 0.5.

    Raises:
        ValueError: a preference that is negative, does not sum to 1 or does not fit the objectives; a number
            out of range; an unknown objective; a first value of 0 to normalise by; a resumed state of other objectives.

    >>> balancer = Chebyshev({"circle": 0.5, "rhombus": 0.5}, epsilon=0.0, mu=1.0)
    >>> balancer.setup(["circle", "rhombus"])
    >>> balancer.combine(Evidence(["circle", "rhombus"], [torch.tensor(0.4), torch.tensor(0.8)]))
    tensor([0.1250, 0.3750])
    """

    keeps = "the multipliers, the last values, and running averages and scales of the objectives"

    def __init__(
        self,
        preference: Mapping[str, float] | Sequence[float] | None = None,
        reference: Mapping[str, float] | Sequence[float] | str | None = None,
        epsilon: float = 1e-4,
        mu: float = 10.0,
        eta: float | None = None,
        every: int = 1,
        form: str = "projected",
        normalise: Mapping[str, float] | Sequence[str] | str | None = None,
        average: float = 0.9,
        weight_average: float | None = None,
    ) -> None:
        super().__init__()
        in_range("preference", preference, low=0)
        sums_to_one("preference", preference)
        if isinstance(reference, str):
            one_of("reference", reference, ("best",))
        else:
            in_range("reference", reference)
        at_least("epsilon", epsilon, 0)
        for name, value in (("mu", mu), ("eta", mu if eta is None else eta)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be above 0 and finite, found {value}")
        whole("every", every, 1)
        one_of("form", form, _FORMS)
        _check_normalise(normalise)
        for name, value in (("average", average), ("weight_average", weight_average or 0.0)):
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, found {value}")
        self.preference = preference
        self.reference = reference
        self.epsilon = epsilon
        self.mu = mu
        self.eta = mu / 200 if eta is None else eta
        self.every = every
        self.form = form
        self.normalise = normalise
        self.average = average
        self.weight_average = weight_average
        self._preference = Constants({}, 1.0)
        self._reference = Constants({}, 0.0)
        self._divisors = Constants({}, 1.0)
        self._by_first: frozenset[str] = frozenset()
        self._forget()

    def _forget(self) -> None:
        """No objective has been seen; tensors hold one entry for each that has, in the order of first sight."""
        self._seen: list[str] = []
        self._kept: dict[str, Tensor] = {}
        self._steps = 0

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        if self.objectives and not set(self._seen) <= set(names):  # without, what was seen is a resumed state's
            self._forget()
        self._preference = Constants(by_name("preference", self.preference, names, 1 / max(len(names), 1)), 0.0)
        reference = None if isinstance(self.reference, str) else self.reference
        self._reference = Constants(by_name("reference", reference, names, 0.0), 0.0)
        given = self.normalise
        if isinstance(given, Mapping):
            known("normalise", given, names)
            self._divisors = Constants(given, 1.0)
        elif given is not None:
            some = names if given == "initial" else [given] if isinstance(given, str) else given
            known("normalise", some, names)
            self._by_first = frozenset(some)
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        if len(self.objectives) == 1:
            return torch.ones_like(losses)
        wide = losses if losses.device.type == "mps" else losses.double()  # MPS has no float64
        places = self._take(names, wide)
        k, n = self._preference(self._seen, wide), self._kept["divisor"]
        gaps = (self._kept["loss"] - self._low(wide)) / n
        g = k * (gaps + self.epsilon * gaps.sum())
        p = self._weigh(g)
        weights = (p * k + self.epsilon * (p @ k)) / n
        return (weights if places is None else weights[places]).to(losses)

    # What is known of each objective

    def _take(self, names: Sequence[str], losses: Tensor) -> Tensor | None:
        """Notes the losses; where the present objectives stand among all that were seen, None for all in order."""
        for name, loss in zip(names, losses, strict=True):
            if name not in self._seen:
                self._add(name, loss)
        kept = self._kept
        if kept["loss"].device != losses.device:  # after a resume; `Module.to` does not reach them
            kept = self._kept = {key: value.to(losses) for key, value in kept.items()}
        places = None
        if list(names) == self._seen:
            kept["loss"] = losses
        else:
            places = to_device(torch.tensor([self._seen.index(name) for name in names]), losses.device)
            kept["loss"] = kept["loss"].index_copy(0, places, losses)
        kept["best"] = torch.minimum(kept["best"], kept["loss"])
        return places

    def _add(self, name: str, loss: Tensor) -> None:
        """A new objective gets an equal share of the multipliers."""
        divisor = self._divisors([name], loss)
        if name in self._by_first:
            divisor = (loss - self._reference([name], loss)).abs()
            if not divisor > 0:
                raise ValueError(f"the first value of a normalised objective must not be 0, found 0 for `{name}`")
        one, count = loss.reshape(1), len(self._seen)
        new = {
            "loss": one, "best": one, "divisor": divisor.reshape(1), "multiplier": torch.ones_like(one) / (count + 1),
            **{key: torch.zeros_like(one) for key in ("mean", "age", "inner", "inner_age", *_NOISE)},
        }  # fmt: skip
        if count:
            self._kept["multiplier"] = self._kept["multiplier"] * (count / (count + 1))
            new = {key: torch.cat([self._kept[key].to(value), value]) for key, value in new.items()}
        self._kept = {"scale": self._kept.get("scale", 0 * loss)} | new
        self._seen.append(name)

    def _low(self, like: Tensor) -> Tensor:
        return self._kept["best"] if self.reference == "best" else self._reference(self._seen, like)

    # The augmented Lagrangian

    def _weigh(self, g: Tensor) -> Tensor:
        """p, and a step of the multipliers when it is time."""
        kept = self._kept
        kept["scale"] = scale = torch.maximum(_SCALE_DECAY * kept["scale"], g.abs().max())
        scale = scale.clamp(min=_TINY)
        decay = self._noise_decay(g / scale) if self.weight_average is None else self.weight_average
        inner = self._mean("inner", "inner_age", decay, g)
        p = self._project(kept["multiplier"], inner / scale, self.mu)
        mean = self._mean("mean", "age", self.average, g)
        self._steps += 1
        if self._steps % self.every == 0:
            kept["multiplier"] = self._project(kept["multiplier"], mean / scale, self.eta)
        return p

    def _noise_decay(self, g: Tensor) -> Tensor:
        """The decay inside p that brings the noise of w + μ g down to a jitter of 0.2, as far as 0.5 can.

        In a second difference a smooth course cancels and white noise counts six times. A mean with decay β has
        (1 − β) / (1 + β) of the noise's variance.
        """
        kept = self._kept
        fresh = (kept["looks"] >= 2) * (1 - _NOISE_DECAY)
        second = (g - 2 * kept["before"] + kept["earlier"]).square() / 6
        kept["noise"] = kept["noise"] + fresh * (second - kept["noise"])
        kept["noise_age"] = kept["noise_age"] + fresh * (1 - kept["noise_age"])
        kept["looks"], kept["earlier"], kept["before"] = kept["looks"] + 1, kept["before"], g
        jitter = self.mu * (kept["noise"] / kept["noise_age"].clamp(min=_TINY)).max().sqrt()
        share = (_JITTER / jitter.clamp(min=_TINY)).clamp(max=1).square()
        return ((1 - share) / (1 + share)).clamp(max=_LONGEST)

    def _mean(self, value: str, age: str, decay: float | Tensor, g: Tensor) -> Tensor:
        """Exponential mean of g, free of the bias towards its start at 0."""
        if isinstance(decay, float) and decay == 0:
            return g
        kept = self._kept
        kept[value] = decay * kept[value] + (1 - decay) * g
        kept[age] = decay * kept[age] + (1 - decay)
        return kept[value] / kept[age]

    def _project(self, multipliers: Tensor, g: Tensor, rate: float) -> Tensor:
        if self.form == "projected":
            return project_to_simplex(multipliers + rate * g)
        return (multipliers + rate * (g - _best_level(multipliers, g, rate))).clamp(min=0)

    # State

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "seen": list(self._seen), "steps": self._steps,
            "kept": {key: value.clone() for key, value in self._kept.items()},
        }  # fmt: skip

    def set_extra_state(self, state: dict[str, Any]) -> None:
        some_objectives(state["seen"], self.objectives)
        self._seen, self._steps = list(state["seen"]), state["steps"]
        self._kept = {key: value.clone() for key, value in state["kept"].items()}

    def describe(self) -> dict[str, Any]:
        numbers = ("epsilon", "mu", "eta", "every", "form", "average", "weight_average")
        settings = {name: getattr(self, name) for name in numbers}
        lists = {name: plain(getattr(self, name)) for name in ("preference", "reference", "normalise")}
        return super().describe() | settings | lists


def _best_level(multipliers: Tensor, g: Tensor, mu: float) -> Tensor:
    """The t that minimises t + (1/2μ) Σ_i max(0, w_i + μ (g_i − t))².

    Its derivative 1 − Σ_i max(0, w_i + μ (g_i − t)) is concave, rising and linear between K kinks, so Newton's method
    from the left of the root ends exactly, after at most K steps.
    """
    t = (g + multipliers / mu).min() - 1 / mu
    for _ in range(len(g) + 1):
        active = (multipliers + mu * (g - t)).clamp(min=0)
        t = t + (active.sum() - 1) / (mu * (active > 0).sum())
    return t


def _check_normalise(given: Mapping[str, float] | Sequence[str] | str | None) -> None:
    if isinstance(given, Mapping):
        in_range("normalise", given, low=0)
        for name, value in given.items():
            if value == 0:
                raise ValueError(f"every value of `normalise` must be above 0, found 0 for `{name}`")
