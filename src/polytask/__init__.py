"""polytask: train one network for many tasks."""

import importlib
from typing import TYPE_CHECKING, Any

from polytask import data, distillation, models, schedules
from polytask.balancing import Accumulator, aggregation, balance, scalarization
from polytask.batch import Batch
from polytask.callback import Callback
from polytask.data import Arrays
from polytask.metrics import Metric
from polytask.objective import Objective
from polytask.ranks import Ranks
from polytask.task import Prediction, Task, binary, classification, multilabel, regression
from polytask.training import History, Interrupted, Trainer, callbacks

if TYPE_CHECKING:
    from polytask import studies
    from polytask.studies import compare, front, group, load, sparsify

__version__ = "0.1.0"

__all__ = [
    "Accumulator", "Arrays", "Batch", "Callback", "History", "Interrupted", "Metric", "Objective", "Prediction",
    "Ranks", "Task", "Trainer", "aggregation", "balance", "binary", "callbacks", "classification", "compare", "data",
    "distillation", "front", "group", "load", "models", "multilabel", "regression", "scalarization", "schedules",
    "sparsify", "studies",
]  # fmt: skip

_STUDIES = ("compare", "front", "group", "load", "sparsify")


def __getattr__(name: str) -> Any:
    # studies bring the configuration parser along, which most programs that import polytask never need
    if name == "studies" or name in _STUDIES:
        studies = importlib.import_module("polytask.studies")
        return studies if name == "studies" else getattr(studies, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
