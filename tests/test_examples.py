"""The Python examples run as they stand, and learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"plain_loop", "accumulating_loop", "lightning_module"}


def test_plain_loop():
    seen = _example("plain_loop").train(30)
    assert all(seen[-1][name] < seen[0][name] for name in ("sign", "total"))


def test_accumulating_loop():
    seen = _example("accumulating_loop").train()
    assert len(seen) == 16 and seen[-1] < seen[0]


# Lightning calls a part of torch that torch has deprecated, and advises on workers that so small a set needs not
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_lightning_module(tmp_path: Path):
    pytest.importorskip("pytorch_lightning")
    seen = _example("lightning_module").train(3, default_root_dir=tmp_path)
    assert len(seen) == 12 and seen[-1] < seen[0]
