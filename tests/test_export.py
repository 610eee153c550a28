"""An exported file answers as PyTorch does, at any batch size, or it does not exist."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import torch
from tests import helpers
from tests.sparsity.dying import BUILDERS, images, kill, kill_filters, settle
from torch import Tensor, nn

import polytask as pt
from polytask.export import export
from polytask.models import HardSharing
from polytask.sparsity.compact import compact

module = importlib.import_module("polytask.export")  # whatever else the package may call by that name


def onnx_outputs(path: Any, feed: dict[str, Tensor]) -> dict[str, Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(names, {name: tensor.numpy() for name, tensor in feed.items()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.parametrize("name", ["monitored", "residual"])
def test_a_compact_network_runs_in_onnxruntime_at_any_batch_size(tmp_path, name):
    pytest.importorskip("onnxscript")
    model = settle(BUILDERS[name]())
    kill(model, 0.4)
    kill_filters(model, 0.25)
    x = images(name, 2, torch.float32)
    small = compact(model, x).model.eval()
    path = export(small, tmp_path / "net", example=x[:1])
    assert path == tmp_path / "net.onnx"
    for size in (1, 3, 7):
        fresh = images(name, size, torch.float32, seed=size)
        close(onnx_outputs(path, {"inputs": fresh}), small(fresh))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]


def test_a_torch_archive_runs_without_polytask(tmp_path):
    model = helpers.network("norm+dropout").train()
    before = helpers.weights(model)
    x = helpers.data(5)[0]
    path = export(model, tmp_path / "deep" / "net", format="torch", tasks=helpers.tasks(), example=x[:2])
    assert path.name == "net.pt2" and model.training and helpers.same(helpers.weights(model), before)
    found = torch.export.load(path).module()(x)
    close(dict(zip("ab", found, strict=True)), model.eval()(x))


class Sides(nn.Module):
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.cat([inputs["one"], inputs["other"]], 1)


def test_inputs_keep_their_names_and_tasks_their_order(tmp_path):
    pytest.importorskip("onnxscript")
    model = HardSharing(nn.Sequential(Sides(), nn.Linear(5, 4)), {"a": nn.Linear(4, 1), "b": nn.Linear(4, 3)}).eval()
    example = {"one": torch.randn(2, 2), "other": torch.randn(2, 3)}
    path = export(model, tmp_path / "net.onnx", tasks=helpers.tasks("ba"), example=example)
    fresh = {"one": torch.randn(4, 2), "other": torch.randn(4, 3)}
    close(onnx_outputs(path, fresh), model(fresh, ("b", "a")))


def test_what_a_user_must_know_is_beside_the_file(tmp_path):
    tasks = [pt.classification("b", 3, labels=["red", "green", "blue"]), pt.regression("c", mean=2.0, std=4.0)]
    path = export(
        helpers.network(names="bc"), tmp_path / "net", "torch", tasks, example=torch.randn(1, 3),
        preprocessing={"mean": [0.5], "std": [0.25]},
    )  # fmt: skip
    told = json.loads(path.with_name("net.pt2.json").read_text())
    assert told["file"] == "net.pt2" and told["format"] == "torch"
    assert told["inputs"] == [{"name": "inputs", "shape": ["batch", 3], "dtype": "float32"}]
    assert [output["name"] for output in told["outputs"]] == ["b", "c"]
    assert told["outputs"][0]["labels"] == ["red", "green", "blue"]
    assert "softmax" in told["outputs"][0]["meaning"] and "output * 4.0 + 2.0" in told["outputs"][1]["meaning"]
    assert told["preprocessing"] == {"mean": [0.5], "std": [0.25]}
    assert 0 <= told["largest_relative_difference"] <= 1e-5


def test_a_file_that_answers_otherwise_is_deleted_and_that_is_said(tmp_path, monkeypatch):
    write = module._write_torch

    def wrong(network: Any, inputs: Any, part: Any) -> Any:
        run = write(network, inputs, part)
        return lambda given: [output * (1 + 3e-5) for output in run(given)]

    monkeypatch.setattr(module, "_write_torch", wrong)
    with pytest.raises(ValueError, match=r"to 1e-05 of the largest, found 3\.?\d*e-05 for `a` .* the new net.pt2 was"):
        export(helpers.network(), tmp_path / "net", "torch", example=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_one_batch_size_is_deleted(tmp_path, monkeypatch):
    write = module._write_torch

    def fixed(network: Any, inputs: Any, part: Any) -> Any:
        run = write(network, inputs, part)
        return lambda given: [output[:2] for output in run(given)]

    monkeypatch.setattr(module, "_write_torch", fixed)
    with pytest.raises(ValueError, match=r"must give outputs \(5, 1\) for `a`, found \(2, 1\): the new net.pt2 was"):
        export(helpers.network(), tmp_path / "net", "torch", example=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_is_as_it_was_where_the_new_one_is_deleted(tmp_path, monkeypatch):
    path = export(helpers.network(), tmp_path / "net", "torch", example=torch.randn(2, 3))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"the new net\.pt2 was deleted"):
        export(helpers.network(seed=1), path, "torch", example=torch.randn(2, 3))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_that_does_not_run_is_deleted(tmp_path, monkeypatch):
    def broken(network: Any, inputs: Any, part: Any) -> Any:
        def run(given: Any) -> Any:
            raise RuntimeError("no such operator\nat line 3")

        return run

    monkeypatch.setattr(module, "_write_torch", broken)
    with pytest.raises(
        ValueError, match=r"must run on 2 examples, found no such operator: the new net\.pt2 was deleted"
    ):
        export(helpers.network(), tmp_path / "net", "torch", example=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_network_that_cannot_be_traced_is_refused_in_words(tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    model = HardSharing(Counting(), {"a": nn.Linear(3, 1)})
    with pytest.raises(ValueError, match="a network to export must be traceable with a batch of any size, found: "):
        export(model, tmp_path / "net", format, example=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pickle"}, "`format` must be one of 'onnx', 'torch', found 'pickle'"),
        ({"tasks": helpers.tasks("c")}, "every exported task must have a head, found none for `c`"),
        ({"example": torch.zeros(0, 3)}, "`example` must be inputs of at least one example"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(helpers.network(), tmp_path / "net", **{"example": torch.randn(2, 3)} | options)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install polytask\[onnx\]"):
        export(helpers.network(), tmp_path / "net", example=torch.randn(2, 3))
