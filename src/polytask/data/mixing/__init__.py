"""Mixtures: sources made of several data sets, one way of taking turns a file."""

from polytask.data.mixing.adaptive import Adaptive
from polytask.data.mixing.base import Mixture
from polytask.data.mixing.chain import Chain
from polytask.data.mixing.proportional import Proportional
from polytask.data.mixing.round_robin import RoundRobin
from polytask.data.mixing.temperature import Anneal, Temperature
from polytask.data.mixing.zip import Zip

__all__ = ["Adaptive", "Anneal", "Chain", "Mixture", "Proportional", "RoundRobin", "Temperature", "Zip"]
