"""Which tasks take part when, and what that leaves untouched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import NAN, Interrupter, SaveAll, Witness, adam, data, network, same, sgd, trainer, weights
from tests.parameters import covering
from torch import nn

import polytask as pt
from polytask.schedules import (
    AlternateBatches,
    AlternateEpochs,
    BySimilarity,
    BySize,
    Curriculum,
    Joint,
    Schedule,
    SingleTaskEpochs,
    Update,
)
from polytask.schedules.drawing import pick
from polytask.studies import spec
from polytask.training.cost import measure

ONE = frozenset({"a"})
TWO = frozenset({"b"})
NONE: frozenset[str] = frozenset()
SIZES = {"a": 100, "b": 400, "c": 900}
DRAWS = 100_000


def ready(schedule: Schedule, names: str = "abc", counts: Mapping[str, int] | None = None) -> Any:
    schedule.setup(list(names), SIZES if counts is None else counts, {})
    return schedule


def chosen(schedule: Schedule, step: int, epoch: int = 0) -> frozenset[str]:
    """The tasks whose losses take part in the step."""
    taking = (
        frozenset(schedule.tasks) if update.objectives is None else update.objectives
        for update in schedule.updates(epoch, step)
    )
    return frozenset().union(*taking)


# What is drawn


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (BySize(), {"a": 1 / 14, "b": 4 / 14, "c": 9 / 14}),
        (BySize(alpha=0.5), {"a": 1 / 6, "b": 2 / 6, "c": 3 / 6}),
        (BySize(alpha=0.0, seed=3), {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        (BySimilarity("b", {"a": 0.3, "c": -0.4}), {"a": 0.3, "b": 1.0, "c": 0.0}),
        (BySimilarity("b", {"a": 1 - math.log(4), "c": 1.0}, 1.0), {"a": 1 / 9, "b": 4 / 9, "c": 4 / 9}),
        (Curriculum({"a": 0, "b": 1, "c": 1}, ramp=3), {"a": 1.0, "b": 0.5, "c": 0.5}),  # in epoch 2, its second
    ],
    ids=["proportional", "square root", "uniform", "clipped", "softmax", "ramp"],
)
def test_tasks_are_drawn_with_their_probabilities(schedule: Any, expected: dict[str, float]):
    ready(schedule)
    if not isinstance(schedule, Curriculum):
        assert schedule.probabilities() == pytest.approx(expected, abs=1e-12)
    drawn = Counter(frozenset(schedule.choose(tuple("abc"), 2, step)) for step in range(DRAWS))
    for name, p in expected.items():
        frequency = sum(count for names, count in drawn.items() if name in names) / DRAWS
        assert abs(frequency - p) <= 3 * math.sqrt(p * (1 - p) / DRAWS), name
    if isinstance(schedule, Curriculum):  # newcomers are drawn independently of each other
        assert abs(drawn[frozenset("abc")] / DRAWS - 0.25) <= 3 * math.sqrt(0.25 * 0.75 / DRAWS)


@given(st.integers(0, 2**40), st.integers(0, 3))
def test_a_draw_depends_on_the_seed_and_the_step_alone(step: int, seed: int):
    def draw(**options: Any) -> frozenset[str]:
        return chosen(ready(BySize(**options)), step)

    schedule = ready(BySize(seed=seed))
    schedule.updates(0, 0)  # what was asked before leaves no trace
    schedule.updates(3, step + 1)
    assert chosen(schedule, step, epoch=7) == draw(seed=seed)
    assert draw(seed=seed, inner=AlternateEpochs(1, 1)) == draw(seed=seed)


def test_seeds_and_kinds_draw_differently():
    def draws(schedule: Schedule) -> list[frozenset[str]]:
        return [chosen(schedule, step) for step in range(300)]

    given = {"a": 1.0, "c": 1.0}
    runs = [ready(BySize(0.0)), ready(BySize(0.0, seed=1)), ready(BySimilarity("b", given, temperature=1.0))]
    assert all(schedule.probabilities() == pytest.approx(dict.fromkeys("abc", 1 / 3)) for schedule in runs)
    first, *others = map(draws, runs)
    for other in others:  # three tasks alike: independent draws agree in a third of the steps
        assert 60 <= sum(one == two for one, two in zip(first, other, strict=True)) <= 140


def test_clipped_similarities_expect_the_weighted_gradient_of_du_et_al():
    """A step of SGD is linear in the gradient, so its mean over the draws is the step of the mean gradient."""

    def trunk_after(**options: Any) -> torch.Tensor:
        run = trainer(batch_size=24, **options)
        run.fit(data(24), epochs=1)
        return run.model.trunk[0].weight.detach()

    alone, both = (trunk_after(schedule=Scripted(Update(True, None, names))) for names in (ONE, ONE | TWO))
    weighted = trunk_after(balancer=pt.scalarization.Linear({"a": 1.0, "b": 0.3}))
    schedule = ready(BySimilarity("a", {"b": 0.3}), "ab")
    p = schedule.probabilities()["b"]
    torch.testing.assert_close((1 - p) * alone + p * both, weighted)


def test_temperature_leads_from_the_primary_task_alone_to_all_alike():
    given = {"a": 0.9, "c": -1.0}
    cold, warm = (ready(BySimilarity("b", given, temperature)).probabilities() for temperature in (1e-3, 1e9))
    assert cold == pytest.approx({"a": 0.0, "b": 1.0, "c": 0.0}, abs=1e-12)
    assert warm == pytest.approx(dict.fromkeys("abc", 1 / 3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(any), st.floats(0, 1, exclude_max=True))
def test_what_has_no_probability_is_never_picked(parts: list[float], number: float):
    probabilities = {str(place): part / sum(parts) for place, part in enumerate(parts)}
    assert probabilities[pick(probabilities, number)] > 0


# How they combine


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (None, [[Update(True, ONE, ONE)], [Update(True, ONE, ONE)], [Update(True, TWO, TWO)]]),
        (
            AlternateBatches(),
            [
                [Update(True, NONE, ONE), Update(False, ONE, ONE)],
                [Update(True, NONE, ONE), Update(False, ONE, ONE)],
                [Update(True, NONE, TWO), Update(False, TWO, TWO)],
            ],
        ),
        (AlternateEpochs(1, 1), [[Update(True, NONE, ONE)], [Update(False, ONE, ONE)], [Update(True, NONE, TWO)]]),
    ],
    ids=["joint", "SAT", "ATE"],
)
def test_single_task_epochs_within_sat_and_ate(inner: Schedule | None, expected: list[list[Update]]):
    cycles = 2 if inner is None or inner.cycle == 1 else 1  # turns of two epochs in every case
    schedule = ready(SingleTaskEpochs(cycles=cycles, inner=inner), "ab")
    assert schedule.cycle == 4
    for epoch, updates in enumerate(expected):
        assert list(schedule.updates(epoch, 5)) == updates
        assert schedule.updates(epoch + 4, 5) == schedule.updates(epoch, 5)


def test_fresh_batches_go_on_in_turns_within_a_single_task_epoch():
    schedule = ready(SingleTaskEpochs(["b", "a"], inner=AlternateBatches(fresh=True)), "ab")
    assert schedule.updates(0, 0) == (Update(True, NONE, TWO),)
    assert schedule.updates(0, 1) == (Update(False, TWO, TWO),)
    assert schedule.updates(1, 2) == (Update(True, NONE, ONE),)


def test_a_curriculum_within_ate():
    schedule = ready(Curriculum({"b": 0, "a": 2}, inner=AlternateEpochs(1, 1)), "ab")
    expected = [Update(True, NONE, TWO), Update(False, TWO, TWO), Update(True, NONE), Update(False)]
    assert [
        *schedule.updates(0, 0),
        *schedule.updates(1, 0),
        *schedule.updates(2, 0),
        *schedule.updates(3, 0),
    ] == expected
    assert [schedule.phase(epoch) for epoch in (0, 1, 2)] == [
        "shared, 1 of 2 tasks", "specific, 1 of 2 tasks", "shared, 2 of 2 tasks",
    ]  # fmt: skip
    assert (schedule.lead, schedule.cycle) == (2, 2)
    assert [schedule.moves_shared(epoch) for epoch in range(3)] == [True, False, True]


@pytest.mark.parametrize("make", [BySize, lambda inner: BySimilarity("a", {"b": 0.5, "c": 0.1}, 0.5, inner=inner)])
def test_both_updates_of_sat_keep_to_the_steps_choice(make: Callable[..., Any]):
    schedule = ready(make(inner=AlternateBatches()))
    for step in range(50):
        first, second = schedule.updates(0, step)
        assert first.objectives == second.objectives == second.specific
        assert first.specific == NONE and first.shared and not second.shared


def test_sizes_draw_among_the_tasks_that_are_in():
    schedule = ready(BySize(inner=Curriculum(["a", "b", "c"], interval=2)))
    assert {chosen(schedule, step, epoch=1) for step in range(40)} == {ONE}
    counts = Counter(chosen(schedule, step, epoch=3) for step in range(20_000))
    assert set(counts) == {ONE, TWO}
    assert abs(counts[TWO] / 20_000 - 0.8) <= 3 * math.sqrt(0.8 * 0.2 / 20_000)
    assert schedule.phase(3) == "2 of 3 tasks, tasks by size"


def test_a_ramp_rises_to_every_step():
    schedule = ready(Curriculum({"a": 0, "b": 2, "c": 9}, ramp=2), "abc")
    shares = [sum("b" in chosen(schedule, step, epoch) for step in range(3000)) / 3000 for epoch in range(6)]
    assert shares[:2] == [0, 0] and shares[4:] == [1, 1]
    assert shares[2:4] == pytest.approx([1 / 3, 2 / 3], abs=3 * math.sqrt(2 / 9 / 3000))
    assert schedule.lead == 11


def test_starts_count_the_epochs_before_a_task_enters():
    """The history counts from 1: a task that starts at 2 is first trained in its epoch 3, within ATE too."""
    for starts, options in (({"a": 0, "b": 2}, {}), (["a", "b"], {"interval": 2})):
        history = trainer(schedule=Curriculum(starts, **options)).fit(data(), epochs=4)
        assert [row["epoch"] for row in history if "train/a/loss" in row] == [1, 2, 3, 4]
        assert [row["epoch"] for row in history if "train/b/loss" in row] == [3, 4]
    schedule = Curriculum({"a": 0, "b": 2}, inner=AlternateEpochs(1, 2))  # epochs, not cycles: in the middle of one
    history = trainer(schedule=schedule).fit(data(), epochs=4)
    assert [row["epoch"] for row in history if "train/b/loss" in row] == [3, 4]
    assert [row["phase"] for row in history[1:3]] == ["specific, 1 of 2 tasks", "specific, 2 of 2 tasks"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Curriculum(["a", "b"], 5),  # type: ignore[misc]
        lambda: SingleTaskEpochs(None, 1, Joint()),  # type: ignore[misc]
        lambda: BySize(1.0, None, 3),  # type: ignore[misc]
        lambda: BySimilarity("a", "gradients", None, 3),  # type: ignore[misc]
    ],
)
def test_numbers_that_could_be_taken_for_another_must_be_named(make: Callable[[], Schedule]):
    with pytest.raises(TypeError, match="positional argument"):
        make()


class Scripted(Schedule):
    """Makes the updates it is given."""

    def __init__(self, *updates: Update) -> None:
        self.given = updates

    def phase(self, epoch: int) -> str:
        return "scripted"

    def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
        return self.given


def test_what_the_inner_schedule_rules_out_stays_out():
    inner = Scripted(
        Update(True, ONE, frozenset({"a", "size"})), Update(False, frozenset("bc")), Update(True, TWO, TWO)
    )
    schedule = SingleTaskEpochs(inner=inner)
    schedule.setup(list("abc"), None, {"size": None})
    assert schedule.updates(0, 0) == (inner.given[0],)
    assert schedule.updates(1, 0) == (Update(False, TWO, frozenset({"b", "size"})), inner.given[2])
    assert schedule.updates(2, 0) == (Update(False, frozenset("c"), frozenset({"c", "size"})),)


def test_other_objectives_take_part_with_the_task_they_belong_to():
    schedule = SingleTaskEpochs()
    schedule.setup(["a", "b"], None, {"decay": None, "b-features": "b"})
    assert schedule.updates(0, 0)[0].objectives == {"a", "decay"}
    assert schedule.updates(1, 0)[0].objectives == {"b", "b-features", "decay"}
    alone = SingleTaskEpochs(inner=Scripted(Update(True, None, frozenset({"decay"}))))
    alone.setup(["a", "b"], None, {"decay": None})
    assert alone.updates(0, 0) == alone.inner.updates(0, 0)  # a penalty alone concerns no task


class Size(pt.Objective):
    """The squared norm of the trunk."""

    def forward(self, context: Any) -> Any:
        return sum(p.square().sum() for p in context.model.trunk.parameters())


def test_a_penalty_acts_whoever_is_trained():
    history = trainer(schedule=SingleTaskEpochs(), objectives=[Size("size")]).fit(data(), epochs=2)
    assert all(row["train/size/loss"] > 0 for row in history)
    assert [("train/a/loss" in row, "train/b/loss" in row) for row in history] == [(True, False), (False, True)]


# What they do to training

CHOOSERS: dict[str, Callable[[Schedule | None], Schedule]] = {
    "single": lambda inner: SingleTaskEpochs(["c", "a", "b"], inner=inner),
    "curriculum": lambda inner: Curriculum(["b", "c", "a"], interval=2, inner=inner),
    "size": lambda inner: BySize(0.3, inner=inner),
    "similarity": lambda inner: BySimilarity("a", {"b": 0.4, "c": 0.2}, inner=inner),
    "softmax": lambda inner: BySimilarity("a", {"b": 0.4, "c": 0.2}, 0.5, inner=inner),
}
INNER: dict[str, Schedule | None] = {"joint": None, "sat": AlternateBatches(), "ate": AlternateEpochs(1, 1)}


OPTIMIZERS = {"adam": adam(), "momentum": sgd(momentum=0.9, weight_decay=0.01)}


@pytest.mark.parametrize(("kind", "inner", "optimizer"), covering(CHOOSERS, INNER, OPTIMIZERS))
def test_a_task_that_is_not_chosen_keeps_every_bit(kind: str, inner: str, optimizer: str):
    witness = Witness()
    run = trainer(
        network("norm+dropout", "abc"), "abc", optimizer=OPTIMIZERS[optimizer], schedule=CHOOSERS[kind](INNER[inner]),
        callbacks=[witness],
    )  # fmt: skip
    history = run.fit(data(24, "abc"), data(10, "abc", seed=1), epochs=6)
    assert witness.frozen_seen >= 12 and witness.live_seen >= 12
    if kind == "single":
        turn = 1 if inner != "ate" else 2
        for epoch, row in enumerate(history):
            trained = ["c", "a", "b"][epoch // turn % 3]
            assert [name for name in "abc" if f"train/{name}/loss" in row] == [trained]
            assert {f"validation/{name}/loss" for name in "abc"} <= row.keys()


def test_a_curriculum_of_all_tasks_is_the_inner_schedule_to_the_bit():
    results = []
    for schedule in (AlternateEpochs(1, 1), Curriculum({"a": 0, "b": 0}, ramp=2, inner=AlternateEpochs(1, 1))):
        run = trainer(network("norm+dropout"), optimizer=adam(), schedule=schedule, balancer=pt.aggregation.PCGrad())
        run.fit(data(), epochs=4)
        results.append(weights(run.model))
    assert same(*results)


def test_features_are_cached_whoever_is_trained():
    results = []
    for cached in (True, False):
        schedule = BySize(0.0, inner=Curriculum(["a", "b"], interval=2, inner=AlternateEpochs(1, 1)))
        run = trainer(network("norm"), schedule=schedule, cache_features=cached)
        seen = []

        class Look(pt.Callback):
            def on_update(self, run: Any, info: Any, seen: list[bool] = seen) -> None:
                seen.append(run.caching)

        run.callbacks = (Look(),)
        run.fit(data(), data(8, seed=1), epochs=6)
        assert seen == [bool(epoch % 2) and cached for epoch in range(6) for _ in range(3)]
        results.append(weights(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


def test_a_step_without_the_chosen_task_makes_no_update_but_counts():
    """Task a is in the first batch only, b in the others: half of all steps have nothing to do."""
    x, y = data(24)
    y["a"][8:] = torch.nan
    y["b"][:8] = -100
    witness, keeper = Witness(), SaveAll()
    run = trainer(
        schedule=SingleTaskEpochs(), callbacks=[witness, keeper], warmup=4, optimizer=adam(),
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.5**n), scheduler_interval="step",
    )  # fmt: skip
    history = run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=2)
    assert [names for _, _, names in witness.updates] == [("a",), ("b",), ("b",)]
    assert (keeper.state["step"], keeper.state["optimizers"]["steps"]) == (6, 3)
    assert history.column("lr") == [0.01 * 0.5, 0.01 * 0.5**3]
    assert [row["train/loss"] > 0 for row in history] == [True, True]


def test_an_epoch_without_any_update_has_no_training_figures(tmp_path: Path):
    x, y = data(24)
    y["b"][:] = -100
    y["b"][0] = 1
    schedule = Curriculum({"a": 0, "b": 1}, inner=Scripted(Update(True, None, TWO)))
    model = network()
    before = weights(model)
    run = trainer(
        model, schedule=schedule, callbacks=[pt.callbacks.EarlyStopping("train/loss"), pt.callbacks.Progress()]
    )
    history = run.fit((x, y), data(8, seed=1), epochs=1)
    assert same(weights(model), before)
    assert "train/loss" not in history[0] and history[0]["validation/loss"] > 0
    run.save(tmp_path)
    assert (tmp_path / "history.csv").is_file()


def forgetting(schedule: Schedule) -> tuple[list[float], list[float]]:
    """Each task's loss by epochs: two numbers from two, through two hidden units without non-linearity."""
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {name: nn.Linear(2, 1, bias=False) for name in "ab"}
        model = pt.models.HardSharing(nn.Linear(2, 2, bias=False), heads)
    run = pt.Trainer(
        model, [pt.regression("a"), pt.regression("b")], sgd(0.2), schedule=schedule, batch_size=32, progress=False
    )
    history = run.fit((x, {"a": x[:, 0], "b": x[:, 1]}), (x, {"a": x[:, 0], "b": x[:, 1]}), epochs=100)
    return history.column("validation/a/loss"), history.column("validation/b/loss")


