"""Two processes that train together end as one process does, and alike to the bit."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.helpers import Rows, data, same, trainer
from tests.processes import made_once
from tests.training import parallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import polytask as pt
from polytask import cli
from polytask.launched import rank_by_environment
from polytask.training.signals import SIGNAL_ECHO

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT), str(Path(pt.__file__).parents[1])]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "ranks", _run_two)


@pytest.fixture(scope="session")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What two gloo processes returned for every case."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _run_two(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.training.parallel"]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


def close(one: Any, other: Any) -> None:
    """Nested structures that agree to 1e-6, absolute and relative; seconds are left out."""
    if isinstance(one, dict):
        assert {k for k in one if not k.endswith("seconds")} == {k for k in other if not k.endswith("seconds")}
        for key in one:
            if not key.endswith("seconds"):
                close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            close(a, b)
    elif isinstance(one, str) or one is None:
        assert one == other
    else:
        torch.testing.assert_close(
            torch.as_tensor(one), torch.as_tensor(other), rtol=1e-6, atol=1e-6, equal_nan=True, check_dtype=False
        )


@pytest.mark.parametrize("name", sorted(parallel.SAME))
def test_two_processes_end_as_one_does(name: str, ranks: list[dict[str, Any]], tmp_path: Path):
    close(parallel.CASES[name](tmp_path), ranks[0][name])


@pytest.mark.parametrize("name", sorted(set(parallel.CASES) - {"files", "refusals"}))
def test_both_processes_end_with_the_same_bits(name: str, ranks: list[dict[str, Any]]):
    first, second = ({k: v for k, v in rank[name].items() if k != "own"} for rank in ranks)
    assert first and same(first, second)


def test_affinities_do_not_change_the_training_of_ranks_either(ranks: list[dict[str, Any]]):
    for rank in ranks:
        result = rank["affinities with dropout and batch statistics"]
        assert same(result["plain"], result["looked"])


@pytest.mark.parametrize("name", ["dropout", "augmentation", "a data set that draws"])
def test_random_draws_differ_between_ranks(name: str, ranks: list[dict[str, Any]]):
    first, second = (rank[name]["own"] for rank in ranks)
    assert len(first) == len(second)
    assert not any(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["resume", "resume between epochs", "resume with loaders"])
def test_a_resumed_run_ends_with_the_bits_of_one_never_stopped(name: str, ranks: list[dict[str, Any]]):
    for rank in ranks:
        result = rank[name]
        assert result["message"].startswith("SIGINT after")
        assert result["equal"] and same(result["expected"], result["found"])
        assert len(result["history"]) == 3


def test_a_checkpoint_needs_as_many_processes(ranks: list[dict[str, Any]]):
    path = ranks[0]["resume"]["path"]
    with pytest.raises(ValueError, match="ranks: saved 2, found 1"):
        trainer().fit(data(24), epochs=3, resume=path)


def test_refusals_reach_every_rank(ranks: list[dict[str, Any]], folder: Path):
    for index, rank in enumerate(ranks):
        errors = rank["refusals"]["errors"]
        assert errors["loader"].startswith("ValueError: with 2 processes a loader must have a DistributedSampler")
        assert errors["loader"].endswith("found a SequentialSampler")
        assert errors["other rank"].endswith(f"must be that of rank {index} of 2, found rank 2 of 3")
        assert "found a Own without it" in errors["source"]
        assert errors["missing"] == (
            f"FileNotFoundError: a checkpoint to resume from must exist, found no file {folder / 'none.ckpt'}"
        )
        assert "must be the number of processes that the process group has, 2, found 3 * 1" in errors["devices"]
        assert errors["no target"] == (
            "ValueError: train: every task must have at least one target, found none for `b` in an epoch"
        )
        assert (
            errors["stream"]
            == errors["evaluated stream"]
            == (
                "ValueError: with 2 processes a stream must be given as a DataLoader over this process's own part of "
                "it, found a bare Stream"
            )
        )
        assert errors["evaluated by others"].endswith(f"must be that of rank {index} of 2, found rank 2 of 3")
        assert "found a DistributedSampler that makes 14 of 13" in errors["evaluated with padding"]
        for what, found in (("steps", [2, 4]), ("examples", [15, 16])):
            assert errors[f"mixed {what}"].startswith(
                f"ValueError: train: a source of a mixture must have as many {what}"
            )
            assert f"found {found} for `uneven`" in errors[f"mixed {what}"]
        assert "whole on every process, found `trunk.0.weight` sharded" in errors["sharded"]
        assert errors["first loss"].startswith("ValueError: the first loss of every task must be finite")


def test_only_the_first_process_writes(ranks: list[dict[str, Any]]):
    assert ranks[0]["files"]["files"] == [
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "log.csv", "saved/history.csv", "saved/tasks.json",
        "saved/weights.safetensors",
    ]  # fmt: skip
    assert ranks[1]["files"]["files"] == []


def test_a_stop_on_one_rank_stops_all(ranks: list[dict[str, Any]]):
    for rank in ranks:
        lengths = {when: len(found["history"]) for when, found in rank["a stop on one rank"].items()}
        assert lengths == {"start": 0, "epoch": 1, "boundary": 1}


def test_an_error_that_cannot_be_sent_reaches_every_rank_in_words(ranks: list[dict[str, Any]]):
    first, second = (rank["once"]["own"] for rank in ranks)
    assert first == ["ValueError: plain", "Unsendable: held", "Unpackable: odd"]
    assert second == ["ValueError: plain", "RuntimeError: Unsendable: held", "RuntimeError: Unpackable: odd"]
    assert all(rank["once"]["sum"] == 2 for rank in ranks)  # still in step


def test_a_mean_over_ranks_weighs_their_examples(ranks: list[dict[str, Any]]):
    found = ranks[0]["mean"]
    assert {name: float(value) for name, value in found["plain"].items()} == {"a": 2.5, "b": 5.0}
    assert {name: float(value) for name, value in found["weighted"].items()} == {"a": 3.0, "b": 5.0}
    assert found["wrong"] == "ValueError: rank 1: `counts` must be above 0 for every loss, found 0 for `a`"


def test_an_interruption_can_be_sent():
    interrupted = pt.Interrupted(Path("there.ckpt"), signal.SIGTERM, 1, 3)
    again = pickle.loads(pickle.dumps(interrupted))
    assert (str(again), again.path, again.signal_number) == (str(interrupted), Path("there.ckpt"), signal.SIGTERM)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"SLURM_PROCID": "3"}, 3),
        ({"SLURM_PROCID": "3", "MASTER_PORT": "1"}, 3),
        ({"MASTER_PORT": "1", "LOCAL_RANK": "2"}, 2),
        ({"SLURM_PROCID": "0", "MASTER_PORT": "1", "LOCAL_RANK": "2"}, 2),  # Fabric's copies within an allocation
    ],
)
def test_who_speaks_is_read_from_the_environment(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SLURM_PROCID", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_by_environment() == rank


def test_a_sampler_of_several_processes_is_refused_by_one():
    loader = DataLoader(Rows(*data(8)), sampler=DistributedSampler(range(8), 2, 0))
    refusal = "the DistributedSampler must be that of rank 0 of 1, found rank 0 of 2"
    with pytest.raises(ValueError, match=refusal):
        trainer().fit(loader, epochs=1)
    with pytest.raises(ValueError, match=refusal):
        trainer().fit(data(8), loader, epochs=1)
    with pytest.raises(ValueError, match=refusal):
        trainer().evaluate(loader)
    alone = DataLoader(Rows(*data(8)), sampler=DistributedSampler(range(8), 1, 0, shuffle=False))
    assert trainer().evaluate(alone) == pytest.approx(trainer().evaluate(data(8)))


HUNG = """
import sys, time
from torch import distributed
import polytask as pt
from tests.helpers import data, trainer

