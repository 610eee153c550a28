"""Features of a frozen trunk, computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polytask.batch import Batch, map_inputs, tensors_of
from polytask.data.source import Source
from polytask.ranks import Ranks

logger = logging.getLogger("polytask")

Features = Callable[[Any, str], Any]


class FeatureCache:
    """The features of every example of a source, for as long as the trunk is frozen.

    Args:
        source: a cacheable source, already bound.
        features: (inputs, source name) -> features; called without gradients, trunk in eval mode.
        chunk: examples per call.
        first: a first batch's features, whose shapes size the cache.
        ranks: the processes that share the work where all know the same examples; None for this one alone.
    """

    def __init__(self, source: Source, features: Features, chunk: int, first: Any, ranks: Ranks | None = None) -> None:
        length = source.examples
        assert length is not None
        sharing = None if ranks is None or ranks.alone or source.divided else ranks
        # rows that other ranks compute are zero here, and their sum over ranks is exact
        self._store = map_inputs(lambda t: (t.new_zeros if sharing else t.new_empty)((length, *t.shape[1:])), first)
        start = 0
        for number, batch in enumerate(source.in_order(chunk)):
            part = slice(start, start + batch.size)
            start = part.stop
            if sharing and number % sharing.count != sharing.index:
                continue
            computed = features(batch.inputs, batch.source)
            for kept, fresh in zip(tensors_of(self._store), tensors_of(computed), strict=True):
                kept[part] = fresh
        if sharing:
            for kept in tensors_of(self._store):
                sharing.sum(kept)

    def rows(self, rows: Tensor) -> Any:
        """The features of these rows."""
        return map_inputs(lambda t: t.index_select(0, rows), self._store)

    def part(self, start: int, stop: int) -> Any:
        """The features of a run of rows."""
        return map_inputs(lambda t: t[start:stop], self._store)


class FeatureCaches:
    """Decides for each source whether caching is exact and affordable, says so, and keeps the caches.

    Caching is exact where the examples' inputs do not change, features come out the same twice in a row
    (no dropout kept on), and the model has a boundary. The decision compares the size computed from shapes
    with `limit`, never with free memory, so that it is the same on every machine.

    Args:
        wanted: True to insist, False to forbid, None to cache where it is exact and fits.
        limit: bytes that the caches of a phase may take together.
        features: (inputs, source name) -> features, to be called as in `FeatureCache`.
        boundary: whether the model has a feature boundary.
        chunk: examples per call.
        ranks: the processes that decide alike and share the work; None for this one alone.
    """

    def __init__(
        self,
        wanted: bool | None,
        limit: int,
        features: Features,
        boundary: bool,
        chunk: int,
        ranks: Ranks | None = None,
    ) -> None:
        self._wanted = wanted
        self._limit = limit
        self._features = features
        self._boundary = boundary
        self._chunk = chunk
        self._ranks = None if ranks is None or ranks.alone else ranks
        self._caches: dict[int, FeatureCache | None] = {}
        self._used = 0
        self._said: set[str] = set()

    @torch.no_grad()
    def insist(self, source: Source, where: str) -> None:
        """Raises now, before anything is trained, if caching is insisted on and cannot be."""
        reason = self._refusal(source)[0] if self._wanted else ""
        if reason:
            raise ValueError(f"`cache_features=True` needs exact, affordable features, found {reason} ({where})")

    def clear(self) -> None:
        """Forgets everything: the trunk is about to move."""
        self._caches.clear()
        self._used = 0

    def get(self, source: Source, where: str) -> FeatureCache | None:
        """The source's cache, filled on first use; None where features must be recomputed.

        Raises:
            ValueError: caching was insisted on and is not exact or not affordable.
        """
        if id(source) not in self._caches:
            self._caches[id(source)] = self._build(source, where)
        return self._caches[id(source)]

    @torch.no_grad()
    def _build(self, source: Source, where: str) -> FeatureCache | None:
        reason, first, size = self._refusal(source)
        if reason:
            if self._wanted:
                raise ValueError(f"`cache_features=True` needs exact, affordable features, found {reason} ({where})")
            self._say(f"{where} features are recomputed at every visit: {reason}")
            return None
        self._say(f"{where} features are cached in each specific phase: {size / 2**20:.1f} MiB")
        self._used += size
        return FeatureCache(source, self._features, self._chunk, first, self._ranks)

    def _refusal(self, source: Source) -> tuple[str, Any, int]:
        if self._wanted is False:
            return "`cache_features` is False", None, 0
        if not self._boundary:
            return "the model has no feature boundary", None, 0
        if not source.cacheable or source.examples is None:
            return "the source streams or augments its inputs", None, 0
        batch = next(source.in_order(min(self._chunk, 64)))
        devices = {t.device for t in tensors_of(batch.inputs) if t.device.type == "cuda"}
        with torch.random.fork_rng(devices):  # a resumed run decides again, and must draw what this one does
            first = self._features(batch.inputs, batch.source)
            repeats = self._repeats(batch, first)
        if not repeats:
            return "the frozen trunk is not deterministic (dropout kept on?)", None, 0
        per_row = sum(t[0].numel() * t.element_size() for t in tensors_of(first))
        size = per_row * source.examples
        if self._used + size > self._limit:
            return f"they take {self._used + size} bytes, above `cache_limit` = {self._limit}", None, size
        return "", first, size

    def _repeats(self, batch: Batch, first: Any) -> bool:
        again = self._features(batch.inputs, batch.source)
        equal = all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(again), strict=True))
        return equal if self._ranks is None else all(self._ranks.objects(equal))

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.info(line)
