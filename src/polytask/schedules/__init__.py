"""Schedules: which blocks move when."""

from polytask.schedules.alternate_batches import AlternateBatches
from polytask.schedules.alternate_epochs import AlternateEpochs
from polytask.schedules.base import Schedule, Update
from polytask.schedules.joint import Joint

__all__ = ["AlternateBatches", "AlternateEpochs", "Joint", "Schedule", "Update"]
