"""The command line: ``polytask COMMAND ...``; `COMMANDS` lists them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from polytask.errors import WORDED, in_words, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from polytask.studies.compare import Comparison
    from polytask.studies.first import First
    from polytask.studies.front import Front
    from polytask.studies.grouping import Study
    from polytask.studies.sparsify import Sparsified
    from polytask.studies.sparsify_seeds import SparsifiedSeeds
    from polytask.studies.store import RunRecord

# whatever needs torch is imported inside the commands, so that `--help` answers at once

COMPARE_HELP = (
    "The file of a comparison holds these settings as defaults, and besides: methods: {name: the settings it "
    "changes}; seeds: [0, 1, 2]; baseline: the method that others are measured against. methods may also be a list of "
    "the names that `polytask methods` prints, or of the groups all, aggregation and scalarization, and --methods "
    "MGDA UPGrad takes its place (a file without methods will do). Listed methods are compared with single-task "
    "training, the plain sum and fixed weights: as many vectors as methods, or --weights of them. --seeds takes a list "
    "such as 0,1,2. Settings given on the command line hold for every method."
)
COSTS_HELP = (
    "Costs are of one step with K tasks: passes through the network, and gradients of the shared block kept at once. "
    "Where others than exact are named, the trainer's `gradients: features` takes 1 backward pass through the trunk, "
    "as gradients at the features stand in for those at the parameters, and `gradients: low_memory` keeps about 1 "
    "shared gradient, for about K (K + 1) passes. What a balancer keeps is in the checkpoint."
)
FRONT_HELP = (
    "The file of a front holds these settings, seeds: [0, 1, 2], and front: how the preference vectors are chosen and "
    "who is given them. --seeds takes a list such as 0,1,2. The same command goes on with what a killed one left."
)
SPARSIFY_HELP = (
    "The file of a study holds these settings; `epochs` are those of the search and the retraining together. Settings "
    "of the trainer that differ in either are given as sparsify.search and sparsify.retrain. The same command goes on "
    "with what a killed one left. Exit status 3: no epoch of the search was sparse enough. --seeds takes a list such "
    "as 0,1,2 (so does `seeds` in the file): the whole study once a seed, below one folder, with means and spreads. "
    "--jobs is how many at once, 1 if not given: latencies measured beside other work are less certain."
)
GROUP_HELP = (
    "Trains all tasks together and measures whether a step for one helps the others, suggests at most --groups groups "
    "of tasks with a trunk each (2 if not given), and trains that beside all together and each alone. The file holds "
    "these settings and may hold seeds: [0, 1, 2]; its model must be HardSharing. --every N looks at every Nth step, "
    "10 if not given. The same command goes on with what a killed one left."
)
DEBUG = "POLYTASK_DEBUG"
NOT_REACHED = 3
ERROR = 2
SOME_FAILED = 1
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
    from polytask.training.launch import rank_by_environment

    with _session(speaks=rank_by_environment() == 0):
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
        return _interrupted(interrupt)
    except Exception as error:  # a user's own class may raise anything
        logging.getLogger("polytask").debug("the error in full", exc_info=True)
        return _refuse(in_words(error) + ("" if isinstance(error, WORDED) else f" ({DEBUG}=1 shows where)"))


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


def _train(words: list[str]) -> int:
    """train a network: CONFIG.yaml [--out FOLDER] [--any.setting VALUE ...]"""
    given = _configured("train", words, ("--out",), ("--overwrite", "--print_config"))
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
        return _refuse(record.error)
    _print_figures(record)
    print(f"{record.epochs} epochs in {record.seconds:.1f} s; weights of epoch {record.selected_epoch} in {folder}")
    return 0


def _compare(words: list[str]) -> int:
    """train several methods with several seeds and report: CONFIG.yaml [--methods NAME ...] [--jobs N] [...]"""
    given = _configured(
        "compare", words, ("--out", "--jobs", "--seeds", "--weights"), ("--overwrite", "--print_config"), "--methods"
    )
    from polytask.studies.compare import compare, plan
    from polytask.studies.spec import dump

    seeds, weights = given.numbers("--seeds"), given.number("--weights")
    methods = given.options["--methods"].splitlines() if "--methods" in given.options else None
    if "--print_config" in given.options:
        made = plan(given.config, given.overrides, seeds, methods, weights)
        print(dump({"seeds": made.seeds, "baseline": made.baseline, "methods": made.methods}), end="")
        return 0
    comparison = compare(
        given.config, overrides=given.overrides, folder=given.folder(), jobs=given.number("--jobs"), seeds=seeds,
        methods=methods, weights=weights, overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return _report_on(comparison, title=Path(given.config).stem)


def _front(words: list[str]) -> int:
    """train one network per preference vector, and draw the front: CONFIG.yaml [--out FOLDER] [--jobs N] [...]"""
    given = _configured("front", words, ("--out", "--jobs", "--seeds"), ("--overwrite", "--print_config"))
    from polytask.studies.front import front, plan
    from polytask.studies.spec import dump

    seeds = given.numbers("--seeds")
    if "--print_config" in given.options:
        made = plan(given.config, given.overrides, seeds)
        print(dump({"seeds": made.seeds, "vectors": made.vectors, "runs": made.configs}), end="")
        return 0
    jobs = given.numbers("--jobs")
    found = front(
        given.config, overrides=given.overrides, folder=given.folder(), jobs=jobs[0] if jobs else None,
        seeds=seeds, overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return _report_on_front(found, title=Path(given.config).stem)


def _group(words: list[str]) -> int:
    """find out which tasks should share a trunk, and train that: CONFIG.yaml [--groups N] [--out FOLDER] [...]"""
    given = _configured("group", words, ("--out", "--jobs", "--seeds", "--groups", "--every"), ("--overwrite",))
    from polytask.studies.grouping import group

    groups, every = given.number("--groups"), given.number("--every")
    study = group(
        given.config, groups=2 if groups is None else groups, every=10 if every is None else every,
        overrides=given.overrides, folder=given.folder(), jobs=given.number("--jobs"),
        seeds=given.numbers("--seeds"), overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return _report_on_groups(study, title=Path(given.config).stem)


def _sparsify(words: list[str]) -> int:
    """train a sparse network and make a smaller one of it: CONFIG.yaml [--seeds 0,1,2] [--out FOLDER] [...]"""
    given = _configured("sparsify", words, ("--out", "--jobs", "--seeds"), ("--overwrite", "--print_config"))
    from polytask.studies import spec
    from polytask.studies.sparsify import SEEDS_KEY, plan, sparsify

    if "--seeds" in given.options or SEEDS_KEY in spec.read_config(given.config):
        return _sparsify_seeds(given)
    if "--jobs" in given.options:
        raise ValueError("`--jobs` is for several seeds (`--seeds 0,1,2`), found one")
    if "--print_config" in given.options:
        print(spec.dump(plan(given.config, given.overrides).config), end="")
        return 0
    study = sparsify(
        given.config, overrides=given.overrides, folder=given.folder(), overwrite="--overwrite" in given.options
    )
    return _report_on_sparsified(study, title=Path(given.config).stem)


def _sparsify_seeds(given: _Words) -> int:
    from polytask.studies import spec
    from polytask.studies.sparsify_seeds import plan_seeds, sparsify_seeds

    seeds = given.numbers("--seeds")
    if "--print_config" in given.options:
        configs = plan_seeds(given.config, given.overrides, seeds).configs
        first = {key: value for key, value in next(iter(configs.values())).items() if key != "seed"}
        print(spec.dump({"seeds": list(configs)} | first), end="")
        return 0
    found = sparsify_seeds(
        given.config, seeds=seeds, overrides=given.overrides, folder=given.folder(), jobs=given.number("--jobs") or 1,
        overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return _report_on_sparsified_seeds(found, title=Path(given.config).stem)


def _export(words: list[str]) -> int:
    """write a trained run's network as a file for other programs: RUN [--format onnx|torch] [--out FILE]"""
    from polytask.studies.run import export_run

    given = _parsed("export", words, export_run)
    path = export_run(given.folder, given.format, given.out)
    print(f"{path}, checked against PyTorch; inputs, outputs and preprocessing in {path}.json")
    return 0


