"""Sparsity: from group-sparse training to a smaller network."""

from polytask.sparsity import owl
from polytask.sparsity.growl import GrOWL, Proximal
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.removal import KeepDead, Magnitude
from polytask.sparsity.rows import Layer
from polytask.sparsity.selection import BestSparse

__all__ = ["BestSparse", "GrOWL", "KeepDead", "Layer", "Magnitude", "Proximal", "layers_in_play", "owl"]