def test_single_task_epochs_forget_and_turns_by_steps_do_not():
    """The network can fit both tasks exactly, so a loss left above rounding is what the schedule lost.

    Learning b alone moves the trunk by multiples of b's head, which a's head sees as far as the two heads are not
    orthogonal: by an amount of the size of the targets (variance 1). The bounds leave a factor of ten below the loss
    that comes back (0.35) and of 1e5 above what is otherwise left (1e-13).
    """
    a, b = forgetting(SingleTaskEpochs(cycles=50))
    assert a[49] < 1e-8 < 1e-2 < a[99]  # learned, and lost again
    assert b[99] < 1e-8
    for schedule in (Joint(), BySize(alpha=0.0), SingleTaskEpochs()):
        a, b = forgetting(schedule)
        assert max(a[99], b[99]) < 1e-8


# What is measured


class Noted(pt.Callback):
    """Writes the same figures into every row."""

    def __init__(self, **figures: float) -> None:
        self.values = {key.replace("_", "/"): value for key, value in figures.items()}

    def figures(self, run: Any) -> dict[str, float]:
        return self.values


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize(("kind", "column"), [("gradients", "cosine"), ("predictions", "correlation")])
def test_a_measured_similarity_is_as_a_given_one(kind: str, column: str, temperature: float | None):
    """From the second epoch on; in the first the unknown similarities count as 1."""
    witnesses = []
    for similarity in (kind, {"a": 0.2, "c": -0.6}):
        noted = Noted(**{f"{column}_a_b": 0.2, f"{column}_b_c": -0.6, f"{column}_a_c": 0.9})
        witnesses.append(Witness())
        trainer(names="abc", schedule=BySimilarity("b", similarity, temperature), callbacks=[witnesses[-1], noted]).fit(
            data(64, "abc"), epochs=4
        )
    measured, given = (witness.updates for witness in witnesses)
    assert [update for update in measured if update[0]] == [update for update in given if update[0]]
    first = {names for epoch, _, names in measured if not epoch}
    assert first == {("a", "b", "c")} if temperature is None else first <= {("a",), ("b",), ("c",)}


