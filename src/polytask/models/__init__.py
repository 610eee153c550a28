"""Networks for several tasks: one architecture a file, and the encoders they are built from."""

from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import BySource
from polytask.models.cross_stitch import CrossStitch
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
from polytask.models.mmoe import MMoE
from polytask.models.monitored import Monitored
from polytask.models.mtan import MTAN
from polytask.models.partitioned import Partitioned
from polytask.models.ple import CGC, PLE
from polytask.models.shared_decision import SharedDecision
from polytask.models.single_task import SingleTask
from polytask.models.soft_sharing import SoftSharing, TowerDistance, TowerTraceNorm

__all__ = [
    "CGC",
    "MLP",
    "MTAN",
    "PLE",
    "Block",
    "Blocks",
    "BySource",
    "ConvNet",
    "ConvNetAttention",
    "ConvNetMonitor",
    "CrossStitch",
    "Grouped",
    "HardSharing",
    "LeNet",
    "LeNetAttention",
    "LeNetMonitor",
    "MMoE",
    "Model",
    "Monitored",
    "Partitioned",
    "SharedDecision",
    "SingleTask",
    "SoftSharing",
    "TowerDistance",
    "TowerTraceNorm",
    "lsuv",
]
