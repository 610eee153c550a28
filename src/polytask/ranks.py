"""Ranks: the processes that train one network together, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

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
            Exception: what it raises there, on every rank.
        """
        if self.count == 1:
            return action()
        told: Any = (None, None)
        if self.first:
            try:
                told = (action(), None)
            except Exception as error:  # the others must hear of it, whatever it is
                told = (None, error)
        told = self.share(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of the first rank."""
        if self.count > 1:
            for tensor in tensors:
                sent = tensor.detach().contiguous()  # collectives refuse any other layout
                distributed.broadcast(sent, 0)
                tensor.detach().copy_(sent)

    def wait(self) -> None:
        """Returns when every rank is here."""
        if self.count > 1:
            distributed.barrier()
