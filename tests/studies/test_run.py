import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tests.helpers import data, trainer

import polytask as pt
from polytask.data import Split
from polytask.studies import read_record, run, spec
from polytask.studies.store import Locked, lock, lock_holder, safe_names
from polytask.studies.trained_runs import evaluate_run

run_module = importlib.import_module("polytask.studies.run")  # the package has a function of this name
FILES = ["config.yaml", "history.csv", "last.ckpt", "lock", "regions.npz", "run.json", "tasks.json"]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


def same_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def history(folder):
    table = pd.read_csv(folder / "history.csv")
    return table[[c for c in table if not c.endswith("seconds")]]


@pytest.fixture(scope="module")
def done(train, tmp_path_factory):
    """One finished run and its record."""
    folder = tmp_path_factory.mktemp("run") / "first"
    torch.set_num_threads(1)
    return folder, run(train, folder)


def test_a_run_leaves_everything_in_its_folder(done):
    folder, record = done
    assert sorted(p.name for p in folder.iterdir()) == [*FILES, "weights.safetensors"]
    assert record.state == "done" and record.method == "first" and record.epochs == 2
    assert [task["name"] for task in record.tasks] == ["circle", "rhombus"]
    assert set(record.metrics) == {"validation", "test"}
    assert {"loss", "circle/accuracy", "rhombus/loss"} <= set(record.metrics["test"])
    assert record.cost["parameters"] == 42 and record.cost["shared_parameters"] == 24
    assert record.seconds > 0 and set(record.seconds_per_epoch) == {"joint"}
    assert record.versions["threads"] == 1 and record.versions["polytask"] == pt.__version__
    assert read_record(folder) == record


def test_the_configuration_in_the_folder_is_the_whole_one(done):
    folder, _ = done
    stored = spec.read_config(folder / "config.yaml")
    assert stored == spec.resolve(stored)
    assert stored["trainer"]["optimizer"]["init_args"]["weight_decay"] == 0


def test_a_finished_run_is_not_repeated(done):
    folder, record = done
    before = (folder / "run.json").stat().st_mtime_ns
    assert run(folder / "config.yaml", folder) == record
    assert (folder / "run.json").stat().st_mtime_ns == before


def test_a_folder_with_another_run_is_refused_unless_overwritten(config, tmp_path):
    first = run(config, tmp_path / "a", overrides={"epochs": 1})
    with pytest.raises(ValueError, match="differs in epochs: 1 -> 2: choose another output folder"):
        run(config, tmp_path / "a")
    assert read_record(tmp_path / "a") == first
    assert run(config, tmp_path / "a", overwrite=True).epochs == 2


def test_the_weights_kept_are_those_evaluated(done):
    folder, record = done
    assert evaluate_run(str(folder)) == record.metrics["test"]
    assert evaluate_run(str(folder), "validation") == record.metrics["validation"]
    with pytest.raises(ValueError, match="did you mean `test`"):
        evaluate_run(str(folder), "tset")


def test_the_selected_epoch_is_early_stoppings(config, tmp_path):
    config["trainer"]["callbacks"][0]["init_args"] = {"monitor": "validation/circle/accuracy", "patience": 2}
    record = run(config, tmp_path / "a", overrides={"epochs": 12})
    assert 1 <= record.selected_epoch < record.epochs < 12 and "has not improved" in record.stopped
    assert record.metrics["validation"]["circle/accuracy"] == pytest.approx(
        record.history()["validation/circle/accuracy"][record.selected_epoch]
    )
    record = run(config, tmp_path / "b", overrides={"trainer.callbacks": []})
    assert record.selected_epoch == record.epochs == 2


def test_weights_put_back_after_a_loss_that_is_not_finite_are_not_the_last_epochs(config, tmp_path):
    config["trainer"]["callbacks"].append({"class_path": "StopOnNonFinite"})
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
    record = run(config, tmp_path / "a", overrides={"trainer.optimizer": optimizer})
    assert record.state == "done" and "in epoch 1" in record.stopped
    assert (record.epochs, record.selected_epoch) == (1, 0)
    assert np.isfinite(record.metrics["test"]["loss"])


