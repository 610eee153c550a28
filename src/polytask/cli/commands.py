"""All commands by name, and how one is found, run and ended: `COMMANDS` lists them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from polytask.cli.compare import compare_command
from polytask.cli.front import front_command
from polytask.cli.group import group_command
from polytask.cli.init import init_command
from polytask.cli.lists import datasets_command, methods_command
from polytask.cli.report import report_command
from polytask.cli.session import DEBUG, interrupted, refuse, session
from polytask.cli.sparsify import sparsify_command
from polytask.cli.train import train_command
from polytask.cli.trained import evaluate_command, export_command, predict_command
from polytask.cli.words import as_given
from polytask.errors import WORDED, in_words, nearest
from polytask.launched import rank_by_environment

# whatever needs torch is imported inside the commands, so that `--help` answers at once

TOGETHER = ("train", "evaluate")
"""Commands that several processes, launched by torchrun, may carry out together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words after ``polytask``; those of the process if None.

    Returns:
        The exit status: 0; 1 where some runs of a comparison failed; 2 for any error, told in one line; 3 where
        ``sparsify`` did not reach the wanted sparsity; 130 or 143 after Ctrl-C or SIGTERM. With ``POLYTASK_DEBUG=1``
        in the environment the log goes into every detail, an error's traceback among them.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with session(speaks=rank_by_environment() == 0):
        return _guarded(words)


def _guarded(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except SystemExit as leaving:  # argument parsers leave this way, after --help too
        return leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:  # `polytask methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)
    except Exception as error:  # a user's own class may raise anything
        logging.getLogger("polytask").debug("the error in full", exc_info=True)
        told = as_given(in_words(error), words)
        return refuse(told + ("" if isinstance(error, WORDED) else f" ({DEBUG}=1 shows where)"))


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("--help", "-h"):
        print(_usage())
        return 0
    if name == "--version":
        from polytask import __version__

        print(f"polytask {__version__}")
        return 0
    if name not in COMMANDS:
        raise ValueError(f"unknown command `{name}`: {nearest(name, COMMANDS)}")
    _check_processes(name)
    return COMMANDS[name](words[1:])


def _check_processes(name: str) -> None:
    from polytask.training.launch import processes

    if name not in TOGETHER and processes() > 1:
        raise ValueError(f"`polytask {name}` must be run by one process, found {processes()} of them launched")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "compare": compare_command,
    "front": front_command,
    "group": group_command,
    "sparsify": sparsify_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "export": export_command,
    "report": report_command,
    "init": init_command,
    "methods": methods_command,
    "datasets": datasets_command,
}


def _usage() -> str:
    lines = [f"  {name:<9} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([
        "usage: polytask COMMAND ...", "", "Trains one network for several tasks.", "", "commands:", *lines, "",
        "Any setting of a YAML file can be given on the command line: --epochs 3 --trainer.batch_size 64.",
        "`polytask COMMAND --help` lists them; `polytask --version` tells the version.",
        f"An error is told in one line; with {DEBUG}=1 in the environment its traceback is shown too.",
    ])  # fmt: skip
