"""Teacher annealing: the limits are training without teachers and fitting them, to the bit; what lies between is mixed."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Interrupter, Rows, SaveAll, adam, data, digits, network, same, sgd, tasks, trainer, weights
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.data.base import Split
from polytask.distillation import FeatureDistillation, LogitDistillation, TeacherAnnealing
from polytask.distillation.teachers import distance_for
from polytask.studies.run import cost_of_training

NAMES = "abc"


def teacher(names: str = NAMES, form: str = "single") -> pt.models.Model:
    return network("norm+dropout", names, form, seed=7)


def annealing(share: float | None = None, names: str = NAMES, **options: Any) -> TeacherAnnealing:
    """With a fixed share, or from 1 to 0."""
    if share is not None:
        options |= {"start": share, "end": share}
    return TeacherAnnealing(teacher(names), **options)


def fitted(train: Any, kinds: list[pt.Task] | None = None, **options: Any) -> Any:
    """The weights, and the losses of every epoch, after training on three tasks."""
    options = {"tasks": kinds or tasks(NAMES), "optimizer": sgd(0.05, momentum=0.9)} | options
    made = trainer(network("dropout", NAMES), **options)
    history = made.fit(train, epochs=3)
    return weights(made.model), [{k: v for k, v in row.items() if k.endswith("loss")} for row in history]


class Counting(nn.Module):
    """A teacher that counts the examples it is asked about; the count is shared by copies."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(3, outputs)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.layer(x)

    def __deepcopy__(self, memo: Any) -> Counting:
        return self


# The limits


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_share_of_one_is_fitting_the_teachers_to_the_bit(temperature: float):
    """Against training whose very targets are the teachers' outputs."""
    x, y = data(names=NAMES)
    with torch.no_grad():
        answers = teacher().eval()(x)
    kinds = {task.name: task for task in tasks(NAMES)}

    def loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda outputs, target: distance_for(kinds[name])(outputs, target, temperature)

    fit = [pt.regression(name, answers[name].shape[1], loss=loss(name)) for name in NAMES]
    wanted = fitted((x, {name: answer.squeeze(1) for name, answer in answers.items()}), fit)
    found = fitted((x, y), callbacks=[annealing(1.0, temperature=temperature)])
    assert same(found[0], wanted[0])
    for row, other in zip(found[1], wanted[1], strict=True):
        assert all(row[f"train/{name}/loss"] == other[f"train/{name}/loss"] for name in NAMES)


@pytest.mark.parametrize("missing", [False, True])
def test_a_share_of_zero_is_training_without_teachers_to_the_bit(missing: bool):
    train = data(names=NAMES, missing=missing)
    found = fitted(train, callbacks=[annealing(0.0, unlabelled=not missing)])
    assert same(found, fitted(train))


def test_the_limits_differ():
    """Else the two tests above would show nothing."""
    train = data(names=NAMES)
    ends = [fitted(train, callbacks=[annealing(share)])[0] for share in (0.0, 0.5, 1.0)]
    assert not any(same(one, other) for one, other in [(ends[0], ends[1]), (ends[1], ends[2]), (ends[0], ends[2])])


# In between


def soft_target_gradient(name: str, outputs: Tensor, target: Tensor, answer: Tensor, share: float) -> Tensor:
    """Of the mean loss against the target (1 - w) y + w f(x)."""
    outputs = outputs.detach().requires_grad_(True)
    if name == "b":
        mixed = (1 - share) * F.one_hot(target, 3) + share * answer.softmax(1)
        loss = F.cross_entropy(outputs, mixed)
    elif name == "a":
        loss = F.binary_cross_entropy_with_logits(outputs[:, 0], (1 - share) * target + share * answer[:, 0].sigmoid())
    elif name == "c":
        loss = F.mse_loss(outputs[:, 0], (1 - share) * target + share * answer[:, 0])
    else:
        loss = F.binary_cross_entropy_with_logits(outputs, (1 - share) * target + share * answer.sigmoid())
    return torch.autograd.grad(loss, outputs)[0]