def test_regions_hold_what_is_predicted_over_the_plane(done):
    folder, _ = done
    with np.load(folder / "regions.npz", allow_pickle=False) as regions:
        assert regions["circle"].shape == (121, 121) and regions["points"].shape == (500, 2)
        assert 0 <= regions["circle"].min() <= regions["circle"].max() <= 1
        assert set(np.unique(regions["targets_rhombus"])) == {0.0, 1.0}
        corner = torch.tensor([[regions["x"][3], regions["y"][7]]], dtype=torch.float32)
        predicted = pt.load(folder).predict(corner)["rhombus"].probabilities
        assert regions["rhombus"][7, 3] == pytest.approx(predicted.item(), abs=1e-6)


def test_loading_brings_weights_and_history_back(done):
    folder, record = done
    trainer = pt.load(folder)
    assert trainer.history.column("epoch") == [1, 2] and trainer.history.column("phase") == ["joint", "joint"]
    data = pt.data.CircleRhombus().load()
    assert trainer.evaluate(data.test) == record.metrics["test"]
    assert trainer.predict(data.test.inputs[:3])["circle"].labels.shape == (3,)


def test_loading_what_a_trainer_saved(tmp_path):
    def net():
        return pt.models.HardSharing(torch.nn.Linear(2, 4), {"a": torch.nn.Linear(4, 1)})

    trainer = pt.Trainer(net(), [pt.binary("a")], progress=False)
    trainer.save(tmp_path)
    loaded = pt.load(tmp_path, model=net(), tasks=[pt.binary("a")])
    x = torch.rand(5, 2)
    assert torch.equal(loaded.predict(x)["a"].outputs, trainer.predict(x)["a"].outputs)
    with pytest.raises(FileNotFoundError, match="found none"):
        pt.load(tmp_path)
    with pytest.raises(ValueError, match="must be given together"):
        pt.load(tmp_path, model=net())
    with pytest.raises(ValueError, match="the tasks must be those of"):
        pt.load(tmp_path, model=net(), tasks=[pt.regression("a")])
    with pytest.raises(FileNotFoundError, match=r"must hold weights\.safetensors"):
        pt.load(tmp_path / "none")


def test_an_interrupted_run_goes_on_to_the_same_end(done, config, tmp_path, monkeypatch):
    folder, record = done

    def interrupt(keeper, run, info):
        if run.step == 14:
            run.signal_number = 15

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Keeper, "on_update", interrupt)
        with pytest.raises(pt.Interrupted):
            run(config, tmp_path / "a")
    assert read_record(tmp_path / "a").state == "interrupted"
    assert not (tmp_path / "a" / "interrupted.ckpt").exists()
    resumed = run(config, tmp_path / "a")
    assert same_weights(folder, tmp_path / "a") and history(folder).equals(history(tmp_path / "a"))
    assert resumed.metrics == record.metrics


def test_a_run_that_breaks_is_recorded_with_one_line(config, tmp_path):
    config["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": {"monitor": "validation/los"}}]
    record = run(config, tmp_path / "a")
    assert record.state == "failed" and "did you mean `validation/loss`?" in record.error
    assert "\n" not in record.error and read_record(tmp_path / "a") == record


def test_the_first_losses_of_a_run_are_taken_once(config, tmp_path, monkeypatch):
    taken, made = [], pt.Trainer.rehearse
    monkeypatch.setattr(pt.Trainer, "rehearse", lambda self, train: taken.append(made(self, train)))
    run(config, tmp_path / "a")
    assert len(taken) == 1


def test_costs_are_measured_on_the_device_of_the_network(monkeypatch):
    """A run looks at its network first, which places it; meta stands for any device but the CPU."""
    looked = []
    monkeypatch.setattr(run_module, "measure", lambda trainer, source: looked.extend(next(source.steps(0))))
    made = trainer()
    made.model.to("meta")
    run_module.cost_of_training(made, Split(*data()))
    assert {batch.inputs.device.type for batch in looked} == {"meta"}


