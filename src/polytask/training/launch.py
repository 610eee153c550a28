"""The processes of a run: started by torchrun, by Fabric or by the user, and how they tell of an error."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from polytask.errors import whole
from polytask.ranks import Ranks

logger = logging.getLogger("polytask")

PATIENCE = timedelta(seconds=5)
"""How long a failing process tries to reach the others' store."""


def launch(accelerator: str, precision: str, devices: int | None = None, nodes: int = 1) -> Any:
    """A Fabric for this process, after the processes that train together have found each other.

    With one process nothing is set up. A default process group that exists is used as it is.

    Args:
        accelerator: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        precision: Fabric's name of it.
        devices: per machine; what torchrun or the process group says, else 1, if None. Without torchrun the
            first process of each machine starts the script again for each of the others.
        nodes: machines.

    Raises:
        ValueError: a number is out of range, or torchrun or the process group says otherwise.
    """
    from lightning_fabric import Fabric  # costs 3 s to import, so only where a trainer is made

    count = processes(devices, nodes)
    if count == 1 or (distributed.is_available() and distributed.is_initialized()):
        mine: Any = [_local_index()] if count > 1 and _on_cuda(accelerator) else 1
        return Fabric(accelerator=accelerator, devices=mine, precision=precision)  # pyright: ignore[reportArgumentType]
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if _by_torchrun() else devices or 1
    fabric = Fabric(
        accelerator=accelerator, devices=local, num_nodes=count // local, precision=precision,  # pyright: ignore[reportArgumentType]
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


def rank_by_environment() -> int:
    """0 for the process that speaks for all, as torchrun or Fabric says in the environment, or if neither is there."""
    if _by_torchrun():
        return int(os.environ["RANK"])
    if "MASTER_PORT" in os.environ:  # a copy that Fabric's launcher started
        node, local = int(os.environ.get("NODE_RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
        return node + local
    return 0


def first_error(message: str) -> tuple[str, bool]:
    """The error that ended this process and its siblings, and whether it is for this one to tell.

    Where one rank fails, the others fail after it, in a collective that never ends; only the first error
    says what happened.

    Args:
        message: this process's error.
    """
    if "MASTER_PORT" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return message, True
    me = f"{socket.gethostname()}:{os.getpid()}"
    try:
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE,
            wait_for_workers=False,
        )  # fmt: skip
        key = f"polytask/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        told = store.compare_set(key, "", f"{me} {message}").decode()
    except (RuntimeError, OSError):  # the store went with the first rank, which has spoken then
        return message, rank_by_environment() == 0
    teller, _, first = told.partition(" ")
    return first, teller == me


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
    return distributed.is_available() and distributed.is_torchelastic_launched() and "LOCAL_WORLD_SIZE" in os.environ


def _on_cuda(accelerator: str) -> bool:
    return accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())


def _local_index() -> int:
    local = os.environ.get("LOCAL_RANK")
    return int(local) if local is not None else torch.cuda.current_device()
