"""Configurations: what a run or a comparison is made of, as plain data, checked against the classes' signatures.

A train configuration has the keys ``data``, ``model``, ``trainer``, ``epochs``, ``seed``, ``threads`` and ``start`` (a
run folder, whose weights the network starts from); objects are named by ``class_path`` (an import path, or the bare
name of a polytask class) and ``init_args``. A configuration names classes and calls them, so it is code: run only those
you trust.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser, Namespace

from polytask.callback import Callback
from polytask.data.base import DataSet
from polytask.errors import WORDED, at_least, in_words, nearest
from polytask.models.base import Model
from polytask.training.trainer import Trainer

Config = dict[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]
Sections = tuple[tuple[str, type], ...]
"""(key, class of its settings) of what a kind of study adds to a train configuration."""

TRAIN_KEYS = ("data", "model", "trainer", "epochs", "seed", "threads", "start")
NOT_CONFIGURED = {"model", "tasks", "folder", "progress", "seed"}
"""Arguments of `Trainer` that a configuration gives elsewhere or not at all."""
OUR_CLASSES = (
    "polytask.data",
    "polytask.models",
    "polytask.schedules",
    "polytask.balancing.scalarization",
    "polytask.balancing.aggregation",
    "polytask.distillation",
    "polytask.sparsity",
    "polytask.training.callbacks",
)
"""Packages whose classes may be named without their import path."""


@dataclass
class Built:
    """The objects a configuration describes.

    Attributes:
        data: the data set, not loaded yet.
        trainer: the trainer with its model, weights drawn under the run's seed or read from `start`.
        epochs: epochs to train.
        start: the `digest` of the weights it starts from, "" if they were drawn.
    """

    data: DataSet
    trainer: Trainer
    epochs: int
    start: str = ""


def read_config(source: Mapping[str, Any] | str | Path) -> Config:
    """A configuration as plain data, copied, from a mapping or a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid YAML, repeats a key, or is not a mapping of names.
        TypeError: `source` is neither a mapping nor a path.
    """
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    if not isinstance(source, str | Path):
        raise TypeError(f"a configuration must be a mapping or a path, found {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"a configuration file must exist, found no file {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be valid YAML, found: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} must hold a mapping of keys such as `data` and `model`, found {found}")
    _anchor(content, path.parent)
    return content


def _anchor(config: Config, folder: Path) -> None:
    """Makes the paths of a data set's files absolute, relative ones being meant from `folder`."""
    data = config.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        return
    try:
        names = getattr(find_class(data["class_path"]), "paths", ())
    except ValueError:
        return  # `resolve` tells what is wrong with it
    arguments = data.get("init_args")
    if not isinstance(arguments, dict):
        return
    for name in names:
        if isinstance(arguments.get(name), str):
            arguments[name] = os.path.normpath((folder / arguments[name]).absolute())


def resolve(config: Mapping[str, Any], overrides: Overrides = (), sections: Sections = ()) -> Config:
    """The complete configuration: every class path and every default written out.

    Args:
        config: a train configuration.
        overrides: command-line words, ``["--epochs", "3", "--trainer.batch_size=64"]``, or a mapping
            ``{"epochs": 3, "trainer.batch_size": 64}``. They win over `config`.
        sections: further keys that the configuration must have, and the class of their settings.

    Raises:
        ValueError: an unknown key or class, a missing key, or a value of the wrong type or out of range; one
            line that names the key.

    >>> resolve({"epochs": 3, "modle": {}})
    Traceback (most recent call last):
    ValueError: unknown key `modle`: did you mean `model`?
    """
    content = copy.deepcopy(dict(config))
    _check_keys("", content, (*TRAIN_KEYS, *(name for name, _ in sections)))
    for key, value in content.items():
        _check_classes(key, value)
    known = {"trainer": _trainer_keys()} | {name: list(inspect.signature(kind).parameters) for name, kind in sections}
    for key, settings in known.items():
        if key in content:
            if not isinstance(content[key], Mapping):
                raise ValueError(f"`{key}` must be a mapping of settings, found {content[key]!r}")
            _check_keys(key, content[key], settings)
    parser = parser_for_train(sections=sections)
    words = ["--config", yaml.safe_dump(content, sort_keys=False), *as_words(overrides)]
    parsed = _parse(parser, words)
    for key, minimum in (("epochs", 1), ("threads", 1), ("seed", 0)):
        at_least(key, parsed[key], minimum)
    parsed.pop("config")
    resolved = yaml.load(parser.dump(parsed, skip_unset=False), _Loader)
    _anchor(resolved, Path())
    return resolved