def _evaluate(words: list[str]) -> int:
    """losses and metrics of a trained run: RUN [--split test] [--file labelled.csv]"""
    from polytask.studies.run import evaluate_run

    given = _parsed("evaluate", words, evaluate_run)
    for name, value in evaluate_run(given.folder, given.split, given.file).items():
        print(f"{name:<24} {value:.6g}")
    return 0


def _predict(words: list[str]) -> int:
    """predictions for new inputs: RUN INPUT.csv|.npy|.npz|.parquet [--out predictions.csv] [--source NAME]"""
    from polytask.studies.tables import predict_file

    given = _parsed("predict", words, predict_file)
    text = predict_file(given.folder, given.inputs, given.out, given.source)
    print(f"predictions in {given.out}" if given.out else text, end="\n" if given.out else "")
    return 0


def _report(words: list[str]) -> int:
    """tables, charts and a page about finished runs: FOLDER"""
    from polytask.studies.compare import read_comparison

    given = _parsed("report", words, read_comparison)
    from polytask.studies.front import is_front, read_front
    from polytask.studies.grouping import is_grouping, read_grouping
    from polytask.studies.sparsify import is_sparsified, read_sparsified

    if is_grouping(given.folder):
        return _report_on_groups(read_grouping(given.folder), title=Path(given.folder).resolve().name)
    if is_front(given.folder):
        return _report_on_front(read_front(given.folder), title=Path(given.folder).resolve().name)
    from polytask.studies.sparsify_seeds import has_sparsified_seeds, read_sparsified_seeds

    if has_sparsified_seeds(given.folder):
        return _report_on_sparsified_seeds(read_sparsified_seeds(given.folder), title=Path(given.folder).resolve().name)
    if is_sparsified(given.folder):
        return _report_on_sparsified(read_sparsified(given.folder), title=Path(given.folder).resolve().name)
    return _report_on(read_comparison(given.folder), title=Path(given.folder).resolve().name)


