"""Processes that train together: what is theirs alone. Several of them: tests/training/test_parallel.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENDS = """
import sys, weakref
import torch
from torch import distributed
import polytask

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
group = weakref.ref(distributed.group.WORLD)
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
distributed.destroy_process_group()
assert group() is None
"""


def test_a_destroyed_process_group_is_gone(tmp_path: Path):
    """Otherwise its threads run on while the interpreter ends, which now and then aborts."""
    done = subprocess.run([sys.executable, "-c", ENDS, tmp_path / "store"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
