import copy
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import yaml
from tests.studies.conftest import comparison
from torch import nn

import polytask as pt
from polytask.studies import executors, read_comparison, spec
from polytask.studies.compare import plan
from polytask.studies.executors import Job, StudyInterrupted, describe
from polytask.studies.store import RunRecord


def figures(found):
    return [(r.method, r.seed, r.state, r.metrics) for r in found.records]


@pytest.fixture
def quick(study):
    return study | {"epochs": 1}


def test_every_method_runs_with_every_seed(quick, tmp_path):
    study = pt.compare(quick, folder=tmp_path, jobs=1, progress=False)
    assert [(r.method, r.seed) for r in study.records] == [
        ("single-task", 0), ("single-task", 1), ("ATE-SG 1/1", 0), ("ATE-SG 1/1", 1),
    ]  # fmt: skip
    assert study.baseline == "single-task" and not study.failed
    assert (tmp_path / "ATE-SG-1-1" / "seed-1" / "weights.safetensors").is_file()
    assert json.loads((tmp_path / "study.json").read_text())["methods"]["ATE-SG 1/1"] == "ATE-SG-1-1"
    assert figures(read_comparison(tmp_path)) == figures(study)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("run.json"))]
    assert figures(pt.compare(quick, folder=tmp_path, jobs=1, progress=False)) == figures(study)
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("run.json"))]


def test_a_list_of_methods_is_trained_and_read_back(quick, tmp_path):
    quick["methods"] = ["MGDA", {"CAGrad": {"c": 0.8}}]
    study = pt.compare(quick, folder=tmp_path, jobs=1, seeds=[0], weights=3, progress=False)
    assert [r.method for r in study.records] == ["single-task", "joint", "MGDA", "CAGrad", *study.sweep[1:]]
    assert study.sweep == ["joint", "weights 0.5/1.5", "weights 1.5/0.5"] and not study.failed
    again = read_comparison(tmp_path)
    assert (again.sweep, again.baseline) == (study.sweep, "single-task") and figures(again) == figures(study)
    # to ask for more keeps what is there
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    more = pt.compare(quick, folder=tmp_path, jobs=1, seeds=[0], weights=3, methods=["MGDA", "FAMO"], progress=False)
    assert {record.method for record in more.records} == {"single-task", "MGDA", "FAMO", *more.sweep}
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_fixed_weights_of_one_are_the_plain_sum_to_the_bit(quick, tmp_path):
    linear = {"class_path": "Linear", "init_args": {"weights": {"circle": 1.0, "rhombus": 1.0}}}
    quick |= {"methods": {"joint": None, "ones": {"trainer": {"balancer": linear}}}, "baseline": None}
    joint, ones = pt.compare(quick, folder=tmp_path, jobs=1, seeds=[0], progress=False).records
    assert joint.metrics == ones.metrics


def test_whatever_a_users_class_raises_the_other_runs_go_on(quick, tmp_path, monkeypatch):
    def broken(config, folder, **options):
        if config["seed"] == 1:
            raise KeyError("digit")
        return run(config, folder, **options)

    run = executors.run
    monkeypatch.setattr(executors, "run", broken)
    study = pt.compare(quick, folder=tmp_path, jobs=1, progress=False)
    assert [record.state for record in study.records] == ["done", "failed"] * 2
    assert [record.error for record in study.failed] == ["KeyError: 'digit'"] * 2


class Refusing(nn.Module):
    """A user's own trunk."""

    def __init__(self, inputs: int, widths: list[int], error: str) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, widths[-1])
        self.error = {"ValueError": ValueError, "RuntimeError": RuntimeError}[error]

    def forward(self, inputs):
        raise self.error("this trunk must have a licence, found none")


@pytest.mark.parametrize("error", ["ValueError", "RuntimeError"])
def test_a_network_that_refuses_its_first_batch_is_recorded_and_the_others_go_on(quick, tmp_path, error):
    trunk = {"class_path": f"tests.studies.test_compare.{Refusing.__name__}", "init_args": {"error": error}}
    quick["methods"] = {"wrong": {"model": {"init_args": {"trunk": trunk}}}} | quick["methods"]
    quick["seeds"] = [0]
    study = pt.compare(quick, folder=tmp_path, jobs=1, progress=False)
    assert [r.state for r in study.records] == ["failed", "done", "done"]
    assert "this trunk must have a licence, found none" in study.failed[0].error
    assert figures(read_comparison(tmp_path)) == figures(study)  # a report shows that it failed, too


