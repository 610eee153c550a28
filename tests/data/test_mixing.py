"""Mixtures: how often each source is drawn, in which order, on which rank, and after which interruption."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.two_sources import both, part, tasks, trainer
from tests.helpers import Interrupter, Rows, SaveAll, same, weights
from tests.parameters import in_turn
from torch.utils.data import DataLoader

import polytask as pt
from polytask.batch import Batch
from polytask.data import Adaptive, Anneal, Arrays, Chain, Mixture, Proportional, RoundRobin, Temperature, Zip
from polytask.data.accept import as_source
from polytask.models import HardSharing
from polytask.studies.run import run
from polytask.studies.store import read_history
from polytask.studies.trained_runs import evaluate_run

CPU = torch.device("cpu")
KINDS: dict[str, Callable[..., Mixture]] = {
    "chain": Chain,
    "round robin, longest": RoundRobin,
    "round robin, shortest": lambda s, **o: RoundRobin(s, "shortest", **o),
    "round robin, all": lambda s, **o: RoundRobin(s, "all", **o),
    "zip, longest": Zip,
    "zip, shortest": lambda s, **o: Zip(s, "shortest", **o),
    "zip, balance": lambda s, **o: Zip(s, "balance", **o),
    "proportional": Proportional,
    "temperature": lambda s, **o: Temperature(s, 2.0, **o),
    "annealed": lambda s, **o: Temperature(s, Anneal(math.inf, 1.0, 3), steps=7, **o),
    "adaptive": Adaptive,
}
BY_NAME = {task.name: task for task in tasks()}


def of_sizes(*sizes: int) -> dict[str, Any]:
    return {f"s{k}": part(size, 2, "a", seed=k) for k, size in enumerate(sizes)}


def bound(mixture: Mixture, index: int = 0, count: int = 1, seed: int = 0) -> Mixture:
    mixture.shard(index, count)
    mixture.bind(BY_NAME, CPU, "train", seed)
    return mixture


def told(steps: Iterable[tuple[Batch, ...]]) -> list[list[tuple[str, list[int]]]]:
    """The source and the rows of every batch of every step."""
    return [[(batch.source, batch.rows.tolist()) for batch in step] for step in steps]


# Rates


@pytest.mark.parametrize("T", [1.0, 2.0, 5.0, math.inf, 0.5])
def test_rates_are_what_is_stated_and_what_is_drawn(T: float):
    draws, sizes = 100_000, (1000, 100, 37)
    source = bound(Temperature(of_sizes(*sizes), T, steps=draws, batch_size=10))
    rates = list(source.rates(0).values())
    powers = [size ** (1 / T) for size in sizes]
    assert rates == pytest.approx([power / sum(powers) for power in powers])
    found = Counter(source.turns(0).flatten().tolist())
    for k, rate in enumerate(rates):
        assert abs(found[k] / draws - rate) <= 3 * math.sqrt(rate * (1 - rate) / draws)


def test_the_limits_of_the_temperature():
    sizes = of_sizes(90, 9, 1)
    proportional = bound(Proportional(sizes, batch_size=3))
    assert list(proportional.rates(0).values()) == pytest.approx([0.9, 0.09, 0.01])
    one = bound(Temperature(sizes, 1, batch_size=3))
    assert list(one.rates(0).values()) == pytest.approx(list(proportional.rates(0).values()))
    assert torch.equal(one.turns(4), proportional.turns(4))
    assert list(Temperature(sizes, math.inf, batch_size=3).rates(0).values()) == pytest.approx([1 / 3] * 3)
    assert list(Temperature(sizes, 1e-3, batch_size=3).rates(0).values()) == [1.0, 0.0, 0.0]


def test_draws_of_different_epochs_and_seeds_differ():
    draws = [
        bound(Proportional(of_sizes(50, 50), steps=200, batch_size=5), seed=s).turns(e) for s in (0, 1) for e in (0, 1)
    ]
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])


def test_a_temperature_is_annealed():
    source = bound(Temperature(of_sizes(80, 20), Anneal(math.inf, 1.0, 2), batch_size=10))
    assert [round(source.rates(epoch)["s0"], 6) for epoch in (0, 1, 2, 9)] == [0.5, round(2 / 3, 6), 0.8, 0.8]
    by_hand = bound(Temperature(of_sizes(80, 20), lambda epoch: 1.0 + epoch, batch_size=10))
    assert by_hand.at(3) == 4.0
    assert by_hand.rates(1)["s0"] == pytest.approx(2 / 3)


# Order


@pytest.mark.parametrize("kind", KINDS)
def test_each_source_is_read_on_and_on_in_its_own_order(kind: str):
    """Whatever an epoch leaves, the next takes up: a pass is a permutation, and every pass another."""
    source = bound(KINDS[kind](of_sizes(26, 11, 5), batch_size=4))
    seen: dict[str, list[int]] = {}
    for epoch in range(12):
        steps = told(source.steps(epoch))
        assert len(steps) == source.steps_per_epoch == len(source.turns(epoch))
        for name, rows in (batch for step in steps for batch in step):
            seen.setdefault(name, []).extend(rows)
    for name, size in (("s0", 26), ("s1", 11), ("s2", 5)):
        passes = [seen[name][k : k + size] for k in range(0, len(seen[name]) - size + 1, size)]
        assert len(passes) > 2
        assert all(sorted(rows) == list(range(size)) for rows in passes)
        assert any(rows != passes[0] for rows in passes)


def test_the_order_of_a_source_is_that_of_the_source_alone():
    alone = Arrays(*part(10, 2, "a"), batch_size=3, seed=4)
    alone.bind(BY_NAME, CPU, "train")
    mixed = bound(
        RoundRobin({"x": Arrays(*part(10, 2, "a"), batch_size=3, seed=4), "y": part(30, 2, "b")}, batch_size=2)
    )
    inside = [rows for epoch in range(2) for step in told(mixed.steps(epoch)) for name, rows in step if name == "x"]
    wanted = [rows for epoch in range(9) for step in told(alone.steps(epoch)) for _, rows in step]
    assert inside == wanted[: len(inside)] and len(inside) == 30


def test_sources_of_one_mixture_have_different_orders_and_seeds():
    source = bound(Zip(of_sizes(40, 40), batch_size=40))
    ((_, first), (_, second)) = told(source.steps(0))[0]
    assert first != second
    assert told(bound(Zip(of_sizes(40, 40), batch_size=40), seed=1).steps(0)) != told(source.steps(0))
    assert told(bound(Zip(of_sizes(40, 40), seed=3, batch_size=40), seed=1).steps(0)) == told(
        bound(Zip(of_sizes(40, 40), seed=3, batch_size=40), seed=2).steps(0)
    )


# Steps


def turns(source: Mixture, epoch: int = 0) -> list[str]:
    return ["".join(name[1] for name, _ in step) for step in told(source.steps(epoch))]


def test_round_robin_takes_turns():
    sizes = {"until": None, "batch_size": 2}
    for until, wanted in {
        "longest": "012012012", "shortest": "012", "all": "012010",
    }.items():  # fmt: skip
        source = bound(RoundRobin(of_sizes(6, 4, 1), **sizes | {"until": until}))
        assert turns(source) == turns(source, 1) == list(wanted)


def test_round_robin_goes_on_where_a_longer_source_was_left():
    source = bound(
        RoundRobin(
            {"s0": Arrays(*part(6, 2, "a"), batch_size=2, shuffle=False), "s1": part(2, 2, "a")},
            "shortest",
            batch_size=2,
        )
    )
    rows = [dict(batch for step in told(source.steps(epoch)) for batch in step)["s0"] for epoch in range(4)]
    assert rows == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_zip_brings_one_batch_of_each():
    for until, steps in {"longest": 4, "shortest": 2}.items():
        assert turns(bound(Zip(of_sizes(8, 4), until, batch_size=2))) == ["01"] * steps


@given(st.lists(st.integers(3, 60), min_size=1, max_size=4), st.integers(20, 40))
@settings(max_examples=30)
def test_a_balanced_zip_ends_all_sources_together(sizes: list[int], batch: int):
    source = bound(Zip(of_sizes(*sizes), "balance", batch_size=batch))
    steps = told(source.steps(0))
    assert len(steps) == source.steps_per_epoch == -(-sum(sizes) // (batch * len(sizes)))
    for k, size in enumerate(sizes):
        rows = [step[k][1] for step in steps]
        assert {len(each) for each in rows} <= {size // len(steps), -(-size // len(steps))}
        assert sorted(row for each in rows for row in each) == list(range(size))


def test_the_losses_of_a_zip_make_one_update():
    """Different tasks' losses are summed; a task in several sources is pooled over all its targets."""
    x, y = part(6, 2, "ab"), part(10, 2, "a", seed=1)
    x = (x[0], {**x[1], "a": x[1]["a"].index_fill(0, torch.tensor([1, 4]), math.nan)})
    net = HardSharing(torch.nn.Identity(), {"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 3)})
    plain = {name: value.clone().requires_grad_() for name, value in net.state_dict().items()}
    pt.Trainer(net, tasks()[:2], lambda p: torch.optim.SGD(p, lr=0.5), mixture=Zip, batch_size=10, progress=False).fit(
        {"x": x, "y": y}, epochs=1
    )

    def output(task: str, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ plain[f"heads.{task}.weight"].T + plain[f"heads.{task}.bias"]

    inputs, targets = torch.cat([x[0], y[0]]), torch.cat([x[1]["a"], y[1]["a"]])
    kept = ~targets.isnan()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(output("a", inputs)[kept, 0], targets[kept])
    loss = loss + torch.nn.functional.cross_entropy(output("b", x[0]), x[1]["b"])
    loss.backward()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, plain[name] - 0.5 * plain[name].grad, atol=1e-6)


def test_everything_is_served_in_order_with_names():
    source = bound(Proportional(both(5, 3), batch_size=2))
    batches = list(source.in_order(2))
    assert [(batch.source, batch.size) for batch in batches] == [
        ("left", 2), ("left", 2), ("left", 1), ("right", 2), ("right", 1),
    ]  # fmt: skip
    assert source.examples == 8
    assert source.label_counts() == {"a": 5, "c": 5, "b": 3}
    assert set(source.parts) == {"left", "right"}


# Resuming


@pytest.mark.parametrize("kind", ["round robin, longest", "zip, balance", "temperature", "annealed", "adaptive"])
def test_the_first_10000_draws_are_the_same_after_resuming_anywhere(kind: str):
    def fresh() -> Mixture:
        return bound(KINDS[kind](of_sizes(400, 300, 200), batch_size=2))

    whole = fresh()
    per_epoch = whole.steps_per_epoch
    draws = [told(whole.steps(epoch)) for epoch in range(-(-10_000 // per_epoch))]
    picked = torch.Generator().manual_seed(0)
    places = torch.randint(10_000, (4,), generator=picked).tolist()
    for epoch, step in [divmod(place, per_epoch) for place in (0, per_epoch - 1, *places)]:
        assert told(fresh().steps(epoch, step)) == draws[epoch][step:]
        if step == 0 or epoch + 1 == len(draws):
            continue
        resumed = fresh()
        list(resumed.steps(epoch, step))
        assert told(resumed.steps(epoch + 1)) == draws[epoch + 1]


def loaders() -> dict[str, Any]:
    own = torch.Generator().manual_seed(5)
    return {
        "left": DataLoader(Rows(*part(14, 3, "ac")), batch_size=4, shuffle=True, generator=own),
        "right": Rows(*part(11, 5, "b")),
    }


NEED_ARRAYS = ("zip, balance", "adaptive")


@pytest.mark.parametrize(
    ("kind", "served"),
    [
        *in_turn(NEED_ARRAYS, [(both, 1), (both, 2)]),
        *in_turn([kind for kind in KINDS if kind not in NEED_ARRAYS], [(both, 1), (both, 2), (loaders, 1)]),
    ],
)
def test_a_run_resumes_inside_an_epoch_to_the_bit(kind: str, served: Any, tmp_path: Path):
    data, accumulate = served

    def fit(after: int | None = None, resume: Path | None = None) -> tuple[SaveAll, pt.History, Any]:
        keep = SaveAll()
        one = trainer(
            mixture=lambda sources: KINDS[kind](sources), callbacks=[keep, Interrupter(after)], folder=tmp_path,
            optimizer=lambda p: torch.optim.Adam(p, lr=0.05), accumulate=accumulate, batch_size=4,
            schedule=pt.schedules.AlternateEpochs(1, 1),
        )  # fmt: skip
        return keep, one.fit(data(), both(8, 8, seed=3), epochs=3, resume=resume), one.model

    kept, history, model = fit()
    path = None
    for after in (1, 3):
        with pytest.raises(pt.Interrupted) as caught:
            fit(after, path)
        path = caught.value.path
    again, rows, resumed = fit(resume=path)
    assert rows == history
    assert same(again.state, kept.state)
    assert same(weights(resumed), weights(model))


# Ranks


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_choose_alike_and_share_every_batch(kind: str):
    def served(index: int, count: int) -> list[tuple[Batch, ...]]:
        source = bound(KINDS[kind](of_sizes(26, 11, 5), batch_size=4), index, count)
        return [step for epoch in range(3) for step in source.steps(epoch)]

    alone, first, second = served(0, 1), served(0, 2), served(1, 2)
    assert len(alone) == len(first) == len(second)
    for whole, *halves in zip(alone, first, second, strict=True):
        for batch, one, other in zip(whole, *halves, strict=True):
            assert batch.source == one.source == other.source
            assert batch.rows.tolist() == one.rows.tolist() + other.rows.tolist()
            assert one.everywhere == other.everywhere == batch.counts


def test_sources_that_tell_the_counts_of_all_ranks_do_so_together_or_not_at_all():
    source = bound(Zip({"left": part(8, 2, "a"), "right": Rows(*part(8, 2, "b"))}, batch_size=4), 0, 2)
    assert all(batch.everywhere is None for step in source.steps(0) for batch in step)


def test_sources_are_divided_alike():
    stream = Arrays(*part(8, 2, "a"), batch_size=2)
    stream.divided = True
    mixed = Proportional({"x": stream, "y": part(8, 2, "a")}, batch_size=2)
    with pytest.raises(ValueError, match=r"must be divided among them, or none, found \['x'\]"):
        mixed.shard(0, 2)
    with pytest.raises(ValueError, match="must be divided"):
        mixed.check_parts(0, 2)
    mixed.shard(0, 1)


# Adapting


def judged(epoch: int, a: float, b: float, c: float = 1.0) -> dict[str, Any]:
    """A row of the history; c's metric is better where it is less."""
    row = {"validation/a/accuracy": a, "validation/b/accuracy": b, f"validation/c/{BY_NAME['c'].metric.name}": c}
    return {"epoch": epoch} | row


def test_the_weights_follow_the_formula():
    goals = {"a": 0.8, "b": 0.9, "c": 0.5}
    source = bound(Adaptive(both(30, 10), goals, exponent=2, floor=0.1, step=0.5, T=2, batch_size=5))
    assert BY_NAME["c"].metric.direction == "max" and BY_NAME["c"].metric.name == "r2"
    source.observe(judged(1, a=0.4, b=0.95, c=-3.0))
    left = 1 + 0.5 * ((1.1 / (0.5**2 + 0.1) + 1.1 / 0.1) / 2 - 1)
    wanted = {"left": 30**0.5 * left, "right": 10**0.5 * 1.0}
    assert source.rates(1) == pytest.approx({name: value / sum(wanted.values()) for name, value in wanted.items()})
    assert source.rates(0) == pytest.approx(
        {"left": 30**0.5 / (30**0.5 + 10**0.5), "right": 10**0.5 / (30**0.5 + 10**0.5)}
    )
    source.observe(judged(2, a=math.nan, b=math.nan, c=math.nan))
    assert source.rates(2) == source.rates(1)


def test_without_baselines_a_task_that_falls_behind_its_best_is_drawn_more_often():
    source = bound(Adaptive(both(30, 30), batch_size=5))
    for epoch, b in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.95)):
        source.observe(judged(epoch, a=0.9, b=b))
    assert [source.rates(epoch)["right"] > 0.5 + 1e-9 for epoch in range(5)] == [False, False, False, True, False]


def test_where_less_is_better_the_ratio_is_turned_round():
    error = pt.regression("c", metric="mae")
    source = Adaptive(
        {"s": part(9, 2, "c"), "t": part(9, 2, "a")}, {"c": 0.5, "a": 0.5}, exponent=1, floor=1, batch_size=3
    )
    source.shard(0, 1)
    source.bind({"c": error, "a": BY_NAME["a"]}, CPU, "train")
    assert source.monitored == ("validation/c/mae", "validation/a/accuracy")
    source.observe({"epoch": 1, "validation/c/mae": 1.0, "validation/a/accuracy": 0.5})
    assert source.rates(1)["s"] == pytest.approx((4 / 3) / (4 / 3 + 1))


def test_what_has_been_learned_is_kept():
    one, other = (bound(Adaptive(both(40, 20), batch_size=4)) for _ in range(2))
    for epoch in range(3):
        list(one.steps(epoch))
        one.observe(judged(epoch + 1, a=0.9 - 0.2 * epoch, b=0.5))
    other.load_state_dict(one.state_dict())
    assert told(other.steps(3, 2)) == told(one.steps(3))[2:]
    assert told(other.steps(1)) == told(one.steps(1))
    one.bind(BY_NAME, CPU, "train", 0)  # another fit begins anew
    assert one.rates(3) == bound(Adaptive(both(40, 20), batch_size=4)).rates(0)


# Settings without sources


@pytest.mark.parametrize(
    ("setting", "made"),
    [
        (Temperature(T=2, seed=3, batch_size=4), lambda s: Temperature(s, 2, seed=3, batch_size=4)),
        (RoundRobin(until="all", batch_size=4), lambda s: RoundRobin(s, "all", batch_size=4)),
        (Zip(until="balance", batch_size=4), lambda s: Zip(s, "balance", batch_size=4)),
        (Proportional(steps=7, batch_size=4), lambda s: Proportional(s, steps=7, batch_size=4)),
        (Adaptive(floor=0.1, T=2, batch_size=4), lambda s: Adaptive(s, floor=0.1, T=2, batch_size=4)),
    ],
)
def test_a_mixture_without_sources_is_a_setting_that_makes_one(setting: Mixture, made: Callable[[Any], Mixture]):
    """The same to the draw, as often as it is asked, and nothing of one is left in the next."""
    sizes = of_sizes(26, 11, 5)
    for seed in (0, 1):
        found, wanted = bound(setting(sizes), seed=seed), bound(made(sizes), seed=seed)
        assert found.describe() == wanted.describe()
        for epoch in range(3):
            assert told(found.steps(epoch)) == told(wanted.steps(epoch))
            for each in (found, wanted):
                each.observe(judged(epoch + 1, a=0.9 - 0.2 * epoch, b=0.5))
    assert setting.sources == {}


def test_a_setting_trains_as_its_mixture_does():
    states = []
    for mixture in (Temperature(T=2), lambda sources: Temperature(sources, 2)):
        one = trainer(mixture=mixture)
        for _ in range(2):
            one.fit(both(), epochs=2)
        states.append(weights(one.model))
    assert same(*states)


def test_the_example_of_the_docs_runs(capsys: pytest.CaptureFixture[str]):
    text = (Path(__file__).parents[2] / "docs" / "mixing.md").read_text()
    (example,) = (block for block in text.split("```python\n") if block.startswith("import torch"))
    (loop,) = (block for block in text.split("```python\n") if block.startswith("by_name"))
    names: dict[str, Any] = {}
    exec(example.split("```")[0], names)
    assert capsys.readouterr().out.startswith("tensor([")
    before = {name: p.detach().clone() for name, p in names["model"].named_parameters()}
    exec(loop.split("```")[0], names)
    assert all(not torch.equal(p, before[name]) for name, p in names["model"].named_parameters())


def test_a_setting_is_no_data_and_data_no_setting():
    with pytest.raises(ValueError, match="must have sources before it can serve them, found a Temperature without"):
        trainer().fit(Temperature(T=2), epochs=1)
    with pytest.raises(ValueError, match="must have sources before"):
        trainer().evaluate(RoundRobin())
    with pytest.raises(ValueError, match=r"must have no sources of its own, found \['s0'\]: it is data, for `fit`"):
        trainer(mixture=Proportional(of_sizes(9), batch_size=2)).fit(both(), epochs=1)
    with pytest.raises(ValueError, match="`batch_size` must be given"):
        Temperature(T=2)(of_sizes(4))
    with pytest.raises(ValueError, match="at least one source, found none"):
        Temperature(T=2)({})


# In a trainer


def test_a_mapping_is_served_in_proportion_and_evaluated_in_order():
    mixed = as_source(both(), BY_NAME, batch_size=4, shuffle=True, where="train")
    assert isinstance(mixed, Proportional)
    assert isinstance(as_source(both(), BY_NAME, batch_size=4, shuffle=False, where="test"), Chain)
    chosen = as_source(both(), BY_NAME, batch_size=4, shuffle=True, where="train", mixture=RoundRobin)
    assert isinstance(chosen, RoundRobin)
    assert as_source(mixed, BY_NAME, batch_size=4, shuffle=True, where="train") is mixed


def test_figures_of_a_mixture_are_those_of_its_sources():
    one = trainer()
    data = both()
    figures, left, right = (
        one.evaluate(data),
        one.evaluate({"left": data["left"]}),
        one.evaluate({"right": data["right"]}),
    )
    assert {k: v for k, v in figures.items() if k != "loss"} == {k: v for k, v in (left | right).items() if k != "loss"}
    pooled = one.evaluate({"left": part(12, 3, "a"), "right": part(4, 5, "a", seed=1)})
    parts = [
        one.evaluate({name: part(size, i, "a", s)}) for name, size, i, s in (("left", 12, 3, 0), ("right", 4, 5, 1))
    ]
    assert pooled["a/accuracy"] == pytest.approx((12 * parts[0]["a/accuracy"] + 4 * parts[1]["a/accuracy"]) / 16)


@pytest.mark.parametrize("kind", ["proportional", "zip, longest"])
def test_cached_features_change_nothing(kind: str):
    states = []
    for cached in (True, False):
        one = trainer(mixture=KINDS[kind], schedule=pt.schedules.AlternateEpochs(1, 2), cache_features=cached)
        history = one.fit(both(), both(10, 8, seed=2), epochs=6)
        states.append((weights(one.model), list(history)))
    for key, value in states[0][0].items():
        assert torch.allclose(value, states[1][0][key], atol=1e-6), key
    for row, other in zip(states[0][1], states[1][1], strict=True):
        assert row["validation/loss"] == pytest.approx(other["validation/loss"], rel=1e-5)


def test_one_source_that_cannot_be_cached_does_not_keep_the_others_from_it():
    data = both()
    moving = Arrays(*data["right"], batch_size=8, augment=lambda x, generator: x)
    with pytest.raises(ValueError, match="streams or augments"):
        trainer(schedule=pt.schedules.AlternateEpochs(1, 1), cache_features=True).fit(
            data | {"right": moving}, epochs=2
        )
    one = trainer(schedule=pt.schedules.AlternateEpochs(1, 1))
    one.fit(data | {"right": moving}, epochs=2)


CONFIG: dict[str, Any] = {
    "data": {"class_path": "tests.data.two_sources.TwoSources"},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {
                "class_path": "polytask.models.BySource",
                "init_args": {
                    "encoders": {
                        "left": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 4}},
                        "right": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 5, "out_features": 4}},
                    }
                },
            },
            "heads": {
                name: {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": width}}
                for name, width in (("a", 1), ("b", 3), ("c", 1))
            },
        },
    },
    "trainer": {"batch_size": 8},
    "epochs": 3,
}


