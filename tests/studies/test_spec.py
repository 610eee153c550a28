import random

import numpy as np
import pytest
import torch

from polytask.models import HardSharing, SingleTask
from polytask.studies import spec


def edited(config, path, value):
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
    return config


def test_resolving_writes_every_default_and_is_idempotent(config):
    resolved = spec.resolve(config)
    assert resolved["model"]["class_path"] == "polytask.models.HardSharing"
    assert resolved["trainer"]["optimizer"]["init_args"]["momentum"] == 0
    assert resolved["seed"] == 0 and resolved["threads"] == 1
    assert spec.resolve(resolved) == resolved


def test_resolving_leaves_the_configuration_alone(config):
    before = spec.dump(config)
    spec.resolve(config, {"epochs": 7})
    assert spec.dump(config) == before


@pytest.mark.parametrize(
    "overrides",
    [
        {"epochs": 7, "trainer.batch_size": 5, "model.trunk.widths": [8, 8]},
        ["--epochs", "7", "--trainer.batch_size=5", "--model.trunk.widths", "[8, 8]"],
    ],
)
def test_overrides_win(config, overrides):
    resolved = spec.resolve(config, overrides)
    assert (resolved["epochs"], resolved["trainer"]["batch_size"]) == (7, 5)
    assert resolved["model"]["init_args"]["trunk"]["init_args"]["widths"] == [8, 8]


def test_weights_follow_the_seed_and_nothing_global_moves(config):
    def state():
        return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    torch.manual_seed(5)
    before = state()
    nets = [spec.build(spec.resolve(config, {"seed": seed})).trainer.model for seed in (3, 3, 4)]
    assert state() == before
    first, again, other = (net.state_dict()["trunk.0.weight"] for net in nets)
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.random.default_generator.manual_seed(3)
    assert torch.equal(first, torch.nn.Linear(2, 8).weight)


def test_the_seed_is_the_trainers_too(config):
    assert spec.build(spec.resolve(config, {"seed": 3})).trainer.seed == 3


def test_changing_the_class_keeps_what_the_new_one_accepts(config):
    merged = spec.merge(config, {"model": {"class_path": "SingleTask"}})
    net = spec.build(spec.resolve(merged)).trainer.model
    assert isinstance(net, SingleTask)
    adam = {"trainer": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"eps": 1e-6}}}}
    edited(config, "trainer.optimizer.init_args.momentum", 0.9)
    merged = spec.merge(config, adam)
    assert merged["trainer"]["optimizer"]["init_args"] == {"lr": 0.1, "eps": 1e-6}


def test_the_same_class_under_two_names_is_no_change():
    base = {"class_path": "HardSharing", "init_args": {"trunk": 1}}
    over = {"class_path": "polytask.models.HardSharing", "init_args": {"heads": 2}}
    assert spec.merge(base, over)["init_args"] == {"trunk": 1, "heads": 2}
    assert spec.find_class("HardSharing") is HardSharing


def test_a_bare_name_stands_for_a_class(config):
    assert spec.merge(config, {"model": "SingleTask"})["model"]["class_path"] == "SingleTask"
    assert set(spec.merge(config, {"model": "SingleTask"})["model"]["init_args"]) == {"trunk", "heads"}


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-3\nb: 2E4\nc: -1.5e-7\nd: e3\n")
    assert spec.read_config(path) == {"a": 1e-3, "b": 2e4, "c": -1.5e-7, "d": "e3"}


