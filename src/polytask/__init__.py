"""polytask: train one network for many tasks."""

import importlib
from typing import TYPE_CHECKING, Any

from polytask.launched import by_torchrun

if TYPE_CHECKING:
    from polytask import data, distillation, models, schedules, studies
    from polytask.balancing import Accumulator, aggregation, balance, scalarization
    from polytask.batch import Batch
    from polytask.callback import Callback
    from polytask.data import Arrays
    from polytask.metrics import Metric
    from polytask.objective import Objective
    from polytask.ranks import Ranks
    from polytask.studies import compare, front, group, load, sparsify
    from polytask.task import Prediction, Task, binary, classification, multilabel, regression
    from polytask.training import History, Interrupted, Trainer, callbacks

__version__ = "0.1.0"

__all__ = [
    "Accumulator", "Arrays", "Batch", "Callback", "History", "Interrupted", "Metric", "Objective", "Prediction",
    "Ranks", "Task", "Trainer", "aggregation", "balance", "binary", "callbacks", "classification", "compare", "data",
    "distillation", "front", "group", "load", "models", "multilabel", "regression", "scalarization", "schedules",
    "sparsify", "studies",
]  # fmt: skip

_HOMES = {
    "polytask": ("data", "distillation", "models", "schedules", "studies"),
    "polytask.balancing": ("Accumulator", "aggregation", "balance", "scalarization"),
    "polytask.batch": ("Batch",),
    "polytask.callback": ("Callback",),
    "polytask.data": ("Arrays",),
    "polytask.metrics": ("Metric",),
    "polytask.objective": ("Objective",),
    "polytask.ranks": ("Ranks",),
    "polytask.studies": ("compare", "front", "group", "load", "sparsify"),
    "polytask.task": ("Prediction", "Task", "binary", "classification", "multilabel", "regression"),
    "polytask.training": ("History", "Interrupted", "Trainer", "callbacks"),
}
"""Where each name is imported from when it is first used: a program waits for no more than it needs, and
`polytask --help` not even for torch."""

if by_torchrun():  # `ranks` must be imported before the process group is made, which a program may do next
    importlib.import_module("polytask.ranks")


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            module = importlib.import_module(f"{home}.{name}" if home == __name__ else home)
            globals()[name] = module if home == __name__ else getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
