import gzip
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from polytask.data import MNIST, read_idx
from polytask.data.mnist import read_mnist

SMALL = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, max_side=5))
ON_DISK = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@ON_DISK
@given(values=SMALL, compress=st.booleans())
def test_what_is_written_is_read_back_gzipped_or_not_whatever_the_name(values, compress, tmp_path, to_idx):
    data = to_idx(values)
    path = tmp_path / ("plain.gz" if not compress else "packed")
    path.write_bytes(gzip.compress(data) if compress else data)
    read = read_idx(path)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), values)


@ON_DISK
@given(values=SMALL, compress=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_wherever_it_is_cut(values, compress, share, tmp_path, to_idx):
    data = gzip.compress(to_idx(values)) if compress else to_idx(values)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".* must .*found"):
        read_idx(path)


@ON_DISK
@given(data=st.binary(max_size=60))
def test_arbitrary_bytes_are_read_or_refused_with_a_value_error(data, tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(data)
    try:
        read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)


@ON_DISK
@given(values=SMALL, position=st.integers(0), flip=st.integers(1, 255))
def test_a_changed_byte_of_a_gzip_stream_never_changes_the_values_unnoticed(values, position, flip, tmp_path, to_idx):
    data = bytearray(gzip.compress(to_idx(values), mtime=0))
    data[position % len(data)] ^= flip
    path = tmp_path / "damaged.gz"
    path.write_bytes(data)
    try:
        read = read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # some bytes of the gzip header mean nothing
        assert np.array_equal(read.numpy(), values)


@pytest.mark.parametrize(
    ("data", "rule", "found"),
    [
        (b"", "must begin with 0x000008", "found 0x"),
        (b"\x00\x00\x08", "must begin with 0x000008", "found 0x000008"),
        (b"\x00\x01\x08\x01\x00\x00\x00\x01\x05", "must begin with 0x000008", "found 0x00010801"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x05", "must begin with 0x000008", "found 0x00000d01"),
        (b"\x00\x00\x08\x00", r"the number of dimensions \(1..8\)", "found 0x00000800"),
        (b"\x00\x00\x08\x09" + bytes(36), r"the number of dimensions \(1..8\)", "found 0x00000809"),
        (b"\x00\x00\x08\x02\x00\x00\x00\x01", "header of 2 dimensions must be 12 bytes long", "found 8"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x00", "every dimension .* must be at least 1", r"found \(0,\)"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03\x01\x02", r"shape \(3,\) must be 11 bytes long", "found 10"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01\x01\x02", r"shape \(1,\) must be 9 bytes long", "found 10"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "must be 79228162458924105385300197391 bytes long", "found 16"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_the_refusal_states_path_rule_and_value(data, rule, found, compress, tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(gzip.compress(data) if compress else data)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{rule}.*, {found}$"):
        read_idx(path)


def test_a_missing_idx_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nowhere")


@pytest.mark.parametrize("compress", [False, True])
def test_splits_follow_the_order_of_the_files(write_mnist, compress):
    folder = write_mnist(train=12, test=5, compress=compress)
    train, validation, test = MNIST(folder, validation=4).load()
    names = [name + ".gz" * (not (folder / name).is_file()) for name in MNIST.files]
    images, labels, test_images, test_labels = (read_idx(folder / name) for name in names)
    assert torch.equal(torch.cat([train.inputs, validation.inputs])[:, 0], images / 255)
    assert torch.equal(torch.cat([train.targets["digit"], validation.targets["digit"]]), labels.long())
    assert torch.equal(test.inputs[:, 0], test_images / 255)
    assert torch.equal(test.targets["digit"], test_labels.long())
    assert [len(split.inputs) for split in (train, validation, test)] == [8, 4, 5]


def test_inputs_are_unit_floats_and_targets_pass_the_tasks_check(write_mnist):
    data = MNIST(write_mnist(), validation=4)
    for split in data.load():
        assert split.inputs.dtype == torch.float32
        assert split.inputs.shape[1:] == (1, 28, 28)
        assert 0 <= split.inputs.min() <= split.inputs.max() <= 1
        target = split.targets["digit"]
        assert torch.equal(data.tasks[0].check(target, "here"), target)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        MNIST(tmp_path).load()


def test_polytask_data_names_the_parent_folder(write_mnist, monkeypatch):
    monkeypatch.setenv("POLYTASK_DATA", str(write_mnist().parent))
    assert len(MNIST(validation=2).load().train.inputs) == 10


def test_a_label_out_of_range_is_refused(write_mnist):
    folder = write_mnist(train=3, labels=[0, 10, 11])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: labels must be in 0\.\.9, found 10 in row 1"):
        MNIST(folder, validation=1).load()


def test_counts_that_differ_are_refused(write_mnist):
    folder = write_mnist(train=3, labels=[0, 1])
    with pytest.raises(ValueError, match=r"one label for each of the 3 images of train-images.*, found 2"):
        MNIST(folder, validation=1).load()


@pytest.mark.parametrize(
    ("file", "shape", "message"),
    [
        (0, (3, 28, 27), r"images must have the shape \(N, 28, 28\), found \(3, 28, 27\)"),
        (2, (3, 784), r"images must have the shape \(N, 28, 28\), found \(3, 784\)"),
        (3, (5, 1), r"labels must have the shape \(N,\), found \(5, 1\)"),
    ],
)
def test_files_of_another_shape_are_refused(write_mnist, to_idx, file, shape, message):
    folder = write_mnist(train=3)
    (folder / MNIST.files[file]).write_bytes(to_idx(np.zeros(shape)))
    with pytest.raises(ValueError, match=f"{MNIST.files[file]}: {message}"):
        MNIST(folder, validation=1).load()


def test_a_validation_split_must_leave_training_images(write_mnist):
    with pytest.raises(ValueError, match="`validation` must be at least 1, found 0"):
        MNIST(validation=0)
    with pytest.raises(ValueError, match="`validation` must be below the number of training images, 12, found 12"):
        MNIST(write_mnist(train=12), validation=12).load()


@pytest.mark.data
def test_the_real_files_have_the_published_sizes_and_class_counts(real_mnist):
    train, validation, test = read_mnist(real_mnist, 10_000)
    assert [len(part.images) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    counts = torch.cat([train.labels, validation.labels]).bincount().tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    brightness = int(train.images.sum()) + int(validation.images.sum())
    assert brightness / (60_000 * 28 * 28 * 255) == pytest.approx(0.1307, abs=1e-4)  # as often published


def test_importing_the_data_sets_imports_no_heavy_library():
    code = "import sys, polytask.data; print({'sklearn', 'pandas', 'torchmetrics'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