def test_a_figure_that_is_not_a_number_leaves_the_one_before():
    schedule = ready(BySimilarity("b"))
    schedule.observe({"cosine/a/b": 0.25, "cosine/b/c": math.nan})
    assert schedule.probabilities() == {"a": 0.25, "b": 1.0, "c": 1.0}
    schedule.observe({"cosine/a/b": math.nan, "cosine/b/c": -0.5})
    assert schedule.probabilities() == {"a": 0.25, "b": 1.0, "c": 0.0}
    ready(schedule)
    assert schedule.probabilities() == dict.fromkeys("abc", 1.0)  # another fit starts anew


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "gradients",
            "needs the column `cosine/a/b` at the end of every epoch, found none: add the callback `Gradient",
        ),
        (
            "predictions",
            "needs the column `correlation/a/b` at the end of every epoch, found none: add the callback `Pre",
        ),
    ],
)
def test_a_missing_column_names_its_callback(kind: str, message: str):
    with pytest.raises(ValueError, match=message):
        trainer(schedule=BySimilarity("b", kind)).fit(data(), epochs=2)


def test_cosines_of_tasks_that_did_not_meet_name_the_cause():
    """Of targets that an example lacks only the steps tell."""
    x, y = data(24, "abc")
    early = torch.arange(24) % 2 == 0
    y = {"a": y["a"].masked_fill(early, NAN), "b": y["b"].masked_fill(~early, -100), "c": y["c"]}
    looks = [pt.callbacks.GradientCosines(1)]
    made = trainer(names="abc", schedule=BySimilarity("b"), callbacks=looks, batch_size=1)
    with pytest.raises(ValueError, match="no step that it looked at held targets of both tasks, for which use `Zip`"):
        made.fit((x, y), epochs=1)
    assert made.history