BAD = [
    ("epoch", 3, r"unknown key `epoch`: did you mean `epochs`\?"),
    ("trainer.batchsize", 3, r"unknown key `trainer.batchsize`: did you mean `batch_size`\?"),
    ("trainer.seed", 3, r"unknown key `trainer.seed`"),
    ("trainer.optimizer.init_args.lrr", 3, r"unknown key `trainer.optimizer.init_args.lrr`: did you mean `lr`\?"),
    ("model.init_arg", {}, r"unknown key `model.init_arg`: did you mean `init_args`\?"),
    ("model.init_args.trunk.init_args.width", [3], r"`model.init_args.trunk.init_args.width`: did you mean `widths`\?"),
    ("model.class_path", "HardSharin", r"`model`: there is no class `HardSharin`: did you mean `HardSharing`\?"),
    ("model.class_path", "polytask.models.Hardsharing", r"no class .* did you mean `HardSharing`\?"),
    ("model.class_path", "nowhere.Net", r"there is no class `nowhere.Net`: No module named 'nowhere'"),
    ("model", {"class_path": "MultiDigits"}, r"`model`: another kind of class is expected, found `MultiDigits`"),
    ("model", "Nonsense", r"`model`: there is no class `Nonsense`"),
    ("data.class_path", "CircleRombus", r"did you mean `CircleRhombus`\?"),
    ("trainer.optimizer", 3, r"`trainer.optimizer`: "),
    ("trainer.optimizer", "torch.optim.SGDD", r"`trainer.optimizer`: .*SGDD"),
    ("trainer.callbacks", [{"class_path": "EarlyStoping"}], r"callbacks\[0\]`: .* did you mean `EarlyStopping`\?"),
    ("trainer.batch_size", "many", r"`trainer.batch_size`: expected a int.*many"),
    ("epochs", 0, r"`epochs` must be at least 1, found 0"),
    ("epochs", "x", r"`epochs`: expected a int"),
    ("threads", 0, r"`threads` must be at least 1, found 0"),
    ("seed", -1, r"`seed` must be at least 0, found -1"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{path}={value}"[:40] for path, value, _ in BAD])
def test_a_wrong_configuration_is_refused_in_one_line(config, path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        spec.resolve(edited(config, path, value))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


BAD_OBJECTS = [
    ({"trainer.batch_size": 0}, "`batch_size` must be at least 1, found 0"),
    (
        {"trainer.schedule": {"class_path": "AlternateEpochs", "init_args": {"shared": 0, "specific": 0}}},
        "alternate training must update at least one block, found shared=0 and specific=0",
    ),
    ({"model.trunk.widths": [0]}, "`widths` must be at least 1, found 0"),
    ({"trainer.precision": "16"}, "`precision` must be one of"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_OBJECTS)
def test_what_a_class_refuses_is_told_in_one_line(config, overrides, message):
    resolved = spec.resolve(config, overrides)
    with pytest.raises(ValueError, match=message) as caught:
        spec.build(resolved)
    assert "\n" not in str(caught.value)


def test_the_seed_may_stand_in_any_text(config, tmp_path):
    """Weights to start from that are those of the run's own seed."""
    config["start"] = str(tmp_path / "seed-{seed}")
    for seed in (1, 2):
        resolved = spec.resolve({key: value for key, value in config.items() if key != "start"}, {"seed": seed})
        spec.build(resolved).trainer.save(tmp_path / f"seed-{seed}")
    starts = [spec.build(spec.resolve(config, {"seed": seed})).start for seed in (1, 2)]
    assert starts == [spec.digest(tmp_path / f"seed-{seed}") for seed in (1, 2)]
    assert starts[0] != starts[1]


def test_a_head_without_a_task_is_refused(config):
    heads = config["model"]["init_args"]["heads"]
    heads["romb"] = heads.pop("rhombus")
    with pytest.raises(ValueError, match="every task must have a head, found none for task `rhombus`"):
        spec.build(spec.resolve(config))


@pytest.mark.parametrize("key", ["data", "model", "epochs"])
def test_a_missing_key_is_named(config, key):
    del config[key]
    with pytest.raises(ValueError, match=f"`{key}`"):
        spec.resolve(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {class_path: Mul", "must be valid YAML"),
        ("a: 1\na: 2\n", "the key `a` twice"),
        ("", "found an empty file"),
        ("- 1\n- 2\n", "found a list"),
        ("\x00\x01", "must be valid YAML"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        spec.read_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_wrong_type_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        spec.read_config(tmp_path / "none.yaml")
    with pytest.raises(TypeError, match="found int"):
        spec.read_config(3)
