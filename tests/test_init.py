"""From a table to compared models and predictions on the command line alone."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from polytask.cli import main
from polytask.studies.spec import read_config


def customers(rows=240, seed=0):
    random = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            "who": [f"C{seed}-{i:04d}" for i in range(rows)],
            "age": random.integers(18, 90, rows),
            "town, or place": random.choice(["north", "east", "süd"], rows),
            "car": random.choice(["yes", "no"], rows),
            "leaves": random.choice(["stays", "goes"], rows),
            "spent.in/2024": random.normal(100, 20, rows).round(2),
        }
    )
    made.loc[::7, "age"] = None
    made.loc[::5, "spent.in/2024"] = None
    return made


TARGETS = ("--targets", "leaves", "spent.in/2024")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder, and beside it one that holds the table."""
    (tmp_path / "work").mkdir()
    (tmp_path / "tables").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    customers().to_csv(tmp_path / "tables" / "shop.csv", index=False)
    customers(9, seed=1).drop(columns=["leaves", "spent.in/2024"]).to_csv(tmp_path / "tables" / "new.csv", index=False)
    return tmp_path


def refused(capsys, *words):
    """Runs a command that must be refused: status 2, one line; gives the line."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and found[0].startswith("polytask: error: ")
    return found[0]


def test_three_commands_from_a_table_to_predictions(place, capsys):
    data, config, out = place / "tables/shop.csv", place / "tables/shop.yaml", place / "work/predictions.csv"
    assert main(["init", str(data), *TARGETS]) == 0
    shown = capsys.readouterr().out
    for row in (
        r"who .* id ", r"age .* input .* numeric .* 35 ", r"town, or place .* input .* categorical .* 3 ",
        r"leaves .* target .* binary", r"spent.in/2024 .* target .* regression .* 48 ", "polytask compare .*shop.yaml",
    ):  # fmt: skip
        assert re.search(row, shown), row
    small = ["--epochs", "1", "--trainer.batch_size", "64", "--jobs", "1"]
    assert main(["compare", str(config), "--methods", "UPGrad", "--weights", "1", "--seeds", "1", *small]) == 0
    assert "UPGrad" in capsys.readouterr().out
    assert main(["train", str(config), "--epochs", "1"]) == 0  # in the comparison's folder: neither hides the other
    assert main(["predict", "runs/shop", str(place / "tables/new.csv")]) == 0
    run = place / "work/runs/shop/UPGrad/seed-1"
    assert main(["predict", str(run), str(place / "tables/new.csv"), "--out", str(out)]) == 0
    found = pd.read_csv(out)
    assert list(found) == ["row", "who", "leaves", "leaves/p(stays)", "spent_in_2024"]
    assert list(found["who"]) == list(customers(9, seed=1)["who"]) and set(found["leaves"]) <= {"stays", "goes"}
    assert ((found["leaves"] == "stays") == (found["leaves/p(stays)"] > 0.5)).all()
    assert found["spent_in_2024"].between(20, 180).all()  # in the units of the column


def test_a_run_predicts_anywhere_without_its_table(place, capsys):
    config = place / "tables/shop.yaml"
    assert main(["init", str(place / "tables/shop.csv"), *TARGETS]) == 0
    assert main(["train", str(config), "--epochs", "3"]) == 0
    run, elsewhere = place / "work/runs/shop", place / "elsewhere"
    stored = json.loads((run / "run.json").read_text())
    assert stored["epochs"] == 3 and stored["tasks"][0]["labels"] == ["goes", "stays"]
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0 and main(["predict", str(run), str(place / "tables/new.csv")]) == 0
    figures, _, predictions = capsys.readouterr().out.partition("row,")
    assert float(dict(line.split() for line in figures.splitlines())["leaves/loss"]) == pytest.approx(
        stored["metrics"]["test"]["leaves/loss"], rel=1e-4
    )
    customers(40, seed=2).to_csv(place / "labelled.csv", index=False)
    customers(40, seed=2).assign(leaves="perhaps").to_csv(place / "odd.csv", index=False)
    shutil.copytree(place / "tables", place / "kept")
    shutil.move(run, elsewhere)
    shutil.rmtree(place / "tables")
    assert main(["predict", str(elsewhere), str(place / "kept/new.csv")]) == 0
    assert capsys.readouterr().out == "row," + predictions
    assert main(["evaluate", str(elsewhere), "--file", str(place / "labelled.csv")]) == 0
    assert "leaves/accuracy" in capsys.readouterr().out
    assert main(["predict", str(elsewhere), str(place / "odd.csv")]) == 0  # targets are not looked at
    assert "found 'perhaps' in line 2" in refused(capsys, "evaluate", elsewhere, "--file", place / "odd.csv")
    assert "found no file" in refused(capsys, "evaluate", elsewhere)
    assert "must be one that Table reads" in refused(capsys, "evaluate", elsewhere, "--file", "x.npy")
    (elsewhere / "data.json").write_text("{")
    assert "must be JSON, found a damaged file" in refused(capsys, "predict", elsewhere, place / "labelled.csv")
    (elsewhere / "data.json").write_text("{}")
    (elsewhere / "layout.json").write_text("{}")  # whether or not the network is a compact one
    for _ in range(2):
        line = refused(capsys, "predict", elsewhere, place / "labelled.csv")
        assert "data.json: it must be the encoding of a table, found a damaged one" in line and "layout" not in line
        (elsewhere / "layout.json").unlink(missing_ok=True)
    (elsewhere / "data.json").unlink()
    assert "must hold data.json" in refused(capsys, "predict", elsewhere, place / "labelled.csv")


def test_a_network_of_another_width_is_refused_before_anything_is_written(place, capsys):
    config = place / "tables/shop.yaml"
    assert main(["init", str(place / "tables/shop.csv"), *TARGETS]) == 0
    trunk, head = "--model.init_args.trunk.init_args.inputs", "--model.init_args.heads.leaves.init_args.out_features"
    width = read_config(config)["model"]["init_args"]["trunk"]["init_args"]["inputs"]
    message = f"the network must take examples of shape ({width},) (`inputs: {width}` of a first MLP)"
    assert message in refused(capsys, "train", config, trunk, 3)
    assert message in refused(capsys, "compare", config, "--methods", "UPGrad", "--weights", 1, trunk, 3)
    text = config.read_text().replace("out_features: 1}", "out_features: 2}", 1)
    config.write_text(text)
    assert "the head of task `leaves` must have 1 outputs, found 2" in refused(capsys, "train", config)
    assert head and not list((place / "work").iterdir())


def test_init_writes_where_it_is_told_and_overwrites_nothing(place, capsys):
    data, out = place / "tables/shop.csv", place / "work/first.yaml"
    assert main(["init", str(data), "--out", str(out), *TARGETS]) == 0
    assert yaml.safe_load(out.read_text())["data"]["init_args"]["path"] == "../tables/shop.csv"
    assert read_config(out)["data"]["init_args"]["path"] == str(data)
    before = out.read_bytes()
    assert "must not be there yet" in refused(capsys, "init", data, "--out", out, *TARGETS)
    assert main(["init", str(data), "--out", str(out), "--targets", "leaves", "--overwrite"]) == 0
    assert out.read_bytes() != before
    assert "did you mean `leaves`" in refused(capsys, "init", data, "--targets", "leave")
    assert "must end in .yaml" in refused(capsys, "init", data, "--out", "x.json", *TARGETS)
    assert "folder to write into must exist" in refused(capsys, "init", data, "--out", "none/x.yaml", *TARGETS)
    assert "found no file" in refused(capsys, "init", "none.csv", *TARGETS)
    assert "targets" in refused(capsys, "init", data)
    assert sorted(path.name for path in (place / "tables").iterdir()) == ["new.csv", "shop.csv"]


def test_init_keeps_to_what_it_is_told(place, capsys):
    made = customers().rename(columns={"age": "yes", "car": "1e5"})
    made["part"] = ["train", "test", "validation"] * 80
    made["visit"] = np.arange(240) // 2 * 3
    made["empty"] = "?"
    text = made.to_csv(index=False, sep=";").encode("latin-1")
    (place / "tables/shop.csv").write_bytes(text)
    options = ["--id", "visit", "--split", "part", "--missing", "?", "--encoding", "latin-1", "--separator", ";"]
    assert main(["init", str(place / "tables/shop.csv"), *TARGETS, *options]) == 0
    data = read_config(place / "tables/shop.yaml")["data"]["init_args"]
    assert data["inputs"] == {"yes": "numeric", "town, or place": "categorical"}
    assert (data["id"], data["split"], data["missing"], data["encoding"], data["separator"]) == (
        "visit", "part", ["?"], "latin-1", ";"
    )  # fmt: skip
    assert "fractions" not in data
    shown = capsys.readouterr().out
    for row in (
        r"1e5 .* left out .* YAML reads its name",
        r"who .* left out .* all entries differ",
        r"empty .* no entries",
    ):
        assert re.search(row, shown)
    assert main(["train", str(place / "tables/shop.yaml"), "--epochs", "1"]) == 0


NAMES = ("null", "true", "12", "a: b", "# c", "'", '"', "a\nb", "[1]", "ä", "2024-01-01", "~", "- x")


def test_any_name_survives_the_file(place, capsys):
    made = customers().rename(columns={"leaves": "a\nb: {target}"})
    for name in NAMES:
        made[name] = np.random.default_rng(len(name)).normal(size=len(made))
    made.to_csv(place / "tables/shop.csv", index=False)
    assert main(["init", str(place / "tables/shop.csv"), "--targets", "a\nb: {target}"]) == 0
    data = read_config(place / "tables/shop.yaml")["data"]["init_args"]
    assert set(NAMES) <= set(data["inputs"]) and list(data["targets"]) == ["a\nb: {target}"]
    assert main(["train", str(place / "tables/shop.yaml"), "--epochs", "1"]) == 0
    made.to_csv(place / "new.csv", index=False)
    assert main(["predict", "runs/shop", str(place / "new.csv")]) == 0
    assert "a b: {target}/p(stays)" in capsys.readouterr().out


def test_init_takes_mixed_columns_for_categories_or_leaves_them_out(place, capsys):
    made = customers().assign(
        size=["1", "2", "large"] * 80, reading=[str(i * 0.37) if i % 9 else "off" for i in range(240)], class_path="a"
    )
    made.loc[::2, "class_path"] = "b"
    made.to_csv(place / "tables/shop.csv", index=False)
    assert main(["init", str(place / "tables/shop.csv"), *TARGETS]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"size . input . categorical, of numbers and text", shown)
    for row in (r"reading .* left out .* numbers and text, such as", r"class_path .* left out .* rename it"):
        assert re.search(row, shown), row
    text = (place / "tables/shop.yaml").read_text()
    assert re.search(r"size: categorical # 3 categories, numbers and text, such as 1 in line 2 and 'large'", text)
    assert re.search(r"#   reading: numbers and text, such as .* `missing`", text)
    inputs = read_config(place / "tables/shop.yaml")["data"]["init_args"]["inputs"]
    assert inputs["size"] == "categorical" and not {"reading", "class_path"} & set(inputs)


def test_a_mixed_target_is_still_refused(place, capsys):
    customers().assign(leaves=["1", "2", "x"] * 80).to_csv(place / "tables/shop.csv", index=False)
    assert "`leaves` must hold numbers or text, found both" in refused(
        capsys, "init", place / "tables/shop.csv", *TARGETS
    )


def test_init_checks_the_targets_first(place, capsys):
    data = place / "tables/shop.csv"
    assert "`--targets` must be different columns, found `leaves` twice" in refused(
        capsys, "init", data, "--targets", "leaves", "leaves"
    )
    customers().rename(columns={"leaves": "class_path"}).to_csv(data, index=False)
    assert "found `class_path`: a configuration names classes so" in refused(
        capsys, "init", data, "--targets", "class_path"
    )


def test_init_names_the_file_of_a_gzipped_table_by_the_table(place):
    customers().to_csv(place / "tables/packed.csv.gz", index=False)
    assert main(["init", str(place / "tables/packed.csv.gz"), *TARGETS]) == 0
    assert (place / "tables/packed.yaml").is_file()
