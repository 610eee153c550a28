"""From a dense network to a smaller one, on the bundled digits."""

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import polytask as pt
from polytask.cli import main
from polytask.reports import sparse
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.sharing import find_sharing
from polytask.studies import read_record, spec
from polytask.studies.sparsify import Sparsify, plan, read_sparsified, sparsify
from polytask.studies.store import read_history
from polytask.studies.trained_runs import evaluate_run, export_run

run_module = importlib.import_module("polytask.studies.run")
stages_module = importlib.import_module("polytask.studies.stages")

HEAD = {"class_path": "MLP", "init_args": {"inputs": 16, "widths": [12], "outputs": 10}}
CONFIG = {
    "data": {"class_path": "MultiDigits", "init_args": {"pairs": [1, 1, 1]}},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {"class_path": "MLP", "init_args": {"inputs": 100, "widths": [24, 16]}},
            "heads": {"left": HEAD, "right": HEAD},
        },
    },
    "trainer": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 5e-3}}, "batch_size": 64},
    "epochs": 4,
    "sparsify": {"sparsity": 0.5, "search_epochs": 2, "sharing": {"preference": 0.3}},
}
ROWS = {"trunk.2": 24, "heads.left.0": 16, "heads.right.0": 16}


def changed(**settings):
    config = copy.deepcopy(CONFIG)
    config["sparsify"] |= settings
    return config


def made(folder, config=CONFIG, **options):
    return sparsify(config, folder=folder, progress=False, **options)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


