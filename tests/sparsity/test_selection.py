"""Which epoch of a search is kept."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import SaveAll, adam, data, network, same, trainer

from polytask.sparsity import BestSparse, Magnitude


class Fit:
    """A run of given shares and losses, with what `BestSparse` uses of a run."""

    def __init__(self, callback, removal):
        self.callbacks = [removal, callback]
        self.epoch = 0
        self.weights = -1
        self.notes = []

    def direction(self, monitor):
        return "min" if monitor.endswith("loss") else "max"

    def note(self, column, value):
        self.notes.append((column, value))

    def snapshot(self):
        return {"weights": torch.tensor(self.epoch)}

    def restore(self, snapshot):
        self.weights = int(snapshot["weights"])


def kept(shares, values, monitor="validation/loss", again_after=None):
    """The epoch (from 1) whose weights are put back; the callback's state goes through a checkpoint if told to."""
    removal = SimpleNamespace(trace=[], describe=dict)
    callback = BestSparse(removal, 0.5, monitor)
    fit = Fit(callback, removal)
    callback.on_fit_start(fit)
    for fit.epoch, (share, value) in enumerate(zip(shares, values, strict=True)):
        removal.trace.append(share)
        callback.on_epoch_end(fit, {monitor: value})
        if fit.epoch == again_after:
            state = callback.state_dict()
            callback = BestSparse(removal, 0.5, monitor)
            fit.callbacks = [removal, callback]
            callback.on_fit_start(fit)
            callback.load_state_dict(state)
    assert fit.notes == [("dead_rows", share) for share in shares]
    callback.on_fit_end(fit)
    assert callback.selected_epoch == (fit.weights + 1 or None)
    return fit.weights + 1


@pytest.mark.parametrize("again_after", [None, 0, 1, 2])
@pytest.mark.parametrize(
    ("shares", "losses", "epoch"),
    [
        ([0.0, 0.5, 0.7, 0.5], [0.1, 0.4, 0.3, 0.35], 3),  # the best of the sparse enough, not the best of all
        ([0.5, 0.5, 0.9, 0.5], [0.4, 0.3, 0.31, 0.3], 2),  # more than enough is no merit; the first of equals
        ([0.1, 0.4, 0.4, 0.3], [0.1, 0.4, 0.3, 0.2], 3),  # never enough: the sparsest, and of those the best
        ([0.0, 0.5, 0.5, 0.5], [0.1, math.nan, math.inf, 0.9], 4),  # figures that are none are left out
        ([0.5, 0.5, 0.5, 0.5], [math.nan] * 4, 0),
    ],
)
def test_the_best_of_the_sparse_enough_is_kept(shares, losses, epoch, again_after):
    assert kept(shares, losses, again_after=again_after) == epoch


def test_the_metric_says_which_way_is_better():
    assert kept([0.5, 0.5, 0.5], [0.7, 0.9, 0.8], monitor="validation/a/accuracy") == 2


def test_weights_of_the_kept_epoch_come_back(tmp_path):
    removal = Magnitude(0.5, until=0.4, rises=2)
    callback, keeper = BestSparse(removal, 0.5, "validation/loss"), SaveAll(tmp_path)
    run = trainer(network(), callbacks=[removal, callback, keeper], optimizer=adam())
    history = run.fit(data(), data(8, seed=1), epochs=6)
    enough = [row for row in history if row["dead_rows"] >= 0.5]
    best = min(enough, key=lambda row: row["validation/loss"])["epoch"]
    assert callback.selected_epoch == best and len(enough) < len(history)
    saved = torch.load(tmp_path / f"{best}.ckpt", weights_only=True)["state"]["weights"]
    assert same(run.model.state_dict(), {k.removeprefix("model/"): v for k, v in saved.items()})


def test_its_removal_must_come_first_and_numbers_be_in_range():
    removal = Magnitude(0.5)
    run = trainer(network(), callbacks=[BestSparse(removal, 0.5), removal])
    with pytest.raises(ValueError, match="needs its `removal` before it"):
        run.fit(data(), data(8, seed=1), epochs=1)
    with pytest.raises(ValueError, match="`sparsity` must be between 0 and 1, found 1"):
        BestSparse(removal, 1.0)
    with pytest.raises(ValueError, match="needs validation data"):
        trainer(network(), callbacks=[removal, BestSparse(removal, 0.5)]).fit(data(), epochs=1)
