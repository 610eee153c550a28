"""Any module at all, cut into shared and task-specific parameters by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, final

from torch import Tensor, nn

from polytask.errors import nearest
from polytask.models.base import Block, Blocks, Model, _unique
from polytask.models.checks import check_mapping, check_module, check_texts


@final
class Partitioned(Model):
    """Wraps a module that returns {task: outputs} and says which of its parameters are shared.

    There is no feature boundary: the whole module runs in every phase, with the frozen block's
    `requires_grad` off, so a specific phase still keeps no trunk activations and computes no trunk
    gradients, but features cannot be cached.

    A module belongs to the block that owns all its parameters. One without parameters (activation, dropout,
    normalisation without weights) goes with the nearest module around it that has any; where those belong to
    several blocks, it is shared. A tied parameter belongs to every block that has a name for it.

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
        TypeError: not a module, or prefixes that are not texts.

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
        check_module("module", module)
        check_mapping("specific", specific or {}, "tasks to prefixes of parameter names")
        if not callable(shared) or isinstance(shared, nn.Module):
            check_texts("shared", _listed(shared), "prefixes of parameter names, or a function")
        for prefixes in (specific or {}).values():
            check_texts("specific", _listed(prefixes), "prefixes of parameter names")
        check_texts("tasks", tasks, "names of tasks")
        self.module = module
        self._is_shared = shared if callable(shared) else _prefixed(shared)
        self._specific = {task: _prefixed(prefixes) for task, prefixes in (specific or {}).items()}
        self.task_names = tuple(self._specific or tasks)
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
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
        named = dict(self.module.named_parameters(remove_duplicate=False))  # a tied parameter has several names
        homes = _homes(self.module, named)
        shared = {name for name in named if self._is_shared(name)}
        own = {task: {name for name in named if belongs(name)} for task, belongs in self._specific.items()}
        rest = named.keys() - shared
        groups = [*own.values()] or [rest]

        def block(names: Set[str], takes_undecided: bool = False) -> Block:
            parameters = _unique(p for name, p in named.items() if name in names)
            modules = _unique(
                module
                for module, deciding in homes
                if deciding <= names or (takes_undecided and not any(deciding <= group for group in groups))
            )
            return Block(tuple(parameters), tuple(modules))

        specific = {task: block(names) for task, names in own.items()} or dict.fromkeys(self.task_names, block(rest))
        return Blocks(block(shared, takes_undecided=True), specific)


def _homes(root: nn.Module, named: Iterable[str]) -> list[tuple[nn.Module, set[str]]]:
    """Every module with the names of the parameters that decide its block.

    They are its own, or all those below it or below its nearest ancestor that has any.
    """
    homes = []
    for name, module in root.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        deciding = {prefix + key for key, _ in module.named_parameters(recurse=False, remove_duplicate=False)}
        while not deciding:
            deciding = {parameter for parameter in named if parameter.startswith(prefix)}
            prefix = prefix[: prefix.rfind(".", 0, -1) + 1]
        homes.append((module, deciding))
    return homes


def _listed(prefixes: Any) -> Any:
    """One prefix as a list of one."""
    return [prefixes] if isinstance(prefixes, str) else prefixes


def _prefixed(prefixes: str | Sequence[str]) -> Callable[[str], bool]:
    wanted = tuple(_listed(prefixes))

    def belongs(name: str) -> bool:
        return any(name == prefix or name.startswith(prefix.rstrip(".") + ".") for prefix in wanted)

    return belongs


def _check_prefixes(prefixes: str | Sequence[str], names: Sequence[str]) -> None:
    for prefix in _listed(prefixes):
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
