"""The command line: ``polytask COMMAND ...``, a module for each command or family of commands."""

from polytask.cli.commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