class Hanging(pt.Callback):
    def on_update(self, run, info):
        if run.step == 1:
            print("there", flush=True)
            time.sleep(120 * run.ranks.index)

distributed.init_process_group("gloo", f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
trainer(callbacks=[Hanging()]).fit(data(), epochs=3)
"""


def test_a_second_signal_ends_a_run_that_hangs(tmp_path: Path):
    """One rank waits in a collective, where no handler runs, for one that sleeps."""
    (tmp_path / "hung.py").write_text(HUNG)
    command = [sys.executable, str(tmp_path / "hung.py")]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], env=ENVIRONMENT, stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        assert [run.stdout.readline() for run in runs] == [b"there\n"] * 2
        time.sleep(0.5)
        for run in runs:
            run.terminate()
            run.terminate()  # as a launcher passes it on
        time.sleep(SIGNAL_ECHO + 0.5)
        assert [run.poll() for run in runs] == [None, None]
        for run in runs:
            run.terminate()
        assert [run.wait(20) for run in runs] == [128 + signal.SIGTERM, -signal.SIGTERM]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


HEAD = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 1}}
CONFIG = {
    "data": {"class_path": "CircleRhombus"},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [8]}},
            "heads": {"circle": HEAD, "rhombus": HEAD},
        },
    },
    "trainer": {"batch_size": 128},
    "epochs": 2,
}
BROKEN = """
import polytask as pt


class Broken(pt.Callback):
    def on_update(self, run, info):
        if run.ranks.index == 1 and run.step == 3:
            raise ValueError("the second disk is full")
"""


def _torchrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, *words], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _train(folder: Path, name: str, **changes: Any) -> subprocess.Popen[str]:
    settings = CONFIG["trainer"] | changes
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(CONFIG | {"trainer": settings}))
    return _torchrun(folder, "-m", "polytask", "train", f"{name}.yaml", "--out", name)


def _refused(run: subprocess.Popen[str]) -> str:
    """The one line of a launch of which a process ended with status 2."""
    said = run.communicate(timeout=300)[1]
    # torchrun's own status is 1; its report tells that of the process which failed first
    assert run.returncode == 1 and re.search(r"exitcode\s+: 2 ", said.split("Root Cause")[1]), said
    told = [line for line in said.splitlines() if line.startswith("polytask: ")]
    assert len(told) == 1, said
    return told[0].removeprefix("polytask: error: ")


def test_the_command_line_under_torchrun(tmp_path: Path):
    good = _train(tmp_path, "good")
    out, errors = good.communicate(timeout=300)
    assert good.returncode == 0, errors
    assert out.count("weights of epoch 2 in good") == 1  # the second process is silent
    assert cli.main(["train", str(tmp_path / "good.yaml"), "--out", str(tmp_path / "alone")]) == 0
    close(*(json.loads((tmp_path / name / "run.json").read_text())["metrics"] for name in ("alone", "good")))


@pytest.mark.slow
def test_a_wrong_setting_under_torchrun_is_told_once(tmp_path: Path):
    assert _refused(_train(tmp_path, "wrong", batch_size=0)) == "`batch_size` must be at least 1, found 0"
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_an_error_on_one_process_ends_all_and_is_told_once(tmp_path: Path):
    (tmp_path / "broken.py").write_text(BROKEN)
    run = _train(tmp_path, "broken", callbacks=[{"class_path": "broken.Broken"}])
    assert _refused(run) == "the second disk is full"
    record = json.loads((tmp_path / "broken" / "run.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "the second disk is full")


@pytest.mark.slow
def test_the_example_alone_by_itself_and_under_torchrun(tmp_path: Path):
    script = str(ROOT / "examples" / "data_parallel.py")
    plain = [sys.executable, script, "--epochs", "2"]
    runs = [
        subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for command in (plain, [*plain, "--devices", "2"])
    ]
    said = [run.communicate(timeout=300)[0] for run in (*runs, _torchrun(tmp_path, script, "--epochs", "2"))]
    assert [text.split(":")[0] for text in said] == ["1 process", "2 processes", "2 processes"]
    losses = [[float(number) for number in re.findall(r"loss ([\d.]+)", text)] for text in said]
    assert len(losses[0]) == 2
    close(losses[0], losses[1])
    close(losses[0], losses[2])


def test_a_comparison_is_one_process_with_one_device_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONFIG | {"methods": {"two": {"trainer": {"devices": 2}}}}))
    assert cli.main(["compare", str(tmp_path / "study.yaml")]) == 2
    assert "method `two`: a run of a comparison must have one device, found `devices` = 2" in capsys.readouterr().err
    launched = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["methods"]) == 2
    assert "`polytask methods` must be run by one process, found 2 of them launched" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"devices": 0}, {"nodes": 0}, {"devices": 1.5}])
def test_numbers_of_processes_are_checked(options: dict[str, Any]):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(options))}` must be"):
        trainer(**options)