@pytest.mark.parametrize(
    ("mixture", "described"),
    [
        (None, "Proportional"),
        ("RoundRobin", "RoundRobin"),
        ({"class_path": "Temperature", "init_args": {"T": 2}}, "Temperature"),
        (
            {"class_path": "Temperature", "init_args": {"T": {"start": 5, "end": 1, "epochs": 2}, "steps": 9}},
            "Temperature",
        ),
        ({"class_path": "Zip", "init_args": {"until": "balance"}}, "Zip"),
        ({"class_path": "Adaptive", "init_args": {"baselines": {"a": 0.9, "b": 0.8, "c": 0.9}}}, "Adaptive"),
    ],
)
def test_a_configuration_names_the_mixture(mixture: Any, described: str, tmp_path: Path):
    from polytask.studies.spec import build, resolve

    config = CONFIG | {"trainer": {"batch_size": 8, "mixture": mixture}}
    made = build(resolve(config))
    chosen = (made.trainer.mixture or Proportional)({"left": Arrays(*part(8, 3, "a"), batch_size=8)})
    assert type(chosen).__name__ == described
    if isinstance(mixture, dict) and "steps" in mixture["init_args"]:
        assert (chosen.T, chosen.steps_per_epoch) == (Anneal(5, 1, 2), 9)
    if described in ("RoundRobin", "Zip"):
        return
    record = run(config, tmp_path / "run")
    assert (record.state, record.error) == ("done", "")
    assert {f"{task}/loss" for task in "abc"} <= set(record.metrics["test"])
    assert len(read_history(tmp_path / "run" / "history.csv")) == 3
    assert evaluate_run(str(tmp_path / "run")) == pytest.approx(record.metrics["test"])