@pytest.mark.parametrize("name", ["a", "b", "c", "tags"])
def test_the_gradient_is_that_of_the_mixed_target(name: str):
    torch.manual_seed(0)
    x, y = data(names=NAMES)
    outputs = {"a": 1, "b": 3, "c": 1, "tags": 4}[name]
    y = {"tags": (torch.rand(24, 4) < 0.5).float()} if name == "tags" else {name: y[name]}
    task = pt.multilabel("tags", 4) if name == "tags" else tasks(name)[0]
    model = pt.models.HardSharing(nn.Identity(), {name: nn.Linear(3, outputs)})
    taught, share = nn.Linear(3, outputs), 0.3
    head = model.heads[name]
    with torch.no_grad():
        slope = soft_target_gradient_at(name, head(x), y[name], taught(x), share)
    wanted = head.weight.detach() - 0.1 * slope.T @ x
    options = {"batch_size": 24, "callbacks": [TeacherAnnealing({name: taught}, share, share)]}
    trainer(model, tasks=[task], **options).fit((x, y), epochs=1)
    torch.testing.assert_close(head.weight.detach(), wanted)


def soft_target_gradient_at(*arguments: Any) -> Tensor:
    with torch.enable_grad():
        return soft_target_gradient(*arguments)


def test_the_share_falls_linearly_from_the_first_step_to_the_last():
    """Read off the losses of a network that does not move."""
    x, y = data(8)
    rows = {share: history_of((x, y), annealing(share, "ab"), 1)[0]["train/b/loss"] for share in (0.0, 1.0)}
    history = history_of((x, y), annealing(None, "ab"), 5)
    shares = [(row["train/b/loss"] - rows[0.0]) / (rows[1.0] - rows[0.0]) for row in history]
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-5)
    assert history.column("teacher_weight") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert history_of((x, y), annealing(None, "ab", steps=3), 5).column("teacher_weight") == [1, 0.5, 0, 0, 0]
    other = history_of((x, y), annealing(None, "ab", start=0.2, end=0.6), 3)
    assert other.column("teacher_weight") == pytest.approx([0.2, 0.4, 0.6])


