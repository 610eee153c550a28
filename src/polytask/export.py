"""Export: a trained network as a file that other programs run, checked against PyTorch before it gets its name."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.batch import map_inputs, tensors_of
from polytask.errors import one_of
from polytask.models.base import Model
from polytask.models.by_source import BySource, check_sources
from polytask.task import Binary, Classification, MultiLabel, Regression, Task

FORMATS = ("onnx", "torch")
TOLERANCE = 1e-5
"""Largest difference of an output from PyTorch's, relative to the task's largest output."""
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What the format ``onnx`` needs."""

Run = Callable[[list[Tensor]], list[Tensor]]


def export(
    model: Model,
    path: str | os.PathLike[str],
    format: str = "onnx",
    tasks: Sequence[Task] = (),
    *,
    example: Any,
    source: str = "",
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a network in eval mode, with a batch of any size and one output per task, named as the task.

    The file is read back and run at two batch sizes; unless its outputs are PyTorch's on the CPU to 1e-5 of the
    largest, it is deleted and an error says so; an older file of its name is then as it was. Beside it,
    ``<path>.json`` records the inputs, the outputs with the names of their classes, and what has to be done to an input
    before.

    Args:
        model: any polytask model, compact ones included; stays as it is.
        path: of the file; ``.onnx`` or ``.pt2`` is appended where it has no suffix.
        format: ``onnx``, for onnxruntime and most others (needs ``pip install polytask[onnx]``), or ``torch``, a
            `torch.export` archive, for programs that have PyTorch and not polytask.
        tasks: which outputs, in this order, and the names of their classes; all of the model's heads, nameless, if
            empty.
        example: inputs of one example or a few, as in training: a tensor, or a tuple or dictionary of them. For what
            is trained on a sparse matrix, some of its rows made dense, which the file takes too.
        source: the source whose kind of inputs the file takes, for a network that has an encoder for each; the others'
            encoders are left out. A file takes one kind of inputs: export once for each source.
        preprocessing: how raw data become inputs, such as ``{"mean": [0.5], "std": [0.25]}``; recorded only.

    Returns:
        The path of the file.

    Raises:
        ValueError: an unknown format, a task without a head, an example without tensors, a source that has no encoder
            or was not named, a network that cannot be exported, or a failed check.
        ModuleNotFoundError: the packages for ``onnx`` are not installed.
        OSError: the file cannot be written.

    >>> export(model, "digits.onnx", tasks=tasks, example=images[:2])  # doctest: +SKIP
    PosixPath('digits.onnx')
    """
    one_of("format", format, FORMATS)
    check_packages(format)
    names = _names(model, tasks)
    check_sources(model, (source,))
    target = Path(path)
    target = target if target.suffix else target.with_suffix(SUFFIX[format])
    small = _batch(example, 2)
    # on the CPU: a GPU rounds more coarsely than the check allows, and a torch archive would need one again
    network = _Flat(copy.deepcopy(model).cpu(), names, small, source).eval()
    write = _write_onnx if format == "onnx" else _write_torch
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        part = Path(folder) / target.name
        run = write(network, tensors_of(small), part)
        difference = max(_check(network, run, _batch(example, size), target) for size in (2, 5))
        description = _describe(network, format, tasks, preprocessing, target, difference)
        beside = Path(folder) / "description.json"
        beside.write_text(json.dumps(description, indent=2) + "\n")
        os.replace(beside, target.with_name(target.name + ".json"))
        os.replace(part, target)
    return target


def check_packages(format: str) -> None:
    """Raises `ModuleNotFoundError` unless the packages for a format are installed."""
    for name in PACKAGES if format == "onnx" else ():
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"the format 'onnx' needs packages that are not installed, found no `{name}`: "
                "pip install polytask[onnx]",
                name=name,
            )


class _Flat(nn.Module):
    """The network as a function from tensors to tensors: inputs in order, outputs in the order of the tasks."""

    def __init__(self, model: Model, names: Sequence[str], example: Any, source: str) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self._drop_encoders()
        self.outputs = tuple(names)
        self.inputs = _input_names(example)
        self._example = map_inputs(lambda tensor: tensor[:1], example)

    def _drop_encoders(self) -> None:
        """Leaves the encoders of other sources out of the file."""
        for module in self.model.modules():
            if isinstance(module, BySource):
                for other in set(module.encoders) - {self.source}:
                    del module.encoders[other]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        flat = iter(inputs)
        predictions = self.model(map_inputs(lambda _: next(flat), self._example), self.outputs, self.source)
        return tuple(predictions[name] for name in self.outputs)


def _names(model: Model, tasks: Sequence[Task]) -> tuple[str, ...]:
    names = tuple(task.name for task in tasks) or model.task_names
    for name in names:
        if name not in model.task_names:
            raise ValueError(f"every exported task must have a head, found none for `{name}`: {list(model.task_names)}")
    if not names:
        raise ValueError("an export must have at least one task, found none: name them in `tasks`")
    return names


def _input_names(example: Any) -> tuple[str, ...]:
    if isinstance(example, Mapping) and all(isinstance(value, Tensor) for value in example.values()):
        return tuple(str(key) for key in example)
    count = len(tensors_of(example))
    return ("inputs",) if count == 1 else tuple(f"inputs_{place}" for place in range(count))


def _batch(example: Any, size: int) -> Any:
    """The example's rows, repeated or cut to `size` of them."""
    tensors = tensors_of(example)
    if not tensors or any(tensor.dim() == 0 or not len(tensor) for tensor in tensors):
        raise ValueError("`example` must be inputs of at least one example, found no tensor with a row")

    def sized(tensor: Tensor) -> Tensor:
        return tensor.detach().repeat(-(-size // len(tensor)), *[1] * (tensor.dim() - 1))[:size].clone().cpu()

    return map_inputs(sized, example)


def _write_onnx(network: _Flat, inputs: list[Tensor], part: Path) -> Run:
    import onnxruntime

    with _worded(), _quiet():
        torch.onnx.export(
            network, tuple(inputs), str(part), dynamo=True, verbose=False, external_data=False,
            input_names=list(network.inputs), output_names=list(network.outputs), dynamic_shapes=(_any_batch(inputs),),
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])

    def run(given: list[Tensor]) -> list[Tensor]:
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(network.inputs, given, strict=True)}
        return [torch.from_numpy(array) for array in session.run(list(network.outputs), feed)]

    return run


def _write_torch(network: _Flat, inputs: list[Tensor], part: Path) -> Run:
    with _worded(), torch.no_grad():
        program = torch.export.export(network, tuple(inputs), dynamic_shapes=(_any_batch(inputs),), strict=False)
        torch.export.save(program, part)
    loaded = torch.export.load(part).module()
    return lambda given: list(loaded(*given))


def _any_batch(inputs: list[Tensor]) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in inputs)


