"""Studies: runs described by configurations, in folders, alone or compared."""

from polytask.studies.compare import Comparison, compare, read_comparison
from polytask.studies.executors import StudyInterrupted
from polytask.studies.front import Front, front, read_front
from polytask.studies.grouping import Grouping, group, read_grouping, suggest
from polytask.studies.loading import load, trained
from polytask.studies.run import run
from polytask.studies.sparsify import Sparsified, read_sparsified, sparsify
from polytask.studies.sparsify_seeds import SparsifiedSeeds, read_sparsified_seeds, sparsify_seeds
from polytask.studies.store import RunRecord, read_record, read_study

__all__ = [
    "Comparison", "Front", "Grouping", "RunRecord", "Sparsified", "SparsifiedSeeds", "StudyInterrupted", "compare",
    "front", "group", "load", "read_comparison", "read_front", "read_grouping", "read_record", "read_sparsified",
    "read_sparsified_seeds", "read_study", "run", "sparsify", "sparsify_seeds", "suggest", "trained",
]  # fmt: skip
