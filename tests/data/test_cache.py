import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from polytask.data.cache import cache_folder, cached, digest

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2, -100])}


class Builder:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {name: tensor.clone() for name, tensor in TENSORS.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(tensors):
    return tensors.keys() == TENSORS.keys() and all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )


def test_the_second_call_reads_what_the_first_built(folder):
    build = Builder()
    assert same(cached("set", {"seed": 0}, build))
    assert same(cached("set", {"seed": 0}, build))
    assert build.calls == 1
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 0, "more": 1}, {"seed": "0"}, {}])
def test_other_facts_or_another_name_are_built_anew(other):
    build = Builder()
    cached("set", {"seed": 0}, build)
    cached("set", other, build)
    cached("other", {"seed": 0}, build)
    assert build.calls == 3


def test_the_order_of_facts_does_not_matter():
    build = Builder()
    cached("set", {"a": 1, "b": 2}, build)
    cached("set", {"b": 2, "a": 1}, build)
    assert build.calls == 1


def truncate(data):
    return data[: len(data) // 2]


def flip_last_bit(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_last_bit, lambda data: b"", lambda data: b"x" * 100, lambda data: data + b"more"],
)
def test_a_damaged_file_is_logged_and_replaced(damage, folder, caplog):
    build = Builder()
    cached("set", {}, build)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with caplog.at_level(logging.WARNING, logger="polytask"):
        assert same(cached("set", {}, build))
    assert build.calls == 2
    (record,) = caplog.records
    assert record.name == "polytask"
    assert "damaged" in record.getMessage()
    assert str(path) in record.getMessage()
    assert path.read_bytes() == good
    assert same(cached("set", {}, build))
    assert build.calls == 2


def test_a_file_without_a_checksum_is_damaged(folder):
    from safetensors.torch import save_file

    build = Builder()
    cached("set", {}, build)
    (path,) = folder.iterdir()
    save_file(TENSORS, path)
    cached("set", {}, build)
    assert build.calls == 2


def test_writing_into_what_was_read_leaves_the_file_alone():
    build = Builder()
    cached("set", {}, build)
    cached("set", {}, build)["a"].zero_()
    assert same(cached("set", {}, build))
    assert build.calls == 1


def test_a_folder_that_cannot_be_made_is_logged_and_done_without(folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="polytask"):
        assert same(cached("set", {}, Builder()))
    assert "could not be written" in caplog.text


def test_an_interrupted_write_leaves_no_file_behind(folder, monkeypatch):
    from polytask.data import cache

    def half(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        cached("set", {}, Builder())
    assert list(folder.iterdir()) == []


def test_a_failing_build_leaves_no_file_behind(folder):
    def fail():
        raise ValueError("a source file is damaged")

    with pytest.raises(ValueError, match="a source file"):
        cached("set", {}, fail)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_several_writers_agree(folder):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: cached("set", {}, Builder()), range(8)))
    assert all(same(result) for result in results)
    assert len(list(folder.iterdir())) == 1


def test_without_the_variable_the_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("POLYTASK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "polytask"


def test_the_digest_sees_contents_order_and_borders_not_names(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, data in zip(paths, (b"one", b"two", b"one"), strict=True):
        path.write_bytes(data)
    a, b, c = paths
    assert digest([a, b]) == digest([c, b])
    assert digest([a, b]) != digest([b, a])
    c.write_bytes(b"onet")
    b_short = tmp_path / "d"
    b_short.write_bytes(b"wo")
    assert digest([a, b]) != digest([c, b_short])


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX")
def test_only_regular_files_are_written(folder):
    cached("set", {}, Builder())
    assert all(stat.S_ISREG(path.stat().st_mode) for path in folder.iterdir())
