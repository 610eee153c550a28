"""The processes of a run: started by torchrun, by Fabric or by the user."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from polytask.errors import whole
from polytask.launched import by_torchrun
from polytask.ranks import Ranks

logger = logging.getLogger("polytask")


class _OnCpu:
    """What a trainer asks of a Fabric, for one process on a CPU without autocast."""

    device = torch.device("cpu")


def launch(accelerator: str, precision: Any, devices: int | None = None, nodes: int = 1) -> Any:
    """A Fabric for this process, after the processes that train together have found each other.

    With one process nothing is set up; on a CPU without autocast, all that is left to tell is the device, and no
    Fabric is made: its import takes 3 s. A default process group that exists is used as it is.

    Args:
        accelerator: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        precision: Fabric's name of it, which the caller has checked.
        devices: per machine; what torchrun or the process group says, else 1, if None. Without torchrun the
            first process of each machine starts the script again for each of the others.
        nodes: machines.

    Raises:
        ValueError: a number is out of range, or torchrun or the process group says otherwise.
    """
    count = processes(devices, nodes)
    if count == 1 and accelerator == "cpu" and precision == "32-true":
        return _OnCpu()
    from lightning_fabric import Fabric

    if count == 1 or (distributed.is_available() and distributed.is_initialized()):
        mine: Any = [_local_index()] if count > 1 and _on_cuda(accelerator) else 1
        return Fabric(accelerator=accelerator, devices=mine, precision=precision)
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if _by_torchrun() else devices or 1
    fabric = Fabric(
        accelerator=accelerator, devices=local, num_nodes=count // local, precision=precision,
        strategy="ddp",  # for its launcher, process group and share of threads: no module is ever wrapped
    )  # fmt: skip
    with _silent("lightning_fabric"):  # every process would say that it is there
        fabric.launch()
    if fabric.global_rank == 0:
        logger.info("%d processes train together", count)
    return fabric


def join(trainer: Mapping[str, Any]) -> Ranks:
    """The processes of a configuration's trainer, started if need be.

    Args:
        trainer: its settings.
    """
    devices, nodes = trainer.get("devices"), trainer.get("nodes", 1)
    if processes(devices, nodes) > 1:
        launch(trainer.get("accelerator", "cpu"), "32-true", devices, nodes)
    return Ranks()


def processes(devices: int | None = None, nodes: int = 1) -> int:
    """How many processes `launch` would bring together, itself included."""
    whole("nodes", nodes, 1)
    if devices is not None:
        whole("devices", devices, 1)
    there, by = 0, ""
    if distributed.is_available() and distributed.is_initialized():
        there, by = distributed.get_world_size(), "the process group has"
    elif _by_torchrun():
        there, by = int(os.environ["WORLD_SIZE"]), "torchrun started"
    if not there:
        return (devices or 1) * nodes
    if devices is not None and devices * nodes != there:
        raise ValueError(
            f"`devices` times `nodes` must be the number of processes that {by}, {there}, found {devices} * {nodes}: "
            "leave them out to take what is there"
        )
    return there


@contextmanager
def _silent(name: str) -> Iterator[None]:
    speaker = logging.getLogger(name)
    level = speaker.level
    speaker.setLevel(logging.WARNING)
    try:
        yield
    finally:
        speaker.setLevel(level)


def _by_torchrun() -> bool:
    return distributed.is_available() and by_torchrun()


def _on_cuda(accelerator: str) -> bool:
    return accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())


def _local_index() -> int:
    local = os.environ.get("LOCAL_RANK")
    return int(local) if local is not None else torch.cuda.current_device()
