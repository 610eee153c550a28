"""Fits that one process and several must end alike; run as a script, this is one of several processes.

    python parallel.py RANK COUNT FOLDER

meets the others over a file in FOLDER, runs every case, and leaves ``RANK.pt``, {case: what it returned}.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torchjd.aggregation
from tests.helpers import NAN, Rows, Stream, adam, data, network, sgd, tasks, trainer, weights
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import polytask as pt

Result = dict[str, Any]
CASES: dict[str, Callable[[Path], Result]] = {}
"""Cases that every process runs; those in `SAME` also end as one process alone ends."""
SAME: set[str] = set()


def case(name: str, same: bool = True) -> Callable[[Callable[[Path], Result]], Callable[[Path], Result]]:
    def enter(function: Callable[[Path], Result]) -> Callable[[Path], Result]:
        CASES[name] = function
        if same:
            SAME.add(name)
        return function

    return enter


def fitted(
    train: Any, validation: Any = None, epochs: int = 4, kind: str = "plain", names: str = "ab", **options: Any
) -> Result:
    made = trainer(network(kind, names), names, **options)
    history = made.fit(train, validation, epochs=epochs)
    return {"weights": weights(made.model), "history": list(history), "balancer": dict(made.balancer.state_dict())}


BALANCERS = {"linear": pt.scalarization.Linear, "mgda": pt.aggregation.MGDA, "famo": pt.scalarization.FAMO}
SCHEDULES: dict[str, dict[str, Any]] = {
    "joint": {},
    "sat": {"schedule": pt.schedules.AlternateBatches()},
    "ate": {"schedule": pt.schedules.AlternateEpochs(1, 1), "cache_features": True},
}


def _architecture(form: str, **options: Any) -> None:
    @case(form)
    def run(folder: Path) -> Result:
        made = trainer(network(form=form), schedule=pt.schedules.AlternateBatches(), **options)
        history = made.fit(data(25, missing=True), data(13, seed=1), epochs=2)
        return {"weights": weights(made.model), "history": list(history)}


for _form in ("cross-stitch", "mmoe", "ple", "shared decision"):
    _architecture(_form, balancer=pt.aggregation.MGDA())
_architecture("soft", objectives=[pt.models.TowerDistance(0.1)])


def _grid(balancer: str, schedule: str) -> None:
    @case(f"{schedule} {balancer}")
    def run(folder: Path) -> Result:
        stop = pt.callbacks.EarlyStopping(patience=1, min_delta=0.01, by="epoch")
        return fitted(
            data(25), data(13, seed=1), epochs=6, balancer=BALANCERS[balancer](), callbacks=[stop],
            evaluation_batch_size=4, **SCHEDULES[schedule],
        )  # fmt: skip


for _balancer in BALANCERS:
    for _schedule in SCHEDULES:
        _grid(_balancer, _schedule)


@case("three tasks, targets missing")
def _three(folder: Path) -> Result:
    return fitted(data(25, "abc", missing=True), names="abc", balancer=pt.aggregation.UPGrad(), clip_norm=0.5)


@case("a task absent on a rank")
def _absent(folder: Path) -> Result:
    x, y = data(25, missing=True)
    # with batches of 8, rows 0-3 of each are the first rank's; the last batch is one row
    y["a"][torch.arange(25) % 8 < 4] = NAN
    y["b"][torch.arange(25) % 8 >= 4] = -100
    return fitted(pt.Arrays(x, y, batch_size=8, shuffle=False), optimizer=adam(), balancer=pt.aggregation.MGDA())


@case("cosines and affinities, targets missing")
def _pairwise(folder: Path) -> Result:
    looks = [pt.callbacks.GradientCosines(1), pt.callbacks.Affinity(2)]
    return fitted(data(25, "abc", missing=True), names="abc", callbacks=looks, accumulate=2)


@case("affinities with dropout and batch statistics", same=False)
def _pairwise_norm(folder: Path) -> Result:
    plain = fitted(data(24), kind="norm+dropout")
    looked = fitted(data(24), kind="norm+dropout", callbacks=[pt.callbacks.Affinity(1)])
    assert "affinity/a/b" in looked["history"][0]
    return {"plain": plain["weights"], "looked": looked["weights"], "history": looked["history"]}


class Decay(pt.Objective):
    def forward(self, context: Any) -> Tensor:
        return sum((p**2).sum() for p in context.model.trunk.parameters())


@case("a penalty, accumulation, sample weights")
def _penalty(folder: Path) -> Result:
    x, y = data(25)
    source = pt.Arrays(x, y, batch_size=8, weights={"a": torch.linspace(0, 2, 25)})
    return fitted(source, data(13, seed=1), objectives=[Decay("decay", 0.01)], accumulate=2)


@case("tasks chosen by how their predictions correlate")
def _chosen(folder: Path) -> Result:
    schedule = pt.schedules.BySimilarity("a", "predictions", inner=pt.schedules.AlternateBatches())
    correlation = pt.callbacks.PredictionCorrelation()
    return fitted(data(25), data(13, seed=1), schedule=schedule, callbacks=[correlation], evaluation_batch_size=4)


@case("a task seen on one rank only")
def _unseen(folder: Path) -> Result:
    x, y = data(24)
    y["a"][torch.arange(24) != 3] = NAN
    return fitted(Rows(x, y), epochs=2)


@case("teachers of examples with and without targets")
def _taught(folder: Path) -> Result:
    x, y = data(25, missing=True)
    y["b"][:16] = -100
    annealing = pt.distillation.TeacherAnnealing(network("norm", form="single", seed=7))
    return fitted((x, y), data(13, seed=1), callbacks=[annealing], accumulate=2)


@case("an update that moves nothing, then one that does")
def _idle(folder: Path) -> Result:
    x, y = data(24)
    y["b"][:16] = -100  # the first two batches are of a alone, whose head is frozen
    made = trainer(schedule=pt.schedules.AlternateEpochs(1, 1))
    made.model.heads["a"].requires_grad_(False)
    made.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=4)
    return {"weights": weights(made.model), "history": list(made.history)}


@case("a method that draws")
def _draws(folder: Path) -> Result:
    balancer = pt.aggregation.TorchJD(torchjd.aggregation.PCGrad())
    return fitted(data(24, "abc"), names="abc", balancer=balancer)


class Buffers(nn.Linear):
    """With buffers of dtypes that gloo does not know."""

    def __init__(self) -> None:
        super().__init__(3, 6)
        self.register_buffer("short", torch.arange(3, dtype=torch.int16) + pt.Ranks().index)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scalar", torch.tensor(2, dtype=torch.int16))
        self.register_buffer("nothing", torch.zeros(0))


@case("buffers of any dtype")
def _buffers(folder: Path) -> Result:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = pt.models.HardSharing(Buffers(), {"a": nn.Linear(6, 1)})
    made = trainer(model, "a")
    made.fit(data(8, "a"), epochs=1)
    return {"weights": weights(model), "history": list(made.history)}


@case("a data set")
def _dataset(folder: Path) -> Result:
    return fitted(Rows(*data(25, missing=True)), Rows(*data(13, seed=1)))


class Dealt(DistributedSampler):
    """Without repeating examples, so that ranks may have different numbers of them."""

    def __init__(self, size: int) -> None:
        ranks = pt.Ranks()
        super().__init__(range(size), ranks.count, ranks.index, shuffle=False)
        self.size, self.epochs = size, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))


def dealt(size: int, batch: int, seed: int = 0) -> DataLoader:
    return DataLoader(Rows(*data(size, missing=True, seed=seed)), batch, sampler=Dealt(size))


def together(size: int, batch: int) -> list[Any]:
    """The batches of two ranks' `dealt` loaders put together, as one process would see them."""
    x, y = data(size, missing=True)
    parts = [torch.arange(rank, size, 2).split(batch) for rank in (0, 1)]
    steps = [torch.cat([part[i] for part in parts if i < len(part)]) for i in range(len(parts[0]))]
    return [(x[rows], {name: values[rows] for name, values in y.items()}) for rows in steps]


