"""Data sets (tasks with train, validation and test splits), and sources, which serve batches."""

from polytask.data.arrays import Arrays
from polytask.data.base import DataSet, Split, Splits, data_folder
from polytask.data.cifar10 import CIFAR10
from polytask.data.cifar10_animals import CIFAR10Animals
from polytask.data.cifar10_mnist import Cifar10Mnist
from polytask.data.digits import MultiDigits
from polytask.data.images import Normalise, Rotation
from polytask.data.loader import Loader
from polytask.data.mnist import MNIST, read_idx
from polytask.data.multimnist import MultiMNIST
from polytask.data.remembered import Remembered
from polytask.data.source import Source
from polytask.data.synthetic import CircleRhombus

__all__ = [
    "CIFAR10",
    "MNIST",
    "Arrays",
    "CIFAR10Animals",
    "Cifar10Mnist",
    "CircleRhombus",
    "DataSet",
    "Loader",
    "MultiDigits",
    "MultiMNIST",
    "Normalise",
    "Remembered",
    "Rotation",
    "Source",
    "Split",
    "Splits",
    "data_folder",
    "read_idx",
]
