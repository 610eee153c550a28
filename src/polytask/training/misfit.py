"""Which layer of a network refuses a batch, in words: looked for only once one has."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from polytask.batch import tensors_of

_OF_SHAPES = re.compile(r"shape|size|channel|dimension|element|dtype|scalar type", re.IGNORECASE)


class Misfit(ValueError):
    """A layer that cannot take what it is given: inputs of another width, or the outputs of the layer before it.

    Attributes:
        layer: its name in the network.
    """

    layer: str = ""


def refuse_misfit(model: nn.Module, inputs: Any, source: str, error: RuntimeError) -> None:
    """Raises what torch says of shapes as a `Misfit`; does nothing where `error` is of another kind.

    Args:
        model: the network whose forward pass raised `error`.
        inputs: the batch's.
        source: where the batch comes from.
        error: as it was caught.

    Raises:
        Misfit: the layer that refused, what it was given, and the batch's shape and source.
    """
    found = _refusing(model, error)
    # its subclasses are of other kinds, such as a lack of memory
    if type(error) is not RuntimeError or found is None or not _OF_SHAPES.search(str(error)):
        return
    name, layer, given = found
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(inputs))
    whose = f" from source `{source}`" if source else ""
    what = f" of shape {tuple(given.shape)}" if given is not None else ""
    words = str(error).splitlines()[0]
    told = Misfit(
        f"every layer of a network must take what it is given, found that `{name}`, {_short(layer)}, refuses "
        f"inputs{what}, in a batch of shape {shapes}{whose}: {words}"
    )
    told.layer = name
    raise told from error


def _refusing(model: nn.Module, error: BaseException) -> tuple[str, nn.Module, Tensor | None] | None:
    """The innermost module of the network that was running, its name and its first argument."""
    names = {id(module): name for name, module in model.named_modules() if name}
    found = None
    for frame in _frames(error.__traceback__):
        module = frame.f_locals.get("self")
        if frame.f_code.co_name.endswith("forward") and id(module) in names and isinstance(module, nn.Module):
            arguments = [frame.f_locals.get(name) for name in frame.f_code.co_varnames[1 : frame.f_code.co_argcount]]
            given = next((value for value in arguments if isinstance(value, Tensor)), None)
            found = names[id(module)], module, given
    return found


def _frames(traceback: types.TracebackType | None) -> Iterator[types.FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _short(module: nn.Module) -> str:
    """A layer as it prints itself, a module of several by its class."""
    return f"a {type(module).__name__}" if any(True for _ in module.children()) else repr(module)
