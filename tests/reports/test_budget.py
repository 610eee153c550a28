"""Equal epochs and equal seconds, on histories whose cuts can be read off by eye."""

import pytest

from polytask import History
from polytask.reports.budget import equal_budgets
from polytask.reports.summary import summarize
from polytask.reports.tables import budget_table, markdown


@pytest.fixture
def run(record, tmp_path):
    def make(method, seconds, losses, accuracies, seed=0):
        made = record(method, seed, {"a/accuracy": 0.5}, tasks=("a",))
        made.folder = tmp_path / f"{method}-{seed}"
        made.folder.mkdir()
        rows = zip(losses, accuracies, strict=True)
        History(
            {"epoch": i, "validation/loss": loss, "validation/a/accuracy": accuracy, "seconds": seconds}
            for i, (loss, accuracy) in enumerate(rows, 1)
        ).write_csv(made.folder / "history.csv")
        return made

    return make


def test_every_method_is_cut_at_the_shortest_history(run):
    slow = run("slow", 2.0, [0.9, 0.5, 0.4], [0.1, 0.2, 0.3])
    fast = run("fast", 1.0, [0.8, 0.6, 0.7, 0.3, 0.2], [0.4, 0.5, 0.6, 0.7, 0.8])
    epochs, seconds = equal_budgets(summarize([slow, fast]))
    assert (epochs.unit, epochs.limit, seconds.unit, seconds.limit) == ("epochs", 3, "seconds", 5)
    assert epochs.figures["slow"]["a/accuracy"].mean == 0.3
    assert epochs.figures["fast"]["a/accuracy"].mean == 0.5  # the lowest loss of three, not the last
    assert seconds.figures["slow"]["a/accuracy"].mean == 0.2  # two whole epochs fit into five seconds
    assert seconds.figures["fast"]["a/accuracy"].mean == 0.8


def test_a_method_too_slow_for_one_epoch_shows_nothing(run):
    slow = run("slow", 10.0, [0.9], [0.1])
    fast = run("fast", 1.0, [0.8], [0.4])
    _, seconds = equal_budgets(summarize([slow, fast]))
    assert seconds.figures["slow"]["a/accuracy"].mean is None
    assert seconds.figures["fast"]["a/accuracy"].mean == 0.4


def test_spread_is_over_seeds(run):
    runs = [run("m", 1.0, [0.5], [value], seed) for seed, value in enumerate((0.2, 0.4))]
    runs += [run("n", 1.0, [0.5], [0.1], seed) for seed in range(2)]
    epochs, _ = equal_budgets(summarize(runs))
    assert epochs.figures["m"]["a/accuracy"].mean == pytest.approx(0.3)
    assert epochs.figures["m"]["a/accuracy"].spread == pytest.approx(0.02**0.5)


def test_without_histories_or_a_second_method_there_is_no_table(run, record):
    alone = run("only", 1.0, [0.5], [0.1])
    assert equal_budgets(summarize([alone])) == []
    bare = [record("one", 0, {"a/accuracy": 0.5}, tasks=("a",)), record("two", 0, {"a/accuracy": 0.5}, tasks=("a",))]
    assert budget_table(summarize(bare)) == ([], [])
    assert "on validation data" not in markdown(bare)
