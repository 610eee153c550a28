"""Networks for several tasks: one architecture a file, and the encoders they are built from."""

from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import BySource
from polytask.models.encoders import (
    MLP,
    ConvNet,
    ConvNetAttention,
    ConvNetMonitor,
    LeNet,
    LeNetAttention,
    LeNetMonitor,
)
from polytask.models.grouped import Grouped
from polytask.models.hard_sharing import HardSharing
from polytask.models.initialisation import lsuv
from polytask.models.monitored import Monitored
from polytask.models.mtan import MTAN
from polytask.models.partitioned import Partitioned
from polytask.models.single_task import SingleTask

__all__ = [
    "MLP",
    "MTAN",
    "Block",
    "Blocks",
    "BySource",
    "ConvNet",
    "ConvNetAttention",
    "ConvNetMonitor",
    "Grouped",
    "HardSharing",
    "LeNet",
    "LeNetAttention",
    "LeNetMonitor",
    "Model",
    "Monitored",
    "Partitioned",
    "SingleTask",
    "lsuv",
]