def test_correlations_that_a_callback_does_not_write_name_the_cause():
    looks = [pt.callbacks.PredictionCorrelation("a")]
    made = trainer(names="abc", schedule=BySimilarity("b", "predictions"), callbacks=looks)
    with pytest.raises(ValueError, match="its `primary` must be None or one of both tasks"):
        made.fit(data(24, "abc"), data(20, "abc", seed=1), epochs=1)


@pytest.mark.parametrize("nested", [False, True])
def test_a_primary_task_that_never_meets_another_is_refused_before_training(nested: bool):
    x, y = data(24, "abc")
    parts = {names: (x, {name: y[name] for name in names}) for names in ("ac", "b")}
    schedule: Schedule = BySimilarity("b")
    made = trainer(
        names="abc",
        schedule=Curriculum({"a": 0, "b": 0, "c": 0}, inner=schedule) if nested else schedule,
        callbacks=[pt.callbacks.GradientCosines(1)],
    )
    with pytest.raises(ValueError, match="needs steps with targets of both `a` and `b`, and no step would hold them"):
        made.fit(pt.data.RoundRobin(parts, batch_size=8), epochs=1)
    assert not made.history


def test_a_primary_task_that_meets_every_other_is_not_refused():
    """Tasks that are apart from each other only do not matter; nor do those that `accumulate` brings together."""
    x, y = data(24, "abc")
    parts = {names: (x, {name: y[name] for name in names}) for names in ("ac", "ab")}
    for primary, accumulate in (("a", 1), ("b", 2)):
        made = trainer(
            names="abc", schedule=BySimilarity(primary), callbacks=[pt.callbacks.GradientCosines(1)],
            accumulate=accumulate,
        )  # fmt: skip
        made.fit(pt.data.RoundRobin(parts, batch_size=8), epochs=1)
        assert len(made.history) == 1


