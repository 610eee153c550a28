"""Balancing: how several objectives move the shared block."""

from polytask.balancing import aggregation, scalarization
from polytask.balancing.base import Aggregator, Balancer, Evidence, Needs, Scalarizer
from polytask.balancing.gradients import balance

__all__ = ["Aggregator", "Balancer", "Evidence", "Needs", "Scalarizer", "aggregation", "balance", "scalarization"]
