"""The words of a command: its files, its own options, and the settings of a configuration among them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from polytask.errors import at_least, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from polytask.studies.spec import Sections


@dataclass
class Words:
    """The words of a command that takes a configuration.

    Attributes:
        config: the YAML file.
        options: the command's own options and their values ("" for flags).
        overrides: the rest: settings of the configuration.
    """

    config: str
    options: dict[str, str]
    overrides: list[str]

    def folder(self) -> Path:
        """Where results go."""
        return Path(self.options.get("--out") or Path("runs") / Path(self.config).stem)

    def numbers(self, option: str) -> list[int] | None:
        """An option's whole numbers, separated by commas."""
        if option not in self.options:
            return None
        try:
            return [int(part) for part in self.options[option].strip("[]").split(",")]
        except ValueError:
            raise ValueError(f"`{option}` must be whole numbers, found {self.options[option]!r}") from None

    def number(self, option: str) -> int | None:
        """An option's one whole number, at least 1."""
        found = self.numbers(option)
        if found is None:
            return None
        if len(found) != 1:
            raise ValueError(f"`{option}` must be one whole number, found {self.options[option]!r}")
        at_least(option, found[0], 1)
        return found[0]


def configured(
    command: str,
    words: list[str],
    valued: Sequence[str],
    flags: Sequence[str],
    *,
    listed: str = "",
    sections: Sections = (),
    epilog: str | None = None,
) -> Words:
    """Tells the file, the command's own options and the configuration's settings apart, in any order.

    Args:
        command: its name.
        words: what follows it.
        valued: the command's own options that take a value.
        flags: those that take none.
        listed: the one that takes any number of names, "" if none does.
        sections: what its configurations hold beside a train configuration's keys.
        epilog: what its help ends with.

    Raises:
        ValueError: not one YAML file, an option without its value, or a misspelt option of the command.
        SystemExit: help was asked for and printed.
    """
    if "--help" in words or "-h" in words:
        _configured_help(command, valued, flags, listed, sections, epilog)
    files: list[str] = []
    given = Words("", {}, [])
    rest = iter(_joined(words, listed) if listed else words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in flags:
            given.options[name] = ""
        elif name in (*valued, listed):
            given.options[name] = value if equals else _next(rest, name)
        elif not word.startswith("--"):
            files.append(word)
        elif misspelt := _misspelt(name, (*valued, *flags, listed), command, sections):
            raise ValueError(misspelt)
        elif equals or name.endswith(".help"):
            given.overrides.append(word)
        else:
            given.overrides += [word, _next(rest, name)]
    if len(files) != 1 and not any(word.partition("=")[0].endswith(".help") for word in given.overrides):
        example = f"for instance `polytask {command} first.yaml`"
        raise ValueError(f"`polytask {command}` must be given one YAML file, found {files or 'none'}: {example}")
    given.config = "".join(files[:1])
    if not given.config:
        _parser(command, sections).parse_args(given.overrides)
    return given


def _misspelt(word: str, own: Sequence[str], command: str, sections: Sections) -> str:
    """What is wrong with an option that is no key of a configuration and most like one of `own`; else ""."""
    if "." in word or not difflib.get_close_matches(word[2:], [option[2:] for option in own], n=1):
        return ""
    from polytask.studies.spec import options_of, unknown_option

    known = options_of(_parser(command, sections))
    message = unknown_option(word, [*known, *own])
    return message if word not in known and any(message.endswith(f"`{option}`?") for option in own if option) else ""


def _parser(command: str, sections: Sections) -> ArgumentParser:
    """The parser of a command's configurations."""
    from polytask.studies.spec import parser_for_train

    return parser_for_train(f"polytask {command}", sections)


def _joined(words: list[str], option: str) -> list[str]:
    """The words with those after `option`, up to the next option or YAML file, made one value of it."""
    joined: list[str] = []
    values: list[str] | None = None
    for word in words:
        ends = word.startswith("--") or Path(word).suffix in (".yaml", ".yml")
        if word.partition("=")[0] == option:
            values = [word.partition("=")[2]]
            continue
        if values is not None and ends:
            joined.append(_as_one(option, values))
            values = None
        (joined if values is None else values).append(word)
    return joined if values is None else [*joined, _as_one(option, values)]


def _as_one(option: str, values: list[str]) -> str:
    # a name may hold spaces
    names = [name for value in values for part in value.strip("[]").split(",") if (name := part.strip())]
    if not names:
        raise ValueError(f"`{option}` must be given a value, found none")
    return f"{option}=" + "\n".join(names)


def _next(rest: Iterator[str], option: str) -> str:
    value = next(rest, None)
    if value is None:
        raise ValueError(f"`{option}` must be given a value, found none")
    return value


def _configured_help(
    command: str, valued: Sequence[str], flags: Sequence[str], listed: str, sections: Sections, epilog: str | None
) -> NoReturn:
    parser = _parser(command, sections)
    own = [f"[{option} {option.strip('-').upper()}]" for option in valued] + [f"[{flag}]" for flag in flags]
    own += [f"[{listed} NAME ...]"] * bool(listed)
    parser.usage = f"polytask {command} CONFIG.yaml {' '.join(own)} [--any.setting VALUE ...]"
    parser.epilog = epilog
    parser.print_help()
    raise SystemExit(0)


def parsed(
    command: str,
    about: str | None,
    words: list[str],
    function: Callable[..., Any] | None,
    options: Callable[[ArgumentParser], None] | None = None,
) -> Any:
    """The words of a command that is one function, by that function's own signature, or by options of its own.

    Args:
        command: its name.
        about: what it does, for its help.
        words: what follows it.
        function: whose arguments are the command's, in their order; None for none.
        options: adds further ones to the parser.

    Raises:
        ValueError: words that do not fit.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser: ArgumentParser = ArgumentParser(
        prog=f"polytask {command}", exit_on_error=False, allow_abbrev=False, description=about
    )
    if function is not None:
        parser.add_function_arguments(function, as_positional=True)
    if options is not None:
        options(parser)
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        from polytask.studies.spec import one_line

        message = one_line(error)
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            message += ": " + nearest(unknown[1], re.findall(r"--[\w-]+", parser.format_usage()))
        elif "required" in message or "expected at least" in message:
            message += f", as in `polytask {command} {(about or '').partition(': ')[2]}`"
        raise ValueError(message) from error


def as_given(message: str, words: Sequence[str]) -> str:
    """A message that names options as they were given: what Python knows as an argument was typed with dashes.

    >>> as_given("`jobs` must be at least 1, found 0", ["a.yaml", "--jobs", "0"])
    '`--jobs` must be at least 1, found 0'
    >>> as_given("`jobs` must be at least 1, found 0", ["a.yaml"])
    '`jobs` must be at least 1, found 0'
    """
    for option in {word.partition("=")[0] for word in words if word.startswith("--")}:
        message = message.replace(f"`{option.removeprefix('--')}` must", f"`{option}` must")
    return message