@pytest.mark.parametrize("inner", [AlternateEpochs(1, 1), AlternateEpochs(1, 2)])
def test_cosines_stay_while_the_shared_block_rests(inner: Schedule):
    """In those epochs there are none, and the next choice is by the last ones there were."""
    run = trainer(schedule=BySimilarity("a", inner=inner), callbacks=[pt.callbacks.GradientCosines(1)])
    history = run.fit(data(), epochs=inner.cycle)
    assert ["cosine/a/b" in row for row in history] == [inner.moves_shared(epoch) for epoch in range(inner.cycle)]
    assert not inner.moves_shared(inner.cycle - 1)
    assert run.schedule.similarity == "gradients"
    last = [row["cosine/a/b"] for row in history if "cosine/a/b" in row][-1]
    assert run.schedule.state_dict()["similarities"]["b"] == last


def test_predictions_that_correlate_bring_a_task_in():
    run = trainer(
        schedule=BySimilarity("a", "predictions"), callbacks=[pt.callbacks.PredictionCorrelation()], optimizer=sgd(0.1)
    )
    history = run.fit(data(), data(40, seed=1), epochs=3)
    assert run.schedule.probabilities()["b"] == history[-1]["correlation/a/b"]


# Resuming

RESUMED: dict[str, Callable[[], Schedule]] = {
    "single": lambda: SingleTaskEpochs(inner=AlternateBatches()),
    "curriculum": lambda: Curriculum(["b", "a"], ramp=1, inner=AlternateEpochs(1, 1)),
    "size": lambda: BySize(0.5, inner=AlternateEpochs(1, 1)),
    "measured": lambda: BySimilarity("a", "predictions", inner=AlternateBatches()),
    "nested": lambda: BySimilarity("a", "predictions", 0.3, inner=Curriculum(["a", "b"])),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_runs_choose_as_if_never_stopped(kind: str, tmp_path: Path):
    def run(after: int | None = None, resume: Path | None = None, keep: Path | None = None) -> tuple[SaveAll, Any]:
        keeper = SaveAll(keep)
        callbacks = [pt.callbacks.PredictionCorrelation(), keeper, Interrupter(after)]
        made = trainer(
            network("norm+dropout", seed=0 if resume is None else 9), schedule=RESUMED[kind](), callbacks=callbacks,
            folder=tmp_path, optimizer=adam(),
        )  # fmt: skip
        return keeper, made.fit(data(30, missing=True), data(20, seed=1), epochs=4, resume=resume)

    whole, history = run(keep=tmp_path)
    for epoch in (1, 3):
        again, rows = run(resume=tmp_path / f"{epoch}.ckpt")
        assert rows == history and same(again.state, whole.state), f"after epoch {epoch}"
    path = None
    for after in (2, 3):  # inside epochs
        with pytest.raises(pt.Interrupted) as caught:
            run(after, resume=path)
        path = caught.value.path
    again, rows = run(resume=path)
    assert rows == history and same(again.state, whole.state)


@pytest.mark.parametrize(
    "other", [BySize(0.5), BySize(seed=1), BySize(sizes={"a": 1, "b": 2}), BySize(inner=AlternateBatches())]
)
def test_other_settings_are_not_resumed(other: Schedule, tmp_path: Path):
    trainer(schedule=BySize(), callbacks=[SaveAll(tmp_path)]).fit(data(), epochs=1)
    with pytest.raises(ValueError, match="different: schedule_settings"):
        trainer(schedule=other, callbacks=[SaveAll()]).fit(data(), epochs=2, resume=tmp_path / "1.ckpt")


# Doors


def test_a_configuration_may_nest_schedules():
    config = {
        "data": {"class_path": "CircleRhombus"},
        "model": {
            "class_path": "HardSharing",
            "init_args": {
                "trunk": {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [4]}},
                "heads": {
                    name: {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 1}}
                    for name in ("circle", "rhombus")
                },
            },
        },
        "epochs": 1,
    }
    inner = {"class_path": "AlternateEpochs", "init_args": {"shared": 2, "specific": 1}}
    starts = {"rhombus": 0, "circle": 3}

    def built(name: str, **settings: Any) -> Any:
        schedule = {"class_path": name, "init_args": settings}
        resolved = spec.resolve(config | {"trainer": {"schedule": schedule}})
        assert spec.resolve(resolved) == resolved
        return spec.build(resolved).trainer.schedule.describe()

    assert built("Curriculum", starts=starts, inner=inner) == Curriculum(starts, inner=AlternateEpochs(2, 1)).describe()
    assert built("Curriculum", starts=["rhombus", "circle"], interval=3) == Curriculum(starts).describe()
    assert built("SingleTaskEpochs", cycles=2) == SingleTaskEpochs(cycles=2).describe()
    nested = {"class_path": "Curriculum", "init_args": {"starts": starts, "inner": inner}}
    wanted = BySize(0.5, inner=Curriculum(starts, inner=AlternateEpochs(2, 1)))
    assert built("BySize", alpha=0.5, inner=nested) == wanted.describe()
    for similarity in ("predictions", {"rhombus": 0.5}):
        made = built("BySimilarity", primary="circle", similarity=similarity, temperature=0.1)
        assert made == BySimilarity("circle", similarity, 0.1).describe()


