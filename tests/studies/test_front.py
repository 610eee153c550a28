"""Front studies: what is planned, run, continued, and what is made of the points."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.studies import concave

import polytask as pt
from polytask.objective import Context
from polytask.studies import executors, read_front, run
from polytask.studies.executors import Job, StudyInterrupted, run_all
from polytask.studies.front import neighbours, plan
from polytask.studies.front_view import Point, default_reference, view
from polytask.studies.pareto import simplex_grid
from polytask.studies.store import RunRecord

ENDS = [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]


@pytest.fixture
def quick(config):
    """Three preferences between circle and rhombus, one epoch."""
    return config | {"epochs": 1, "front": {"vectors": ENDS}}


@pytest.fixture(scope="module")
def done(train, tmp_path_factory):
    """A finished front of two seeds."""
    folder = tmp_path_factory.mktemp("front")
    config = copy.deepcopy(train) | {"epochs": 1, "seeds": [0, 1], "front": {"vectors": ENDS}}
    return pt.front(config, folder=folder, jobs=1, progress=False)


def figures(front):
    return [(p.sweep, p.seed, p.vector, p.record.state, p.record.metrics) for p in front.points]


def weights(folder):
    return load_file(folder / "weights.safetensors")


# What is run


def test_every_vector_runs_in_both_sweeps_with_every_seed(done):
    assert [(p.sweep, p.seed, list(p.vector.values())) for p in done.points] == [
        (sweep, seed, vector) for sweep in ("Chebyshev", "Linear") for seed in (0, 1) for vector in ENDS
    ]
    assert done.objectives == ["circle", "rhombus"] and not done.failed
    assert figures(read_front(done.folder)) == figures(done)
    assert (done.folder / "Chebyshev" / "0.1-0.9" / "seed-1" / "weights.safetensors").is_file()


def test_the_sweeps_have_equal_budgets(done):
    """All but the balancer is the same, down to the examples seen and the weights at the start."""
    for first, second in zip(done.points[:6], done.points[6:], strict=True):
        one, other = (yaml.safe_load((p.record.folder / "config.yaml").read_text()) for p in (first, second))
        assert one["trainer"].pop("balancer")["init_args"]["preference"] == first.vector
        assert other["trainer"].pop("balancer")["init_args"]["weights"] == first.vector
        assert one == other
        assert first.record.epochs == second.record.epochs == 1
        assert first.record.cost["phases"]["joint"]["macs"] == second.record.cost["phases"]["joint"]["macs"]


def test_a_finished_front_is_not_repeated_and_a_changed_one_refused(done, train):
    config = copy.deepcopy(train) | {"epochs": 1, "seeds": [0, 1], "front": {"vectors": ENDS}}
    times = [path.stat().st_mtime_ns for path in sorted(done.folder.rglob("run.json"))]
    assert figures(pt.front(config, folder=done.folder, jobs=1, progress=False)) == figures(done)
    assert times == [path.stat().st_mtime_ns for path in sorted(done.folder.rglob("run.json"))]
    with pytest.raises(ValueError, match="epochs: 1 -> 2"):
        pt.front(config, folder=done.folder, jobs=1, overrides={"epochs": 2}, progress=False)


def test_an_interrupted_front_goes_on(quick, tmp_path, monkeypatch):
    made = executors.run
    count = iter(range(99))

    def stop(config, folder, **options):
        if next(count) == 2:
            raise pt.Interrupted(tmp_path / "last.ckpt", 15, 1, 2)
        return made(config, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(executors, "run", stop)
        with pytest.raises(StudyInterrupted, match="after 2 of 6 runs"):
            pt.front(quick, folder=tmp_path / "a", jobs=1, progress=False)
    assert len(read_front(tmp_path / "a").points) == 2
    resumed = pt.front(quick, folder=tmp_path / "a", jobs=1, progress=False)
    whole = pt.front(quick, folder=tmp_path / "b", jobs=1, progress=False)
    assert figures(resumed) == figures(whole)


@pytest.mark.slow
def test_a_killed_front_with_warm_starts_ends_the_same(quick, tmp_path):
    quick |= {"epochs": 12, "front": {"vectors": ENDS, "warm_start": True}}
    quick["trainer"]["batch_size"] = 8
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump(quick, sort_keys=False))
    words = [sys.executable, "-m", "polytask.cli", "front", str(path), "--out", str(tmp_path / "a"), "--jobs", "2"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        # the second round has begun: runs that start from the first one's weights
        while len(list(tmp_path.glob("a/*/*/*/last.ckpt"))) < 3 and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    resumed = pt.front(path, folder=tmp_path / "a", jobs=2, progress=False)
    whole = pt.front(path, folder=tmp_path / "b", jobs=1, progress=False)
    assert not resumed.failed and figures(resumed) == figures(whole)


def test_against_nothing_and_against_another_of_its_kind(quick):
    assert list(plan(quick, {"front.against": None}).configs) == ["Chebyshev"]
    made = plan(quick, {"front.against": {"class_path": "Chebyshev", "init_args": {"mu": 5}}})
    assert list(made.configs) == ["Chebyshev", "Chebyshev (against)"]
    smooth = plan(quick, {"front.method": "SmoothTchebycheff"})
    assert smooth.configs["SmoothTchebycheff"][0]["trainer"]["balancer"]["init_args"]["preference"]["circle"] == 0.1


def test_three_objectives_with_sparsity_among_them(quick, tmp_path):
    quick["model"]["init_args"]["trunk"]["init_args"]["widths"] = [8, 8]
    quick["trainer"]["objectives"] = [{"class_path": "GrOWL"}]
    quick["front"] = {
        "vectors": [[0.4, 0.4, 0.2], {"sparsity": 0.8, "circle": 0.1, "rhombus": 0.1}],
        "method": {"class_path": "Chebyshev", "init_args": {"normalise": ["sparsity"]}},
    }
    found = pt.front(quick, folder=tmp_path, jobs=1, progress=False)
    assert not found.failed, found.failed[0].error
    assert found.objectives == ["circle", "rhombus", "sparsity"]
    by_metric = found.view()
    assert [axis.key for axis in by_metric.axes] == ["circle/accuracy", "rhombus/accuracy", "sparsity/value"]
    assert [axis.maximise for axis in by_metric.axes] == [True, True, False]
    trainer = pt.load(found.points[0].record.folder)
    (penalty,) = trainer.objectives.values()
    batch = pt.Batch(torch.zeros(1, 2), {}, {}, "", None)
    value = penalty(Context(trainer.model, batch, None, {})).item()
    assert by_metric.curves[0].values["test"][0, 2] == pytest.approx(value, rel=1e-6)


def test_the_grid_and_files_give_vectors(quick, tmp_path):
    quick["front"] = {"divisions": 4, "least": 0.1}
    assert plan(quick).vectors == simplex_grid(["circle", "rhombus"], 4, 0.1)
    assert len(plan(quick, ["--front.divisions", "10"]).vectors) == 11
    (tmp_path / "k.csv").write_text("circle,rhombus\n.3,.7\n1,0\n")
    assert plan(quick, {"front.vectors": str(tmp_path / "k.csv")}).vectors[1] == {"circle": 1.0, "rhombus": 0.0}


# Where runs start


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9, unique_by=lambda share: round(share, 3)))
def test_of_two_objectives_each_starts_from_the_next_towards_the_middle(shares):
    vectors = [{"a": share, "b": 1 - share} for share in shares]
    before = neighbours(vectors)
    order = sorted(shares)
    assert set(before) == set(range(len(shares)))
    assert [number for number, one in before.items() if one is None] == [next(iter(before))]
    reached = []
    for number, neighbour in before.items():
        assert neighbour is None or neighbour in reached
        if neighbour is not None:
            assert abs(order.index(shares[number]) - order.index(shares[neighbour])) == 1
        reached.append(number)


def test_a_warm_start_takes_the_neighbours_weights(quick, tmp_path):
    quick["front"]["warm_start"] = True
    quick["trainer"]["optimizer"]["init_args"]["lr"] = 1e-30  # so that nothing moves
    found = pt.front(quick, folder=tmp_path, jobs=1, progress=False)
    assert found.warm_start and not found.failed
    starts = {p.vector["circle"]: p.record.start for p in found.points if p.sweep == "Linear"}
    assert starts[0.5] == "" and starts[0.1] == starts[0.9] != ""
    middle, end = (weights(tmp_path / "Linear" / name / "seed-0") for name in ("0.5-0.5", "0.9-0.1"))
    assert all(torch.equal(middle[name], end[name]) for name in middle)
    config = yaml.safe_load((tmp_path / "Linear" / "0.9-0.1" / "seed-0" / "config.yaml").read_text())
    assert config["start"] == str(tmp_path / "Linear" / "0.5-0.5" / "seed-0")


def test_a_moved_folder_goes_on_and_other_weights_to_start_from_are_told(quick, tmp_path):
    quick["front"] |= {"warm_start": True, "against": None}
    pt.front(quick, folder=tmp_path / "a", jobs=1, progress=False)
    (tmp_path / "a").rename(tmp_path / "b")
    assert not pt.front(quick, folder=tmp_path / "b", jobs=1, progress=False).failed
    place = tmp_path / "b" / "Chebyshev" / "0.5-0.5" / "seed-0" / "weights.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(place).items()}, place)
    with pytest.raises(ValueError, match="start: other weights than now in"):
        pt.front(quick, folder=tmp_path / "b", jobs=1, progress=False)


def test_a_run_whose_neighbour_failed_fails_and_the_others_go_on(quick, tmp_path, monkeypatch):
    made = executors.run

    def broken(config, folder, **options):
        balancer = config["trainer"]["balancer"]
        if balancer["class_path"].endswith("Linear") and balancer["init_args"]["weights"]["circle"] == 0.5:
            raise KeyError("digit")
        return made(config, folder, **options)

    monkeypatch.setattr(executors, "run", broken)
    quick["front"]["warm_start"] = True
    found = pt.front(quick, folder=tmp_path, jobs=1, progress=False)
    assert [p.sweep for p in found.points if p.record.state == "done"] == ["Chebyshev"] * 3
    assert found.view().volumes("Chebyshev", "test") == [found.view().curves[0].volumes["test"]]


def sparse_run(config, folder):
    """A run whose hidden units 1, 4 and 5 are dead as inputs of the second layer."""
    config["model"]["init_args"]["trunk"]["init_args"]["widths"] = [8, 8]
    run(config, folder)
    state = weights(folder)
    (name,) = (name for name, tensor in state.items() if name.startswith("trunk") and tensor.shape == (8, 8))
    state[name][:, [1, 4, 5]] = 0
    save_file(state, folder / "weights.safetensors")
    return name


def test_rows_dead_at_the_start_stay_dead_and_the_rest_moves(quick, tmp_path):
    base = {key: value for key, value in quick.items() if key != "front"}
    name = sparse_run(base, tmp_path / "sparse")
    start = weights(tmp_path / "sparse")[name]
    quick["start"] = str(tmp_path / "sparse")
    found = pt.front(quick, folder=tmp_path / "front", jobs=1, progress=False)
    for point in found.points:
        tensor = weights(point.record.folder)[name]
        assert torch.equal(tensor == 0, start == 0)
        assert not torch.equal(tensor, start)
    loose = pt.front(quick, folder=tmp_path / "loose", overrides={"front.keep_dead": False}, jobs=1, progress=False)
    assert all((weights(point.record.folder)[name] != 0).any(0).all() for point in loose.points)


def test_a_start_without_dead_rows_asks_for_no_layers_in_play(quick, tmp_path):
    """This network has none. The start of each seed may be one of its own, and none of seed 0."""
    base = {key: value for key, value in quick.items() if key != "front"}
    run(base, tmp_path / "dense-1", overrides={"seed": 1})
    quick |= {"start": str(tmp_path / "dense-{seed}"), "seeds": [1]}
    assert "KeepDead" not in str(plan(quick).configs)
    found = pt.front(quick, folder=tmp_path / "front", jobs=1, progress=False)
    assert len(found.points) == 6 and not found.failed
    assert "KeepDead" in str(plan(quick, {"front.keep_dead": True}).configs)


def test_a_start_that_does_not_fit_is_refused_and_nothing_written(quick, tmp_path):
    base = {key: value for key, value in quick.items() if key != "front"}
    run(base, tmp_path / "other", overrides={"model.init_args.trunk.init_args.widths": [8, 8]})
    for start, kind, message in (
        (tmp_path / "other", ValueError, "`start`: .* must hold this model's weights"),
        (tmp_path / "none", FileNotFoundError, "`start`: weights to load must exist"),
    ):
        with pytest.raises(kind, match=message):
            pt.front(quick | {"start": str(start)}, folder=tmp_path / "x", jobs=1)
        with pytest.raises(kind, match=message):
            run(base | {"start": str(start)}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_job_must_wait_for_one_listed_before(tmp_path):
    todo = [Job("a", {"seed": 0, "threads": 1}, tmp_path / "a", after=tmp_path / "b")]
    with pytest.raises(ValueError, match="must wait for one listed before it"):
        run_all(todo, jobs=1, progress=False)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": [[0.5, 0.6]]}, "preference 1 must sum to 1, found 1.1"),
        ({"vectors": [[1.5, -0.5]]}, "preference 1 must hold numbers of at least 0"),
        ({"vectors": [[0.2, 0.3, 0.5]]}, "one number per objective"),
        ({"vectors": [[0.0, 0.0]]}, "must sum to 1, found 0"),
        ({"vectors": [{"circle": 1, "rombus": 0}]}, "must name the objectives"),
        ({"vectors": 3}, "must be a list of preferences or a file"),
        ({"divisions": 0, "vectors": None}, "`divisions` must be at least 1, found 0"),
        ({"least": 0.5, "vectors": None}, "`least` must be at least 0 and below 1/2"),
        ({"objectives": ["circle", "rombus"]}, "unknown objective `rombus`: did you mean `rhombus`"),
        ({"objectives": ["circle"]}, "must name every task and objective once"),
        ({"reference": {"loss": [1.0]}}, "one number for each objective .*, found 1 numbers"),
        ({"reference": {"loss": {"circle": 1.0}}}, "one number for each objective"),
        ({"reference": {"loss": {"circle": 1.0, "square": 1.0}}}, "unknown objective `square`"),
        ({"reference": {"los": [1.0, 1.0]}}, "unknown key `los`: did you mean `loss`"),
        ({"reference": {"loss": [1.0, "x"]}}, "must hold finite numbers, found 'x'"),
        ({"reference": [1.0, 1.0]}, "must be a mapping of `metric` and `loss`"),
        ({"method": "MGDA"}, "must be a scalarizer, found `MGDA`"),
        ({"method": "FAMO"}, "must take a `preference` or `weights`, found `FAMO`"),
        ({"method": "Linear"}, "must differ from `front.method`"),
        ({"method": {"class_path": "Chebyshev", "init_args": {"preference": [0.5, 0.5]}}}, "is given its `preference`"),
        ({"method": {"class_path": "Chebyshev", "init_args": {"mu": -1}}}, "Chebyshev: .*`mu` must be above 0"),
        ({"method": {"class_path": "Chebyshef"}}, "did you mean `Chebyshev`"),
        ({"divison": 3}, "unknown key `front.divison`: did you mean `divisions`"),
    ],
)
def test_a_wrong_front_is_refused_and_nothing_written(quick, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pt.front(quick | {"front": {"vectors": ENDS} | change}, folder=tmp_path / "x", jobs=1)
    assert not (tmp_path / "x").exists()


def test_a_balancer_beside_the_front_and_seeds_twice_are_refused(quick):
    with pytest.raises(ValueError, match=r"name it as `front\.method`"):
        plan(quick, {"trainer.balancer": "FAMO"})
    with pytest.raises(ValueError, match="`seeds` must be different"):
        plan(quick, seeds=[1, 1])


def test_reading_what_is_no_front_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold front\.json"):
        read_front(tmp_path)
    for text in ("{", "[]", json.dumps({"objectives": []})):
        (tmp_path / "front.json").write_text(text)
        with pytest.raises(ValueError, match="damaged"):
            read_front(tmp_path)


# What is made of the points

TASKS = [
    {"name": name, "metric": "accuracy", "higher_is_better": True, "kind": "binary", "outputs": 1}
    for name in ("a", "b")
]


def points(validation, test=None, sweep="Chebyshev", seed=0):
    """Runs with given accuracies; their losses are 1 minus these."""

    def part(values):
        return {f"{n}/accuracy": v for n, v in zip("ab", values, strict=True)} | {
            f"{n}/loss": 1 - v for n, v in zip("ab", values, strict=True)
        }

    found = []
    for number, (known, held) in enumerate(zip(validation, test or validation, strict=True)):
        record = RunRecord(sweep, seed, "done", TASKS, {"validation": part(known), "test": part(held)})
        found.append(Point(sweep, seed, {"a": float(number), "b": 1.0 - number}, record))
    return found


def seen(found, kind="metric", reference=None, sweeps=("Chebyshev",), seeds=(0,)):
    return view(found, ["a", "b"], list(sweeps), list(seeds), kind, reference)


def test_hypervolume_of_a_known_front():
    """Two boxes over (0, 0), .2 × .8 and .6 × .4, which share .2 × .4; the third point lies within the second."""
    found = points([(0.2, 0.8), (0.6, 0.4), (0.5, 0.3)])
    one = seen(found, reference={"a": 0.0, "b": 0.0}).curves[0]
    assert one.chosen == [True, True, False]
    assert one.volumes["validation"] == pytest.approx(0.2 * 0.8 + 0.6 * 0.4 - 0.2 * 0.4)
    by_loss = seen(found, "loss", {"a": 1.0, "b": 1.0}).curves[0]
    assert by_loss.volumes == pytest.approx(one.volumes) and by_loss.chosen == one.chosen


def test_validation_chooses_and_test_only_reports():
    """The point that is best on test is dominated on validation, so it adds nothing on test."""
    found = points([(0.5, 0.5), (0.4, 0.4)], test=[(0.3, 0.3), (0.9, 0.9)])
    one = seen(found, reference={"a": 0.0, "b": 0.0}).curves[0]
    assert one.chosen == [True, False] and one.volumes["test"] == pytest.approx(0.3 * 0.3)


def test_the_default_reference_is_that_of_all_sweeps_and_no_dominated_points():
    found = points([(0.2, 0.8), (0.6, 0.4), (0.0, 0.0)]) + points([(0.1, 0.9), (0.3, 0.3), (0.0, 0.1)], sweep="Linear")
    both = seen(found, sweeps=("Chebyshev", "Linear"))
    assert both.reference == pytest.approx([0.1 - 0.05, 0.3 - 0.06]) and not both.given
    assert {curve.volumes["validation"] > 0 for curve in both.curves} == {True}
    assert default_reference([[[1.0, 2.0]]], [False, True]) == pytest.approx([1.1, 1.8])


def test_only_seeds_that_are_whole_in_both_sweeps_are_compared():
    whole = points([(0.2, 0.8), (0.6, 0.4)])
    part = points([(0.2, 0.8), (0.6, 0.4)], seed=1)
    part[1].record.state = "failed"
    linear = [p for seed in (0, 1) for p in points([(0.1, 0.7), (0.5, 0.3)], sweep="Linear", seed=seed)]
    both = seen(whole + part + linear, sweeps=("Chebyshev", "Linear"), seeds=(0, 1))
    assert [len(both.volumes(sweep, "test")) for sweep in ("Chebyshev", "Linear")] == [1, 1]
    assert [curve.complete for curve in both.curves] == [True, False, True, True]


def test_a_run_without_finite_figures_is_left_out():
    found = points([(0.2, 0.8), (float("nan"), 0.4)])
    assert len(seen(found).curves[0].points) == 1
    with pytest.raises(ValueError, match="at least one finished run with finite figures"):
        seen(found[1:])


# The concave problem of two objectives: the sum finds its ends only


def test_chebyshev_traces_a_concave_front_and_the_sum_does_not(tmp_path):
    found = pt.front(concave.config(), folder=tmp_path, jobs=1, progress=False)
    assert not found.failed, found.failed[0].error
    by_loss = found.view("loss")
    chebyshev, linear = by_loss.curves
    assert chebyshev.chosen == [True] * 3
    for point, (first, second) in zip(chebyshev.points, chebyshev.values["validation"], strict=True):
        assert abs(point.vector["left"] * first - point.vector["right"] * second) <= 0.005
    ends = concave.ENDS
    assert all(min(np.abs(row - end).max() for end in ends) < 0.01 for row in linear.values["validation"])
    assert by_loss.volumes("Chebyshev", "test")[0] > by_loss.volumes("Linear", "test")[0]


EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/front_*.yaml"))
EXAMPLES = [path for path in EXAMPLES if "start:" not in path.read_text()]  # that one: test_front_sparse.py


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_sound_front(path):
    made = plan(path)
    assert list(made.configs) == ["Chebyshev", "Linear"] and len(made.vectors) >= 7
