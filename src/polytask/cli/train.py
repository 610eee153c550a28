"""``polytask train``: one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polytask.cli.session import refuse
from polytask.cli.words import configured
from polytask.errors import plural

if TYPE_CHECKING:
    from polytask.studies.store import RunRecord


def train_command(words: list[str]) -> int:
    """train a network: CONFIG.yaml [--out FOLDER] [--any.setting VALUE ...]"""
    given = configured("train", words, ("--out",), ("--overwrite", "--print_config"))
    from polytask.studies import spec
    from polytask.studies.run import run

    config = spec.read_config(given.config)
    if "methods" in config:
        raise ValueError(f"{given.config} is a comparison (it has `methods`): run it with `polytask compare`")
    if "front" in config:
        raise ValueError(f"{given.config} is a front (it has `front`): run it with `polytask front`")
    if "sparsify" in config:
        raise ValueError(f"{given.config} is to be made sparse (it has `sparsify`): run it with `polytask sparsify`")
    resolved = spec.resolve(config, given.overrides)
    if "--print_config" in given.options:
        print(spec.dump(resolved), end="")
        return 0
    folder = given.folder()
    record = run(resolved, folder, overwrite="--overwrite" in given.options, progress=True)
    if record.state == "failed":
        return refuse(record.error)
    _print_figures(record)
    trained = f"{plural(record.epochs, 'epoch')} in {record.seconds:.1f} s"
    print(f"{trained}; weights of epoch {record.selected_epoch} in {folder}")
    return 0


def _print_figures(record: RunRecord) -> None:
    for part, figures in record.metrics.items():
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{part:<11} {shown}")
