"""Data sets: tasks with train, validation and test splits."""

from polytask.data.base import DataSet, Split, Splits, data_folder
from polytask.data.digits import MultiDigits
from polytask.data.mnist import MNIST, read_idx
from polytask.data.multimnist import MultiMNIST
from polytask.data.synthetic import CircleRhombus

__all__ = [
    "MNIST",
    "CircleRhombus",
    "DataSet",
    "MultiDigits",
    "MultiMNIST",
    "Split",
    "Splits",
    "data_folder",
    "read_idx",
]