def test_nothing_is_written_where_the_data_are_missing(config, tmp_path):
    config["data"] = {"class_path": "MNIST", "init_args": {"folder": str(tmp_path)}}
    config["model"]["init_args"]["heads"] = {"digit": config["model"]["init_args"]["heads"]["circle"]}
    with pytest.raises(FileNotFoundError, match="train-images"):
        run(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_unwritable_folder_is_found_out_first(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the output folder .* must be writable"):
        run(config, tmp_path / "file" / "a")


def test_threads_are_put_back(config, tmp_path):
    run(config, tmp_path / "a", overrides={"threads": 2, "epochs": 1})
    assert torch.get_num_threads() == 1


def test_a_folder_is_locked_while_a_process_lives(tmp_path):
    code = "import sys, fcntl, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); f.write('{\"process\": 1}'); "
    code += "f.flush(); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert lock_holder(tmp_path) == {"process": 1}
        with pytest.raises(Locked, match="held by process 1"), lock(tmp_path):
            pass
        threading.Timer(0.3, other.kill).start()
        start = time.monotonic()
        with lock(tmp_path, wait=10):
            assert time.monotonic() - start < 5
            assert lock_holder(tmp_path) == {"process": os.getpid(), "parent": os.getppid()}
    assert lock_holder(tmp_path) is None


def test_a_damaged_record_is_refused(tmp_path):
    for text in ("{", "[]", json.dumps({"format": 99}), json.dumps({"format": 1, "what": 2})):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match="must be a run record"):
            read_record(tmp_path)


def test_folder_names_are_safe_and_different():
    names = ["joint", "Joint", "a/b", "a b", "..", "ATE-SG 1/1", "ü"]
    folders = safe_names(names)
    assert list(folders) == names and folders["a/b"] == "a-b" and folders["joint"] == "joint"
    assert len({folder.lower() for folder in folders.values()}) == len(names)
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
               and folder.strip(".") for folder in folders.values())  # fmt: skip


@pytest.mark.parametrize(("cache", "phase"), [(None, "specific (cached)"), (False, "specific")])
def test_seconds_of_a_phase_stand_where_its_costs_do(config, tmp_path, cache, phase):
    schedule = {"class_path": "AlternateEpochs", "init_args": {"shared": 1, "specific": 1}}
    config["trainer"] |= {"schedule": schedule, "cache_features": cache}
    record = run(config, tmp_path / "run")
    assert set(record.seconds_per_epoch) == {"shared", phase}
    assert set(record.seconds_per_epoch) <= set(record.cost["phases"])


def test_a_run_that_starts_from_anothers_weights(done, config, tmp_path, monkeypatch):
    """The other's weights are where it begins, part of its configuration and of its checkpoint's fingerprint."""
    folder, _ = done
    config |= {"start": str(folder), "trainer": config["trainer"] | {"callbacks": []}}
    config["trainer"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-30}}
    record = run(config, tmp_path / "a")
    assert same_weights(folder, tmp_path / "a") and record.start == spec.digest(folder) != ""
    assert spec.read_config(tmp_path / "a" / "config.yaml")["start"] == str(folder)
    assert spec.resolve({**config, "start": None})["start"] is None
    shutil.copytree(folder, tmp_path / "moved")
    assert run(config | {"start": str(tmp_path / "moved")}, tmp_path / "a") == record
    with pytest.raises(ValueError, match="differs in start: "):
        run(config | {"start": None}, tmp_path / "a")

    def interrupt(keeper, run, info):
        run.signal_number = 15

    with monkeypatch.context() as patch, pytest.raises(pt.Interrupted):
        patch.setattr(run_module._Keeper, "on_update", interrupt)
        run(config, tmp_path / "b")
    (tmp_path / "b" / "run.json").unlink()  # so that nothing but the checkpoint knows the first start
    config["start"] = str(tmp_path / "b" / "start")
    shutil.copytree(folder, config["start"])
    other = {name: tensor + 1 for name, tensor in weights(folder).items()}
    save_file(other, tmp_path / "b" / "start" / "weights.safetensors")
    (tmp_path / "b" / "config.yaml").unlink()
    refused = run(config, tmp_path / "b")
    assert refused.state == "failed" and "callbacks" in refused.error
    assert pt.load(tmp_path / "a").history.column("epoch") == [1, 2]
    shutil.rmtree(tmp_path / "moved")
    assert evaluate_run(str(tmp_path / "a")) == record.metrics["test"]  # needs the start no more


def test_a_folder_that_is_no_run_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="a run folder must exist, found none"):
        evaluate_run(str(tmp_path / "nowhere"))
    (tmp_path / "study.json").write_text("{}")
    (tmp_path / "joint" / "seed-0").mkdir(parents=True)
    (tmp_path / "joint" / "seed-0" / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"found a study's: name one of \['joint/seed-0'\]"):
        evaluate_run(str(tmp_path))


def test_the_folder_of_several_seeds_names_its_runs(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "run.json").write_text("{}")
    told = r"one run, found one with 2 runs below it: name one of \['seed-0', 'seed-1'\]"
    for use in (evaluate_run, pt.load):
        with pytest.raises(FileNotFoundError, match=told):
            use(str(tmp_path))
