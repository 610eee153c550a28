"""Scalarizers: losses to one scalar."""

from polytask.balancing.scalarization.chebyshev import Chebyshev
from polytask.balancing.scalarization.dynamic_weight_average import DynamicWeightAverage
from polytask.balancing.scalarization.epsilon_constraint import EpsilonConstraint
from polytask.balancing.scalarization.famo import FAMO
from polytask.balancing.scalarization.geometric_mean import GeometricMean
from polytask.balancing.scalarization.grad_norm import GradNorm
from polytask.balancing.scalarization.imtl_l import IMTLL
from polytask.balancing.scalarization.linear import Linear
from polytask.balancing.scalarization.pbi import PBI
from polytask.balancing.scalarization.random import Random
from polytask.balancing.scalarization.smooth_tchebycheff import SmoothTchebycheff
from polytask.balancing.scalarization.uncertainty import Uncertainty

__all__ = [
    "FAMO",
    "IMTLL",
    "PBI",
    "Chebyshev",
    "DynamicWeightAverage",
    "EpsilonConstraint",
    "GeometricMean",
    "GradNorm",
    "Linear",
    "Random",
    "SmoothTchebycheff",
    "Uncertainty",
]