@case("loaders that end early")
def _loaders(folder: Path) -> Result:
    if pt.Ranks().alone:
        return fitted(pt.data.Loader(together(25, 4)), Rows(*data(13, missing=True, seed=1)))
    loader = dealt(25, 4)
    result = fitted(loader, dealt(13, 4, seed=1))
    assert loader.sampler.epochs == [0, 1, 2, 3]
    return result


@case("streams")
def _streams(folder: Path) -> Result:
    ranks = pt.Ranks()
    if ranks.alone:
        return fitted(pt.data.Loader(together(25, 4)))
    x, y = data(25, missing=True)
    mine = slice(ranks.index, None, ranks.count)
    return fitted(DataLoader(Stream(x[mine], {name: values[mine] for name, values in y.items()}), 4))


class Sized(Stream):
    """A stream that tells how long this process's part of it is."""

    def __len__(self) -> int:
        return len(self.rows)


def parted(sizes: tuple[int, int], batch: int = 4, seed: int = 0) -> DataLoader:
    """Another stream on each of two ranks, of these sizes."""
    x, y = data(sum(sizes), seed=seed)
    mine = slice(0, sizes[0]) if pt.Ranks().index == 0 else slice(sizes[0], None)
    return DataLoader(Sized(x[mine], {name: values[mine] for name, values in y.items()}), batch)


