"""Any module at all, cut into shared and task-specific parameters by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from polytask.errors import nearest
from polytask.models.base import Block, Blocks, Model


@final
class Partitioned(Model):
    """Wraps a module that returns {task: outputs} and says which of its parameters are shared.

    There is no feature boundary: the whole module runs in every phase, with the frozen block's
    `requires_grad` off, so a specific phase still keeps no trunk activations and computes no trunk
    gradients, but features cannot be cached.

    Args:
        module: called with the inputs; must return a mapping {task: outputs (B, C)}.
        shared: a prefix of parameter names ("trunk"), several of them, or a function from a parameter's
            name to True if it is shared.
        specific: {task: prefix or prefixes of its own parameters}. Without it the parameters that are not
            shared form one block that belongs to all tasks.
        tasks: names of the tasks; taken from `specific` if that is given.

    Raises:
        ValueError: a prefix matches no parameter, the shared block would be empty or hold everything, or
            a parameter would belong to no block.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.trunk, self.left, self.right = nn.Linear(2, 8), nn.Linear(8, 1), nn.Linear(8, 1)
    ...     def forward(self, x):
    ...         z = self.trunk(x).relu()
    ...         return {"left": self.left(z), "right": self.right(z)}
    >>> model = Partitioned(Net(), shared="trunk", specific={"left": "left", "right": "right"})
    >>> len(model.blocks().shared.parameters)
    2
    """

    boundary = False

    def __init__(
        self,
        module: nn.Module,
        shared: str | Sequence[str] | Callable[[str], bool],
        specific: Mapping[str, str | Sequence[str]] | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self._is_shared = shared if callable(shared) else _prefixed(shared)
        self._specific = {task: _prefixed(prefixes) for task, prefixes in (specific or {}).items()}
        self.task_names = tuple(self._specific or tasks)
        names = [name for name, _ in module.named_parameters()]
        if not callable(shared):
            _check_prefixes(shared, names)
        for prefixes in (specific or {}).values():
            _check_prefixes(prefixes, names)
        _check_cut(names, self._is_shared, self._specific)

    def forward(self, inputs: Any, tasks: Iterable[str] | None = None, source: str = "") -> dict[str, Tensor]:
        outputs = self.module(inputs)
        if not isinstance(outputs, Mapping):
            raise TypeError(f"a Partitioned module must return {{task: outputs}}, found {type(outputs).__name__}")
        wanted = tuple(tasks or self.task_names or outputs)
        for task in wanted:
            if task not in outputs:
                raise ValueError(f"the module returned no output for task `{task}`: {nearest(task, outputs)}")
        return {task: outputs[task] for task in wanted}

    def bind(self, tasks: Sequence[str]) -> None:
        """Takes the tasks' names from the trainer where none were given, else checks them."""
        self.task_names = self.task_names or tuple(tasks)
        super().bind(tasks)

    def blocks(self) -> Blocks:
        owners = {task: self._own(belongs) for task, belongs in self._specific.items()}
        if not owners:
            rest = self._own(lambda name: not self._is_shared(name))
            owners = dict.fromkeys(self.task_names, rest)
        return Blocks(self._own(self._is_shared), owners)

    def _own(self, belongs: Callable[[str], bool]) -> Block:
        parameters = tuple(p for name, p in self.module.named_parameters() if belongs(name))
        modules = tuple(m for name, m in self.module.named_modules() if belongs(_probe(name, m)))
        return Block(parameters, modules)


def _probe(name: str, module: nn.Module) -> str:
    """A module's own first parameter decides its block; one without parameters goes by its own name."""
    own = next((key for key, _ in module.named_parameters(recurse=False)), None)
    return name if own is None else f"{name}.{own}" if name else own


def _prefixed(prefixes: str | Sequence[str]) -> Callable[[str], bool]:
    wanted = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)

    def belongs(name: str) -> bool:
        return any(name == prefix or name.startswith(prefix.rstrip(".") + ".") for prefix in wanted)

    return belongs


def _check_prefixes(prefixes: str | Sequence[str], names: Sequence[str]) -> None:
    for prefix in (prefixes,) if isinstance(prefixes, str) else prefixes:
        if not any(map(_prefixed(prefix), names)):
            tops = {name.rsplit(".", 1)[0] for name in names}
            raise ValueError(f"prefix `{prefix}` must match a parameter, found none: {nearest(prefix, tops)}")


def _check_cut(
    names: Sequence[str], shared: Callable[[str], bool], specific: Mapping[str, Callable[[str], bool]]
) -> None:
    common = [name for name in names if shared(name)]
    if not common:
        raise ValueError(f"`shared` must match at least one parameter, found none among {list(names)}")
    if len(common) == len(names):
        raise ValueError(f"`shared` must leave parameters to the tasks, found that it takes all {len(names)}")
    for name in names if specific else ():
        owners = [task for task, belongs in specific.items() if belongs(name)]
        if shared(name) == bool(owners):
            found = "both" if owners else "neither"
            raise ValueError(f"parameter `{name}` must be shared or some task's own, found {found}")
