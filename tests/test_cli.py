import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.parameters import covering

import polytask
from polytask.cli import COMMANDS, main

ENVIRONMENT = {"PYTHONPATH": str(Path(polytask.__file__).parents[1])}
TASKS = ("circle", "rhombus")
HEAD = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 1}}
TRAIN = {
    "data": {"class_path": "CircleRhombus"},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [8]}},
            "heads": {"circle": HEAD, "rhombus": HEAD},
        },
    },
    "trainer": {"batch_size": 128},
    "epochs": 1,
}


def written(path, config):
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(path)


@pytest.fixture
def train_yaml(tmp_path):
    return written(tmp_path / "small.yaml", TRAIN)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    assert main(["train", written(folder / "small.yaml", TRAIN), "--out", str(folder / "run")]) == 0
    return str(folder / "run")


def refused(capsys, *words):
    """Runs a command that must be refused: status 2, one line; gives the line."""
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("polytask: error: ")
    return lines[0].removeprefix("polytask: error: ")


def test_help_and_version(capsys):
    assert main(["--help"]) == 0 and main([]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"polytask {polytask.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: polytask {command}" in out and not err


def test_help_needs_no_torch():
    code = "import sys; from polytask.cli import main; assert not main(['--help']) and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | ENVIRONMENT)


def test_train_writes_a_run_and_tells_its_figures(trained, train_yaml, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--trainer.batch_size", "256", train_yaml, "--epochs=2"]) == 0
    out = capsys.readouterr().out
    assert "circle/accuracy" in out and "2 epochs" in out
    stored = yaml.safe_load((tmp_path / "runs" / "small" / "config.yaml").read_text())
    assert (stored["epochs"], stored["trainer"]["batch_size"]) == (2, 256)


def test_the_log_goes_to_stderr_and_is_tidied_up(trained, capsys, train_yaml, tmp_path):
    before = list(logging.getLogger("polytask").handlers)
    schedule = "--trainer.schedule=AlternateEpochs"
    assert main(["train", train_yaml, "--out", str(tmp_path / "a"), schedule, "--epochs", "2"]) == 0
    assert "features are cached" in capsys.readouterr().err
    assert logging.getLogger("polytask").handlers == before


def test_print_config_is_complete_and_reusable(train_yaml, tmp_path, capsys):
    assert main(["train", train_yaml, "--print_config", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "full.yaml").write_text(printed)
    assert main(["train", str(tmp_path / "full.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["seed"] == 7


def test_compare_reports(tmp_path, capsys):
    methods = {"single-task": {"model": {"class_path": "SingleTask"}}, "joint": None}
    path = written(tmp_path / "c.yaml", TRAIN | {"methods": methods, "baseline": "single-task"})
    assert main(["compare", path, "--out", str(tmp_path / "c"), "--jobs", "1", "--seeds", "0,1"]) == 0
    out, err = capsys.readouterr()
    assert "joint" in out and "report.html" in out and "4 of 4 runs" in err
    assert (tmp_path / "c" / "report.html").is_file()
    assert main(["report", str(tmp_path / "c")]) == 0
    assert "single-task" in capsys.readouterr().out
    assert main(["compare", path, "--print_config"]) == 0
    assert list(yaml.safe_load(capsys.readouterr().out)["methods"]) == ["single-task", "joint"]


def test_compare_takes_methods_by_name(tmp_path, capsys):
    path = written(tmp_path / "t.yaml", TRAIN)  # a file to train is enough
    words = ["--methods", "MGDA", "AlternateBatches", "--weights", "2", "--out", str(tmp_path / "c"), "--jobs", "1"]
    assert main(["compare", *words, path]) == 0
    out, err = capsys.readouterr()
    named = ["single-task", "joint", "MGDA", "AlternateBatches"]
    assert "6 of 6 runs" in err and "weights, chosen on validation data: " in " ".join(out.split())
    assert all(name in out for name in (*named, "weights, chosen"))
    study = json.loads((tmp_path / "c" / "study.json").read_text())
    assert study["baseline"] == "single-task" and list(study["methods"])[:4] == named
    assert study["sweep"] == ["joint", "weights 0.667/1.333", "weights 1.333/0.667"]
    page = (tmp_path / "c" / "report.html").read_text()
    assert main(["report", str(tmp_path / "c")]) == 0 and "weights, chosen" in capsys.readouterr().out
    assert all(point in page for point in study["sweep"])


@pytest.mark.parametrize("words", [
    ["{}", "--methods", "slow one", "MGDA"], ["--methods", "slow one", "MGDA", "{}"], ["--methods=slow one,MGDA", "{}"],
    ["--methods", "[slow one, MGDA]", "--epochs", "1", "{}"],
])  # fmt: skip
def test_methods_are_listed_in_any_form(words, tmp_path, capsys):
    path = written(tmp_path / "c.yaml", TRAIN | {"methods": {"slow one": {"epochs": 9}, "other": None}})
    words = [word.replace("{}", path) for word in words]
    assert main(["compare", *words, "--weights", "1", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert list(printed["methods"]) == ["single-task", "joint", "slow one", "MGDA"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "MGAD"], "unknown method `MGAD`: did you mean `MGDA`?"),
        (["--methods", "--seeds", "0"], "`--methods` must be given a value, found none"),
        (["--methods"], "`--methods` must be given a value, found none"),
        (["--methods", "MGDA", "--weights", "0"], "`--weights` must be at least 1, found 0"),
        (["--methods", "MGDA", "--seeds", "1,1"], "`--seeds` must be different, found [1, 1]"),
        (["--methods", "MGDA", "--jobs", "0"], "`--jobs` must be at least 1, found 0"),
        (["--methods", "MGDA", "--weights", "1,2"], "`--weights` must be one whole number, found '1,2'"),
        (["--methods", "MGDA", "--trainer.balancer", "FAMO"], "method `MGDA`: it must keep its own balancer"),
    ],
)
def test_a_wrong_list_of_methods_is_refused(words, message, train_yaml, tmp_path, capsys):
    assert message in refused(capsys, "compare", train_yaml, "--out", tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


def test_compare_tells_when_runs_fail(tmp_path, capsys):
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "validation/los"}}
    methods = {"joint": None, "wrong": {"trainer": {"callbacks": [stopping]}}}
    path = written(tmp_path / "c.yaml", TRAIN | {"methods": methods})
    assert main(["compare", path, "--out", str(tmp_path / "c"), "--jobs", "1"]) == 1
    assert "1 of 2 runs failed; wrong, seed 0: " in capsys.readouterr().err.splitlines()[-1]
    path = written(tmp_path / "d.yaml", TRAIN | {"methods": {"wrong": methods["wrong"]}})
    assert main(["compare", path, "--out", str(tmp_path / "d"), "--jobs", "1"]) == 2


def test_sparsify_makes_a_smaller_network_and_says_so(tmp_path, capsys):
    heads = {name: {"class_path": "MLP", "init_args": {"inputs": 8, "widths": [6], "outputs": 1}} for name in TASKS}
    trunk = {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [12, 8]}}
    config = {
        "model": {"class_path": "HardSharing", "init_args": {"trunk": trunk, "heads": heads}},
        "epochs": 2,
        "sparsify": {"sparsity": 0.3},
    }
    path, out = written(tmp_path / "small.yaml", TRAIN | config), str(tmp_path / "run")
    assert main(["sparsify", path, "--out", out, "--sparsify.sparsity", "0.5", "--sparsify.method=magnitude"]) == 0
    shown, log = capsys.readouterr()
    assert "parameters" in shown and "report.html" in shown and "circle accuracy, test" in shown
    assert "stage 1 of 3: search (1 epoch); then retrain (1 epoch), compact" in log
    assert main(["report", out]) == 0 and main(["evaluate", f"{out}/compact"]) == 0
    assert "circle/accuracy" in capsys.readouterr().out
    assert main(["export", f"{out}/compact", "--format", "torch"]) == 0
    assert (tmp_path / "run" / "compact" / "model.pt2.json").is_file()
    assert "checked against PyTorch" in capsys.readouterr().out
    assert main(["sparsify", path, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["sparsify"]["sparsity"] == 0.3
    assert "run it with `polytask sparsify`" in refused(capsys, "train", path)
    assert "did you mean `--sparsify.sparsity`" in refused(capsys, "sparsify", path, "--sparsify.sparsty", "0.4")
    assert "choose another output folder" in refused(capsys, "sparsify", path, "--out", out)
    assert "a section `sparsify`" in refused(capsys, "sparsify", written(tmp_path / "t.yaml", TRAIN))


def test_group_suggests_trains_and_reports(tmp_path, capsys):
    path = written(tmp_path / "g.yaml", TRAIN)
    out = str(tmp_path / "g")
    assert main(["group", path, "--out", out, "--jobs", "1", "--every", "2", "--groups", "1"]) == 0
    text = capsys.readouterr().out
    assert "step for \\ loss of" in text and "suggested: circle and rhombus together" in text and "report.html" in text
    assert main(["report", out]) == 0
    assert "suggested: circle and rhombus together" in capsys.readouterr().out
    assert "`--model` must be HardSharing" in refused(capsys, "group", path, "--model", "SingleTask")
    assert "`--groups` must be at least 1, found 0" in refused(capsys, "group", path, "--groups", "0")


def test_front_reports(tmp_path, capsys):
    front = {"vectors": [[0.3, 0.7], [0.6, 0.4]]}
    path = written(tmp_path / "f.yaml", TRAIN | {"front": front})
    out = str(tmp_path / "f")
    assert main(["front", path, "--out", out, "--jobs", "1", "--front.against", "null"]) == 0
    text, log = capsys.readouterr()
    assert "Hypervolume" in text and "report.html" in text and "2 of 2 runs" in log
    assert main(["report", out]) == 0
    assert "Chebyshev" in capsys.readouterr().out
    assert main(["front", path, "--print_config"]) == 0
    assert list(yaml.safe_load(capsys.readouterr().out)["runs"]) == ["Chebyshev", "Linear"]
    assert "run it with `polytask front`" in refused(capsys, "train", path)
    assert "must be the folder of one run" in refused(capsys, "evaluate", out)
    assert "preference 1 must sum to 1" in refused(capsys, "front", path, "--front.vectors", "[[0.5, 0.6]]")


def test_evaluate_and_predict(trained, tmp_path, capsys):
    assert main(["evaluate", trained, "--split", "validation"]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    stored = json.loads((tmp_path / trained / "run.json").read_text())["metrics"]["validation"]
    assert float(shown["circle/accuracy"]) == pytest.approx(stored["circle/accuracy"], rel=1e-4)
    points = np.array([[0.0, 0.0], [0.9, 0.9], [0.1, -0.4]])
    np.save(tmp_path / "in.npy", points)
    np.savez(tmp_path / "in.npz", points=points)
    (tmp_path / "in.csv").write_text("x,y\n0,0\n0.9,0.9\n0.1,-0.4\n")
    (tmp_path / "bare.csv").write_text("0,0\n0.9,0.9\n0.1,-0.4\n")
    texts = set()
    for name in ("in.npy", "in.npz", "in.csv", "bare.csv"):
        assert main(["predict", trained, str(tmp_path / name)]) == 0
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert text.splitlines()[0] == "row,circle,circle/p(1),rhombus,rhombus/p(1)" and len(text.splitlines()) == 4
    out = tmp_path / "deep" / "predictions.csv"
    assert main(["predict", trained, str(tmp_path / "in.npy"), "--out", str(out)]) == 0
    assert out.read_text() == text


def test_a_run_in_the_folder_of_a_comparison_is_told_apart(trained, tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.zeros((1, 2)))
    folder = tmp_path / "both"
    shutil.copytree(trained, folder)
    commands = (["evaluate", str(folder)], ["predict", str(folder), str(tmp_path / "in.npy")])
    for words in commands:
        assert main(words) == 0
        assert capsys.readouterr().err == ""
    shutil.copytree(trained, folder / "UPGrad" / "seed-0")
    (folder / "study.json").write_text("{}")
    note = f"note: {folder} is the run that `train` made; compared runs are in e.g. {folder}/UPGrad/seed-0\n"
    for words in commands:
        assert main(words) == 0
        assert capsys.readouterr().err == note


def test_predicting_from_wrong_files_is_refused(trained, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.zeros((3, 5)))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros((0, 2)))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "bad.csv").write_text("x,y\n1,two\n")
    (tmp_path / "in.txt").write_text("1")
    for name, message in {
        "wide.npy": "inputs that the network takes",
        "words.npy": "must hold numbers",
        "objects.npy": "must hold arrays of numbers",
        "empty.npy": "at least one example",
        "bad.npy": "must hold arrays of numbers",
        "bad.csv": "must hold arrays of numbers",
        "in.txt": "must end in one of",
        "none.npy": "found no file",
    }.items():
        assert message in refused(capsys, "predict", trained, tmp_path / name)


def test_methods_and_datasets_list_what_there_is(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "AlternateEpochs" in out and "MGDA" in out and "https://arxiv.org/abs/2312.16340" in out
    told = out[out.index("  FAMO") : out.index("  FairGrad")]
    for line in ("needs losses, losses after the step", "costs 2 forward; backward: trunk 1", "keeps a learned logit"):
        assert line in told
    assert "needs task gradients (exact, features, low_memory)" in out
    assert max(map(len, out.splitlines())) <= 100
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    assert "MultiMNIST" in out and "needs the files train-images-idx3-ubyte" in out


WRONG_SETTINGS = {
    "unknown option": (["--epoch", "3"], "unknown option `--epoch`: did you mean `--epochs`?"),
    "option unlike any": (["--folder", "x"], "unknown option `--folder`: `--help` lists them"),
    "misspelt option of the command": (["--oit", "x"], "unknown option `--oit`: did you mean `--out`?"),
    "misspelt flag of the command": (["--overwrit"], "unknown option `--overwrit`: did you mean `--overwrite`?"),
    "unknown trainer option": (["--trainer.batchsize", "3"], "did you mean `--trainer.batch_size`?"),
    "no value": (["--epochs"], "`--epochs` must be given a value"),
    "epochs": (["--epochs", "0"], "`--epochs` must be at least 1, found 0"),
    "batch size": (["--trainer.batch_size", "0"], "`batch_size` must be at least 1, found 0"),
    "class": (["--model", "HardSharin"], "there is no class `HardSharin`: did you mean `HardSharing`?"),
    "optimizer": (["--trainer.optimizer", "3"], "`trainer.optimizer`: "),
    "a setting of no optimizer": (
        ["--trainer.optimizer.init_args.lr", "x"],
        "`trainer.optimizer`: `torch.optim.Optimizer` takes no `lr`",
    ),
    "phases": (
        ["--trainer.schedule=AlternateEpochs", "--trainer.schedule.shared=0", "--trainer.schedule.specific=0"],
        "alternate training must update at least one block",
    ),
}


@pytest.mark.parametrize(("words", "message"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_wrong_setting_is_refused_and_nothing_written(command, words, message, train_yaml, tmp_path, capsys):
    if command == "compare":
        train_yaml = written(tmp_path / "c.yaml", TRAIN | {"methods": {"joint": {}}})
    assert message in refused(capsys, command, train_yaml, "--out", tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


def test_a_misspelt_list_of_methods_is_told(train_yaml, capsys):
    for word in ("--method", "--method=MGDA"):
        message = refused(capsys, "compare", train_yaml, word, "MGDA")
        assert "unknown option `--method`: did you mean `--methods`?" in message


def changed(**change):
    return yaml.safe_dump(TRAIN | change)


NO_HEAD = {"class_path": "HardSharing", "init_args": TRAIN["model"]["init_args"] | {"heads": {"romb": HEAD}}}
WRONG_FILES = {
    "unknown key": (changed(epoch=3), "unknown key `epoch`: did you mean `epochs`?"),
    "unknown trainer key": (changed(trainer={"batchsize": 3}), "did you mean `batch_size`?"),
    "class": (changed(data={"class_path": "CircleRombus"}), "did you mean `CircleRhombus`?"),
    "module": (changed(data={"class_path": "nowhere.Data"}), "there is no class `nowhere.Data`"),
    "head": (changed(model=NO_HEAD), "every task must have a head, found none for task `circle`"),
    "no trainer settings": (changed(trainer=[1]), "`trainer` must be a mapping of settings, found [1]"),
    "empty trainer": (changed(trainer=None), "`trainer` must be a mapping of settings, found None"),
    "class path": (changed(data={"class_path": 3}), "`data`: a `class_path` must be a name, found 3"),
    "comparison": (changed(methods={"a": None}), "is a comparison (it has `methods`): run it with `polytask compare`"),
    "truncated": (changed()[:60], ""),
    "truncated inside brackets": ("data: {class_path: Circle", "must be valid YAML"),
    "empty": ("", "found an empty file"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_refused_and_nothing_written(text, message, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    assert message in refused(capsys, "train", tmp_path / "x.yaml", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


USERS_OWN = """
from polytask.data import CircleRhombus
from polytask.models import MLP

class KeyInConstructor(CircleRhombus):
    def __init__(self): {}["digit"]

class LinesInConstructor(CircleRhombus):
    def __init__(self): raise RuntimeError("no luck\\nat all")

class KeyInLoad(CircleRhombus):
    def load(self): return {}["digit"]

class NoWords(CircleRhombus):
    def load(self): raise AssertionError

class KeyInForward(MLP):
    def forward(self, x): return {}["digit"]
"""
BROKEN = {  # {class: what is said of it}
    "users_own.KeyInConstructor": "KeyError: 'digit'",
    "users_own.LinesInConstructor": "RuntimeError: no luck at all",
    "users_own.KeyInLoad": "KeyError: 'digit'",
    "users_own.NoWords": "AssertionError",
    "users_syntax.Data": "SyntaxError: invalid syntax (users_syntax.py, line 1)",
    "users_import.Data": "No module named 'nowhere_to_be_found'",
    "users_raising.Data": "RuntimeError: not today",
}


@pytest.fixture
def users_modules(tmp_path, monkeypatch):
    """Modules of the user's in the working folder."""
    texts = {
        "users_own": USERS_OWN, "users_syntax": "class (", "users_import": "import nowhere_to_be_found",
        "users_raising": "raise RuntimeError('not today')",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    for name in texts:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("path", "command", "given"), covering(BROKEN, ["train", "compare"], ["in the file", "as an option"])
)
def test_what_a_users_class_raises_is_told_in_one_line(path, command, given, users_modules, tmp_path, capsys):
    config = TRAIN | ({"data": {"class_path": path}} if given == "in the file" else {})
    config |= {"methods": {"joint": None}} if command == "compare" else {}
    words = [] if given == "in the file" else ["--data", path]
    line = refused(capsys, command, written(tmp_path / "u.yaml", config), "--out", tmp_path / "x", *words)
    assert BROKEN[path] in line and "there is no class" not in line
    assert not (tmp_path / "x").exists()


def test_what_a_users_class_raises_in_training_is_told_and_recorded(users_modules, tmp_path, capsys):
    path = written(tmp_path / "u.yaml", TRAIN)
    line = refused(capsys, "train", path, "--out", tmp_path / "x", "--model.trunk", "users_own.KeyInForward")
    assert line.startswith("KeyError: 'digit'")
    assert json.loads((tmp_path / "x" / "run.json").read_text())["error"] == "KeyError: 'digit'"


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_tracebacks_are_shown_on_request(value, users_modules, train_yaml, monkeypatch, capsys):
    monkeypatch.delenv("POLYTASK_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("POLYTASK_DEBUG", value)
    assert main(["train", train_yaml, "--data", "users_own.KeyInLoad"]) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("polytask: error: KeyError: 'digit'")
    assert any("Traceback" in line for line in before) is (value == "1")
    assert main(["--help"]) == 0
    assert "POLYTASK_DEBUG=1" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_missing_accelerator_is_told_in_one_line(command, tmp_path, capsys):
    config = TRAIN | ({"methods": {"joint": None}} if command == "compare" else {})
    path = written(tmp_path / "c.yaml", config)
    line = refused(capsys, command, path, "--out", tmp_path / "x", "--trainer.accelerator", "cuda")
    assert "CUDA" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("seeds", [[], None])
def test_a_comparison_needs_a_seed(seeds, tmp_path, capsys):
    path = written(tmp_path / "c.yaml", TRAIN | {"methods": {"joint": None}, "seeds": seeds})
    assert "`seeds` must be a list of at least one whole number, each at least 0, found " in refused(
        capsys, "compare", path, "--out", tmp_path / "x"
    )


def test_missing_files_and_unwritable_folders_are_refused(train_yaml, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "found no file" in refused(capsys, "train", tmp_path / "none.yaml")
    assert "must be writable" in refused(capsys, "train", train_yaml, "--out", tmp_path / "file" / "x")
    compare = written(tmp_path / "c.yaml", TRAIN | {"methods": {"joint": {}}})
    assert "must be writable" in refused(capsys, "compare", compare, "--out", tmp_path / "file" / "x")
    assert "must hold config.yaml" in refused(capsys, "evaluate", tmp_path)
    assert "must exist" in refused(capsys, "report", tmp_path / "none")
    assert "one YAML file" in refused(capsys, "train")
    assert "one YAML file" in refused(capsys, "train", train_yaml, train_yaml)
    assert "whole numbers" in refused(capsys, "compare", compare, "--seeds", "a", "--out", tmp_path / "x")
    assert "did you mean `train`?" in refused(capsys, "trian")


def test_interruptions_have_their_own_status(train_yaml, tmp_path, capsys, monkeypatch):
    run_module = importlib.import_module("polytask.studies.run")

    for number, status in ((2, 130), (15, 143)):

        def interrupt(keeper, run, info, number=number):
            run.signal_number = number

        with monkeypatch.context() as patch:
            patch.setattr(run_module._Keeper, "on_update", interrupt)
            assert main(["train", train_yaml, "--out", str(tmp_path / "a")]) == status
        assert "after 0 of 1 epochs; the same command goes on from there" in capsys.readouterr().err
    assert main(["train", train_yaml, "--out", str(tmp_path / "a")]) == 0
