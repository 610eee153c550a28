"""Preference vectors, non-dominated points, hypervolume."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.studies.pareto import check_vectors, hypervolume, non_dominated, read_vectors, simplex_grid


@given(st.integers(2, 4), st.integers(1, 6))
def test_grid_is_the_whole_lattice(count, divisions):
    names = [f"t{i}" for i in range(count)]
    grid = simplex_grid(names, divisions)
    assert len(grid) == math.comb(divisions + count - 1, count - 1)
    assert len({tuple(v.values()) for v in grid}) == len(grid)
    assert all(abs(sum(v.values()) - 1) < 1e-6 and min(v.values()) >= 0 for v in grid)


def test_least_keeps_every_entry_above():
    grid = simplex_grid(["a", "b", "c"], 4, least=0.05)
    assert min(min(v.values()) for v in grid) == pytest.approx(0.05)
    assert check_vectors(grid, ["a", "b", "c"]) == grid


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_non_dominated_by_definition(points):
    def dominated(p):
        return any(all(b <= a for a, b in zip(p, q, strict=True)) and q != p for q in points)

    assert non_dominated(points) == [not dominated(p) for p in points]


def test_directions_turn_columns_around():
    points = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.05]])
    assert non_dominated(points, [True, False]) == non_dominated(points * [-1, 1])
    assert hypervolume(points, [0, 1], [True, False]) == pytest.approx(hypervolume(points * [-1, 1], [0, 1]))


def test_hypervolume_of_boxes_by_inclusion_and_exclusion():
    assert hypervolume([[1, 3], [2, 2], [5, 5]], [4, 4]) == pytest.approx(3 * 1 + 2 * 2 - 2 * 1)


def test_adding_a_dominated_point_changes_nothing():
    points = [[1, 3], [2, 2]]
    assert hypervolume([*points, [2, 3]], [4, 4]) == hypervolume(points, [4, 4])


def test_vectors_from_files(tmp_path):
    (tmp_path / "k.csv").write_text("left,right\n.3,.7\n1,0\n")
    (tmp_path / "k.json").write_text('[[0.3, 0.7], {"right": 0, "left": 1}]')
    wanted = [{"left": 0.3, "right": 0.7}, {"left": 1.0, "right": 0.0}]
    assert read_vectors(tmp_path / "k.csv", ["left", "right"]) == wanted
    assert read_vectors(tmp_path / "k.json", ["left", "right"]) == wanted


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5, 0.6]], "preference 1 must sum to 1, found 1.1"),
        ([[1.0, 0.0], [-0.5, 1.5]], "preference 2 must hold numbers of at least 0"),
        ([[0.2, 0.3, 0.5]], "one number per objective"),
        ([[0.0, 0.0]], "must sum to 1, found 0"),
        ([{"left": 1.0, "write": 0.0}], "must name the objectives"),
        ([[1, 0], [1.0, 0.0]], "must be different"),
        ([["a", 1]], "numbers of at least 0"),
        ([7], "a list or a mapping"),
        ([], "at least one preference"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        check_vectors(rows, ["left", "right"])


@pytest.mark.parametrize("text", ["", "{", '{"left": 1}', "[["])
def test_damaged_files_are_refused(tmp_path, text):
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(ValueError, match=r"k\.json must hold"):
        read_vectors(tmp_path / "k.json", ["left", "right"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("left,right\n.3,.7\n.3\n", r"line 3 must have a number for each of \['left', 'right'\], found 1"),
        ("left,right\n.3,.7,1\n", "line 2 must .*, found 3"),
        ("left,right\n.3,x\n", "could not convert string to float: 'x'"),
        ("left,left\n.3,.7\n", r"header must name each objective once, found \['left', 'left'\]"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, found):
    (tmp_path / "k.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"k\.csv must hold preferences as JSON or CSV, found .*{found}"):
        read_vectors(tmp_path / "k.csv", ["left", "right"])


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        non_dominated([[1.0, math.nan]])
    with pytest.raises(ValueError, match="must have 2 numbers"):
        hypervolume([[1, 2]], [1, 2, 3])
    with pytest.raises(ValueError, match="at least 2 objectives"):
        simplex_grid(["left"], 3)
    with pytest.raises(ValueError, match=r"below 1/2, found 0\.5"):
        simplex_grid(["a", "b"], 3, least=0.5)