def test_costs_are_those_of_the_tasks_that_take_part():
    run = trainer(schedule=Curriculum({"a": 0, "b": 3}))
    source = pt.Arrays(*data(), batch_size=8)
    source.bind(run.tasks, run.device, "train")
    phases = measure(run, source)["phases"]
    assert list(phases) == ["1 of 2 tasks", "2 of 2 tasks"]
    assert 0 < phases["1 of 2 tasks"]["macs"] < phases["2 of 2 tasks"]["macs"]
    assert not run.schedule._tasks, "the trainer's own schedule is left as it was"


def test_the_catalogue_lists_them():
    from polytask.catalog import catalog

    found = {entry.name: entry for entry in catalog("schedule")}
    assert {"BySimilarity", "BySize", "Curriculum", "SingleTaskEpochs"} <= found.keys()
    assert "TaskSchedule" not in found
    assert found["BySimilarity"].paper and found["BySize"].paper


CHECKED: dict[str, tuple[Callable[[], Schedule], str]] = {
    "negative alpha": (lambda: BySize(-0.5), "`alpha` must be at least 0 and finite, found -0.5"),
    "alpha not a number": (lambda: BySize(math.nan), "`alpha` must be at least 0 and finite, found nan"),
    "size 0": (lambda: BySize(sizes={"a": 1, "b": 0}), "`sizes` must be above 0 and finite, found 0 for `b`"),
    "negative seed": (lambda: BySize(seed=-1), "`seed` must be at least 0, found -1"),
    "temperature 0": (
        lambda: BySimilarity("a", temperature=0.0),
        "`temperature` must be above 0 and finite, found 0.0",
    ),
    "similarity of 2": (lambda: BySimilarity("a", {"b": 2}), "`similarity` must lie between -1 and 1, found 2 for `b`"),
    "similarity to itself": (
        lambda: BySimilarity("a", {"a": 1.0}),
        "`similarity` must name the other tasks, found the primary one, `a`",
    ),
    "unknown measure": (
        lambda: BySimilarity("a", "gradient"),
        "`similarity` must be one of 'gradients', 'predictions', found 'gradient'",
    ),
    "no tasks": (lambda: Curriculum([]), "`starts` must name at least one task, found none"),
    "nothing at first": (
        lambda: Curriculum({"a": 2, "b": 1}),
        "at least one task must start at 0, in the run's first epoch, found the first at 1",
    ),
    "interval beside epochs": (
        lambda: Curriculum({"a": 0}, interval=2),
        "`interval` goes with an order of tasks, found 2 beside a start for each",
    ),
    "interval 0": (lambda: Curriculum(["a"], interval=0), "`interval` must be at least 1, found 0"),
    "negative ramp": (lambda: Curriculum(["a"], ramp=-1), "`ramp` must be at least 0, found -1"),
    "twice in an order": (lambda: Curriculum(["a", "a"]), "an order must name each task once, found `a` twice"),
    "twice in turns": (lambda: SingleTaskEpochs(["a", "a"]), "an order must name each task once, found `a` twice"),
    "no cycles": (lambda: SingleTaskEpochs(cycles=0), "`cycles` must be at least 1, found 0"),
    "told nothing": (
        lambda: BySize().updates(0, 0),  # type: ignore[return-value]
        "`BySize` must be told the tasks with `setup` first, found none",
    ),
}


