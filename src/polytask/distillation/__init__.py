"""Distillation: trained networks teach another, by terms beside the tasks' losses or in place of them."""

from polytask.distillation.annealing import TeacherAnnealing
from polytask.distillation.objectives import FeatureDistillation, LogitDistillation, kdmtl

__all__ = ["FeatureDistillation", "LogitDistillation", "TeacherAnnealing", "kdmtl"]
