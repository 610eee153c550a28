"""Ranks: the processes that train one network together, each on its part of every batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

if distributed.is_available():
    # Its functions' defaults keep the process group that is there when it is imported, and the first optimizer imports
    # it: that group would outlive `destroy_process_group`, and now and then abort the process on its way out.
    import torch.distributed.nn.functional  # pyright: ignore[reportUnusedImport] (for its side effect)

T = TypeVar("T")


class Ranks:
    """This process among those that train together; one process alone where nothing was launched.

    Collectives act on the default process group, whoever set it up: Fabric (the trainer), torchrun with
    `torch.distributed.init_process_group`, or another trainer. With one process they do nothing. Every rank
    must call the same ones in the same order.

    Attributes:
        index: this process, from 0.
        count: how many there are.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.index = distributed.get_rank() if together else 0
        self.count = distributed.get_world_size() if together else 1

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up `tensor` over all ranks, in place; every rank ends with the same bits."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in their order; first dimensions may differ, the others must not."""
        if self.count == 1:
            return [tensor]
        sizes = torch.zeros(self.count, dtype=torch.int64, device=tensor.device)
        sizes[self.index] = len(tensor)
        lengths: list[int] = self.sum(sizes).tolist()
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def objects(self, value: Any) -> list[Any]:
        """Every rank's value (numbers, strings, tensors, lists, dictionaries), in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """The first rank's value; what the others give is not looked at."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def once(self, action: Callable[[], T]) -> T:
        """What `action` returns on the first rank, the only one that carries it out.

        Raises:
            Exception: what it raises there, on every rank; a RuntimeError with its kind and words on the others
                if it cannot be sent.
        """
        if self.count == 1:
            return action()
        told: Any = (None, None)
        if self.first:
            try:
                told = (action(), None)
            except Exception as error:  # the others must hear of it, whatever it is
                self.share((None, _sendable(error)))
                raise
        told = self.share(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def mean(self, losses: Mapping[str, Tensor], counts: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Losses over all ranks' examples: {name: the mean of the ranks' losses weighted by `counts`}, detached.

        For a balancer that sees the losses after the step (FAMO), in a loop of one's own:
        ``balancer.after(ranks.mean(losses, counts))``. A rank may lack a name, or all. It waits for the device.

        Args:
            losses: {name: scalar}, this rank's.
            counts: {name: how many examples the loss is a mean over}, above 0; 1 each if None.

        Raises:
            ValueError: a loss that is not a scalar, or a count that is missing or not above 0, on any rank.

        >>> import torch
        >>> Ranks().mean({"a": torch.tensor(2.0)}, {"a": 5})
        {'a': tensor(2.)}
        """
        told = self.objects(_weighted(losses, counts))
        for rank, found in enumerate(told):
            if isinstance(found, str):
                raise ValueError(found if self.count == 1 else f"rank {rank}: {found}")
        device = next((loss.device for loss in losses.values()), None)
        means: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for part in told for name in part):
            parts = [part[name] for part in told if name in part]
            value = sum(loss * count for loss, count in parts) / sum(count for _, count in parts)
            means[name] = torch.tensor(value, device=device)
        return means

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of the first rank."""
        if self.count > 1:
            for tensor in tensors:
                sent = tensor.detach().contiguous()  # collectives refuse any other layout, and some dtypes
                distributed.broadcast(sent.reshape(-1).view(torch.uint8), 0)
                tensor.detach().copy_(sent)

    def wait(self) -> None:
        """Returns when every rank is here."""
        if self.count > 1:
            distributed.barrier()


def _sendable(error: Exception) -> Exception:
    """The error itself, if another process can be sent it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does to be packed or unpacked
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _weighted(losses: Mapping[str, Tensor], counts: Mapping[str, float] | None) -> dict[str, tuple[float, float]] | str:
    """{name: (loss, count)}, or what is wrong with them."""
    found: dict[str, tuple[float, float]] = {}
    for name, loss in losses.items():
        count = 1.0 if counts is None else counts.get(name, 0.0)
        if loss.dim():
            return f"a loss must be a scalar tensor, found shape {tuple(loss.shape)} for `{name}`"
        if not 0 < count < float("inf"):
            return f"`counts` must be above 0 for every loss, found {count} for `{name}`"
        found[name] = (loss.item(), float(count))
    return found
