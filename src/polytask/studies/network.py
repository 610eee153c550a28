"""Whether a network takes the data and has heads as wide as the tasks, before anything is written."""

from __future__ import annotations

import logging

from torch import Tensor

from polytask.data.base import Split, Splits, as_splits
from polytask.data.sparse import SparseRows, is_sparse
from polytask.models.base import Model
from polytask.models.encoders import MLP
from polytask.studies import spec
from polytask.training.misfit import Misfit
from polytask.training.trainer import Trainer

logger = logging.getLogger("polytask")


def splits_of(built: spec.Built) -> Splits:
    """The data of a run, read or made."""
    return as_splits(built.data.load(), type(built.data).__name__)


def check_network(built: spec.Built, splits: Splits) -> None:
    """Refuses, before anything is written, a network of other widths than the data's.

    Looked at for every source whose inputs are one tensor or sparse matrix; others are told apart by training itself.

    Raises:
        ValueError: it does not take the inputs, or a head has another width than its task.
    """
    train = splits.train
    for source, split in ({"": train} if isinstance(train, Split) else train).items():
        inputs = SparseRows(split.inputs) if is_sparse(split.inputs) else split.inputs
        if isinstance(inputs, (Tensor, SparseRows)) and len(inputs):
            _check_source(built.trainer, inputs[:2], source)


def _check_source(trainer: Trainer, inputs: Tensor, source: str) -> None:
    shape, whose = tuple(inputs.shape[1:]), f" from source `{source}`" if source else ""
    try:
        found = trainer.predict(inputs, source)
    except Misfit as error:
        hint = f" (`inputs: {shape[0]}` of a first MLP)" if len(shape) == 1 and _in_mlp(trainer.model, error) else ""
        raise ValueError(
            f"the network must take examples of shape {shape}{whose}{hint}, as the data have, found: {error}"
        ) from error
    except Exception:
        # A user's own class may raise anything. Only a wrong width is refused here; what else breaks a run breaks its
        # training too, which records it as failed, and the other runs of a study go on.
        logger.debug("the network could not be looked at before training", exc_info=True)
        return
    for name, prediction in found.items():
        wanted = trainer.tasks[name].outputs
        if prediction.outputs.dim() == 2 and prediction.outputs.shape[1] != wanted:
            raise ValueError(
                f"the head of task `{name}` must have {wanted} outputs, found {prediction.outputs.shape[1]}"
            )


def _in_mlp(model: Model, error: Misfit) -> bool:
    """Whether it is an MLP's first layer that refused."""
    parent, _, place = error.layer.rpartition(".")
    return place == "0" and isinstance(model.get_submodule(parent), MLP)


def check_first_losses(built: spec.Built, splits: Splits) -> None:
    """Refuses, before anything is written, what cannot make a first step, such as a teacher of other widths.

    Raises:
        ValueError: data, network, objectives or callbacks do not fit together.
        TypeError: likewise.
    """
    try:
        built.trainer.rehearse(splits.train)
    except (ValueError, TypeError):
        raise
    except Exception:  # of a user's own class: training tells and records it
        logger.debug("the first losses cannot be taken", exc_info=True)
