"""Balancing: how several objectives move the shared block."""

from polytask.balancing import aggregation, scalarization
from polytask.balancing.base import Aggregator, Balancer, Evidence, Needs, Scalarizer
from polytask.balancing.loop import Accumulator, balance

__all__ = [
    "Accumulator",
    "Aggregator",
    "Balancer",
    "Evidence",
    "Needs",
    "Scalarizer",
    "aggregation",
    "balance",
    "scalarization",
]
