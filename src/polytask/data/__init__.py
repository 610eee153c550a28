"""Data sets (tasks with train, validation and test splits), and sources, which serve batches."""

from polytask.data.arrays import Arrays
from polytask.data.base import DataSet, Examples, Split, Splits, data_folder
from polytask.data.cifar10 import CIFAR10
from polytask.data.cifar10_mnist import Cifar10Mnist
from polytask.data.digits import MultiDigits
from polytask.data.images import Normalise, Rotation
from polytask.data.loader import Loader
from polytask.data.mnist import MNIST, read_idx
from polytask.data.multimnist import MultiMNIST
from polytask.data.source import Source
from polytask.data.synthetic import CircleRhombus
from polytask.data.table import Table

__all__ = [
    "CIFAR10",
    "MNIST",
    "Arrays",
    "Cifar10Mnist",
    "CircleRhombus",
    "DataSet",
    "Examples",
    "Loader",
    "MultiDigits",
    "MultiMNIST",
    "Normalise",
    "Rotation",
    "Source",
    "Split",
    "Splits",
    "Table",
    "data_folder",
    "read_idx",
]