@case("a mixture of streams", same=False)
def _mixed(folder: Path) -> Result:
    both = {"one": parted((12, 12)), "other": parted((20, 20), seed=1)}
    served: list[str] = []
    mixture = pt.data.Temperature(T=2)

    class Names(pt.Callback):
        def on_step_start(self, run: Any, batches: Any) -> None:
            served.extend(batch.source for batch in batches)

    return fitted(both, epochs=3, mixture=mixture, callbacks=[Names()]) | {"served": served}


@case("evaluation")
def _evaluation(folder: Path) -> Result:
    made = trainer(names="abc")
    figures = made.evaluate(data(25, "abc", missing=True))
    made.evaluation_batch_size = 32  # one batch: a rank is left without
    return {"small": figures, "whole": made.evaluate(data(25, "abc", missing=True))}


class Listener(pt.Callback):
    """Notes a module's outputs in training."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._seen = module, []

    def on_fit_start(self, run: Any) -> None:
        self._module.register_forward_hook(lambda module, inputs, output: self._seen.append(output.detach().clone()))


@case("dropout", same=False)
def _dropout(folder: Path) -> Result:
    model = pt.models.HardSharing(nn.Dropout(0.5), {"a": nn.Linear(3, 1)})
    listener = Listener(model.trunk)
    made = trainer(model, "a", callbacks=[listener])
    made.fit((torch.ones(16, 3), {"a": data(16)[1]["a"]}), epochs=1)
    return {"own": listener._seen, "weights": weights(model), "history": list(made.history)}


@case("augmentation", same=False)
def _augmentation(folder: Path) -> Result:
    seen: list[Tensor] = []

    def noise(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(torch.randn(x.shape, generator=generator))
        return x + seen[-1]

    result = fitted(pt.Arrays(*data(16), batch_size=8, augment=noise), epochs=1)
    return result | {"own": seen}


class Noisy(Rows):
    """Draws while it loads."""

    def __getitem__(self, index: int) -> Any:
        self.drawn = [*getattr(self, "drawn", []), torch.rand(1)]
        return super().__getitem__(index)


@case("a data set that draws", same=False)
def _noisy(folder: Path) -> Result:
    rows = Noisy(*data(16))
    return fitted(rows, epochs=1) | {"own": rows.drawn}


@case("batch statistics", same=False)
def _statistics(folder: Path) -> Result:
    options = {"schedule": pt.schedules.AlternateEpochs(1, 1), "cache_features": True}
    return fitted(data(24), data(13, seed=1), kind="norm", **options)


class Killer(pt.Callback):
    """Sends this process a signal, on one rank only."""

    def __init__(self, rank: int, after: int) -> None:
        self._rank, self._after = rank, after

    def on_fit_start(self, run: Any) -> None:
        self._seen = 0

    def on_update(self, run: Any, info: Any) -> None:
        self._seen += 1
        if self._seen == self._after and run.ranks.index == self._rank:
            signal.raise_signal(signal.SIGINT)


def _resumed(train: Callable[[], Any], folder: Path, after: int, **options: Any) -> Result:
    def made(killed_after: int) -> pt.Trainer:
        chosen = {"folder": folder, "kind": "norm+dropout", "balancer": pt.scalarization.FAMO()} | options
        model = network(chosen.pop("kind"))
        return trainer(model, callbacks=[Killer(1, killed_after)], optimizer=adam(), **chosen)

    whole, killed, again = made(-1), made(after), made(-1)
    whole.fit(train(), data(13, seed=1), epochs=3)
    try:
        killed.fit(train(), data(13, seed=1), epochs=3)
    except pt.Interrupted as interrupted:
        path, message = interrupted.path, str(interrupted)
    again.fit(train(), data(13, seed=1), epochs=3, resume=path)
    return {
        "message": message, "path": str(path), "expected": weights(whole.model), "found": weights(again.model),
        "equal": whole.history == again.history, "history": list(again.history),
    }  # fmt: skip


@case("resume", same=False)
def _resume(folder: Path) -> Result:
    return _resumed(lambda: data(24), folder, after=5)


@case("resume between epochs", same=False)
def _resume_epoch(folder: Path) -> Result:
    return _resumed(lambda: data(24, missing=True), folder / "between", after=3)


@case("resume with loaders", same=False)
def _resume_loaders(folder: Path) -> Result:
    # the signal comes when one of the ranks has no examples left
    return _resumed(lambda: dealt(25, 4), folder / "loaders", after=8, kind="dropout")


def _error(function: Callable[[], Any]) -> str:
    try:
        function()
    except (ValueError, TypeError, FileNotFoundError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Own(pt.data.Source):
    """A source that knows nothing of ranks."""

    bind = steps_per_epoch = examples = steps = in_order = None  # type: ignore[assignment]  # never used


@case("refusals", same=False)
def _refusals(folder: Path) -> Result:
    foreign = DataLoader(Rows(*data(8)), sampler=DistributedSampler(range(8), 3, 2))
    sources = {"loader": DataLoader(Rows(*data(8))), "other rank": foreign, "source": Own()}
    errors = {name: _error(lambda source=source: fitted(source)) for name, source in sources.items()}
    errors["missing"] = _error(lambda: trainer().fit(data(8), epochs=1, resume=folder / "none.ckpt"))
    errors["devices"] = _error(lambda: trainer(devices=3))
    x, y = data(16, "ac")
    errors["no target"] = _error(lambda: fitted(DataLoader(Rows(x, {"a": y["a"]}), 4, sampler=Dealt(16))))
    y["c"][9] = 1e30  # its squared error is infinite, in the second rank's part
    source = pt.Arrays(x, {"c": y["c"]}, batch_size=16, shuffle=False)
    errors["first loss"] = _error(lambda: fitted(source, names="c"))
    sharded = network()
    fully_shard(sharded.trunk)
    errors["stream"] = _error(lambda: fitted(Stream(*data(8))))
    errors["evaluated stream"] = _error(lambda: trainer().evaluate(Stream(*data(8))))
    errors["evaluated by others"] = _error(lambda: trainer().evaluate(foreign))
    padded = DataLoader(Rows(*data(13)), 4, sampler=DistributedSampler(range(13), shuffle=False))
    errors["evaluated with padding"] = _error(lambda: trainer().evaluate(padded))
    for name, sizes in (("mixed steps", (8, 16)), ("mixed examples", (15, 16))):
        uneven = {"even": parted((16, 16)), "uneven": parted(sizes)}
        errors[name] = _error(lambda uneven=uneven: fitted(uneven, mixture=pt.data.Proportional))
    errors["sharded"] = _error(lambda: trainer(sharded).fit(data(8), epochs=1))
    return {"errors": errors}


@case("files", same=False)
def _files(folder: Path) -> Result:
    own = folder / f"files-{pt.Ranks().index}"
    callbacks = [
        pt.callbacks.Checkpoint(own / "checkpoints", monitor="train/loss"), pt.callbacks.CSVLogger(own / "log.csv"),
    ]  # fmt: skip
    made = trainer(callbacks=callbacks)
    made.fit(data(8), epochs=2)
    made.save(own / "saved")
    return {"files": sorted(str(p.relative_to(own)) for p in own.rglob("*") if p.is_file())}


class Stopper(pt.Callback):
    """Stops on one rank only, as one that looks at its own clock might."""

    def __init__(self, when: str) -> None:
        self._when = when

    def _stop(self, when: str, run: Any) -> None:
        if when == self._when and run.ranks.index == 1:
            run.stop("enough")

    def on_fit_start(self, run: Any) -> None:
        self._stop("start", run)

    def on_epoch_end(self, run: Any, row: Any) -> None:
        self._stop("epoch", run)

    def on_boundary(self, run: Any) -> None:
        self._stop("boundary", run)


@case("a stop on one rank", same=False)
def _stop(folder: Path) -> Result:
    return {when: fitted(data(8), epochs=3, callbacks=[Stopper(when)]) for when in ("start", "epoch", "boundary")}


class Unsendable(Exception):
    """Holds what cannot be packed."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.held = lambda: words