def build(
    config: Mapping[str, Any],
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    adapt: Callable[[Model], Model] | None = None,
    restore: Callable[[DataSet], None] | None = None,
) -> Built:
    """Makes the objects of a resolved configuration.

    Initial weights are drawn under the configuration's seed, or read from its `start`; the caller's random state is
    left as it was. In every text of the configuration ``{seed}`` stands for its seed: each run of a comparison can so
    name the teacher, or the weights to start from, of its own seed.

    Args:
        config: what `resolve` returned.
        folder: where an interrupted run leaves its checkpoint.
        callbacks: further callbacks, after the configuration's own.
        adapt: takes the network that the configuration describes and gives the one to train, of the same tasks.
        restore: gives the data set what it learned in an earlier run (`DataSet.restore`), before its tasks are asked.

    Raises:
        ValueError: an argument that its class refuses, tasks and heads that do not match, or weights to start from that
            are another network's.
        FileNotFoundError: the folder to start from holds no weights.
    """
    config = _with_seed(dict(config), config["seed"])
    parser = parser_for_train()
    parsed = parser.parse_object(copy.deepcopy(dict(config)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config["seed"])
        try:
            made = parser.instantiate(parsed)
        except (ValueError, ArgumentError) as error:
            raise ValueError(one_line(error)) from error
    if restore is not None:
        restore(made.data)
    settings = {key: value for key, value in vars(made.trainer).items() if key != "callbacks"}
    model = made.model if adapt is None else adapt(made.model)
    trainer = Trainer(
        model, made.data.tasks, **settings, callbacks=[*made.trainer.callbacks, *callbacks],
        seed=made.seed, folder=folder, progress=False,
    )  # fmt: skip
    return Built(made.data, trainer, made.epochs, _begin(trainer, config.get("start")))


def _with_seed(value: Any, seed: int) -> Any:
    """Nested settings with the seed in place of ``{seed}``."""
    if isinstance(value, Mapping):
        return {key: _with_seed(item, seed) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_seed(item, seed) for item in value]
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def _begin(trainer: Trainer, start: str | None) -> str:
    """Reads the weights to start from, and tells them by their digest."""
    if start is None:
        return ""
    try:
        trainer.load_weights(start)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"`start`: {error}") from error
    return digest(start)


def digest(folder: str | Path) -> str:
    """Tells weights apart: the SHA-256 of a run folder's ``weights.safetensors``, "" if it has none."""
    path = Path(folder) / "weights.safetensors"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(config: Mapping[str, Any] | str | Path, folder: str | Path | None, otherwise: str) -> Path:
    """Where a study is stored: `folder`, or ``runs/<name of the file>``; `otherwise` in place of the name of a mapping.

    >>> folder_of("examples/digits.yaml", None, "comparison").as_posix()
    'runs/digits'
    """
    if folder is not None:
        return Path(folder)
    return Path("runs") / (Path(config).stem if isinstance(config, str | Path) else otherwise)