@contextmanager
def _worded() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever the network does that the exporter cannot follow
        last = error.__cause__ or error
        first = (str(last).strip().splitlines() or [type(last).__name__])[0]
        raise ValueError(f"a network to export must be traceable with a batch of any size, found: {first}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch's own exporter says of itself, which no user can mend.

    Those are deprecations inside torch, that inputs share one batch size, as they should, and a line for each
    operation of torchvision, which is not installed.
    """
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category)
            warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
            yield
    finally:
        registry.setLevel(level)


def _check(network: _Flat, run: Run, inputs: Any, target: Path) -> float:
    """Largest relative difference from PyTorch's outputs; raises if it is too large."""
    given = tensors_of(inputs)
    with torch.no_grad():
        expected = network(*(tensor.clone() for tensor in given))
    try:
        found = run(given)
    except Exception as error:  # a runtime's own errors
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"an exported file must run on {len(given[0])} examples, found {first}: the new {target.name} was deleted"
        ) from error
    worst = 0.0
    for name, one, other in zip(network.outputs, found, expected, strict=True):
        if one.shape != other.shape:
            found_shape = tuple(one.shape)
            raise ValueError(
                f"an exported file must give outputs {tuple(other.shape)} for `{name}`, found {found_shape}: "
                f"the new {target.name} was deleted"
            )
        scale = other.abs().max().clamp(min=torch.finfo(other.dtype).tiny)
        difference = ((one.to(other) - other).abs().max() / scale).item()
        if not difference <= TOLERANCE:
            raise ValueError(
                f"an exported file must give PyTorch's outputs to {TOLERANCE:g} of the largest, found {difference:.3g} "
                f"for `{name}` with {len(given[0])} examples: the new {target.name} was deleted"
            )
        worst = max(worst, difference)
    return worst


def _describe(
    network: _Flat,
    format: str,
    tasks: Sequence[Task],
    preprocessing: Mapping[str, Any] | None,
    target: Path,
    worst: float,
) -> dict[str, Any]:
    by_name = {task.name: task for task in tasks}
    example = tensors_of(network._example)
    inputs = [
        {"name": name, "shape": ["batch", *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in zip(network.inputs, example, strict=True)
    ]
    outputs = [
        {"name": name}
        | (by_name[name].describe() if name in by_name else {})
        | {"meaning": _meaning(by_name.get(name))}
        for name in network.outputs
    ]
    return {
        "file": target.name, "format": format, "source": network.source, "inputs": inputs, "outputs": outputs,
        "preprocessing": dict(preprocessing or {}), "largest_relative_difference": worst,
        "versions": {"torch": torch.__version__},
    }  # fmt: skip


def _meaning(task: Task | None) -> str:
    match task:
        case Binary():
            return "logit: a sigmoid gives the probability of the positive class"
        case Classification():
            return "logits: a softmax gives the probabilities of the classes, in the order of `labels`"
        case MultiLabel():
            return "logits: a sigmoid gives the probability of each label, in the order of `labels`"
        case Regression():
            return f"numbers: output * {task.std!r} + {task.mean!r} is in the units of the targets"
    return "raw outputs of the head"
