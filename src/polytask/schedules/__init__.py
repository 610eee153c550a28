"""Schedules: which blocks move when, and for which tasks."""

from polytask.schedules.alternate_batches import AlternateBatches
from polytask.schedules.alternate_epochs import AlternateEpochs
from polytask.schedules.base import Schedule, Update
from polytask.schedules.by_similarity import BySimilarity
from polytask.schedules.by_size import BySize
from polytask.schedules.curriculum import Curriculum
from polytask.schedules.joint import Joint
from polytask.schedules.single_task_epochs import SingleTaskEpochs
from polytask.schedules.task_schedule import TaskSchedule

__all__ = [
    "AlternateBatches", "AlternateEpochs", "BySimilarity", "BySize", "Curriculum", "Joint", "Schedule",
    "SingleTaskEpochs", "TaskSchedule", "Update",
]  # fmt: skip
