"""The front of a sparse network: what the search removed stays removed for every preference."""

import copy
from pathlib import Path

import pytest
import torch
from tests.studies.test_sparsify import CONFIG, ROWS, changed, weights

import polytask as pt
from polytask.studies import spec
from polytask.studies.front import plan

VECTORS = [[0.3, 0.7], [0.7, 0.3]]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    torch.set_num_threads(1)
    config = changed(method="magnitude", sharing=None, search_epochs=1) | {"epochs": 2}
    return pt.sparsify(config, folder=tmp_path_factory.mktemp("sparse") / "run", progress=False)


def of_front(start):
    config = {key: copy.deepcopy(value) for key, value in CONFIG.items() if key != "sparsify"}
    return config | {"epochs": 1, "start": str(start), "front": {"vectors": VECTORS}}


@pytest.mark.parametrize("stage", ["search", pytest.param("retrain", marks=pytest.mark.slow)])
def test_dead_rows_stay_dead_to_the_bit_for_every_vector(sparse, tmp_path, stage):
    start = weights(sparse.folder / stage)
    found = pt.front(of_front(sparse.folder / stage), folder=tmp_path / "front", jobs=1, progress=False)
    assert not found.failed and len(found.points) == 4
    rows = dead = 0
    for point in found.points:
        ended = weights(point.record.folder)
        for layer in ROWS:
            before, after = start[f"{layer}.weight"], ended[f"{layer}.weight"]
            gone = (before == 0).all(0)
            assert torch.equal((after == 0).all(0), gone) and not torch.equal(before, after)
            rows, dead = rows + len(gone), dead + int(gone.sum())
    assert dead / rows == sparse.found >= 0.5
    assert {point.record.start for point in found.points} == {spec.digest(sparse.folder / stage)}


def test_the_dead_are_kept_unless_told_otherwise(sparse):
    made = plan(of_front(sparse.folder / "search"))
    callbacks = [c["class_path"] for config in made.configs["Chebyshev"] for c in config["trainer"]["callbacks"]]
    assert [name.rsplit(".", 1)[-1] for name in callbacks] == ["KeepDead"] * 2
    loose = plan(of_front(sparse.folder / "search"), {"front.keep_dead": False})
    assert not loose.configs["Chebyshev"][0]["trainer"]["callbacks"]


def test_the_compact_network_has_other_shapes_and_is_refused(sparse, tmp_path):
    with pytest.raises(ValueError, match=r"`start`: .* must hold this model's weights"):
        pt.front(of_front(sparse.folder / "compact"), folder=tmp_path / "x", jobs=1)
    assert not (tmp_path / "x").exists()


def test_the_example_starts_where_the_other_example_ends():
    front, sparsify = (
        spec.read_config(Path(__file__).parents[2] / "examples" / f"{name}.yaml")
        for name in ("front_sparse_multimnist", "sparsify_multimnist")
    )
    assert front["start"] == "runs/sparsify_multimnist/search"
    assert front["model"] == sparsify["model"] and front["data"] == sparsify["data"]
    assert front["trainer"]["scheduler"]["init_args"]["T_max"] == front["epochs"]
    spec.build(spec.resolve({key: value for key, value in front.items() if key not in ("front", "start", "seeds")}))
