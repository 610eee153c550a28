import logging
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polytask.data import MNIST, MultiMNIST, multimnist
from polytask.data.mnist import read_mnist


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(one, other):
    return all(
        torch.equal(a.inputs, b.inputs)
        and a.targets.keys() == b.targets.keys()
        and all(torch.equal(a.targets[task], b.targets[task]) for task in a.targets)
        for a, b in zip(one, other, strict=True)
    )


def by_hand(left, right):
    """One composite, written out."""
    canvas = np.zeros((36, 36))
    canvas[0:28, 0:28] = left
    canvas[6:34, 6:34] = np.maximum(canvas[6:34, 6:34], right)
    pixels = torch.from_numpy(canvas / 255)[None, None]
    return F.interpolate(pixels, size=(28, 28), mode="bilinear", antialias=True)[0]


def test_composites_are_the_two_digits_of_their_labels_from_their_own_split(write_mnist):
    folder = write_mnist(train=16, test=7)
    data = MultiMNIST(folder, validation=6, seed=3, cache=False)
    for split, digits in zip(data.load(), read_mnist(folder, 6), strict=True):
        assert split.inputs.shape == (len(digits.labels), 1, 28, 28)
        assert torch.equal(split.targets["left"], digits.labels)
        candidates = torch.stack(
            [torch.stack([by_hand(left, right) for right in digits.images.numpy()]) for left in digits.images.numpy()]
        )  # (left, right, 1, 28, 28)
        rows = []
        for i, image in enumerate(split.inputs):
            errors = (candidates[i] - image).abs().amax(dim=(1, 2, 3))
            rows.append(int(errors.argmin()))
            assert errors.min() < 1e-5  # the float32 filter places its taps to about 36 * 2**-24
        assert sorted(rows) == list(range(len(rows)))  # each digit is on the right once
        assert torch.equal(split.targets["right"], digits.labels[rows])


def test_inputs_are_unit_floats_and_targets_pass_the_tasks_check(write_mnist):
    data = MultiMNIST(write_mnist(), validation=4)
    for split in data.load():
        assert split.inputs.dtype == torch.float32
        assert 0 <= split.inputs.min() < split.inputs.max() <= 1
        for task in data.tasks:
            target = split.targets[task.name]
            assert torch.equal(task.check(target, "here"), target)


def test_normalised_inputs_say_how_to_make_them(write_mnist):
    folder = write_mnist()
    plain, normalised = (MultiMNIST(folder, validation=2, normalise=on) for on in (False, True))
    told = normalised.preprocessing
    for before, after in zip(plain.load(), normalised.load(), strict=True):
        assert torch.equal(after.inputs, (before.inputs - told["mean"][0]) / told["std"][0])
        assert all(torch.equal(after.targets[task], before.targets[task]) for task in before.targets)
    assert "mean" not in plain.preprocessing


def test_white_stays_in_range(write_mnist, to_idx):
    folder = write_mnist()
    (folder / MNIST.files[0]).write_bytes(to_idx(np.full((12, 28, 28), 255)))
    inputs = MultiMNIST(folder, validation=4, cache=False).load().train.inputs
    assert inputs.max() == 1


def test_the_chunk_size_does_not_show(write_mnist, monkeypatch):
    data = MultiMNIST(write_mnist(), validation=4, cache=False)
    whole = data.load()
    monkeypatch.setattr(multimnist, "CHUNK", 3)
    assert same(whole, data.load())


def test_the_cache_gives_the_same_bits(write_mnist, cache_folder, monkeypatch):
    folder = write_mnist()
    fresh = MultiMNIST(folder, validation=4, cache=False).load()
    assert not cache_folder.exists()
    built = MultiMNIST(folder, validation=4).load()
    monkeypatch.setattr(multimnist, "compose", None)  # nothing is composed any more
    assert same(fresh, built)
    assert same(fresh, MultiMNIST(folder, validation=4).load())


def test_other_settings_or_other_files_never_meet_a_stale_cache(write_mnist, cache_folder):
    folder = write_mnist(seed=0)
    for arguments in ({}, {"seed": 1}, {"validation": 3}):
        settings = {"validation": 4, **arguments}
        cached = MultiMNIST(folder, **settings).load()
        assert same(cached, MultiMNIST(folder, **settings, cache=False).load())
    assert len(list(cache_folder.iterdir())) == 3
    write_mnist(seed=1)
    changed = MultiMNIST(folder, validation=4)
    assert same(changed.load(), MultiMNIST(folder, validation=4, cache=False).load())
    assert len(list(cache_folder.iterdir())) == 4


def test_a_damaged_cache_is_rebuilt_with_a_logged_line(write_mnist, cache_folder, caplog):
    data = MultiMNIST(write_mnist(), validation=4)
    first = data.load()
    (path,) = cache_folder.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, logger="polytask"):
        assert same(first, data.load())
    assert "damaged" in caplog.text


def test_a_damaged_source_is_refused_even_if_it_was_cached_when_whole(write_mnist):
    folder = write_mnist()
    MultiMNIST(folder, validation=4).load()
    path = folder / MNIST.files[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes long"):
        MultiMNIST(folder, validation=4).load()


@pytest.mark.parametrize("cache", [True, False])
def test_train_size_keeps_the_first_composites_and_the_other_splits(write_mnist, cache_folder, cache):
    folder = write_mnist(train=16)
    whole = MultiMNIST(folder, validation=6, cache=cache).load()
    part = MultiMNIST(folder, validation=6, train_size=4, cache=cache).load()
    assert torch.equal(part.train.inputs, whole.train.inputs[:4])
    assert torch.equal(part.train.targets["right"], whole.train.targets["right"][:4])
    assert part.train.inputs.untyped_storage().nbytes() == 4 * 28 * 28 * 4
    assert same(whole[1:], part[1:])
    assert not cache or len(list(cache_folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0}, "`train_size` must be at least 1, found 0"),
        ({"train_size": 9}, "`train_size` must be at most 8, .* found 9"),
        ({"validation": 0}, "`validation` must be at least 1, found 0"),
        ({"validation": 12}, "`validation` must be below the number of training images, 12, found 12"),
        ({"seed": 2**32}, r"`seed` must be in 0\.\.4294967295, found 4294967296"),
    ],
)
def test_arguments_out_of_range_are_refused(write_mnist, arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiMNIST(write_mnist(), **{"validation": 4, **arguments}).load()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        MultiMNIST(tmp_path).load()


@pytest.mark.data
@pytest.mark.slow
def test_all_composites_of_the_real_files(real_mnist):
    started = time.perf_counter()
    fresh = MultiMNIST(real_mnist, cache=False).load()
    print(f"70,000 composites in {time.perf_counter() - started:.1f} s")
    assert [tuple(split.inputs.shape) for split in fresh] == [
        (50_000, 1, 28, 28), (10_000, 1, 28, 28), (10_000, 1, 28, 28),
    ]  # fmt: skip
    for split in fresh:
        assert torch.equal(split.targets["left"].bincount(), split.targets["right"].bincount())
    data = MultiMNIST(real_mnist)
    data.load()
    assert same(fresh, data.load())
