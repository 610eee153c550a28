"""Studies: runs described by configurations, in folders, alone or compared."""

from polytask.studies.compare import Comparison, compare, read_comparison
from polytask.studies.executors import StudyInterrupted
from polytask.studies.run import load, run
from polytask.studies.store import RunRecord, read_record, read_study

__all__ = [
    "Comparison", "RunRecord", "StudyInterrupted", "compare", "load", "read_comparison", "read_record",
    "read_study", "run",
]  # fmt: skip
