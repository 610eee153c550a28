"""Training: the trainer, its loop, history, checkpoints and callbacks."""

from polytask.training.history import History
from polytask.training.run import Run
from polytask.training.signals import Interrupted
from polytask.training.trainer import Trainer

__all__ = ["History", "Interrupted", "Run", "Trainer"]
