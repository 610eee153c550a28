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
from polytask.data import Table
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
    found = [line for line in capsys.readouterr().err.splitlines() if "missing numbers are filled" not in line]
    assert len(found) == 1 and found[0].startswith("polytask: error: ")
    return found[0]


def test_three_commands_from_a_table_to_predictions(place, capsys):
    data, config, out = place / "tables/shop.csv", place / "tables/shop.yaml", place / "work/predictions.csv"
    assert main(["init", str(data), *TARGETS]) == 0
    shown = capsys.readouterr().out
    for row in (
        r"who .* id ", r"age .* input .* numeric .* 35 ", r"town, or place .* input .* categorical .* 3 ",
        r"leaves .* target .* binary", r"spent.in/2024 .* target .* regression .* 48 ", "polytask compare .*shop.yaml",
        r"polytask predict runs/shop/UPGrad/seed-0 new.csv .*\n  # runs/shop: the one run of `polytask train`",
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
    assert re.search(r"#   reading: numbers and text, such as .* `--missing`", text)
    inputs = read_config(place / "tables/shop.yaml")["data"]["init_args"]["inputs"]
    assert inputs["size"] == "categorical" and not {"reading", "class_path"} & set(inputs)


def test_decimal_commas_are_told_with_the_option_that_reads_them(place, capsys):
    data, config = place / "tables/shop.csv", place / "tables/shop.yaml"
    made = customers().rename(columns={"spent.in/2024": "spent"}).assign(size=np.linspace(1, 9, 240).round(3))
    made.to_csv(data, index=False, sep=";", decimal=",")
    words = ["init", str(data), "--separator", ";", "--targets", "leaves"]
    assert "found numbers with decimal commas, such as '" in refused(capsys, *words, "spent")
    assert main([*words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"size . left out . numbers with decimal commas, such as '1,0': `--decimal ','` reads them", shown)
    assert "#   size: numbers with decimal commas, such as '1,0': `--decimal ','` reads them" in config.read_text()
    assert main([*words, "spent", "--decimal", ",", "--overwrite"]) == 0
    data = read_config(config)["data"]["init_args"]
    assert (data["decimal"], data["separator"], data["targets"]) == (
        ",",
        ";",
        {"leaves": "binary", "spent": "regression"},
    )
    assert data["inputs"] == {
        "age": "numeric",
        "town, or place": "categorical",
        "car": "categorical",
        "size": "numeric",
    }
    assert main(["train", str(config), "--epochs", "1"]) == 0
    made[:9].to_csv(place / "tables/new.csv", index=False, sep=";", decimal=",")
    assert main(["predict", "runs/shop", str(place / "tables/new.csv")]) == 0
    made[:9].to_csv(place / "tables/new.csv", index=False, sep=";")
    assert "its `decimal` must be ',', as in training" in refused(
        capsys, "predict", "runs/shop", place / "tables/new.csv"
    )


def test_a_tab_may_be_typed_as_in_a_shell(place):
    customers().to_csv(place / "tables/shop.txt", index=False, sep="\t")
    assert main(["init", str(place / "tables/shop.txt"), *TARGETS, "--separator", r"\t"]) == 0
    assert read_config(place / "tables/shop.yaml")["data"]["init_args"]["separator"] == "\t"


def test_what_to_look_at_is_printed_and_written(place, capsys):
    made = customers().assign(
        day=pd.date_range("2024-01-01", periods=240).astype(str), number=np.random.default_rng(1).permutation(240),
        insurance=["None", "full", "part"] * 80, zone=[f"z{i % 30}" for i in range(240)],
    )  # fmt: skip
    made.to_csv(place / "tables/shop.csv", index=False)
    assert main(["init", str(place / "tables/shop.csv"), *TARGETS, "zone"]) == 0
    shown, text = " ".join(capsys.readouterr().out.split()), (place / "tables/shop.yaml").read_text()
    fill = re.search(r"age . input . numeric . \d+ . 35 . ([\d.]+) ", shown)
    assert fill and f"age: numeric # 35 missing (15 %): filled with {fill[1]}, told by a further input" in text
    assert re.search(r"insurance . input . categorical . 2 . 80 . a category", shown)
    assert re.search(r"spent.in/2024 . target . regression . \d+ . 48 . not filled", shown)
    assert re.search(r"day . left out . dates or times, such as 2024-01-01", shown)
    assert "#   day: dates or times, such as 2024-01-01: turn them into numbers" in text
    for note in (
        "target `zone` has 30 classes, of 8 rows each on average and 8 at least",
        "input `number` has another whole number in every row: if it is an id, name it with --id",
        "`insurance` has 80 entries 'None', taken for not given: rename them if they mean something",
    ):
        assert f"note: {note}" in shown and f"#   {note}" in text
    assert "age has" not in shown


def test_the_configuration_divides_and_encodes_as_the_table_in_python_does(place):
    made = customers().assign(tier=["rare"] * 2 + ["a", "b"] * 119, zone=["z", "y", "x", "x"] * 60)
    made.loc[5:8, "town, or place"] = ["far", "farther", "farthest", "nowhere"]
    made.to_csv(place / "tables/shop.csv", index=False)
    targets = ["zone", "tier", "leaves"]
    assert main(["init", str(place / "tables/shop.csv"), "--targets", *targets]) == 0
    config = read_config(place / "tables/shop.yaml")
    assert main(["train", str(place / "tables/shop.yaml"), "--epochs", "1"]) == 0
    kept = json.loads((place / "work/runs/shop/data.json").read_text())
    settings = config["data"]["init_args"]
    for order in (targets, sorted(targets)):
        table = Table(settings["path"], order, settings["inputs"], id="who")
        found = json.loads(json.dumps(table.fitted()))
        assert found["inputs"] == kept["inputs"]
        assert sorted(found["targets"], key=str) == sorted(kept["targets"], key=str)
    assert [target["column"] for target in kept["targets"]] == targets


BAD = {
    "nothing given": ([], None, "are required: data, targets, as in `polytask init DATA.csv --targets A B"),
    "no targets": (["DATA"], None, "are required: targets, as in `polytask init"),
    "empty targets": (["DATA", "--targets"], None, "--targets: expected at least one argument, as in `polytask init"),
    "misspelt option": (
        ["DATA", "--target", "leaves"],
        None,
        "unrecognized arguments: --target leaves: did you mean `--t",
    ),
    "no file": (["none/x.csv", *TARGETS], None, "found no file none/x.csv"),
    "a folder": ([".", *TARGETS], None, "a table must be a file, found no file ."),
    "misspelt role": (["DATA", *TARGETS, "--group", "cra"], None, "`--group` must be a column.*did you mean `car`"),
    "target as id": (["DATA", *TARGETS, "--id", "leaves"], None, "`--id` must be no target, found `leaves`"),
    "separator": (["DATA", *TARGETS, "--separator", "ab"], None, "`--separator` must be one character, found 'ab'"),
    "decimal": (["DATA", *TARGETS, "--decimal", ";"], None, "`--decimal` must be one of '.', ',', found ';'"),
    "encoding": (["DATA", *TARGETS, "--encoding", "x"], None, "`--encoding` must be one that Python knows"),
    "other encoding": (["DATA", *TARGETS], "leaves\né\n".encode("latin-1"), "name its encoding with `--encoding`"),
    "other separator": (["DATA", *TARGETS], b"leaves;x\na;b\n", "say so with `--separator ';'`"),
    "empty": (["DATA", *TARGETS], b"", "found an empty file"),
    "ragged": (["DATA", *TARGETS], b"leaves,x\na,b\na\n", "every row must have 2 entries.*found 1 in line 3"),
    "duplicated": (["DATA", *TARGETS], b"x,x,leaves\na,b,c\n", "must have different names, found `x`"),
    "mixed": (["DATA", "--targets", "x"], b"x,y\n1,2\na,3\n", "name entries that mean nothing with `--missing`$"),
    "one class": (["DATA", "--targets", "x"], b"x,y\n1,2\n1,3\n", "must have at least two different entries"),
    "dates": (["DATA", "--targets", "x"], b"x,y\n1.2.2024,2\n2.2.2024,3\n", "found dates or times, such as 1.2.2024"),
    "no input": (["DATA", "--targets", "x"], b"x,y\n1,2\n2,2\n", r"found none \(`y`: only one value\)$"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(place, capsys, case):
    words, content, message = BAD[case]
    data = place / "tables/shop.csv"
    if content is not None:
        data.write_bytes(content)
    assert re.search(message, refused(capsys, "init", *(data if word == "DATA" else word for word in words)))
    assert sorted(path.name for path in place.rglob("*.*")) == ["new.csv", "shop.csv"]


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