def test_cosines_are_of_the_annealed_losses():
    """Against autograd, with a share that is neither the teachers' alone nor the targets'."""
    x, y = data()
    student, share = network(), 0.75
    with torch.no_grad():
        wanted = teacher("ab").eval()(x)
    outputs, gradients = student(x), []
    for task in tasks("ab"):
        said, name = outputs[task.name], task.name
        values = (1 - share) * task.losses(said, y[name]) + share * distance_for(task)(said, wanted[name], 1.0)
        parts = torch.autograd.grad(values.mean(), list(student.trunk.parameters()), retain_graph=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    made = trainer(
        student, callbacks=[annealing(share, "ab"), pt.callbacks.GradientCosines(1)], batch_size=24, optimizer=sgd(0.1)
    )
    found = made.fit((x, y), epochs=1)[0]["cosine/a/b"]
    assert found == pytest.approx(F.cosine_similarity(*gradients, dim=0).item(), abs=1e-5)


def history_of(train: Any, callback: TeacherAnnealing, epochs: int) -> pt.History:
    return trainer(optimizer=sgd(0.0), callbacks=[callback]).fit(train, epochs=epochs)


def test_all_batches_of_one_optimizer_step_have_one_share():
    x, y = data(24)
    one = trainer(batch_size=12, callbacks=[annealing(None, "ab")])
    parts = trainer(batch_size=4, accumulate=3, callbacks=[annealing(None, "ab")])
    for made in (one, parts):
        made.fit(pt.Arrays(x, y, batch_size=made.batch_size, shuffle=False), epochs=3)
    for found, wanted in zip(parts.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_figures_are_against_the_data_s_own_targets():
    x, y = data(names=NAMES, missing=True)
    options = {"tasks": tasks(NAMES), "optimizer": sgd(0.0)}
    with_teachers = trainer(network(names=NAMES), callbacks=[annealing(1.0)], **options)
    plain = trainer(network(names=NAMES), **options)
    rows = [made.fit((x, y), data(10, NAMES, missing=True, seed=1), epochs=1)[0] for made in (with_teachers, plain)]
    keys = [key for key in rows[1] if key.startswith("validation/") or key.endswith(("accuracy", "r2"))]
    assert len(keys) == 10
    assert {key: rows[0][key] for key in keys} == {key: rows[1][key] for key in keys}
    assert rows[0]["train/a/loss"] != rows[1]["train/a/loss"]


# Examples without targets


def test_an_example_without_a_target_learns_from_the_teacher_alone():
    x, y = data(8, "b")
    y["b"][3:] = -100
    taught, share = nn.Linear(3, 3), 0.4
    model = pt.models.HardSharing(nn.Identity(), {"b": nn.Linear(3, 3)})
    with torch.no_grad():
        outputs, answers = model.heads["b"](x), taught(x)
        gold = F.cross_entropy(outputs, y["b"], ignore_index=-100, reduction="none")
        soft = F.kl_div(outputs.log_softmax(1), answers.log_softmax(1), reduction="none", log_target=True).sum(1)
    labelled = torch.arange(8) < 3
    every = torch.where(labelled, (1 - share) * gold + share * soft, soft).mean()
    only = ((1 - share) * gold + share * soft)[:3].mean()
    for unlabelled, wanted in ((True, every), (False, only)):
        callback = TeacherAnnealing({"b": taught}, share, share, unlabelled=unlabelled)
        made = trainer(model, tasks=tasks("b"), optimizer=sgd(0.0), callbacks=[callback])
        assert made.fit((x, y), epochs=1)[0]["train/b/loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_a_task_without_any_target_is_learned_from_its_teacher():
    x, y = data()
    whole = network(form="hard", seed=7).eval()
    made = trainer(optimizer=adam(0.03), batch_size=24, callbacks=[TeacherAnnealing({"b": whole})])
    before, wanted = (model(x)["b"].detach().softmax(1) for model in (made.model, whole))
    row = made.fit((x, {"a": y["a"]}), epochs=60)[-1]
    found = made.model(x)["b"].detach().softmax(1)
    assert (found - wanted).abs().mean() < 0.2 * (before - wanted).abs().mean()
    assert "train/b/loss" in row and math.isnan(row["train/b/accuracy"])


def test_sample_weights_multiply_both_parts():
    x, y = data(8, missing=True)
    doubled = {name: torch.full((8,), 2.0) for name in "ab"}
    rows = [
        trainer(optimizer=sgd(0.0), callbacks=[annealing(0.3, "ab")]).fit(
            pt.Arrays(x, y, batch_size=8, weights=w), epochs=1
        )[0]
        for w in (None, doubled)
    ]
    for name in "ab":
        assert rows[1][f"train/{name}/loss"] == pytest.approx(2 * rows[0][f"train/{name}/loss"], rel=1e-6)


class Turns(pt.data.Source):
    """Two sources that take turns."""

    def __init__(self, *sources: pt.Arrays) -> None:
        self.sources = sources
        self.cacheable = True

    def bind(self, tasks: Any, device: Any, where: str, seed: int = 0) -> None:
        for source in self.sources:
            source.bind(tasks, device, where, seed)

    @property
    def steps_per_epoch(self) -> int:
        return sum(source.steps_per_epoch for source in self.sources)

    @property
    def examples(self) -> int:
        return sum(source.examples for source in self.sources)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Any]:
        for source in self.sources:
            yield from source.steps(epoch)

    def in_order(self, size: int) -> Iterator[Any]:
        for source in self.sources:
            yield from source.in_order(size)


@pytest.mark.parametrize("limit", [0, 2**20])
def test_of_several_sources_each_is_taught_the_tasks_it_has(limit: int):
    x, y = data(24)
    source = Turns(
        pt.Arrays(x[:16], {"a": y["a"][:16]}, batch_size=8, name="one"),
        pt.Arrays(x[16:], {"b": y["b"][16:]}, batch_size=8, name="other"),
    )
    asked = {"a": Counting(1), "b": Counting(3)}
    trainer(callbacks=[TeacherAnnealing(asked, cache_limit=limit)]).fit(source, epochs=3)
    # above the limit the first chunk tells so; the last step, in which teachers count for nothing, asks nobody
    wanted = {"a": 16, "b": 8} if limit else {"a": 16 + 3 * 16, "b": 2 * 8}
    assert {name: sum(one.seen) for name, one in asked.items()} == wanted


def two_sources(**sizes: int) -> dict[str, Any]:
    """Sources `a` and `b`, each with inputs of its own, and targets of the task of its name."""
    return {name: data(size, name, seed=size) for name, size in sizes.items()}


def test_label_counts_are_of_the_sources_that_have_the_task():
    x, y = data(8, "ab", missing=True)
    train = two_sources(a=24) | {"b": (x, y)}
    made = trainer(callbacks=[annealing(0.5, "ab")])
    assert made.served(train, torch.device("cpu")).label_counts() == {"a": 24 + 8, "b": 8}
    alone = made.served((x, {"a": y["a"]}), torch.device("cpu"))
    assert alone.label_counts() == {"a": 8, "b": 8}


def test_costs_are_those_of_what_a_fit_trains_on():
    """An unlabelled task is taught, and remembered answers cost no pass through the teacher."""
    x, y = data()
    costs = []
    for options in ({"callbacks": [annealing(0.5, "ab")]}, {"objectives": [LogitDistillation("b", teacher("ab"))]}, {}):
        made = trainer(**options, schedule=pt.schedules.AlternateEpochs(1, 1))
        costs.append(cost_of_training(made, Split(x, y))["phases"])
    for found in costs[:2]:
        assert {name: phase["macs"] for name, phase in found.items()} == {n: p["macs"] for n, p in costs[2].items()}
    unlabelled = cost_of_training(trainer(callbacks=[annealing(0.5, "ab")]), Split(x, {"a": y["a"]}))
    assert unlabelled["phases"]["joint"]["macs"] == cost_of_training(trainer(), Split(x, y))["phases"]["joint"]["macs"]


def test_an_objective_may_have_any_name_beside_teachers():
    def run(name: str) -> Any:
        term = LogitDistillation("b", Counting(3), name=name)
        return fitted(data(names=NAMES), callbacks=[annealing(0.5)], objectives=[term])[0]

    assert same(run("teachers"), run("other"))


def test_two_annealings_teach_a_task_each():
    both = [annealing(0.5, "a"), annealing(0.5, "b")]
    apart = fitted(data(names=NAMES), callbacks=both)[0]
    single = {"a": teacher("a"), "b": teacher("b")}
    assert same(apart, fitted(data(names=NAMES), callbacks=[TeacherAnnealing(single, 0.5, 0.5)])[0])


# What is remembered


def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, generator=generator)


KINDS: dict[str, Callable[[Counting, int], Mapping[str, Any]]] = {
    "annealing": lambda asked, limit: {"callbacks": [TeacherAnnealing({"b": asked}, 1.0, 1.0, cache_limit=limit)]},
    "logits": lambda asked, limit: {"objectives": [LogitDistillation("b", asked, cache_limit=limit)]},
    "features": lambda asked, limit: {
        "objectives": [FeatureDistillation("b", asked, nn.Linear(6, 3), cache_limit=limit)]
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_computed_once_where_inputs_never_change(kind: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "polytask")
    x, y = data(600)
    once, size = Counting(3), 600 * 3 * 4
    trainer(batch_size=200, **KINDS[kind](once, size)).fit((x, y), epochs=3)
    assert once.seen == [256, 256, 88]
    assert "computed once for all training examples, 0.0 MiB" in caplog.text
    caplog.clear()
    limited = Counting(3)
    trainer(batch_size=200, **KINDS[kind](limited, size - 1)).fit((x, y), epochs=3)
    assert sum(limited.seen) == 256 + 3 * 600
    assert f"computed anew at every visit: the values take {size} bytes, above the limit of {size - 1}" in caplog.text
    for source in (pt.Arrays(x, y, batch_size=200, augment=augment), Rows(x, y)):
        caplog.clear()
        changing = Counting(3)
        trainer(batch_size=200, **KINDS[kind](changing, size)).fit(source, epochs=3)
        assert sum(changing.seen) == 3 * 600
        assert "computed anew at every visit: the source streams or augments its inputs" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_training_costs_is_measured_without_a_pass_over_all_examples(kind: str):
    x, y = data(600)
    asked, size = Counting(3), 600 * 3 * 4
    made = trainer(batch_size=200, **KINDS[kind](asked, size))
    costs = cost_of_training(made, Split(x, y))
    assert asked.seen == [200]
    made.fit((x, y), epochs=2)
    assert asked.seen == [200, 256, 256, 88]
    if kind != "annealing":  # whose teachers belong to the making of a batch
        anew = cost_of_training(trainer(batch_size=200, **KINDS[kind](Counting(3), size - 1)), Split(x, y))
        taught = anew["phases"]["joint"]["macs"] - costs["phases"]["joint"]["macs"]
        assert taught == 3 * 3  # the teacher's own, where it is asked at every visit


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_is_what_would_be_computed(kind: str):
    """To rounding: the chunks of the one pass are not the batches of training."""
    found = []
    for limit in (0, 2**20):
        torch.manual_seed(3)
        made = trainer(**KINDS[kind](Counting(3), limit))
        made.fit(data(40, missing=True), epochs=3)
        found.append(weights(made.model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


def test_other_data_are_not_looked_up_in_what_is_remembered():
    x, y = data(24)
    other = data(24, seed=5)
    made = trainer(objectives=[LogitDistillation("b", Counting(3))])
    fresh = trainer(made.model, objectives=[LogitDistillation("b", Counting(3))])
    seen = []

    class Look(pt.Callback):
        def on_epoch_end(self, run: Any, row: Any) -> None:
            seen.append(made.objective_values(other) == fresh.objective_values(other))

    made.callbacks = (Look(),)
    made.fit((x, y), epochs=2)
    assert seen == [True, True]


# Going on


@pytest.mark.parametrize("limit", [0, 2**20])
@pytest.mark.parametrize(
    ("schedule", "balancer"),
    [
        (pt.schedules.Joint, pt.aggregation.MGDA),
        (pt.schedules.AlternateEpochs, pt.scalarization.FAMO),
        (pt.schedules.AlternateBatches, pt.scalarization.Linear),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(schedule: type, balancer: type, limit: int, tmp_path: Path):
    def run(resume: Path | None = None, *more: pt.Callback) -> SaveAll:
        keeper = SaveAll(None if resume else tmp_path)
        made = trainer(
            network("dropout", NAMES), tasks=tasks(NAMES), callbacks=[annealing(cache_limit=limit), keeper, *more],
            schedule=schedule(), balancer=balancer(), optimizer=adam(), folder=tmp_path,
        )  # fmt: skip
        made.fit(data(names=NAMES, missing=True), data(names=NAMES), epochs=4, resume=resume)
        return keeper

    whole = run().state
    assert same(run(tmp_path / "2.ckpt").state, whole)
    with pytest.raises(pt.Interrupted):
        run(None, Interrupter(4))
    assert same(run(tmp_path / "interrupted.ckpt").state, whole)


def test_a_run_goes_on_only_over_the_steps_it_began_with(tmp_path: Path):
    def run(epochs: int, resume: bool = False, share: float | None = None, **options: Any) -> pt.History:
        made = trainer(callbacks=[annealing(share, "ab", **options), SaveAll(tmp_path)])
        return made.fit(data(), epochs=epochs, resume=tmp_path / "2.ckpt" if resume else None)

    run(2)
    with pytest.raises(ValueError, match="annealing must go on over the steps it began with, 6, found 9"):
        run(3, resume=True)
    for options in ({"temperature": 2.0}, {"unlabelled": False}, {"steps": 6}, {"end": 0.5}):
        with pytest.raises(ValueError, match="callbacks: saved"):
            run(2, resume=True, **options)
    for share, options in ((None, {"steps": 20}), (0.5, {})):
        run(2, share=share, **options)
        assert len(run(3, resume=True, share=share, **options)) == 3


def test_another_teacher_may_not_resume(tmp_path: Path):
    trainer(callbacks=[annealing(None, "ab"), SaveAll(tmp_path)]).fit(data(), epochs=2)
    other = TeacherAnnealing(network("norm+dropout", form="single", seed=8))
    with pytest.raises(ValueError, match="callbacks: saved"):
        trainer(callbacks=[other, SaveAll()]).fit(data(), epochs=2, resume=tmp_path / "1.ckpt")


def test_teachers_keep_every_bit_and_are_in_no_checkpoint():
    given = teacher("ab")
    before, keeper = weights(given), SaveAll()
    callback = TeacherAnnealing(given)
    trainer(callbacks=[callback, keeper]).fit(data(), epochs=2)
    assert same(weights(callback._teachers[0][0]), before)
    assert same(weights(given), before)
    assert given.training and all(p.requires_grad for p in given.parameters())
    assert keeper.state["callbacks"][0] == {"steps": 6}


# What does not fit


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: annealing(1.5), ValueError, "`start`, a teacher's share, must be in [0, 1], found 1.5"),
        (lambda: TeacherAnnealing(teacher(), end=-0.1), ValueError, "`end`, a teacher's share, must be in [0, 1], found -0.1"),
        (lambda: TeacherAnnealing(teacher(), start=math.nan), ValueError, "must be in [0, 1], found nan"),
        (lambda: annealing(temperature=0.0), ValueError, "`temperature` must be above 0 and finite, found 0"),
        (lambda: annealing(steps=0), ValueError, "`steps` must be at least 1, found 0"),
        (lambda: annealing(cache_limit=-1), ValueError, "`cache_limit` must be at least 0, found -1"),
        (lambda: TeacherAnnealing({}), TypeError, "`teachers` must be a polytask model or {task: network}, found {}"),
        (lambda: TeacherAnnealing(nn.Linear(3, 1)), TypeError, "`teachers` must be a polytask model or {task: network}, found Linear"),
        (lambda: TeacherAnnealing({"a": 3}), TypeError, "`teacher` must be a trained network, found int for task `a`"),
        (lambda: TeacherAnnealing({"circel": teacher()}), ValueError, "a teacher must answer the task it teaches, found none for `circel`"),
        (lambda: TeacherAnnealing(dict.fromkeys("ac", nn.Linear(3, 1))), TypeError, "a teacher of several tasks must be a polytask model, found one Linear for ['a', 'c']"),
        (lambda: trainer(callbacks=[annealing()]).fit(data(), epochs=1), ValueError, "a teacher's task must be one of the student's, found `c`: known: `a`, `b`"),
        (lambda: trainer(callbacks=[TeacherAnnealing({"aa": nn.Linear(3, 1)})]).fit(data(), epochs=1), ValueError, "found `aa`: did you mean `a`?"),
        (lambda: trainer(callbacks=[TeacherAnnealing({"b": nn.Linear(3, 4)})]).fit(data(), epochs=1), ValueError, "outputs of one shape, found (8, 4) and (8, 3) for task `b`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)


def test_a_source_of_unknown_length_needs_steps():
    from tests.helpers import Stream

    loader = torch.utils.data.DataLoader(Stream(*data()), batch_size=8)
    with pytest.raises(
        ValueError, match="annealing must know its length, found a source that does not tell: give `steps`"
    ):
        trainer(callbacks=[annealing(None, "ab")]).fit(loader, epochs=2)
    history = trainer(callbacks=[annealing(None, "ab", steps=6)]).fit(loader, epochs=2)
    assert history.column("teacher_weight") == pytest.approx([0.6, 0.0])


def test_a_configuration_can_name_a_run_of_single_tasks_as_teachers(tmp_path: Path):
    from polytask.studies import run

    assert run(digits("SingleTask", 2), tmp_path / "teachers").state == "done"
    trained = {"class_path": "polytask.studies.trained", "init_args": {"folder": str(tmp_path / "teachers")}}
    for number, teachers in enumerate((trained, {"left": trained})):
        callback = {"class_path": "TeacherAnnealing", "init_args": {"teachers": teachers}}
        record = run(digits("HardSharing", 2, callbacks=[callback]), tmp_path / f"student {number}")
        assert record.state == "done", record.error
        assert "teacher_weight" in (tmp_path / f"student {number}" / "history.csv").read_text()