@pytest.mark.parametrize("case", CHECKED)
def test_settings_are_refused(case: str):
    make, message = CHECKED[case]
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Curriculum("ab"), "'ab'"),
        (lambda: SingleTaskEpochs("ab"), "'ab'"),
        (lambda: SingleTaskEpochs(cycles=1.5), "1.5"),
        (lambda: BySize(inner="Joint"), "'Joint'"),
        (lambda: Curriculum({"a": 0.5}), "0.5"),
    ],
)
def test_other_types_are_refused(make: Callable[[], Schedule], found: str):
    with pytest.raises(TypeError, match=f"found {found}"):
        make()


FITTED: dict[str, tuple[Schedule, str]] = {
    "unknown primary": (BySimilarity("digt"), "`primary` must be a task, found `digt`: did you mean `digit`?"),
    "unknown similar": (
        BySimilarity("digit", {"circl": 0.5}),
        "`similarity` must name the tasks, found `circl`: did you mean `circle`?",
    ),
    "no similarity": (BySimilarity("digit", {}), "`similarity` must name every task, found none for `circle`"),
    "unknown size": (
        BySize(sizes={"digit": 1, "circel": 2}),
        "`sizes` must name the tasks, found `circel`: did you mean `circle`?",
    ),
    "no size": (BySize(sizes={"digit": 1}), "`sizes` must name every task, found none for `circle`"),
    "unknown in a curriculum": (
        Curriculum(["digit", "cirle"]),
        "a curriculum must name the tasks, found `cirle`: did you mean `circle`?",
    ),
    "left out of a curriculum": (Curriculum(["digit"]), "a curriculum must name every task, found none for `circle`"),
    "unknown in turns": (
        SingleTaskEpochs(["digit", "cirle"]),
        "an order must name the tasks, found `cirle`: did you mean `circle`?",
    ),
    "inside": (
        BySize(inner=Curriculum(["digit"])),
        "a curriculum must name every task, found none for `circle`",
    ),
    "a source without counts": (
        BySize(),
        "`BySize` needs the sizes of the tasks, found a source that cannot tell them: give `sizes`",
    ),
}


@pytest.mark.parametrize("case", FITTED)
def test_tasks_are_refused_at_the_start(case: str):
    schedule, message = FITTED[case]
    with pytest.raises(ValueError) as caught:
        schedule.setup(["digit", "circle"], None, {})
    assert str(caught.value) == message


def test_a_fit_refuses_before_it_trains():
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match="did you mean `a`"):
        trainer(model, schedule=Curriculum({"b": 0, "aa": 7})).fit(data(), epochs=1)
    assert same(weights(model), before)


def test_sizes_come_from_the_source():
    x, y = data(24)
    y["a"][8:] = torch.nan
    run = trainer(schedule=BySize())
    run.fit((x, y), epochs=1)
    assert run.schedule.probabilities() == {"a": 0.25, "b": 0.75}