class Unpackable(Exception):
    """Can be packed and not unpacked."""

    def __init__(self, words: str, more: int) -> None:
        super().__init__(words)


@case("once", same=False)
def _once(folder: Path) -> Result:
    def fail(error: Exception) -> None:
        raise error

    ranks, own = pt.Ranks(), []
    for error in (ValueError("plain"), Unsendable("held"), Unpackable("odd", 1)):
        try:
            ranks.once(lambda error=error: fail(error))
        except Exception as found:  # of any kind: a class that cannot be sent arrives as another
            own.append(f"{type(found).__name__}: {found}")
    return {"own": own, "sum": ranks.sum(torch.ones(1))}


@case("mean", same=False)
def _mean(folder: Path) -> Result:
    ranks = pt.Ranks()
    one, other = {"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, {"a": torch.tensor(4.0)}
    mine = other if ranks.index else one
    wrong = {"a": 0} if ranks.index else {"a": 1}
    return {
        "plain": ranks.mean(mine),
        "weighted": ranks.mean(mine, {"a": 2, "b": 1} if ranks.index else {"a": 1, "b": 3}),
        "wrong": _error(lambda: ranks.mean({"a": torch.tensor(1.0)}, wrong)),
    }


@case("weights that differ", same=False)
def _differ(folder: Path) -> Result:
    model = network("norm", seed=pt.Ranks().index)
    made = trainer(model, tasks=tasks(), optimizer=sgd(momentum=0.9))
    made.fit(data(24), epochs=1)
    return {"weights": weights(model)}


def main(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    results = {name: run(folder) for name, run in CASES.items()}
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
