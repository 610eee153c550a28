"""Small configurations: seconds of training in all."""

import copy

import pytest

HEAD = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 1}}
TRAIN = {
    "data": {"class_path": "CircleRhombus"},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [8]}},
            "heads": {"circle": HEAD, "rhombus": HEAD},
        },
    },
    "trainer": {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        "batch_size": 64,
        "callbacks": [{"class_path": "EarlyStopping", "init_args": {"patience": 50}}],
    },
    "epochs": 2,
}


@pytest.fixture(scope="session")
def train():
    """A train configuration of polytask's own classes; not to be changed."""
    return TRAIN


@pytest.fixture
def config():
    """The same, to be changed."""
    return copy.deepcopy(TRAIN)


@pytest.fixture
def study(config):
    return comparison(config)


def comparison(config):
    """Of two methods with two seeds."""
    schedule = {"class_path": "AlternateEpochs", "init_args": {"shared": 1, "specific": 1}}
    methods = {
        "single-task": {"model": {"class_path": "SingleTask"}},
        "ATE-SG 1/1": {"trainer": {"schedule": schedule}},
    }
    return config | {"methods": methods, "seeds": [0, 1], "baseline": "single-task"}
