"""Aggregators: task gradients on the shared block to one."""

from polytask.balancing.aggregation.mgda import MGDA

__all__ = ["MGDA"]