def same(first, second):
    """Equal to the bit: weights of every stage, figures, clusters, sizes, rates."""
    for stage in ("search", "retrain", "compact"):
        one, other = weights(first / stage), weights(second / stage)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        assert read_record(first / stage).metrics == read_record(second / stage).metrics
    for stage in ("search", "retrain"):
        assert read_history(first / stage / "history.csv") == read_history(second / stage / "history.csv")
    for name in ("compact/layout.json", "share/sharing.json"):
        assert (first / name).read_text() == (second / name).read_text()
    return read_sparsified(first).report["rates"] == read_sparsified(second).report["rates"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    torch.set_num_threads(1)
    return made(tmp_path_factory.mktemp("sparsify") / "first")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Plain removal, nothing shared, exported."""
    pytest.importorskip("onnxruntime")
    torch.set_num_threads(1)
    config = changed(method="magnitude", sharing=None, export="onnx")
    return made(tmp_path_factory.mktemp("sparsify") / "plain", config)


def test_the_network_is_sparse_shared_and_smaller(study):
    report = study.report
    assert study.reached and study.wanted == 0.5 <= study.found == report["rates"]["sparsity"]
    assert {name: rates["rows"] for name, rates in report["layers"].items()} == ROWS
    assert report["rates"]["sharing"] > 1
    assert report["after"]["parameters"] < 0.6 * report["before"]["parameters"]
    assert report["after"]["macs"] < 0.6 * report["before"]["macs"]
    assert report["difference"] <= 1e-5 and study.exported is None
    assert [record.method for record in study.records] == ["search", "retrain", "compact"]


@pytest.mark.parametrize("method", ["growl", "magnitude"])
def test_selected_layers_alone_lose_rows(tmp_path, method):
    found = made(tmp_path, changed(method=method, select=["heads.left.0", "heads.right.0"], sharing=None))
    assert found.report["layers"].keys() == {"heads.left.0", "heads.right.0"} and found.found >= 0.5
    layer = weights(tmp_path / "retrain")["trunk.2.weight"]
    assert layer.abs().sum(0).ne(0).all()


def test_the_epoch_is_the_best_on_validation_of_those_that_are_sparse_enough(tmp_path):
    found = made(tmp_path, changed(search_epochs=5, until=0.4, sharing=None) | {"epochs": 6})
    rows = list(read_history(tmp_path / "search" / "history.csv"))
    enough = [row for row in rows if row["dead_rows"] >= 0.5]
    assert 1 < len(enough) < len(rows)
    best = min(enough, key=lambda row: row["validation/loss"])
    assert found.epoch == best["epoch"] == read_record(tmp_path / "search").selected_epoch
    assert read_record(tmp_path / "search").metrics["validation"]["loss"] == pytest.approx(best["validation/loss"])


@pytest.mark.parametrize("name", ["study", "plain"])
def test_dead_rows_stay_dead_and_shared_rows_stay_shared_in_the_retraining(request, name):
    folder = request.getfixturevalue(name).folder
    before, after = (pt.load(folder / stage).model for stage in ("search", "retrain"))
    labels = stages_module.sharing_of(folder)["labels"]
    assert set(labels) == (set(ROWS) if name == "study" else set())
    moved = 0
    for name in ROWS:
        old, new = (model.get_submodule(name).weight.detach() for model in (before, after))
        dead = (old == 0).all(0)
        assert dead.any() and torch.equal((new == 0).all(0), dead)
        moved += not torch.equal(old, new)
        for cluster in set(labels.get(name, [])) - {-1}:
            rows = new[:, torch.tensor(labels[name]) == cluster]
            assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert moved == len(ROWS)


def test_the_compact_network_is_loaded_and_says_what_the_sparse_one_says(study, tmp_path, capsys):
    data = pt.data.MultiDigits(pairs=(1, 1, 1)).load()
    dense, compact = pt.load(study.folder / "retrain"), study.load()
    assert sum(p.numel() for p in compact.model.parameters()) == study.report["after"]["parameters"]
    for name, expected in dense.predict(data.test.inputs).items():
        found = compact.predict(data.test.inputs)[name]
        assert (found.outputs - expected.outputs).abs().max() <= 1e-5 * expected.outputs.abs().max()
        assert torch.equal(found.labels, expected.labels)
    assert evaluate_run(str(study.folder / "compact")) == study.compact.metrics["test"]
    np.save(tmp_path / "in.npy", data.test.inputs[:4].numpy())
    assert main(["predict", str(study.folder / "compact"), str(tmp_path / "in.npy")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    path = study.folder / "compact" / "layout.json"
    text = path.read_text()
    try:
        for damaged in ("{", '{"trunk.2": 3}', '{"none": {"kind": "Linear"}}'):
            path.write_text(damaged)
            with pytest.raises(ValueError, match=r"layout\.json must be the layout of its network"):
                pt.load(study.folder / "compact")
    finally:
        path.write_text(text)


def test_a_finished_study_is_not_repeated(study):
    files = [path for path in study.folder.rglob("*") if path.name != "lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = made(study.folder)
    assert again == study
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_after_a_break_in_every_stage_the_same_call_goes_on(study, tmp_path, monkeypatch):
    calls = []
    whole = stages_module.Stages.make

    def breaking(self, name):
        calls.append(name)
        if calls.count(name) == 1:
            raise RuntimeError(f"power cut in {name}")
        return whole(self, name)

    monkeypatch.setattr(stages_module.Stages, "make", breaking)
    for stage in ("search", "share", "retrain", "compact"):
        with pytest.raises(RuntimeError, match=f"power cut in {stage}"):
            made(tmp_path)
        assert not (tmp_path / "sparsify.json").exists()
    made(tmp_path)
    assert calls == [stage for stage in ("search", "share", "retrain", "compact") for _ in "12"]  # none a third time
    assert same(study.folder, tmp_path)


def test_interrupted_training_goes_on_to_the_same_bits(study, tmp_path, monkeypatch):
    """Once inside the search, once inside the retraining."""
    seen = []

    def interrupt(keeper, run, info):
        seen.append(run.step)
        if len(seen) in (9, 50):  # 34 steps each
            run.signal_number = 15

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Keeper, "on_update", interrupt)
        for stage in ("search", "retrain"):
            with pytest.raises(pt.Interrupted) as stopped:
                made(tmp_path)
            assert stopped.value.path == tmp_path / stage / "last.ckpt"
    made(tmp_path)
    assert same(study.folder, tmp_path)


@pytest.mark.slow
def test_a_kill_inside_the_search_changes_nothing(study, tmp_path):
    code = (
        "import json, sys, torch; torch.set_num_threads(1); import polytask as pt\n"
        "import importlib; run = importlib.import_module('polytask.studies.run'); run.CHECKPOINT_SECONDS = 0.0\n"
        "pt.sparsify(json.loads(sys.argv[1]), folder=sys.argv[2], progress=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(CONFIG), str(tmp_path)], env=os.environ, stderr=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "search" / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "compact").exists()
    made(tmp_path)
    assert same(study.folder, tmp_path)


def test_a_folder_with_another_study_is_refused_unless_overwritten(study, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(study.folder, folder)
    (folder / "search" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"differs in sparsify.sparsity: 0.5 -> 0.4"):
        made(folder, changed(sparsity=0.4))
    assert read_sparsified(folder).wanted == 0.5
    again = made(folder, changed(sparsity=0.4), overwrite=True)
    assert again.wanted == 0.4 <= again.found < study.found
    assert (folder / "search" / "mine.txt").read_text() == "kept"


def test_plain_removal_is_a_method_and_export_a_stage(plain):
    import onnxruntime

    assert plain.reached and plain.exported == plain.folder / "export" / "model.onnx"
    assert "sparsity" not in str(plain.records[0].metrics)
    data = pt.data.MultiDigits(pairs=(1, 1, 1)).load()
    session = onnxruntime.InferenceSession(str(plain.exported), providers=["CPUExecutionProvider"])
    inputs = data.test.inputs[:7]
    outputs = dict(zip(["left", "right"], session.run(["left", "right"], {"inputs": inputs.numpy()}), strict=True))
    for name, expected in pt.load(plain.folder / "retrain").predict(inputs).items():
        difference = (torch.from_numpy(outputs[name]) - expected.outputs).abs().max()
        assert difference <= 1e-5 * expected.outputs.abs().max()
    beside = json.loads((plain.folder / "export" / "model.onnx.json").read_text())
    assert [entry["name"] for entry in beside["outputs"]] == ["left", "right"]


def test_any_run_is_exported(study, tmp_path, capsys):
    out = tmp_path / "net.pt2"
    assert main(["export", str(study.folder / "compact"), "--format", "torch", "--out", str(out)]) == 0
    assert "net.pt2" in capsys.readouterr().out
    data = pt.data.MultiDigits(pairs=(1, 1, 1)).load()
    left, _ = torch.export.load(out).module()(data.test.inputs[:3])
    expected = study.load().predict(data.test.inputs[:3])["left"].outputs
    assert (left - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match="`format` must be one of"):
        export_run(str(study.folder / "compact"), "tflite")
    with pytest.raises(FileNotFoundError, match="a run folder must exist"):
        export_run(str(tmp_path / "none"))


def test_too_little_sparsity_is_told_and_the_sparsest_epoch_kept(tmp_path, capsys):
    import yaml

    config = changed(controlled=False, sharing=None, preference={"sparsity": 0.01, "left": 0.5, "right": 0.49})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    words = ["sparsify", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert "no epoch of the search had 0.5 of the rows dead" in err.splitlines()[-1]
    assert "parameters" in out and "report.html" in out
    found = read_sparsified(tmp_path / "run")
    history = read_history(tmp_path / "run" / "search" / "history.csv")
    assert not found.reached and found.found == max(history.column("dead_rows")) < 0.5
    assert "Not sparse enough" in (tmp_path / "run" / "report.html").read_text()
    assert main(words) == 3 and main(["report", str(tmp_path / "run")]) == 3


def test_the_report_shows_costs_rates_and_the_search(study):
    page = sparse.write(study, title="digits").read_text()
    for text in ('id="compaction"', 'id="rates"', 'id="search"', "trunk.2", "kept", "<h1>digits</h1>"):
        assert text in page
    assert "http" not in page.split("<script")[0].replace("http-equiv", "")
    costs = next(table for table in sparse.tables(study) if table.key == "compaction")
    parameters = study.report["before"]["parameters"] / study.report["after"]["parameters"]
    assert costs.rows[0][3] == f"{parameters:.2f}"


def test_defaults_and_overrides(study):
    found = plan(CONFIG, ["--sparsify.sparsity=0.3", "--sparsify.sharing", "null", "--epochs=9"])
    assert found.settings.sparsity == 0.3 and found.settings.sharing is None
    assert (found.search["epochs"], found.retrain["epochs"]) == (2, 7)
    balancer = found.search["trainer"]["balancer"]
    assert balancer["class_path"].endswith("Chebyshev")
    assert balancer["init_args"]["preference"] == {"sparsity": 0.1, "left": 0.45, "right": 0.45}
    assert found.retrain["trainer"]["balancer"] is None
    assert plan(found.config).config == found.config  # complete
    assert plan(changed(search_epochs=None) | {"epochs": 9}).search["epochs"] == 4
    halves = {"balancer": {"init_args": {"mu": 5.0}}, "batch_size": 32}
    found = plan(changed(search=halves, retrain={"batch_size": 16}))
    assert found.search["trainer"]["balancer"]["init_args"]["mu"] == 5.0
    assert (found.search["trainer"]["batch_size"], found.retrain["trainer"]["batch_size"]) == (32, 16)
    words = ["--sparsify.search.optimizer.init_args.lr=1e-3", "--sparsify.retrain.batch_size", "8"]
    found = plan(CONFIG, words)
    assert found.search["trainer"]["optimizer"]["init_args"]["lr"] == 1e-3
    assert found.retrain["trainer"]["optimizer"]["init_args"]["lr"] == 5e-3
    assert (found.search["trainer"]["batch_size"], found.retrain["trainer"]["batch_size"]) == (64, 8)


OUT_OF_RANGE = {
    "method": ({"method": "growll"}, "`method` must be one of 'growl', 'magnitude', found 'growll'"),
    "sparsity": ({"sparsity": 1.5}, "`sparsity` must be between 0 and 1, found 1.5"),
    "export": ({"export": "tflite"}, "`export` must be one of"),
    "padded": ({"padded": "no"}, "`padded` must be one of"),
    "timed batch": ({"timed_batch": 0}, "`timed_batch` must be at least 1, found 0"),
    "preference of removal": ({"method": "magnitude", "preference": {"left": 1.0}}, "`preference` must be null"),
    "uncontrolled removal": ({"method": "magnitude", "controlled": False}, "`controlled` must be true"),
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_settings_out_of_range_are_refused(case):
    settings, message = OUT_OF_RANGE[case]
    with pytest.raises(ValueError) as refusal:
        Sparsify(**{"sparsity": 0.5} | settings)
    assert message in str(refusal.value)


WRONG = {
    "no section": ({"sparsify": None}, "must have a section `sparsify`, found None"),
    "range": ({"sparsity": 1.5}, "`sparsify`: `sparsity` must be between 0 and 1, found 1.5"),
    "damping": ({"sharing": {"damping": 0.1}}, "`sparsify`: `damping` must be in [0.5, 1), found 0.1"),
    "affinity": ({"sharing": {"preference": float("nan")}}, "`sparsify`: `preference` must be finite, found nan"),
    "off the simplex": ({"preference": {"sparsity": 0.5, "left": 0.5, "right": 0.5}}, "sum to 1, found a sum of 1.5"),
    "negative": ({"preference": {"sparsity": -0.2, "left": 0.6, "right": 0.6}}, "found -0.2 for `sparsity`"),
    "no weight": ({"preference": {"sparsity": 0.0, "left": 0.0, "right": 0.0}}, "must sum to 1, found a sum of 0"),
    "too short": ({"preference": {"sparsity": 0.5, "left": 0.5}}, "must name every objective, found none for `right`"),
    "unknown task": ({"preference": {"sparsity": 0.5, "lefft": 0.5}}, "objective `lefft`: did you mean `left`?"),
    "unknown key": ({"sparsty": 0.5}, "unknown key `sparsify.sparsty`: did you mean `sparsity`?"),
    "search epochs": ({"search_epochs": 4}, "`search_epochs` must be from 1 to 3"),
    "stage": ({"search": {"batch_sze": 3}}, "`sparsify.search`: unknown key `trainer.batch_sze`: did you"),
    "pattern": ({"pattern": "spikes"}, "`pattern` must be one of 'spike', 'linear', 'pld', found 'spikes'"),
    "cap": ({"cap": 0.0}, "`sparsify.search`: `cap` must be above 0 and at most 1, found 0"),
    "ceiling": ({"cap": 0.4}, "`sparsity` must be at most 0.375, what the caps allow"),
    "ceiling without control": ({"cap": 0.4, "controlled": False}, "`sparsity` must be at most 0.375"),
    "cap of no layer": ({"cap": {"trunk.1": 0.5}}, "not in play, `trunk.1`: did you mean `trunk.2`?"),
    "layer": ({"select": ["trunk.22"]}, "`trunk.22`: did you mean `trunk.2`?"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, case):
    settings, message = WRONG[case]
    config = CONFIG | settings if "sparsify" in settings else changed(**settings)
    with pytest.raises(ValueError) as refusal:
        made(tmp_path / "run", config)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_missing_packages_for_the_export_are_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"found no `onnxruntime`: pip install polytask\[onnx\]"):
        made(tmp_path / "run", changed(export="onnx"))
    assert not (tmp_path / "run").exists()


def test_a_model_with_nothing_in_play_is_refused(tmp_path):
    config = copy.deepcopy(CONFIG)
    head = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 16, "out_features": 10}}
    trunk = {"class_path": "MLP", "init_args": {"inputs": 100, "widths": [16]}}
    config["model"]["init_args"] = {"trunk": trunk, "heads": {"left": head, "right": head}}
    with pytest.raises(ValueError, match="at least one layer must be in play"):
        made(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_sharing_that_does_not_converge_is_told_and_the_layer_left_apart(tmp_path):
    found = made(tmp_path, changed(sharing={"preference": 0.3, "iterations": 1}))
    assert set(found.report["apart"]) == set(ROWS)
    assert "must converge" in found.report["apart"]["trunk.2"]
    assert found.report["rates"]["sharing"] == 1
    table = next(table for table in sparse.tables(found) if table.key == "reasons")
    assert tuple(table.rows[0][:2]) == ("trunk.2", "rows not shared")


def test_a_stage_that_breaks_is_named(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": {"monitor": "validation/los"}}]
    with pytest.raises(ValueError, match=r"the stage `retrain` must come to an end, found: .*did you mean"):
        made(tmp_path, config)
    assert spec.read_config(tmp_path / "config.yaml")["sparsify"]["sparsity"] == 0.5


def test_clusters_are_those_of_the_network_that_the_search_left(study):
    model = pt.load(study.folder / "search").model
    labels = find_sharing(layers_in_play(model, torch.zeros(1, 100)), 0.3).labels
    stored = stages_module.sharing_of(study.folder)["labels"]
    assert {name: label.tolist() for name, label in labels.items()} == stored


EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/sparsify_*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_sound(path):
    found = plan(path)
    assert found.search["epochs"] + found.retrain["epochs"] == found.config["epochs"]
    decay = found.retrain["trainer"]["scheduler"]["init_args"]["T_max"]
    assert decay == found.retrain["epochs"] and found.search["trainer"]["scheduler"] is None


def test_only_the_search_starts_from_other_weights(study):
    found = plan(CONFIG | {"start": str(study.folder / "search")})
    assert (found.search["start"], found.retrain["start"]) == (str(study.folder / "search"), None)


@pytest.mark.parametrize("place", ["trainer", "retrain"])
def test_new_weights_for_the_retraining_are_refused_before_anything_is_written(tmp_path, place):
    config = copy.deepcopy(CONFIG)
    (config["trainer"] if place == "trainer" else config["sparsify"].setdefault("retrain", {}))["callbacks"] = ["LSUV"]
    with pytest.raises(ValueError, match="where LSUV would overwrite the sparse weights: put it in"):
        made(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
