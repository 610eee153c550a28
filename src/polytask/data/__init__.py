"""Data sets (tasks with train, validation and test splits), and sources, which serve batches."""

from polytask.data.arrays import Arrays
from polytask.data.base import DataSet, Examples, Split, Splits, data_folder
from polytask.data.cifar10 import CIFAR10
from polytask.data.cifar10_animals import CIFAR10Animals
from polytask.data.cifar10_mnist import Cifar10Mnist
from polytask.data.digits import MultiDigits
from polytask.data.images import Normalise, Rotation
from polytask.data.loader import Loader
from polytask.data.mixing import Adaptive, Anneal, Chain, Mixture, Proportional, RoundRobin, Temperature, Zip
from polytask.data.mnist import MNIST, read_idx
from polytask.data.multimnist import MultiMNIST
from polytask.data.remembered import Remembered
from polytask.data.sentiment import Sentiment
from polytask.data.source import Source
from polytask.data.sparse import SparseRows
from polytask.data.synthetic import CircleRhombus
from polytask.data.table import Table
from polytask.data.text import BagOfWords

__all__ = [
    "CIFAR10",
    "MNIST",
    "Adaptive",
    "Anneal",
    "Arrays",
    "BagOfWords",
    "CIFAR10Animals",
    "Chain",
    "Cifar10Mnist",
    "CircleRhombus",
    "DataSet",
    "Examples",
    "Loader",
    "Mixture",
    "MultiDigits",
    "MultiMNIST",
    "Normalise",
    "Proportional",
    "Remembered",
    "Rotation",
    "RoundRobin",
    "Sentiment",
    "Source",
    "SparseRows",
    "Split",
    "Splits",
    "Table",
    "Temperature",
    "Zip",
    "data_folder",
    "read_idx",
]
