import gzip

import numpy as np
import pytest
import torch
from tests.helpers import data as small

import polytask as pt
from polytask.data import CIFAR10, cifar10
from polytask.data.cifar10 import read_cifar10, read_records
from polytask.data.images import CIFAR_MEAN, CIFAR_STD


@pytest.mark.parametrize("compress", [False, True])
def test_splits_follow_the_order_of_the_files(write_cifar10, compress):
    folder = write_cifar10(records=4, compress=compress)
    raw = [(folder / name).read_bytes() for name in CIFAR10.files]
    records = np.stack([np.frombuffer(gzip.decompress(r) if compress else r, np.uint8).reshape(4, 3073) for r in raw])
    train = records[:5].reshape(20, 3073)
    wanted = {"train": train[:14], "validation": train[14:], "test": records[5]}
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (CIFAR_MEAN, CIFAR_STD))
    for name, split in CIFAR10(folder, validation=6).load()._asdict().items():
        pixels = wanted[name][:, 1:].reshape(-1, 3, 32, 32) / np.float32(255)  # red, green and blue planes, row by row
        torch.testing.assert_close(split.inputs, torch.from_numpy((pixels - mean) / std))
        assert split.inputs.dtype == torch.float32
        assert split.targets["object"].tolist() == wanted[name][:, 0].tolist()
        assert split.augment is None


def test_targets_pass_the_tasks_check_and_classes_have_names(write_cifar10):
    data = CIFAR10(write_cifar10(), validation=4)
    for split in data.load():
        assert torch.equal(data.tasks[0].check(split.targets["object"], "here"), split.targets["object"])
    assert data.tasks[0].labels[3] == "cat"


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073, -4 * 3073])
def test_a_file_of_the_wrong_size_is_refused(write_cifar10, change):
    folder = write_cifar10()
    path = folder / "data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(ValueError) as caught:
        CIFAR10(folder, validation=4).load()
    assert f"{path}: a CIFAR-10 file must hold 4 records of 3073 bytes, 12292 in all, found {12292 + change}" in str(
        caught.value
    )


def test_standard_files_hold_ten_thousand_records():
    assert cifar10.RECORDS == 10_000
    assert cifar10.RECORD_BYTES == 3073


def test_a_corrupt_gzip_stream_is_refused(write_cifar10):
    folder = write_cifar10(compress=True)
    path = folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"test_batch.bin: a gzipped file must be one intact gzip stream"):
        read_cifar10(folder)


def test_a_label_above_9_is_refused(write_cifar10):
    folder = write_cifar10(labels=[0, 9, 10, 255])
    with pytest.raises(ValueError, match=r"data_batch_1.bin: labels must be in 0\.\.9, found 10 in record 2"):
        CIFAR10(folder, validation=4).load()


def test_a_pickle_is_refused_unopened(write_cifar10):
    """The archive's other version; unpickling this one would raise something else."""
    folder = write_cifar10()
    (folder / "data_batch_1.bin").write_bytes(b"\x80\x04cbuiltins\nexec\n(Vraise SystemExit\ntR.")
    with pytest.raises(ValueError, match="must hold 4 records"):
        read_records([folder / "data_batch_1.bin"])


def test_arguments_out_of_range_and_missing_files_are_refused(write_cifar10, tmp_path):
    folder = write_cifar10()
    with pytest.raises(ValueError, match="`validation` must be at least 1, found 0"):
        CIFAR10(validation=0)
    with pytest.raises(ValueError, match="`validation` must be below the number of training images, 20, found 20"):
        CIFAR10(folder, validation=20).load()
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs the files data_batch_1\.bin, .*, test_batch\.bin"):
        CIFAR10(folder).load()


@pytest.mark.parametrize("name", ["cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_the_folder_may_have_the_archives_name(write_cifar10, tmp_path, monkeypatch, name):
    source, target = write_cifar10(), tmp_path / "data" / name
    target.parent.mkdir(parents=True)
    source.rename(target)
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path / "data"))
    assert len(CIFAR10(validation=2).load().train.inputs) == 18


@pytest.mark.data
@pytest.mark.slow
def test_the_real_files_have_the_published_sizes_and_statistics(real_cifar10):
    train, test = read_cifar10(real_cifar10)
    assert (len(train.images), len(test.images)) == (50_000, 10_000)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    for channel in range(3):
        pixels = train.images[:, channel].double() / 255
        assert float(pixels.mean()) == pytest.approx(CIFAR_MEAN[channel], abs=1e-3)
        # a copy that passed through JPEG is smoother by .002; the older, often quoted .2023 is off by .045
        assert float(pixels.std()) == pytest.approx(CIFAR_STD[channel], abs=4e-3)


def test_a_split_is_a_pair_that_may_bring_its_augmentation():
    x, y = small()
    double = pt.data.Split(x, y, lambda inputs, generator: 2 * inputs)
    inputs, targets = double
    assert inputs is x and targets is y
    assert len(double) == 2
    assert pt.data.Split(x, y).augment is None
