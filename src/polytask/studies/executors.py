"""Many runs, in parallel processes."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.errors import at_least, plural
from polytask.studies import spec
from polytask.studies.run import run
from polytask.studies.store import RunRecord, lock_holder, read_record
from polytask.training.signals import Interrupted

logger = logging.getLogger("polytask")

ORPHAN_SECONDS = 30.0
"""How long a run waits for a worker that outlived its killed parent to let go of the folder."""
GRACE_SECONDS = 10.0
"""How long an interrupted study waits for its workers' checkpoints."""
REFRESH_SECONDS = 0.5


class StudyInterrupted(KeyboardInterrupt):
    """A study was stopped by Ctrl-C or SIGTERM; the same call goes on where it was.

    Attributes:
        signal_number: which signal it was.
    """

    def __init__(self, signal_number: int, done: int, total: int) -> None:
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"{name} after {done} of {total} runs; the same command goes on from there")


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        method: the name it is listed under.
        config: its resolved configuration.
        folder: its run folder.
        after: the run folder of the job that must end before this one begins, None if it may begin at once.
        make: how it is made, from the job and whether to overwrite; a function of a module, as other processes must
            find it. None trains the configuration.
        stages: folders below `folder` whose runs it is made of, in order; their epochs add up to the configuration's.
    """

    method: str
    config: Mapping[str, Any]
    folder: Path
    after: Path | None = None
    make: Callable[[Job, bool], RunRecord] | None = None
    stages: Sequence[str] = ("",)


def run_all(
    todo: Sequence[Job], *, jobs: int | None = None, overwrite: bool = False, progress: bool = True
) -> list[RunRecord]:
    """Makes every run, several at a time, each in a process of its own.

    A run that fails is recorded as failed and does not stop the others. Jobs that wait for others are made in rounds:
    all that wait for nothing, then those that waited for these, and so on.

    Args:
        todo: the runs; finished ones are read, not repeated.
        jobs: processes; as many as there are processors if None. With 1 all runs are made in this process.
        overwrite: start afresh where a folder holds a run of another configuration.
        progress: show a display on a terminal, and log lines elsewhere.

    Returns:
        Their records, in the order of `todo`.

    Raises:
        ValueError: `jobs` is below 1, or a job waits for one that is not listed before it.
        StudyInterrupted: Ctrl-C or SIGTERM; workers leave checkpoints first.
    """
    count = _default_jobs(todo) if jobs is None else jobs
    at_least("jobs", count, 1)
    rounds = _rounds(todo)
    records: dict[int, RunRecord] = {}
    try:
        with _stoppable(todo), _Display(todo, progress) as display:
            for index, record in _results(todo, rounds, min(count, len(todo)), overwrite):
                records[index] = record
                display.finished(record, len(records))
    except Interrupted as interrupted:
        raise StudyInterrupted(interrupted.signal_number, len(records), len(todo)) from None
    except _Stopped as stopped:
        raise StudyInterrupted(stopped.number, len(records), len(todo)) from None
    return [records[index] for index in range(len(todo))]


def _default_jobs(todo: Sequence[Job]) -> int:
    from joblib import cpu_count

    threads = max((job.config["threads"] for job in todo), default=1)
    return max(1, cpu_count() // threads)


def _rounds(todo: Sequence[Job]) -> list[list[int]]:
    """The jobs' numbers, by how many others they wait for in a row."""
    depths: dict[Path, int] = {}
    for job in todo:
        if job.after is not None and job.after not in depths:
            raise ValueError(f"a job must wait for one listed before it, found `{job.method}` after {job.after}")
        depths[job.folder] = 0 if job.after is None else depths[job.after] + 1
    rounds: list[list[int]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
    for index, job in enumerate(todo):
        rounds[depths[job.folder]].append(index)
    return rounds


def _results(
    todo: Sequence[Job], rounds: Sequence[Sequence[int]], jobs: int, overwrite: bool
) -> Iterator[tuple[int, RunRecord]]:
    if jobs <= 1:
        for index, job in enumerate(todo):
            yield index, _one(job, overwrite)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=max(job.config["threads"] for job in todo)):
        # one run at a time is handed to each process: a worker that outlives its parent then has none queued
        settings: dict[str, Any] = {"batch_size": 1, "pre_dispatch": jobs}  # joblib annotates both as str
        pool: Any = Parallel(n_jobs=jobs, return_as="generator_unordered", **settings)
        for numbers in rounds:
            yield from pool(delayed(_worker)(i, todo[i], overwrite, os.getpid()) for i in numbers)


def _worker(index: int, job: Job, overwrite: bool, parent: int) -> tuple[int, RunRecord]:
    _watch(parent)
    try:
        return index, _one(job, overwrite)
    except Interrupted:
        if os.getppid() != parent:
            os._exit(1)  # there is nobody to report to, and what is queued must not start
        return index, RunRecord(job.method, job.config["seed"], "running", folder=job.folder)


