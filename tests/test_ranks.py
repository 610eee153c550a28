"""Processes that train together: what is theirs alone. Several of them: tests/training/test_parallel.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENDS = """
import sys, weakref
import torch
from torch import distributed
{first}

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
group = weakref.ref(distributed.group.WORLD)
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
distributed.destroy_process_group()
assert group() is None
"""


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("first", "launcher"),
    [("import polytask", TORCHRUN), ("from polytask import balance", {})],
    ids=["torchrun", "else"],
)
def test_a_destroyed_process_group_is_gone(first: str, launcher: dict[str, str], tmp_path: Path):
    """Otherwise its threads run on while the interpreter ends, which now and then aborts."""
    command = [sys.executable, "-c", ENDS.replace("{first}", first), tmp_path / "store"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | launcher)
    assert done.returncode == 0, done.stderr
