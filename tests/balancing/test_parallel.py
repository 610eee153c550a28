"""Two processes on the parts of a batch end where one process on the whole batch does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.balancing.parallel_cases import CASES, RANKS, SHARDED, WRONG, run
from tests.helpers import same
from tests.processes import made_once


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, {case: result}."""
    folder = made_once(tmp_path_factory, "balancing-ranks", _run_both)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _run_both(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.balancing.parallel_cases"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=Path(__file__).parents[2], env=environment)
        for rank in range(RANKS)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0] * RANKS
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, ranks: list[dict[str, Any]]):
    expected = run(case)
    for rank in ranks:
        found = rank.get(case, "the ranks had lost step before")
        assert not isinstance(found, str), found
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_end_with_the_same_bits(case: str, ranks: list[dict[str, Any]]):
    first, second = (rank[case] for rank in ranks)
    assert same(first, second)


@pytest.mark.parametrize("name", SHARDED)
def test_no_shared_gradient_is_gathered(name: str, ranks: list[dict[str, Any]]):
    """No exchange of the engine holds as many numbers as one shard of the trunk."""
    found = ranks[0][f"sharded {name}"]
    assert found["largest"] < found["whole"] / RANKS


@pytest.mark.parametrize("case", sorted(set(WRONG) - {"sharded refusals"}))
def test_what_is_wrong_on_one_rank_is_told_by_all(case: str, ranks: list[dict[str, Any]]):
    first, second = (rank[case] for rank in ranks)
    assert first == second
    assert {
        "first loss": "the first loss of every task must be finite, found nan for `a`",
        "head": "a head must give 1 outputs per example for task `a`, found shape (4, 2) for 4 examples",
        "told loss": "rank 1: a loss must be finite, found nan for `b`",
        "told shape": "rank 1: a loss must be a scalar tensor, found shape (1,) for `b`",
        "told forgotten": "rank 0: with `ranks`, every parameter that a loss reaches must be among `shared` or",
        "told counts": "rank 0: `counts` must be above 0 for every loss, found 0 for `b`",
        "told counts of no kind": "rank 1: `counts` must be a mapping of names to numbers, found int",
        "told a count of no kind": "rank 1: `counts` must hold a number for every loss, found '3' for `b`",
        "told features": "rank 1: `features` must be a tensor or several, found int",
        "told nothing": "a rank must have called `add` before `finish`, found no losses on any",
    }[case] in first["message"]
    assert first.get("untouched", True)


def test_what_sharded_parameters_rule_out(ranks: list[dict[str, Any]]):
    first, second = (rank["sharded refusals"] for rank in ranks)
    assert first == second
    for name in ("forgotten", "forgotten by a scalarizer"):
        assert "every parameter that a loss reaches must be among `shared` or `specific`, found one of" in first[name]
    assert "a balancer must work on losses or on the Gramian, found GradDrop" in first["jacobian"]
    assert "`gradients` must be 'exact', found 'low_memory'" in first["mode"]
    assert (
        "every rank must give the same losses, as often, found rank 0: {'a': 1, 'b': 1, 'c': 1}; rank 1"
        in (first["absent"])
    )