def dump(config: Mapping[str, Any]) -> str:
    """A configuration as YAML text, keys in their given order."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Config:
    """`base` with `over` laid on top: mappings key by key, all else replaced.

    Where `over` names another ``class_path``, the ``init_args`` of `base` that the new class accepts are kept
    and the others dropped: ``{"model": {"class_path": "SingleTask"}}`` keeps the trunk and the heads. Lists,
    such as callbacks, are replaced as a whole.

    >>> base = {"epochs": 3, "trainer": {"batch_size": 16, "warmup": 5}}
    >>> merge(base, {"trainer": {"batch_size": 32}})
    {'epochs': 3, 'trainer': {'batch_size': 32, 'warmup': 5}}
    """
    merged = copy.deepcopy(dict(base))
    if _changes_class(base, over):
        merged["init_args"] = _accepted(over["class_path"], merged.get("init_args") or {})
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and "class_path" in before and isinstance(value, str):
            value = {"class_path": value}
        if isinstance(before, dict) and isinstance(value, Mapping):
            merged[key] = merge(before, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two configurations differ, as ``key: first -> second``.

    >>> differences({"epochs": 3, "seed": 0}, {"epochs": 5, "seed": 0})
    ['epochs: 3 -> 5']
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [
            line
            for key in dict.fromkeys([*first, *second])
            for line in differences(first.get(key), second.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if first == second else [f"{where}: {first} -> {second}"]


def as_words(overrides: Overrides) -> list[str]:
    """Overrides as command-line words.

    >>> as_words({"trainer.batch_size": 64})
    ['--trainer.batch_size=64']
    """
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def as_value(word: str) -> Any:
    """A word of the command line as the value that it would be in a file.

    >>> [as_value(word) for word in ("64", "1e-3", "null", "Adam")]
    [64, 0.001, None, 'Adam']
    """
    return yaml.load(word, _Loader)


@functools.cache
def parser_for_train(prog: str = "polytask", sections: Sections = ()) -> ArgumentParser:
    """The parser of train configurations, made from the signatures of `Trainer` and of the classes named."""
    for package in OUR_CLASSES:
        importlib.import_module(package)  # a class is found by its bare name only once it is imported
    parser = ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help=SUPPRESS)
    parser.add_argument("--data", type=DataSet, required=True, help="the data set")
    parser.add_argument("--model", type=Model, required=True, help="the network")
    parser.add_class_arguments(Trainer, "trainer", skip=set(NOT_CONFIGURED), instantiate=False)
    parser.add_argument("--epochs", type=int, required=True, help="passes over the training data")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, shuffles and dropout")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; results depend on it")
    parser.add_argument("--start", type=str | None, default=None, help="a run folder with the initial weights")
    for name, kind in sections:
        parser.add_class_arguments(kind, name, instantiate=False)
    return parser


def find_class(name: str) -> Any:
    """The class (or function) with this import path or, for polytask's own, with this bare name.

    Raises:
        ValueError: there is none, or its module cannot be imported.

    >>> find_class("HardSharing").__name__
    'HardSharing'
    """
    if "." not in name:
        ours = our_classes()
        if name not in ours:
            raise ValueError(f"there is no class `{name}`: {_hint(name, ours)}")
        return ours[name]
    module, _, attribute = name.rpartition(".")
    try:
        place = importlib.import_module(module)
    except Exception as error:  # a user's own module may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no class `{name}`: {error}") from error
        raise ValueError(f"the module of `{name}` must be importable, found {in_words(error)}") from error
    if not hasattr(place, attribute):
        raise ValueError(f"there is no class `{name}`: {_hint(attribute, dir(place))}")
    return getattr(place, attribute)


def our_classes() -> dict[str, type]:
    """polytask's own public classes by bare name."""
    found: dict[str, type] = {}
    for package in OUR_CLASSES:
        module = importlib.import_module(package)
        members = {name: getattr(module, name) for name in module.__all__}
        found |= {name: member for name, member in members.items() if inspect.isclass(member)}
    return found


