"""Aggregators: task gradients on the shared block to one."""

from polytask.balancing.aggregation.aligned_mtl import AlignedMTL
from polytask.balancing.aggregation.cagrad import CAGrad
from polytask.balancing.aggregation.config import ConFIG
from polytask.balancing.aggregation.dual_proj import DualProj
from polytask.balancing.aggregation.fair_grad import FairGrad
from polytask.balancing.aggregation.grad_drop import GradDrop
from polytask.balancing.aggregation.gradvac import GradVac
from polytask.balancing.aggregation.great import GREAT
from polytask.balancing.aggregation.imtlg import IMTLG
from polytask.balancing.aggregation.mgda import MGDA
from polytask.balancing.aggregation.nash_mtl import NashMTL
from polytask.balancing.aggregation.pcgrad import PCGrad
from polytask.balancing.aggregation.sum import Sum
from polytask.balancing.aggregation.torchjd_adapter import TorchJD
from polytask.balancing.aggregation.upgrad import UPGrad

__all__ = [
    "GREAT",
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "FairGrad",
    "GradDrop",
    "GradVac",
    "NashMTL",
    "PCGrad",
    "Sum",
    "TorchJD",
    "UPGrad",
]
