"""A run killed at random moments and resumed ends with the same bits as one never stopped."""

import random
import time
from multiprocessing import get_context

import pandas as pd
import pytest
from safetensors.torch import load_file
from tests.training import killable

KILLS = 20
PROCESSES = get_context("forkserver")  # new processes that need not import torch again, which takes longer than the run
PROCESSES.set_forkserver_preload([killable.__name__])


def start(folder):
    process = PROCESSES.Process(target=killable.main, args=(folder,))
    process.start()
    return process


def finish(folder):
    process = start(folder)
    process.join()
    return process.exitcode


def wait_for(path, process, newer_than=0.0):
    while process.is_alive() and not (path.exists() and path.stat().st_mtime > newer_than):
        time.sleep(0.005)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(whole) == 0
    dice = random.Random(0)
    kills = 0
    while kills < KILLS:
        begun = time.time()
        process = start(killed)
        # the clock starts at the first checkpoint of this process, so that every attempt gets somewhere
        wait_for(killed / "last.ckpt", process, newer_than=begun)
        time.sleep(dice.uniform(0, 0.08))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    print(f"{kills} kills")
    assert kills == KILLS, "the run ended before it could be killed often enough"
    assert finish(killed) == 0
    expected, found = load_file(whole / "done/weights.safetensors"), load_file(killed / "done/weights.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name
    tables = [pd.read_csv(f / "done/history.csv", dtype=str) for f in (whole, killed)]
    timeless = [t.drop(columns=[c for c in t if c.endswith("seconds")]) for t in tables]
    pd.testing.assert_frame_equal(*timeless)