def one_line(error: BaseException) -> str:
    """An error's message as one line; of jsonargparse's trees only the key and the reason are kept."""
    if not isinstance(error, (ArgumentError, *WORDED)) or not str(error).strip():
        return in_words(error)
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2 and "Parser key" not in text:
        return text.strip()
    keys = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    alternatives = [line[2:] for line in lines if line.startswith("- ")]
    noise = re.compile(r'(Parser key "[^"]+": ?$|Problem with given class_path|Given value)')
    plain = [line for line in lines if not noise.match(line)]
    reason = alternatives[0] if alternatives else " ".join(plain)
    reason = re.sub(r'^Parser key "[^"]+": ', "", reason)
    reason = re.sub(r"^Type \S+.* expects a function or a callable class: ", "", reason)
    reason = re.sub(r"<class '([^']+)'>", r"\1", reason).replace("Expected", "expected")
    refused = re.match(r"Option '(\w+)' is not accepted\. Got value: Namespace\(class_path='([^']+)'", reason)
    if refused:
        reason = f"`{refused[2]}` takes no `{refused[1]}`: name the class that does"
    missing = re.match(r"expected a dot import path string: (\S+)$", reason)
    if missing and missing[1] in our_classes():
        reason = f"another kind of class is expected, found `{missing[1]}`"
    elif missing:
        reason = f"there is no class `{missing[1]}`: {_hint(missing[1], our_classes())}"
    return f"`{keys}`: {reason}" if keys else reason


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number, as YAML 1.2 does, and refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.YAMLError(f"the key `{key}` twice in one mapping, line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    try:
        with redirect_stderr(io.StringIO()):
            return parser.parse_args(words)
    except ArgumentError as error:
        message = str(error)
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            raise ValueError(unknown_option(unknown[1], options_of(parser))) from error
        missing = re.match(r"the following arguments are required: (.+)", message)
        if missing:
            raise ValueError(
                f"a configuration must have the keys `data`, `model` and `epochs`, found no `{missing[1]}`"
            ) from error
        raise ValueError(one_line(error)) from error


def unknown_option(option: str, known: Iterable[str]) -> str:
    """The message that there is no such option, with the nearest one there is.

    >>> unknown_option("--epoch", ["--epochs", "--model"])
    'unknown option `--epoch`: did you mean `--epochs`?'
    >>> unknown_option("--folder", ["--epochs", "--model"])
    'unknown option `--folder`: `--help` lists them'
    """
    hint = nearest(option.lstrip("-"), [name.lstrip("-") for name in known])  # dashes make any two words alike
    hint = hint.replace("`", "`--", 1) if hint.startswith("did") else "`--help` lists them"
    return f"unknown option `{option}`: {hint}"


def options_of(parser: ArgumentParser) -> list[str]:
    """The options that a parser takes, those that only print help aside."""
    options = [option for action in parser._actions for option in action.option_strings]
    return [option for option in options if not option.endswith(".help")]


def _trainer_keys() -> list[str]:
    return [key for key in inspect.signature(Trainer).parameters if key not in NOT_CONFIGURED]


def _check_keys(where: str, content: Mapping[str, Any], known: Iterable[str]) -> None:
    options = list(known)
    for key in content:
        if key not in options:
            full = f"{where}.{key}" if where else str(key)
            raise ValueError(f"unknown key `{full}`: {nearest(str(key), options)}")


def _check_classes(where: str, value: Any) -> None:
    """Walks a configuration: every class must exist and take the arguments it is given."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_classes(f"{where}[{index}]", item)
    if not isinstance(value, Mapping):
        return
    if "class_path" in value:
        if not isinstance(value["class_path"], str):
            raise ValueError(f"`{where}`: a `class_path` must be a name, found {value['class_path']!r}")
        _check_keys(where, value, ("class_path", "init_args", "dict_kwargs"))
        try:
            accepted = _parameters(value["class_path"])
        except ValueError as error:
            raise ValueError(f"`{where}`: {error}") from error
        if accepted is not None and isinstance(value.get("init_args"), Mapping):
            _check_keys(f"{where}.init_args", value["init_args"], accepted)
    for key, item in value.items():
        _check_classes(f"{where}.{key}", item)


def _parameters(class_path: str) -> list[str] | None:
    """The names of a class's arguments; None if it takes any or cannot tell."""
    found = find_class(class_path)
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _changes_class(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    if not isinstance(over.get("class_path"), str) or not isinstance(base.get("class_path"), str):
        return False
    return find_class(base["class_path"]) is not find_class(over["class_path"])


def _accepted(class_path: str, arguments: Mapping[str, Any]) -> Config:
    accepted = _parameters(class_path)
    return {key: value for key, value in arguments.items() if accepted is None or key in accepted}


def _hint(word: str, known: Iterable[str]) -> str:
    options = [name for name in known if not name.startswith("_")]
    hint = nearest(word, options)
    return hint if hint.startswith("did") else "check its spelling and its import path"
