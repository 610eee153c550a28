"""A run killed at random moments and resumed ends with the same bits as one never stopped."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("killable.py")
KILLS = 20


def start(folder):
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder)])


def wait_for(path, process, newer_than=0.0):
    while process.poll() is None and not (path.exists() and path.stat().st_mtime > newer_than):
        time.sleep(0.005)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    dice = random.Random(0)
    kills = 0
    while kills < KILLS:
        begun = time.time()
        process = start(killed)
        # the clock starts at the first checkpoint of this process, so that every attempt gets somewhere
        wait_for(killed / "last.ckpt", process, newer_than=begun)
        time.sleep(dice.uniform(0, 0.08))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    print(f"{kills} kills")
    assert kills == KILLS, "the run ended before it could be killed often enough"
    assert start(killed).wait() == 0
    expected, found = load_file(whole / "done/weights.safetensors"), load_file(killed / "done/weights.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name
    tables = [pd.read_csv(f / "done/history.csv", dtype=str) for f in (whole, killed)]
    timeless = [t.drop(columns=[c for c in t if c.endswith("seconds")]) for t in tables]
    pd.testing.assert_frame_equal(*timeless)
