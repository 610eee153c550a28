"""Data sets (tasks with train, validation and test splits), and sources, which serve batches."""

from polytask.data.arrays import Arrays
from polytask.data.base import DataSet, Split, Splits, data_folder
from polytask.data.digits import MultiDigits
from polytask.data.loader import Loader
from polytask.data.mnist import MNIST, read_idx
from polytask.data.multimnist import MultiMNIST
from polytask.data.source import Source
from polytask.data.synthetic import CircleRhombus

__all__ = [
    "MNIST",
    "Arrays",
    "CircleRhombus",
    "DataSet",
    "Loader",
    "MultiDigits",
    "MultiMNIST",
    "Source",
    "Split",
    "Splits",
    "data_folder",
    "read_idx",
]