# Bad input


@pytest.mark.parametrize("T", [0, -1.0, math.nan])
def test_a_temperature_is_above_zero(T: float):
    with pytest.raises(ValueError, match=f"`T` must be above 0, found {T}"):
        Temperature(of_sizes(4, 4), T, batch_size=2)
    with pytest.raises(ValueError, match="`start` must be above 0"):
        Anneal(T, 1.0, 3)
    with pytest.raises(ValueError, match=r"`T\(0\)` must be above 0"):
        bound(Temperature(of_sizes(4, 4), lambda _: T, batch_size=2)).turns(0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Proportional({}), ValueError, "must have at least one source, found none"),
        (lambda: Proportional([part(4, 2, "a")]), TypeError, "must be a mapping of names to sources, found list"),
        (lambda: Proportional({"x.y": part(4, 2, "a")}, batch_size=2), ValueError, "free of '.'"),
        (lambda: Proportional({"x": part(4, 2, "a")}), ValueError, "`batch_size` must be given"),
        (lambda: Proportional(of_sizes(4), batch_size=0), ValueError, "`batch_size` must be at least 1, found 0"),
        (lambda: Proportional(of_sizes(4), steps=0, batch_size=2), ValueError, "`steps` must be at least 1, found 0"),
        (lambda: Proportional({"x": 3}, batch_size=2), TypeError, "source `x`: data must be a Source"),
        (lambda: Zip({"x": Zip(of_sizes(4), batch_size=2)}), TypeError, "must be single ones, found a Zip as `x`"),
        (lambda: Zip(of_sizes(4), "longst", batch_size=2), ValueError, "`until` must be one of 'longest'"),
        (lambda: RoundRobin(of_sizes(4), "balance", batch_size=2), ValueError, "`until` must be one of 'longest'"),
        (lambda: Temperature(of_sizes(4), "2", batch_size=2), TypeError, "`T` must be a number, found '2'"),
        (lambda: Anneal(1.0, 2.0, 0), ValueError, "`epochs` must be at least 1, found 0"),
        (lambda: Adaptive(of_sizes(4), step=1.5, batch_size=2), ValueError, "`step` must be at most 1, found 1.5"),
        (lambda: Adaptive(of_sizes(4), {"a": 0.0}, batch_size=2), ValueError, "`baselines.a` must be above 0, found 0"),
        (lambda: bound(Adaptive(of_sizes(4), {"b": 1.0}, batch_size=2)), ValueError, "found `b`: known: `a`"),
        (
            lambda: bound(Adaptive(both(4, 4), {"a": 1.0}, batch_size=2)), ValueError,
            "must hold every task, found none for `c`$",
        ),
        (
            lambda: bound(Adaptive(both(4, 4), {"a": 1.0, "cc": 1.0}, batch_size=2)), ValueError,
            "found `cc`: did you mean `c`",
        ),
        (
            lambda: bound(Adaptive(of_sizes(4), {"a": 1.0, "ab": 1.0}, batch_size=2)), ValueError,
            "found `ab`: did you mean `a`",
        ),
        (
            lambda: bound(Zip(of_sizes(400, 2), "balance", batch_size=4)), ValueError,
            r"`s1`, until='balance': .*found 2 examples",
        ),
        (
            lambda: bound(Zip({"x": Rows(*part(4, 2, "a"))}, "balance", batch_size=2)), ValueError,
            "only arrays can be spread",
        ),
        (
            lambda: bound(Zip({"x": part(4, 2, "a"), "y": (torch.zeros(4, 2), {})}, batch_size=2)), ValueError,
            "targets of at least one task, found none in `y`",
        ),
        (
            lambda: bound(Zip({"x": part(4, 2, "a"), "y": (torch.zeros(4, 2), {"aa": torch.zeros(4)})}, batch_size=2)),
            ValueError, "source `y`: targets for an unknown task `aa`: did you mean `a`",
        ),
        (
            lambda: bound(Adaptive({"x": Rows(*part(4, 2, "a"))}, batch_size=2)), ValueError,
            "told by `x`: give it as arrays",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(make: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


def test_sources_with_different_classes_of_a_task_are_both_named():
    wider = (torch.zeros(4, 2), {"b": torch.tensor([0, 4, 1, 2])})
    data = {"reviews": part(6, 2, "b"), "tweets": wider, "other": part(6, 2, "a")}
    with pytest.raises(
        ValueError, match=r"`tweets`: .*found 4; .* agree on its classes, and `b` also comes from `reviews`"
    ):
        bound(Proportional(data, batch_size=2))


def test_a_source_without_a_step_has_no_turn():
    with pytest.raises(ValueError, match="at least 1 step, found 0 in `x`"):
        RoundRobin({"x": DataLoader(Rows(*part(4, 2, "a")), batch_size=5, drop_last=True)}).turns(0)


@pytest.mark.parametrize(("tells", "found"), [(4, "fewer"), (2, "more")])
def test_a_source_that_lies_about_its_steps_is_refused(tells: int, found: str):
    class Liar(Arrays):
        steps_per_epoch = tells

        def steps(self, epoch: int, start: int = 0) -> Any:
            return iter([(Batch(None, {}, {}, 2),)] * 3)

    mixed = bound(Chain({"x": Liar(*part(6, 2, "a"), batch_size=2)}))
    with pytest.raises(ValueError, match=f"`x` must serve the {tells} steps it tells of, found {found}"):
        list(mixed.steps(0))


def test_a_task_may_come_late_but_must_come():
    """Data sets do not tell their targets beforehand: a source that is drawn seldom is given the time it needs."""
    late = {"left": Rows(*part(40, 3, "ac")), "right": Rows(*part(4, 5, "b"))}
    first = lambda sources: Temperature(sources, lambda epoch: 0.01 if epoch < 2 else math.inf)  # noqa: E731
    history = trainer(mixture=first).fit(late, epochs=4)
    assert ["train/b/loss" in row for row in history] == [False, False, True, True]
    with pytest.raises(ValueError, match="every task must have at least one target, found none for `b`"):
        trainer(mixture=RoundRobin).fit(late | {"right": Rows(*part(4, 5, "a"))}, epochs=2)


def test_streams_are_evaluated_but_not_mixed():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return (Rows(*part(6, 3, "ac"))[k] for k in range(6))

    data = {"left": DataLoader(Stream(), batch_size=3), "right": part(4, 5, "b")}
    assert set(trainer().evaluate(data)) >= {"a/loss", "b/loss", "c/loss"}
    with pytest.raises(ValueError, match="must know how many examples it has, found a stream: `left`"):
        trainer().fit(data, epochs=1)
    with pytest.raises(ValueError, match="must know how many steps a pass over it has, found a stream: `left`"):
        trainer(mixture=RoundRobin).fit(data, epochs=1)


def test_the_trainer_refuses_what_makes_no_mixture():
    with pytest.raises(
        TypeError,
        match=r"`mixture` must be a function from sources to one source, such as pt.data.RoundRobin, found str",
    ):
        trainer(mixture="RoundRobin")
    with pytest.raises(TypeError, match="`mixture` must make a polytask source, found dict"):
        trainer(mixture=dict).fit(both(), epochs=1)
    with pytest.raises(TypeError, match="must be a single one, found a mapping as `x`"):
        trainer().fit({"x": both()}, epochs=1)
    with pytest.raises(ValueError, match="needs validation data, found none"):
        trainer(mixture=Adaptive).fit(both(), epochs=1)
    with pytest.raises(ValueError, match="at least one source, found none"):
        trainer().fit({}, epochs=1)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda: Temperature(both(), T=1, batch_size=4), "a Temperature"),
        (lambda: part(8, 3, "abc"), "one pair of inputs and targets"),
        (lambda: Rows(*part(8, 3, "abc")), "a Rows"),
    ],
)
def test_a_mixture_is_not_passed_over_where_there_is_nothing_to_mix(made: Callable[[], Any], found: str):
    with pytest.raises(ValueError, match=f"train: `mixture` serves data of several sources.*found {found} beside it"):
        trainer(mixture=RoundRobin).fit(made(), epochs=1)


