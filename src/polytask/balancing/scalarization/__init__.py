"""Scalarizers: losses to one scalar."""

from polytask.balancing.scalarization.linear import Linear

__all__ = ["Linear"]
