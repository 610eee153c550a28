"""polytask: train one network for many tasks."""

from polytask import data, models, schedules
from polytask.balancing import aggregation, balance, scalarization
from polytask.callback import Callback
from polytask.data.arrays import Arrays
from polytask.metrics import Metric
from polytask.objective import Objective
from polytask.task import Prediction, Task, binary, classification, multilabel, regression
from polytask.training import History, Interrupted, Trainer, callbacks

__version__ = "0.1.0"

__all__ = [
    "Arrays", "Callback", "History", "Interrupted", "Metric", "Objective", "Prediction", "Task", "Trainer",
    "aggregation", "balance", "binary", "callbacks", "classification", "data", "models", "multilabel",
    "regression", "scalarization", "schedules",
]  # fmt: skip
