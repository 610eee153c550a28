"""What a launcher (torchrun, Fabric, Slurm) says in the environment, and how the processes it started tell of an error.

Imports no torch, so that the command line can ask before anything heavy is loaded.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

PATIENCE = timedelta(seconds=5)
"""How long a failing process tries to reach the others' store."""


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return {"TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"} <= os.environ.keys()


def rank_by_environment() -> int:
    """0 for the process that speaks for all, as torchrun, Fabric or Slurm says in the environment, or if none does."""
    if by_torchrun():
        return int(os.environ["RANK"])
    if "MASTER_PORT" in os.environ and {"NODE_RANK", "LOCAL_RANK"} & os.environ.keys():  # as Fabric's launcher sets
        return int(os.environ.get("NODE_RANK", 0)) + int(os.environ.get("LOCAL_RANK", 0))
    return int(os.environ.get("SLURM_PROCID", 0))


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
    from torch import distributed

    try:
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # public, by torch's documentation
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE,
            wait_for_workers=False,
        )  # fmt: skip
        key = f"polytask/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        told = store.compare_set(key, "", f"{me} {message}").decode()
    except (RuntimeError, OSError):  # the store went with the first rank, which has spoken then
        return message, rank_by_environment() == 0
    teller, _, first = told.partition(" ")
    return first, teller == me