def test_who_forgets_the_source_is_told_the_names():
    one, (x, y) = trainer(), part(8, 3, "abc")
    words = (
        r"must be told which one inputs come from, .* of `left`, `right`, with `source=\"left\"` .* {\"left\": data}"
    )
    calls = (
        lambda: one.model(x),
        lambda: one.predict(x),
        lambda: one.evaluate((x, y)),
        lambda: one.fit((x, y), epochs=1),
    )
    for forgets in calls:
        with pytest.raises(ValueError, match=words):
            forgets()


def test_predictions_of_a_run_of_several_sources_need_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from polytask.cli import main

    assert run(CONFIG | {"epochs": 1}, tmp_path / "run").state == "done"
    x = part(6, 5, "b")[0]
    np.save(tmp_path / "x.npy", x.numpy())
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "x.npy")]
    assert main(words) == 2
    assert "name one with `source` (--source) of `left`, `right`" in capsys.readouterr().err
    assert main([*words, "--source", "rigth"]) == 2
    assert "`right`" in capsys.readouterr().err
    assert main([*words, "--source", "right"]) == 0
    found = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert found == ["row", *map(str, range(6))]


@pytest.mark.parametrize(("sparse", "format"), [(False, "onnx"), (True, "torch")])
def test_a_run_of_several_sources_is_exported_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sparse: bool, format: str
):
    from polytask.cli import main

    if format == "onnx":
        pytest.importorskip("onnxscript")
    config = CONFIG | {"epochs": 1}
    if sparse:
        config = config | {"data": {"class_path": "tests.data.two_sources.TwoSparseSources"}}
    folder = tmp_path / "run"
    assert run(config, folder).state == "done"
    words = ["export", str(folder), "--format", format]
    assert main(words) == 2
    assert "none named: name one with `source` (--source) of `left`, `right`" in capsys.readouterr().err
    assert main([*words, "--source", "rigth"]) == 2
    assert "found `rigth`: did you mean `right`?" in capsys.readouterr().err
    model = pt.load(folder).model.eval()
    for name, width in (("left", 3), ("right", 5)):
        assert main([*words, "--source", name]) == 0
        path = folder / f"model-{name}{'.onnx' if format == 'onnx' else '.pt2'}"
        fresh = torch.randn(7, width)
        if format == "onnx":
            session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
            found = [torch.from_numpy(array) for array in session.run(list("abc"), {"inputs": fresh.numpy()})]
        else:
            archive = torch.export.load(path)
            assert not any("right" in key for key in archive.state_dict) or name == "right"
            found = list(archive.module()(fresh))
        wanted = model(fresh, source=name)
        for task, output in zip("abc", found, strict=True):
            assert (output - wanted[task]).abs().max() <= 1e-5 * wanted[task].abs().max()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_network_of_wrong_width_for_one_source_is_refused_before_anything_is_written(tmp_path: Path, sparse: bool):
    config = copy.deepcopy(CONFIG)
    if sparse:
        config["data"]["class_path"] = "tests.data.two_sources.TwoSparseSources"
    encoders = config["model"]["init_args"]["trunk"]["init_args"]["encoders"]
    encoders["right"]["init_args"]["in_features"] = 6
    with pytest.raises(ValueError, match=r"must take examples of shape \(5,\) from source `right`"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