@pytest.mark.slow
def test_parallel_runs_give_the_same_bits(quick, tmp_path):
    alone = pt.compare(quick, folder=tmp_path / "a", jobs=1, progress=False)
    together = pt.compare(quick, folder=tmp_path / "b", jobs=2, progress=False)
    assert figures(alone) == figures(together)


def test_a_failing_method_does_not_stop_the_others(quick, tmp_path, capsys):
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "validation/los"}}
    quick["methods"]["wrong"] = {"trainer": {"callbacks": [stopping]}}
    quick["seeds"] = [0]
    study = pt.compare(quick, folder=tmp_path, jobs=1)
    assert [r.state for r in study.records] == ["done", "done", "failed"]
    assert [r.method for r in study.failed] == ["wrong"] and "\n" not in study.failed[0].error


def test_a_changed_configuration_is_refused_before_anything_runs(quick, tmp_path):
    pt.compare(quick, folder=tmp_path, jobs=1, seeds=[0], progress=False)
    with pytest.raises(ValueError, match="epochs: 1 -> 2"):
        pt.compare(quick, folder=tmp_path, jobs=1, overrides={"epochs": 2}, progress=False)
    assert len(list(tmp_path.rglob("run.json"))) == 2
    again = pt.compare(
        quick, folder=tmp_path, jobs=1, seeds=[0], overrides={"epochs": 2}, overwrite=True, progress=False
    )
    assert [r.epochs for r in again.records] == [2, 2]


