"""The Python examples run as they stand, and learn."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import polytask.data

FOLDER = Path(__file__).parents[1] / "examples"


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "plain_loop", "accumulating_loop", "lightning_module", "data_parallel", "distributed_loop", "table",
    }  # fmt: skip


def test_plain_loop():
    seen = _example("plain_loop").train(30)
    assert all(seen[-1][name] < seen[0][name] for name in ("sign", "total"))


def test_accumulating_loop():
    seen = _example("accumulating_loop").train()
    assert len(seen) == 16 and seen[-1] < seen[0]


def test_distributed_loop():
    """Two processes under torchrun print what one process finds."""
    seen = _example("distributed_loop").train(30)
    assert seen[-1] < seen[0]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, FOLDER / "distributed_loop.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.findall(r"\d+\.\d+", done.stdout))
    assert first == pytest.approx(seen[0], abs=1e-4)
    assert last == pytest.approx(_example("distributed_loop").train()[-1], abs=1e-3)


# Lightning, in its newest version too, calls a part of torch that torch has deprecated, and advises every DataLoader
# without workers, which so small a set needs not
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
def test_lightning_module(tmp_path: Path):
    pytest.importorskip("pytorch_lightning")
    seen = _example("lightning_module").train(3, default_root_dir=tmp_path)
    assert len(seen) == 12 and seen[-1] < seen[0]


def test_data_parallel():  # by several processes: tests/training/test_parallel.py
    history = _example("data_parallel").trained(4).history
    assert history[-1]["validation/loss"] < history[0]["validation/loss"]


def test_table(tmp_path: Path):  # its commands on a smaller table: tests/test_init.py
    path = tmp_path / "customers.csv"
    made = _example("table").customers(600)
    made.to_csv(path, index=False)
    table = polytask.data.Table(str(path), ["leaves", "spent"])
    assert made.shape == (600, 14) and [len(part.inputs) for part in table.load()] == [420, 90, 90]


@pytest.mark.slow
def test_table_by_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _example("table").main(600, 1)
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1001
