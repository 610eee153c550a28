"""Networks for several tasks: one architecture a file, and the encoders they are built from."""

from polytask.models.base import Block, Blocks, Model
from polytask.models.encoders import MLP, LeNet
from polytask.models.hard_sharing import HardSharing
from polytask.models.partitioned import Partitioned
from polytask.models.single_task import SingleTask

__all__ = ["MLP", "Block", "Blocks", "HardSharing", "LeNet", "Model", "Partitioned", "SingleTask"]
