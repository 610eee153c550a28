import pytest
import torch

from polytask.data import CIFAR10, CIFAR10Animals
from polytask.data.cifar10 import CIFAR10_CLASSES


def test_pictures_and_objects_are_those_of_cifar10(write_cifar10):
    folder = write_cifar10()
    both = zip(CIFAR10Animals(folder, validation=6).load(), CIFAR10(folder, validation=6).load(), strict=True)
    for found, wanted in both:
        assert torch.equal(found.inputs, wanted.inputs)
        assert torch.equal(found.targets["object"], wanted.targets["object"])


def test_six_of_the_ten_classes_are_animals(write_cifar10):
    data = CIFAR10Animals(write_cifar10(records=10, labels=range(10)), validation=10)
    animals = {"bird", "cat", "deer", "dog", "frog", "horse"}
    for split in data.load():
        named = {CIFAR10_CLASSES[k]: float(a) for k, a in zip(*split.targets.values(), strict=True)}
        assert named == {name: float(name in animals) for name in CIFAR10_CLASSES}
        for task in data.tasks:
            assert torch.equal(task.check(split.targets[task.name], "here"), split.targets[task.name])
    assert [task.labels for task in data.tasks] == [CIFAR10_CLASSES, ("vehicle", "animal")]


def test_a_train_size_keeps_the_first_and_changes_nothing_else(write_cifar10):
    folder = write_cifar10()
    whole, part = (CIFAR10Animals(folder, size, validation=6).load() for size in (None, 5))
    assert torch.equal(part.train.inputs, whole.train.inputs[:5])
    for name in ("object", "animal"):
        assert torch.equal(part.train.targets[name], whole.train.targets[name][:5])
        assert torch.equal(part.test.targets[name], whole.test.targets[name])
    assert len(part.validation.inputs) == 6


def test_arguments_out_of_range_and_missing_files_are_refused(write_cifar10, tmp_path):
    for options in ({"train_size": 0}, {"validation": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be at least 1, found 0"):
            CIFAR10Animals(**options)
    with pytest.raises(ValueError, match="`train_size` must be at most 14, the training examples there are, found 15"):
        CIFAR10Animals(write_cifar10(), train_size=15, validation=6).load()
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin"):
        CIFAR10Animals(tmp_path / "nothing").load()
