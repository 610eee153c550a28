"""Sparse networks of several seeds: one study a seed, and their means and spreads."""

import copy
import json
import statistics

import pandas as pd
import pytest
import torch
import yaml
from tests.studies.test_sparsify import CONFIG, weights

from polytask.cli import main
from polytask.reports import sparse_seeds
from polytask.studies import executors, read_sparsified_seeds, sparsify, sparsify_seeds
from polytask.studies.sparsify_seeds import plan_seeds

QUICK = copy.deepcopy(CONFIG) | {"epochs": 2}
QUICK["sparsify"] = {"sparsity": 0.5, "method": "magnitude"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    torch.set_num_threads(1)
    return sparsify_seeds(QUICK, seeds=[3, 0], folder=tmp_path_factory.mktemp("seeds") / "run", progress=False)


def test_each_seed_is_the_study_of_that_seed(found, tmp_path):
    alone = sparsify(QUICK | {"seed": 3}, folder=tmp_path / "alone", progress=False)
    assert list(found.studies) == [3, 0] and not found.unfinished and not found.missed
    for stage in ("search", "retrain", "compact"):
        one, other = weights(alone.folder / stage), weights(found.folder / "seed-3" / stage)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert alone.compact.metrics == found.studies[3].compact.metrics != found.studies[0].compact.metrics
    assert [record.seed for record in found.records] == [3] * 3 + [0] * 3


def test_finished_seeds_are_not_repeated_and_more_can_be_asked_for(found, monkeypatch):
    made = []
    whole = executors._one
    monkeypatch.setattr(
        executors, "_one", lambda job, overwrite: made.append(job.config["seed"]) or whole(job, overwrite)
    )
    files = {path: path.stat().st_mtime_ns for path in found.folder.rglob("weights.safetensors")}
    again = sparsify_seeds(QUICK, seeds=[3, 0], folder=found.folder, progress=False)
    assert again.studies == found.studies and made == [3, 0]
    assert {path: path.stat().st_mtime_ns for path in found.folder.rglob("weights.safetensors")} == files
    assert read_sparsified_seeds(found.folder).studies == found.studies
    (found.folder / "seeds.json").write_text(json.dumps({"format": 1, "seeds": [3, 0, 7]}))
    assert read_sparsified_seeds(found.folder).unfinished.keys() == {7}
    (found.folder / "seeds.json").write_text(json.dumps({"format": 1, "seeds": [3, 0]}))


def test_tables_hold_means_and_sample_deviations(found):
    tables = {table.key: table for table in sparse_seeds.tables(found)}
    accuracy = [study.compact.metrics["test"]["left/accuracy"] for study in found.studies.values()]
    column = tables["stages"].head.index("left accuracy, test")
    cell = {row[0]: row for row in tables["stages"].rows}["compact"][column]
    assert cell == f"{statistics.fmean(accuracy):.4f} ± {statistics.stdev(accuracy):.4f}"
    means = [
        statistics.fmean(study.compact.metrics["test"][f"{side}/accuracy"] for side in ("left", "right"))
        for study in found.studies.values()
    ]
    assert tables["stages"].rows[-1][-1] == f"{statistics.fmean(means):.4f} ± {statistics.stdev(means):.4f}"
    ratios = [s.report["before"]["parameters"] / s.report["after"]["parameters"] for s in found.studies.values()]
    costs = {row[0]: row for row in tables["costs"].rows}
    assert costs["parameters"][3] == f"{statistics.fmean(ratios):.2f} ± {statistics.stdev(ratios):.2f}"
    assert float(costs["dead rows, %"][1].split()[0]) >= 50
    assert [row[0] for row in tables["seeds"].rows] == ["3", "0"]


def test_the_command_reports_seeds_of_the_line_or_the_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(QUICK | {"seeds": [0, 1]}))
    words = ["sparsify", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    assert main([*words, "--seeds", "5", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["seeds"] == [5] and "seed" not in shown
    assert main([*words, "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "latency, ms" in out and "±" in out and "report.html" in out
    table = pd.read_csv(tmp_path / "run" / "seeds.csv")
    assert list(table["seed"]) == [0, 1] and (table["dead_rows"] >= 0.5).all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="costs"' in page and 'id="seeds"' in page
    assert "| parameters | " in (tmp_path / "run" / "seeds.md").read_text()
    (tmp_path / "run" / "seed-1" / "sparsify.json").unlink()
    assert main(["report", str(tmp_path / "run")]) == 1
    assert "1 of 2 studies did not end; seed 1: not finished" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "must be the folder of one run" in capsys.readouterr().err


def test_a_seed_that_breaks_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    whole = executors.run
    module = __import__("polytask.studies.stages", fromlist=["run"])

    def broken(config, folder, **options):
        if config["seed"] == 1:
            raise KeyError("digit")
        return whole(config, folder, **options)

    monkeypatch.setattr(module, "run", broken)
    partly = sparsify_seeds(QUICK, seeds=[1, 0], folder=tmp_path / "run", progress=False)
    assert list(partly.studies) == [0] and "digit" in partly.unfinished[1]
    table = {table.key: table for table in sparse_seeds.tables(partly)}["seeds"]
    assert "digit" in table.rows[0][-1]
    assert "What is wanting" in sparse_seeds.write(partly).read_text()


WRONG = {
    "no seeds": ({}, None, "`seeds` must be a list of at least one whole number"),
    "twice": ({}, [1, 1], "`seeds` must be different, found \\[1, 1\\]"),
    "range": ({"sparsify": {"sparsity": 1.5}}, [0], "`sparsify`: `sparsity` must be between 0 and 1"),
    "ceiling": ({"sparsify": {"sparsity": 0.5, "cap": 0.4}}, [0, 1], "`sparsity` must be at most 0.375"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, case):
    change, seeds, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        sparsify_seeds(QUICK | change, seeds=seeds, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_studies_of_one_seed_and_of_several_keep_apart(found, tmp_path):
    with pytest.raises(ValueError, match=r"must hold no studies of several seeds, found seeds\.json"):
        sparsify(QUICK, folder=found.folder, progress=False)
    (tmp_path / "search").mkdir()
    with pytest.raises(ValueError, match="must hold no study of one seed, found one"):
        sparsify_seeds(QUICK, seeds=[0], folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="takes one `seed`, found `seeds`"):
        sparsify(QUICK | {"seeds": [0]}, folder=tmp_path / "x", progress=False)
    with pytest.raises(ValueError, match=r"differs in sparsify\.sparsity"):
        sparsify_seeds(QUICK | {"sparsify": {"sparsity": 0.4}}, seeds=[3], folder=found.folder, progress=False)
    assert plan_seeds(QUICK | {"seeds": [4]}).configs.keys() == {4}