def _init(words: list[str]) -> int:
    """write a first configuration for your own table: DATA.csv --targets A B [--out FIRST.yaml] [--overwrite]"""
    given = _parsed("init", words, None, _init_options)
    from polytask.studies.first import first_config

    made = first_config(
        given.data, given.targets, given.out, id=given.id, group=given.group, split=given.split,
        missing=given.missing, encoding=given.encoding, separator=given.separator, decimal=given.decimal,
        overwrite=given.overwrite,
    )  # fmt: skip
    _print_uses(made)
    for note in made.notes:
        print(f"note: {note}")
    print(f"{made.path} written: {made.rows:,} rows, of {made.width} numbers each once encoded. Next:")
    print(f"  polytask train {made.path} --epochs 3")
    print(f"  polytask compare {made.path} --methods UPGrad --seeds 0,1,2")
    print(f"  polytask predict runs/{made.path.stem} new.csv --out predictions.csv")
    return 0


def _init_options(parser: ArgumentParser) -> None:
    parser.add_argument("data", type=str, help="the table: .csv, .tsv, .txt or .parquet")
    parser.add_argument("--targets", type=str, nargs="+", required=True, help="the columns to predict")
    parser.add_argument("--out", type=str | None, default=None, help="the file to write; beside the table if not given")
    parser.add_argument("--id", type=str | None, default=None, help="a column that names rows")
    parser.add_argument("--group", type=str | None, default=None, help="a column whose equal entries stay together")
    parser.add_argument("--split", type=str | None, default=None, help="a column of train, validation and test")
    parser.add_argument("--missing", type=str, nargs="+", default=[], help="entries that stand for nothing")
    parser.add_argument("--encoding", type=str, default="utf-8", help="of the text")
    parser.add_argument("--separator", type=str, default=",", help="what stands between entries")
    parser.add_argument("--decimal", type=str, default=".", help="what stands before decimals: . or ,")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _methods(words: list[str]) -> int:
    """list the schedules, balancers, models, objectives and callbacks: what each needs, costs and keeps"""
    _parsed("methods", words, None)
    from polytask.catalog import KINDS, catalog

    for kind in KINDS:
        if kind != "data set":
            print(f"{kind}s")
            if kind == "balancer":
                print(_wrapped(COSTS_HELP, "  "))
            for entry in catalog(kind):
                facts = {"needs": entry.needs, "costs": str(entry.cost or ""), "keeps": entry.keeps}
                if entry.cost and entry.cost.modes:
                    facts["needs"] += f" ({', '.join(('exact', *entry.cost.modes))})"
                _print_entry(entry.name, entry.summary, facts | {"paper": entry.paper})
    return 0


def _datasets(words: list[str]) -> int:
    """list the data sets, and which files they need"""
    _parsed("datasets", words, None)
    from polytask.catalog import catalog

    for entry in catalog("data set"):
        files = ", ".join(getattr(entry.cls, "files", ()))
        _print_entry(entry.name, entry.summary, {"needs": f"the files {files}" if files else "", "paper": entry.paper})
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "compare": _compare,
    "front": _front,
    "group": _group,
    "sparsify": _sparsify,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "report": _report,
    "init": _init,
    "methods": _methods,
    "datasets": _datasets,
}


def _usage() -> str:
    lines = [f"  {name:<9} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([
        "usage: polytask COMMAND ...", "", "Trains one network for several tasks.", "", "commands:", *lines, "",
        "Any setting of a YAML file can be given on the command line: --epochs 3 --trainer.batch_size 64.",
        "`polytask COMMAND --help` lists them; `polytask --version` tells the version.",
        f"An error is told in one line; with {DEBUG}=1 in the environment its traceback is shown too.",
    ])  # fmt: skip


