import time

import pytest
import torch
from tests.helpers import same
from torch.nn import functional as F

import polytask as pt
from polytask.data import Cifar10Mnist, Normalise, Rotation
from polytask.data.cifar10 import read_cifar10
from polytask.data.cifar10_mnist import BLACK
from polytask.data.images import CIFAR_MEAN, CIFAR_STD
from polytask.data.mnist import MNIST_FILES, read_digits


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folders(write_cifar10, write_mnist):
    return {"cifar10": write_cifar10(records=4), "mnist": write_mnist(train=23, test=5)}


def by_hand(picture, digit):
    """One composite in float64, pixel by pixel."""
    digit = F.interpolate(digit.double()[None, None], size=(32, 32), mode="bilinear", antialias=True)[0, 0]
    image = picture.double()
    for row in range(32):
        for column in range(32):
            if digit[row, column] > 0:
                image[:, row, column] = (128 * digit[row, column] + 127 * image[:, row, column]) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CIFAR_MEAN, CIFAR_STD))
    return (image / 255 - mean) / std


def test_the_ith_digit_lies_on_the_ith_picture(folders):
    pictures, test_pictures = read_cifar10(folders["cifar10"])
    digits, test_digits = (read_digits(*(folders["mnist"] / n for n in MNIST_FILES[i : i + 2])) for i in (0, 2))
    digits.images[:, :, :14] = 0  # somewhere the picture must shine through
    with_gaps = folders["mnist"] / MNIST_FILES[0]
    header = with_gaps.read_bytes()[:16]
    with_gaps.write_bytes(header + digits.images.numpy().tobytes())
    splits = Cifar10Mnist(**folders, validation=6, cache=False).load()
    rows = {"train": range(14), "validation": range(14, 20), "test": range(4)}
    for part, split in splits._asdict().items():
        below, above = (test_pictures, test_digits) if part == "test" else (pictures, digits)
        wanted = torch.stack([by_hand(below.images[i], above.images[i]) for i in rows[part]])
        torch.testing.assert_close(split.inputs.double(), wanted, rtol=0, atol=1e-4)
        assert torch.equal(split.targets["cifar"], below.labels[list(rows[part])])
        assert torch.equal(split.targets["digit"], above.labels[list(rows[part])])
        assert split.inputs.dtype == torch.float32


def test_only_training_is_rotated(folders):
    splits = Cifar10Mnist(**folders, validation=6).load()
    assert splits.train.augment == Rotation(20.0, BLACK)
    assert splits.validation.augment is None and splits.test.augment is None
    assert Cifar10Mnist(**folders, validation=6, rotation=0).load().train.augment is None
    torch.testing.assert_close(Normalise()(torch.zeros(1, 3, 1, 1)).flatten(), torch.tensor(BLACK))


def test_fit_rotates_training_batches_and_evaluation_none(folders):
    seen = []

    class Look(torch.nn.Module):
        def forward(self, x):
            seen.append((self.training, x.clone()))
            return x.flatten(1).mean(1, keepdim=True).expand(-1, 10)

    tops = {task: torch.nn.Linear(10, 10) for task in ("cifar", "digit")}
    data = Cifar10Mnist(**folders, validation=6)
    splits = data.load()
    trainer = pt.Trainer(pt.models.HardSharing(Look(), tops), data.tasks, batch_size=14, progress=False)
    trainer.fit(splits.train, splits.validation, epochs=2)
    trainer.evaluate(splits.train)
    modes = [training for training, _ in seen]
    images = [{row.numpy().tobytes() for row in batch} for _, batch in seen]
    given = [{row.numpy().tobytes() for row in split.inputs} for split in splits]
    assert modes == [True, False] * 2 + [False]
    assert not images[0] & given[0] and not images[2] & given[0] and not images[0] & images[2]
    assert images[1] == images[3] == given[1]
    assert images[4] == given[0]


def test_the_cache_gives_the_same_bits(folders, cache_folder):
    fresh = Cifar10Mnist(**folders, validation=6, cache=False).load()
    assert not cache_folder.exists()
    built, read = (Cifar10Mnist(**folders, validation=6).load() for _ in range(2))
    assert len(list(cache_folder.iterdir())) == 1
    assert same(fresh, built) and same(fresh, read)
    assert read.train.augment == fresh.train.augment
    Cifar10Mnist(**folders, validation=5).load()
    assert len(list(cache_folder.iterdir())) == 2


@pytest.mark.parametrize("cache", [True, False])
def test_a_training_subset_is_the_first_rows_and_keeps_its_augmentation(folders, cache):
    whole, part = (Cifar10Mnist(**folders, validation=6, train_size=n, cache=cache).load() for n in (None, 4))
    assert torch.equal(part.train.inputs, whole.train.inputs[:4])
    assert part.train.inputs.untyped_storage().nbytes() == 4 * 3 * 32 * 32 * 4
    assert part.train.augment == whole.train.augment
    assert same(whole[1:], part[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0}, "`train_size` must be at least 1, found 0"),
        ({"train_size": 15}, "`train_size` must be at most 14, .* found 15"),
        ({"validation": 0}, "`validation` must be at least 1, found 0"),
        ({"validation": 20}, "`validation` must be below the number of training images, 20, found 20"),
        ({"rotation": -1.0}, r"`degrees` must be in 0\.\.180, found -1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(folders, arguments, message):
    with pytest.raises(ValueError, match=message):
        Cifar10Mnist(**folders, **{"validation": 6, **arguments}).load()


def test_fewer_digits_than_pictures_are_refused(write_cifar10, write_mnist):
    folders = {"cifar10": write_cifar10(records=4), "mnist": write_mnist(train=19)}
    with pytest.raises(ValueError, match="a training digit for each of the 20 pictures, found 19 digits"):
        Cifar10Mnist(**folders, validation=6).load()


def test_missing_files_are_named(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        Cifar10Mnist(folders["cifar10"], tmp_path).load()
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin"):
        Cifar10Mnist(tmp_path, folders["mnist"]).load()


@pytest.mark.data
@pytest.mark.slow
def test_all_composites_of_the_real_files(real_cifar10, real_mnist):
    started = time.perf_counter()
    splits = Cifar10Mnist(real_cifar10, real_mnist, cache=False).load()
    print(f"60,000 composites in {time.perf_counter() - started:.1f} s")
    assert [len(split.inputs) for split in splits] == [40_000, 10_000, 10_000]
    assert splits.train.targets["digit"][:3].tolist() == [5, 0, 4]  # MNIST's first digits
