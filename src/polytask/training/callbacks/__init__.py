"""What happens between updates."""

from polytask.callback import Callback, UpdateInfo
from polytask.training.callbacks.affinity import Affinity
from polytask.training.callbacks.checkpoint import Checkpoint
from polytask.training.callbacks.early_stopping import EarlyStopping
from polytask.training.callbacks.gradient_cosines import GradientCosines
from polytask.training.callbacks.loggers import CSVLogger, TensorBoard
from polytask.training.callbacks.lsuv import LSUV
from polytask.training.callbacks.prediction_correlation import PredictionCorrelation
from polytask.training.callbacks.progress import Progress
from polytask.training.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from polytask.training.callbacks.stop_on_non_finite import StopOnNonFinite

__all__ = [
    "LSUV", "Affinity", "CSVLogger", "Callback", "Checkpoint", "EarlyStopping", "GradientCosines",
    "PredictionCorrelation", "Progress", "ReduceLROnPlateau", "StopOnNonFinite", "TensorBoard", "UpdateInfo",
]  # fmt: skip