@functools.cache
def _watch(parent: int) -> None:
    """Ends this worker, with a checkpoint, soon after its parent was killed: loky's workers would live on."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(REFRESH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _one(job: Job, overwrite: bool) -> RunRecord:
    try:
        return (job.make or _train)(job, overwrite)
    except Exception as error:  # its folder could not be used, or a user's class broke: told, not written
        return RunRecord(job.method, job.config["seed"], "failed", error=spec.one_line(error), folder=job.folder)
    finally:
        # a run's objects refer to one another in circles, and are few: left to itself, Python keeps the data of a dozen
        # runs before it looks for circles
        gc.collect()


def _train(job: Job, overwrite: bool) -> RunRecord:
    # not rehearsed: what cannot be trained must be on disk too, or reports would leave the method out
    return run(job.config, job.folder, method=job.method, overwrite=overwrite, wait=ORPHAN_SECONDS, rehearse=False)


def _stop_workers(todo: Sequence[Job]) -> None:
    """Asks this process's workers for checkpoints, and waits for them for a while."""

    def held() -> list[int]:
        holders = (lock_holder(job.folder) for job in todo)
        return [holder["process"] for holder in holders if holder and holder["parent"] == os.getpid()]

    for process in held():
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            continue
    end = time.monotonic() + GRACE_SECONDS
    while held() and time.monotonic() < end:
        time.sleep(0.1)


class _Stopped(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _stoppable(todo: Sequence[Job]) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the workers, with checkpoints, then raise; a second one acts at once.

    The workers are stopped inside the handler, since joblib kills them as soon as an exception passes it.
    Only the main thread may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        restore()
        _stop_workers(todo)
        raise _Stopped(number)

    for number in previous:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


class _Display:
    """How a study goes: a bar on a terminal, fed from the run folders; lines in the log elsewhere.

    Args:
        todo: the runs.
        wanted: False to stay silent.
    """

    def __init__(self, todo: Sequence[Job], wanted: bool) -> None:
        self._todo = todo
        self._log = wanted and not sys.stderr.isatty()
        self._bar: Any = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if wanted and sys.stderr.isatty():
            self._bar = _bar()

    def __enter__(self) -> _Display:
        if self._log and self._todo:
            logger.info("%d runs to make", len(self._todo))
        if self._bar is not None:
            self._task = self._bar.add_task("", total=float(len(self._todo)), runs=f"0/{len(self._todo)}")
            self._bar.start()
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None and self._thread is not None:
            self._over.set()
            self._thread.join()
            self._bar.stop()

    def finished(self, record: RunRecord, done: int) -> None:
        """A run ended."""
        if self._bar is not None:
            self._bar.update(self._task, runs=f"{done}/{len(self._todo)}")
        if self._log:
            logger.info("%d of %d runs: %s", done, len(self._todo), describe(record))

    def _follow(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            states = [_progress_of(job) for job in self._todo]
            running = ", ".join(text for _, text in states if text)
            self._bar.update(self._task, completed=sum(part for part, _ in states), description=running)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("[bold]runs"), TextColumn("{task.fields[runs]}"), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.description}"),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip


def _progress_of(job: Job) -> tuple[float, str]:
    """How much of a run is done, and what to say of it while it is going on."""
    try:
        found = [read_record(job.folder / stage) for stage in job.stages if (job.folder / stage / "run.json").is_file()]
    except (OSError, ValueError):
        return 0.0, ""
    if not found:
        return 0.0, ""
    if found[-1].state == "failed" or (found[-1].state == "done" and len(found) == len(job.stages)):
        return 1.0, ""
    epochs, done = job.config["epochs"], sum(record.epochs for record in found)
    stage = f" {len(found)}/{len(job.stages)} {job.stages[len(found) - 1]}" if len(job.stages) > 1 else ""
    return done / epochs, f"{job.method} seed {job.config['seed']}{stage}: epoch {done}/{epochs}"


def describe(record: RunRecord) -> str:
    """One line about a run.

    >>> describe(RunRecord("joint", 0, "failed", error="the loss is not finite"))
    'joint, seed 0: failed: the loss is not finite'
    """
    what = f"{record.method}, seed {record.seed}: {record.state}"
    if record.state == "failed":
        return f"{what}: {record.error}"
    figures = [
        f"{task['name']} {record.metrics['test'][key]:.4g}"
        for task in record.tasks
        if (key := f"{task['name']}/{task['metric']}") in record.metrics.get("test", {})
    ]
    return f"{what}, {plural(record.epochs, 'epoch')}, {record.seconds:.1f} s, test {', '.join(figures)}"
