"""L_1,2 = 1 − exp(−‖x ∓ 1/√3‖²), x in R³, as a data set of two tasks and a network of three weights."""

import math

import torch

import polytask as pt
from polytask.data.base import DataSet, Split, Splits

STEPS = 100
PLACE = 1 / math.sqrt(3)
FAR = 1 - math.exp(-4.0)
ENDS = ((0.0, FAR), (FAR, 0.0))
"""What the sum reaches: the one minimum or the other."""


def distance(prediction, target):
    """1 − exp(−‖x − target‖²), one value per example."""
    return 1 - (-(prediction - target).square().sum(-1)).exp()


class Places(DataSet):
    """One example, many times for training, whose targets are the two minima."""

    tasks = (
        pt.regression("left", 3, loss=distance, metric="mae"),
        pt.regression("right", 3, loss=distance, metric="mae"),
    )

    def load(self) -> Splits:
        return Splits(*(_split(size) for size in (STEPS, 1, 1)))


def _split(size):
    targets = {"left": torch.full((size, 3), PLACE), "right": torch.full((size, 3), -PLACE)}
    return Split(torch.ones(size, 1), targets)


def config():
    """Three preferences, 1,200 steps of Adam."""
    return {
        "data": {"class_path": "tests.studies.concave.Places"},
        "model": {  # its prediction is its three weights, for both tasks
            "class_path": "HardSharing",
            "init_args": {
                "trunk": {
                    "class_path": "torch.nn.Linear",
                    "init_args": {"in_features": 1, "out_features": 3, "bias": False},
                },
                "heads": {"left": "torch.nn.Identity", "right": "torch.nn.Identity"},
            },
        },
        "trainer": {
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
            "batch_size": 1,
            "train_metrics": False,
        },
        "epochs": 12,
        "front": {"divisions": 2, "least": 0.2},
    }