def test_seeds_come_first_and_overrides_hold_for_every_method(study, tmp_path):
    study["methods"]["ATE-SG 1/1"]["epochs"] = 9
    made = plan(study, {"trainer.batch_size": 7})
    jobs = list(made.jobs(tmp_path))
    assert [(job.method, job.config["seed"]) for job in jobs] == [
        ("single-task", 0), ("ATE-SG 1/1", 0), ("single-task", 1), ("ATE-SG 1/1", 1),
    ]  # fmt: skip
    assert [job.config["epochs"] for job in jobs] == [2, 9, 2, 9]
    assert {job.config["trainer"]["batch_size"] for job in jobs} == {7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": {}}, "unknown key `metods`: did you mean `methods`"),
        ({"methods": {}}, "must have `methods`"),
        ({"baseline": "single-tsk"}, "did you mean `single-task`"),
        ({"seeds": [0, 0]}, "`seeds` must be different"),
        ({"seeds": [-1]}, "`seeds` must be a list of at least one whole number"),
        ({"seeds": 3}, "`seeds` must be a list of at least one whole number"),
        ({"methods": {"odd": 3}, "baseline": None}, "method `odd`: it must be a mapping"),
        ({"methods": {"odd": {"epoch": 3}}, "baseline": None}, "method `odd`: unknown key `epoch`"),
        ({"methods": {"odd": {"trainer": {"batch_size": 0}}}, "baseline": None}, "method `odd`: `batch_size` must"),
        ({"methods": {"odd": {"model": "Nonsense"}}, "baseline": None}, "method `odd`: .*there is no class"),
    ],
)
def test_a_wrong_comparison_is_refused_and_nothing_written(study, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pt.compare(study | change, folder=tmp_path / "x", jobs=1)
    assert not (tmp_path / "x").exists()


def test_jobs_must_be_positive(quick, tmp_path):
    with pytest.raises(ValueError, match="`jobs` must be at least 1, found 0"):
        pt.compare(quick, folder=tmp_path, jobs=0)


def test_an_interruption_says_how_to_go_on(quick, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise pt.Interrupted(tmp_path / "last.ckpt", 15, 1, 2)

    with monkeypatch.context() as patch:
        patch.setattr(executors, "run", stop)
        with pytest.raises(StudyInterrupted, match="SIGTERM after 0 of 4 runs; the same command") as caught:
            pt.compare(quick, folder=tmp_path, jobs=1)
    assert caught.value.signal_number == 15
    assert not pt.compare(quick, folder=tmp_path, jobs=1).failed


def test_a_folder_in_use_fails_that_run_alone(tmp_path, monkeypatch):
    def busy(*args, **kwargs):
        raise OSError("the folder must not be in use")

    monkeypatch.setattr(executors, "run", busy)
    (record,) = executors.run_all([Job("joint", {"seed": 0, "threads": 1}, tmp_path / "x")], jobs=1)
    assert record.state == "failed" and describe(record) == "joint, seed 0: failed: the folder must not be in use"
    assert not (tmp_path / "x").exists()


def test_reading_what_is_not_a_study_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist"):
        read_comparison(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="at least one run"):
        read_comparison(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        read_comparison(tmp_path)


EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/*.yaml"))
COMPARISONS = [path for path in EXAMPLES if "methods" in yaml.safe_load(path.read_text())]
DISTILLED = [path for path in COMPARISONS if "studies.trained" in path.read_text()]  # they need trained teachers
TEACHERS = {
    "distilled_multimnist": "monitored_multimnist",
    "distilled_animals": "animals",
    "distilled_sentiment": "sentiment",
}
COMPARISONS = [path for path in COMPARISONS if path not in DISTILLED]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_example_is_a_sound_comparison(path):
    made = plan(path)
    assert made.baseline == "single-task" and len(made.seeds) >= 3
    assert len({config["epochs"] for config in made.methods.values()}) == 1


@pytest.mark.parametrize("path", DISTILLED, ids=lambda path: path.stem)
def test_the_distilled_examples_are_taught_by_the_single_task_runs_of_their_own_seed(path, tmp_path, monkeypatch):
    teachers = plan(path.with_stem(TEACHERS[path.stem]))
    place = {"monitored_multimnist": "", "animals": "/methods", "sentiment": "/methods"}[TEACHERS[path.stem]]
    for seed in teachers.seeds:
        config = {**teachers.methods["single-task"], "seed": seed}
        folder = tmp_path / f"runs/{TEACHERS[path.stem]}{place}" / teachers.folders["single-task"] / f"seed-{seed}"
        spec.build(config).trainer.save(folder)
        (folder / "config.yaml").write_text(spec.dump(config))
    monkeypatch.chdir(tmp_path)
    made = plan(path)
    assert made.seeds == teachers.seeds
    assert all(config["epochs"] == teachers.methods["single-task"]["epochs"] for config in made.methods.values())


@pytest.fixture(scope="module")
def long(train):
    """A comparison whose runs last until they leave checkpoints."""
    config = comparison(copy.deepcopy(train)) | {"epochs": 60}
    config["trainer"]["batch_size"] = 8
    return config


@pytest.fixture(scope="module")
def whole(long, tmp_path_factory):
    """Never stopped."""
    return pt.compare(long, folder=tmp_path_factory.mktemp("whole"), jobs=2, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_comparison_goes_on_to_the_same_end(long, whole, tmp_path, number):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(long, sort_keys=False))
    words = [sys.executable, "-m", "polytask.cli", "compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "a")]
    with subprocess.Popen([*words, "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while len(list(tmp_path.glob("a/*/*/last.ckpt"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, number)
        error = process.communicate()[1].decode()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number and error.endswith("the same command goes on from there\n")
    resumed = pt.compare(long, folder=tmp_path / "a", jobs=2, progress=False)
    assert not resumed.failed, resumed.failed[0].error
    assert figures(resumed) == figures(whole)


def test_the_data_of_a_run_are_let_go_of_before_the_next(config, tmp_path, monkeypatch):
    """Objects in circles wait for the garbage collector, which the few objects of a run do not wake."""
    alive = []
    module = importlib.import_module("polytask.studies.run")
    whole = module.splits_of

    def watched(built):
        assert not any(reference() is not None for reference in alive), "the data of an earlier run are still there"
        splits = whole(built)
        alive.append(weakref.ref(splits.train.inputs))
        alive.append(weakref.ref(built.trainer))
        return splits

    monkeypatch.setattr(module, "splits_of", watched)
    todo = [Job("joint", spec.resolve(config | {"seed": seed}), tmp_path / str(seed)) for seed in range(3)]
    gc.disable()
    try:
        records = executors.run_all(todo, jobs=1, progress=False)
    finally:
        gc.enable()
    assert [record.state for record in records] == ["done"] * 3 and len(alive) == 6


@pytest.mark.parametrize(("epochs", "text"), [(1, "1 epoch, "), (2, "2 epochs, ")])
def test_a_line_about_a_run_counts_its_epochs(epochs: int, text: str):
    assert text in describe(RunRecord("joint", 0, "done", epochs=epochs))