@dataclass
class _Words:
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
        """An option's one whole number."""
        found = self.numbers(option)
        if found is not None and len(found) != 1:
            raise ValueError(f"`{option}` must be one whole number, found {self.options[option]!r}")
        return found[0] if found else None


def _configured(
    command: str, words: list[str], valued: Sequence[str], flags: Sequence[str], listed: str = ""
) -> _Words:
    """Tells the file, the command's own options and the configuration's settings apart, in any order."""
    if "--help" in words or "-h" in words:
        _configured_help(command, valued, flags, listed)
    files: list[str] = []
    given = _Words("", {}, [])
    rest = iter(_joined(words, listed) if listed else words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in flags:
            given.options[name] = ""
        elif name in (*valued, listed):
            given.options[name] = value if equals else _next(rest, name)
        elif not word.startswith("--"):
            files.append(word)
        elif equals or name.endswith(".help"):
            given.overrides.append(word)
        else:
            given.overrides += [word, _next(rest, name)]
    if len(files) != 1 and not any(word.partition("=")[0].endswith(".help") for word in given.overrides):
        example = f"for instance `polytask {command} first.yaml`"
        raise ValueError(f"`polytask {command}` must be given one YAML file, found {files or 'none'}: {example}")
    given.config = "".join(files[:1])
    if not given.config:
        _parser(command).parse_args(given.overrides)
    return given


def _parser(command: str) -> ArgumentParser:
    """The parser of a command's configurations."""
    from polytask.studies.spec import parser_for_train

    if command == "front":
        from polytask.studies.front import SECTIONS

        return parser_for_train(f"polytask {command}", SECTIONS)
    if command != "sparsify":
        return parser_for_train(f"polytask {command}")
    from polytask.studies.sparsify import SECTION

    return parser_for_train(f"polytask {command}", SECTION)


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


def _configured_help(command: str, valued: Sequence[str], flags: Sequence[str], listed: str = "") -> NoReturn:
    parser = _parser(command)
    own = [f"[{option} {option.strip('-').upper()}]" for option in valued] + [f"[{flag}]" for flag in flags]
    own += [f"[{listed} NAME ...]"] * bool(listed)
    parser.usage = f"polytask {command} CONFIG.yaml {' '.join(own)} [--any.setting VALUE ...]"
    epilogs = {"compare": COMPARE_HELP, "front": FRONT_HELP, "group": GROUP_HELP, "sparsify": SPARSIFY_HELP}
    parser.epilog = epilogs.get(command)
    parser.print_help()
    raise SystemExit(0)


def _parsed(
    command: str,
    words: list[str],
    function: Callable[..., Any] | None,
    options: Callable[[ArgumentParser], None] | None = None,
) -> Any:
    """The words of a command that is one function, by that function's own signature, or by options of its own."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser: ArgumentParser = ArgumentParser(
        prog=f"polytask {command}", exit_on_error=False, allow_abbrev=False, description=COMMANDS[command].__doc__
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
            message += f", as in `polytask {command} {(COMMANDS[command].__doc__ or '').partition(': ')[2]}`"
        raise ValueError(message) from error


def _report_on(comparison: Comparison, title: str) -> int:
    from polytask import reports

    return _report_on_runs(
        comparison,
        lambda: reports.write(
            comparison.records, comparison.folder, baseline=comparison.baseline, sweep=comparison.sweep, title=title
        ),
    )


def _report_on_groups(study: Study, title: str) -> int:
    from polytask import reports
    from polytask.studies.grouping import in_words

    print(f"{reports.pairs_text(study.affinity)}\n\nsuggested: {in_words(study.grouping)}")
    return _report_on_runs(study.comparison, lambda: reports.write_grouping(study, title))


def _report_on_runs(comparison: Comparison, write: Callable[[], Path]) -> int:
    """The table of a comparison and its report, which `write` makes."""
    from rich.console import Console

    from polytask import reports

    failed = comparison.failed
    if len(failed) == len(comparison.records):
        return _refuse(f"no run came to an end; {_first_failure(failed)}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(reports.terminal_table(comparison.records, comparison.baseline, sweep=comparison.sweep))
    print(f"report: {write()}")
    if failed:
        count = f"{len(failed)} of {len(comparison.records)} runs failed"
        print(f"polytask: {count}; {_first_failure(failed)}", file=sys.stderr)
    return SOME_FAILED if failed else 0


def _report_on_front(found: Front, title: str) -> int:
    from rich.console import Console

    from polytask import reports

    failed = found.failed
    if len(failed) == len(found.points):
        return _refuse(f"no run came to an end; {_first_failure(failed)}")
    Console(width=None if sys.stdout.isatty() else 140).print(reports.front_terminal(found))
    print(f"report: {reports.write_front(found, title=title)}")
    if failed:
        count = f"{len(failed)} of {len(found.points)} runs failed"
        print(f"polytask: {count}; {_first_failure(failed)}", file=sys.stderr)
    return SOME_FAILED if failed else 0


def _report_on_sparsified(study: Sparsified, title: str) -> int:
    from rich.console import Console

    from polytask.reports import sparse

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(sparse.terminal_table(study))
    print(f"report: {sparse.write(study, title=title)}")
    if study.exported is not None:
        print(f"exported: {study.exported}")
    if study.reached:
        return 0
    print(
        f"polytask: no epoch of the search had {study.wanted:.4g} of the rows dead; the sparsest was kept, with "
        f"{study.found:.4g}",
        file=sys.stderr,
    )
    return NOT_REACHED


def _report_on_sparsified_seeds(found: SparsifiedSeeds, title: str) -> int:
    from rich.console import Console

    from polytask.reports import sparse_seeds

    told = "; ".join(f"seed {seed}: {reason}" for seed, reason in found.unfinished.items())
    if not found.studies:
        return _refuse(f"no study came to an end; {told}")
    Console(width=None if sys.stdout.isatty() else 140).print(sparse_seeds.terminal_table(found))
    print(f"report: {sparse_seeds.write(found, title=title)}")
    if told:
        print(f"polytask: {len(found.unfinished)} of {len(found.seeds)} studies did not end; {told}", file=sys.stderr)
        return SOME_FAILED
    if found.missed:
        print(
            f"polytask: no epoch of the search was sparse enough with the seeds {found.missed}; the sparsest were kept",
            file=sys.stderr,
        )
    return NOT_REACHED if found.missed else 0


def _first_failure(failed: Sequence[RunRecord]) -> str:
    return f"{failed[0].method}, seed {failed[0].seed}: {failed[0].error}"


def _print_figures(record: RunRecord) -> None:
    for part, figures in record.metrics.items():
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{part:<11} {shown}")


def _print_uses(made: First) -> None:
    """What `init` took each column for."""
    from rich.console import Console
    from rich.table import Table

    table = Table("column", "use", "kind", "different", "missing", "filled with")
    for use in made.uses:
        absent = use.column.rows - use.column.given
        name = "".join(mark if mark.isprintable() else " " for mark in use.column.name)
        kind = use.kind + ", of numbers and text" * (use.role == "input" and bool(use.column.mixed))
        missing = f"{absent:,}" if absent else ""
        table.add_row(_plain(name), use.role, _plain(kind), f"{use.column.distinct:,}", missing, use.fill)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # a column may be called [red]


def _print_entry(name: str, summary: str, facts: Mapping[str, str]) -> None:
    """A name with its summary beside it, and below it what is known about it, a line each."""
    start = f"  {name:<20} "
    print(_wrapped(summary, start))
    for what, text in facts.items():
        if text:
            print(_wrapped(text, f"{'':<{len(start)}}{what} "))


def _wrapped(text: str, start: str) -> str:
    """Text after `start`, broken at the terminal's width, at most 100 columns."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    return textwrap.fill(
        text, max(width, len(start) + 20), initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _refuse(message: str) -> int:
    from polytask.training.launch import first_error

    told, mine = first_error(" ".join(message.split()))
    if mine:
        print(f"polytask: error: {told}", file=sys.stderr)
    return ERROR


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    # Python callers are told about `resume=`; here the same command does it
    what = str(interrupt).split(";")[0]
    what = f"{what}; the same command goes on from there" if what else "interrupted"
    from polytask.training.launch import rank_by_environment

    if rank_by_environment() == 0:
        print(f"polytask: {what}", file=sys.stderr)
    return 128 + getattr(interrupt, "signal_number", signal.SIGINT)


class _ToStderr(logging.Handler):
    """Writes to what standard error is now: a progress display replaces it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def _session(speaks: bool) -> Iterator[None]:
    """The package's log on standard error, and the working folder's modules importable; undone at the end.

    Args:
        speaks: whether this process is the one of several that prints results and logs.
    """
    logger = logging.getLogger("polytask")
    level, here = logger.level, str(Path.cwd())
    debug = os.environ.get(DEBUG, "0") not in ("", "0")
    handler = _ToStderr() if speaks or debug else logging.NullHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        if speaks:
            yield
        else:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if added:
            sys.path.remove(here)


if __name__ == "__main__":
    sys.exit(main())
