"""Distillation: gradients reach the trunk, teachers never move, and what does not fit is refused."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import two_sources
from tests.helpers import SaveAll, Witness, adam, block_state, data, digits, network, same, sgd, tasks, trainer, weights
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import polytask as pt
from polytask.distillation import FeatureDistillation, LogitDistillation, kdmtl
from polytask.models import Block
from polytask.objective import Context


def teacher(form: str = "single", kind: str = "norm+dropout", names: str = "ab") -> pt.models.Model:
    return network(kind, names, form, seed=7)


def adaptors() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {name: nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for name in "ab"}


def terms(weight: float = 1.0, form: str = "single", **options: Any) -> list[pt.Objective]:
    return [FeatureDistillation(n, teacher(form), a, weight, **options) for n, a in adaptors().items()]


def context(features: Any, predictions: Any = None, size: int = 24) -> Context:
    x, y = data(size)
    batch = pt.Batch(x, y, dict.fromkeys(y, size), size)
    return Context(network(), batch, features, predictions or {})


class Given(nn.Module):
    """A teacher that says what it was told to."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value


def test_a_step_descends_the_sum_of_the_losses_and_the_weighted_terms():
    """L = sum L_k + sum lambda_k mean ||norm(adaptor_k(trunk)) - norm(teacher_k)||^2, differentiated by hand."""
    x, y = data()
    model, objectives = network(), kdmtl({n: teacher() for n in "ab"}, adaptors(), {"a": 0.3, "b": 2.0})
    z = model.trunk(x)
    loss = F.binary_cross_entropy_with_logits(model.heads["a"](z)[:, 0], y["a"])
    loss = loss + F.cross_entropy(model.heads["b"](z), y["b"])
    single = teacher().eval()
    for term, factor in zip(objectives, (0.3, 2.0), strict=True):
        wanted = single.towers[term.task](x).detach()
        mine = term.adaptor(z)
        gap = mine / mine.norm(dim=1, keepdim=True) - wanted / wanted.norm(dim=1, keepdim=True)
        loss = loss + factor * (gap**2).sum(1).mean()
    every = [*model.parameters(), *(p for term in objectives for p in term.parameters())]
    wanted_steps = [p - 0.1 * g for p, g in zip(every, torch.autograd.grad(loss, every), strict=True)]
    trainer(model, objectives=objectives, batch_size=24).fit((x, y), epochs=1)
    for found, wanted_step in zip(every, wanted_steps, strict=True):
        torch.testing.assert_close(found, wanted_step)


def test_the_terms_alone_move_the_trunk_towards_the_teachers():
    """Without the tasks' losses: the gradient is not cut off at the student."""
    model, objectives = network(), terms()
    head = weights(model.heads)
    x, y = data()

    class TermsOnly(pt.schedules.Schedule):
        def phase(self, epoch: int) -> str:
            return "terms"

        def updates(self, epoch: int, step: int) -> tuple[Any, ...]:
            return (pt.schedules.Update(True, None, frozenset(o.name for o in objectives)),)

    def gap() -> float:
        with torch.no_grad():
            return sum(float(o(context(model.trunk(x)))) for o in objectives)

    before, start = weights(model.trunk), gap()
    trainer(model, objectives=objectives, schedule=TermsOnly(), optimizer=adam(0.03)).fit((x, y), epochs=30)
    assert not any(same(a, b) for a, b in zip(before.values(), weights(model.trunk).values(), strict=True))
    assert same(weights(model.heads), head)
    assert gap() < 0.25 * start


@pytest.mark.parametrize("form", ["single", "soft", "hard", "monitored", "mtan", "cross-stitch", "mmoe", "cgc", "ple"])
def test_a_teacher_s_features_are_what_its_head_reads(form: str):
    whole = teacher(form).eval()
    term = FeatureDistillation("b", whole, nn.Identity())
    x = data()[0]
    features = term._ask(context(torch.zeros(24, 6)).batch)
    assert torch.equal(whole.heads["b"](features), whole(x)["b"])


def test_the_term_measures_directions():
    z = torch.randn(24, 6)
    for scale, wanted in ((1.0, 0.0), (3.0, 0.0), (-1.0, 4.0)):
        value = FeatureDistillation("a", Given(scale * z), nn.Identity())(context(z))
        assert float(value) == pytest.approx(wanted, abs=1e-6)
    orthogonal = FeatureDistillation("a", Given(torch.eye(6)[:1].expand(24, 6)), nn.Identity())
    assert float(orthogonal(context(torch.eye(6)[1:2].expand(24, 6)))) == pytest.approx(2.0)


def test_rows_of_zeros_have_no_gradient():
    z = torch.randn(24, 6)
    z[3] = 0
    z.requires_grad_(True)
    FeatureDistillation("a", Given(torch.randn(24, 6)), nn.Identity())(context(z)).backward()
    assert torch.isfinite(z.grad).all()
    assert not z.grad[3].any()
    assert z.grad[4].any()


@pytest.mark.parametrize(
    "schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1), pt.schedules.AlternateBatches()]
)
def test_teachers_keep_every_bit_and_stay_in_eval_mode(schedule: Any):
    given = teacher("hard")
    before, objectives = weights(given), kdmtl(dict.fromkeys("ab", given), adaptors())
    objectives.append(LogitDistillation("a", given))
    looks = []

    class Look(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            looks.append(any(m.training for term in objectives for m in term.teacher.modules()))

    trainer(objectives=objectives, schedule=schedule, callbacks=[Look()], optimizer=adam()).fit(
        data(), data(), epochs=2
    )
    assert looks and not any(looks)
    for term in objectives:
        assert same(weights(term.teacher), before)
        assert not any(p.requires_grad for p in term.teacher.parameters())
        assert not any("teacher" in name for name in term.state_dict())
    assert given.training and all(p.requires_grad for p in given.parameters())  # the caller's own is untouched


@pytest.mark.parametrize("two", [False, True], ids=["one optimizer", "two optimizers"])
@pytest.mark.parametrize("shared", [False, True], ids=["the task's", "shared"])
def test_an_adaptor_moves_with_the_block_it_names(shared: bool, two: bool):
    objectives = terms(shared=shared)
    seen: dict[bool, list[tuple[bool, bool]]] = {True: [], False: []}

    class Look(pt.Callback):
        def on_fit_start(self, run: Any) -> None:
            self.before = [weights(o) for o in objectives]

        def on_update(self, run: Any, info: Any) -> None:
            now = [weights(o) for o in objectives]
            seen[info.update.shared].append(tuple(not same(a, b) for a, b in zip(self.before, now, strict=True)))
            self.before = now

    witness = Witness()
    run = trainer(
        objectives=objectives, schedule=pt.schedules.AlternateEpochs(1, 1), callbacks=[Look(), witness],
        optimizer=adam(), specific_optimizer=adam() if two else None,
    )  # fmt: skip
    run.fit(data(), epochs=4)
    assert set(seen[True]) == {(shared, shared)}
    assert set(seen[False]) == {(not shared, not shared)}
    assert witness.frozen_seen and witness.live_seen


class Moves(pt.Callback):
    """Notes, update by update, which parts' weights, statistics or optimizer state have moved."""

    def __init__(self, **parts: nn.Module) -> None:
        self._parts = parts
        self.seen: list[set[str]] = []

    def _look(self, run: Any) -> dict[str, Any]:
        optimizers = run.optimizers.optimizers
        return {name: block_state(Block.of(part), optimizers) for name, part in self._parts.items()}

    def on_fit_start(self, run: Any) -> None:
        self._before = self._look(run)

    def on_update(self, run: Any, info: Any) -> None:
        now = self._look(run)
        self.seen.append({name for name in now if not same(now[name], self._before[name])})
        self._before = now


def without_labels(names: str = "b") -> pt.Arrays:
    """Two steps of eight examples; the first has no label of the named tasks."""
    x, y = data(16, missing=True, seed=3)
    for name in names:
        y[name][:8] = -100 if name == "b" else math.nan
    return pt.Arrays(x, y, batch_size=8, shuffle=False)


@pytest.mark.parametrize("form", ["hard", "single", "soft", "partitioned", "cgc"])
def test_a_step_without_its_labels_trains_all_that_its_outputs_depend_on(form: str):
    """One step of the sum of a's loss and b's term, differentiated by hand."""
    source, model, term = without_labels(), network(form=form), LogitDistillation("b", teacher(), weight=0.7)
    x, y = source.inputs[:8], {name: values[:8] for name, values in source.targets.items()}
    outputs, (kind, _) = model(x), tasks()
    term.bind(model, {task.name: task for task in tasks()})
    loss = kind.total(outputs["a"], y["a"], int(kind.present(y["a"]).sum())) / kind.present(y["a"]).sum()
    loss = loss + 0.7 * term(Context(model, pt.Batch(x, y, {}, 8), None, outputs))
    steps = torch.autograd.grad(loss, list(model.parameters()))
    assert all(step.any() for step in steps)
    wanted = [p.detach() - 0.1 * step for p, step in zip(model.parameters(), steps, strict=True)]
    found: list[list[torch.Tensor]] = []

    class Look(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            found.append([p.detach().clone() for p in model.parameters()])

    trainer(model, objectives=[term], callbacks=[Look()]).fit(source, epochs=1)
    for value, expected in zip(found[0], wanted, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("unlabelled", ["b", "ab"])
def test_a_step_without_its_labels_moves_what_the_phase_lets_move(unlabelled: str):
    source = without_labels(unlabelled)
    model, features = network("norm+dropout"), FeatureDistillation("b", teacher(), nn.Linear(6, 6))
    parts = {"trunk": model.trunk, "a": model.heads["a"], "b": model.heads["b"], "adaptor": features.adaptor}

    def first_moves(schedule: pt.schedules.Schedule, *objectives: pt.Objective) -> list[set[str]]:
        moves = Moves(**parts)
        made = trainer(model, objectives=objectives, callbacks=[moves], schedule=schedule, optimizer=adam())
        made.fit(source, epochs=2)
        return moves.seen[::2]

    outputs, labelled = LogitDistillation("b", teacher()), set() if "a" in unlabelled else {"a"}
    joint, alternate = pt.schedules.Joint, pt.schedules.AlternateEpochs
    assert first_moves(joint(), outputs) == [{"trunk", "b"} | labelled] * 2
    assert first_moves(joint(), features) == [{"trunk", "adaptor"} | labelled] * 2
    assert first_moves(joint(), outputs, features) == [{"trunk", "b", "adaptor"} | labelled] * 2
    assert first_moves(alternate(1, 1), outputs) == [{"trunk"}, {"b"} | labelled]
    assert first_moves(alternate(1, 1), features) == [{"trunk"}, {"adaptor"} | labelled]


@pytest.mark.parametrize("form", ["hard", "single"])
def test_a_step_of_a_source_without_the_task_leaves_all_of_it_untouched(form: str):
    model, adaptor = network("norm+dropout", form=form), nn.Linear(6, 6)
    terms = [LogitDistillation("b", teacher())]
    terms += [FeatureDistillation("b", teacher(), adaptor)] if form == "hard" else []
    own = {"head": model.heads["b"], "adaptor": adaptor}
    own |= {"tower": model.towers["b"]} if form == "single" else {}
    moves = Moves(**own)
    sources = {"one": pt.Arrays(*data(8, "a"), batch_size=8), "two": pt.Arrays(*data(8, "b", seed=1), batch_size=8)}
    made = trainer(model, objectives=terms, callbacks=[moves], mixture=pt.data.RoundRobin, optimizer=adam())
    made.fit(sources, epochs=2)
    assert moves.seen == [set(), own.keys() - ({"adaptor"} if form == "single" else set())] * 2


def test_a_task_that_a_schedule_leaves_out_is_not_taught():
    model = network()
    moves = Moves(trunk=model.trunk, a=model.heads["a"], b=model.heads["b"])
    terms = [LogitDistillation("a", teacher()), LogitDistillation("b", teacher())]
    made = trainer(model, objectives=terms, callbacks=[moves], schedule=pt.schedules.SingleTaskEpochs(), batch_size=24)
    rows = made.fit(data(), epochs=2)
    assert moves.seen == [{"trunk", "a"}, {"trunk", "b"}]
    assert [sorted(key for key in row if "outputs" in key) for row in rows] == [
        ["train/a-outputs/loss"], ["train/b-outputs/loss"]
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["hard", "partitioned"])
def test_outputs_teach_alike_however_labels_fall_into_batches(form: str):
    """One batch of eight is two of four, the first of which has no label."""
    x, y = data(8)
    y["b"][:4] = -100
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        made = trainer(
            network(form=form), objectives=[LogitDistillation("b", teacher())], accumulate=accumulate, batch_size=size
        )
        history = made.fit(pt.Arrays(x, y, batch_size=size, shuffle=False), epochs=1)
        found.append(weights(made.model) | {"value": torch.tensor(history[0]["train/b-outputs/loss"])})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


@pytest.mark.parametrize("kind", ["outputs", "features"])
def test_another_source_in_the_step_leaves_a_term_as_it_is(kind: str):
    """The gradient of a step of two sources: each task's, and the weighted mean over the term's own examples."""
    (x, y), (other, targets) = data(8, "a"), data(4, "b", seed=1)
    model = network()
    if kind == "outputs":
        term: pt.Objective = LogitDistillation("b", teacher(), weight=0.7)
    else:
        term = FeatureDistillation("b", teacher(), nn.Linear(6, 6), 0.7)
    batch = pt.Batch(other, targets, {"b": 4}, 4, "two")
    loss = F.binary_cross_entropy_with_logits(model(x)["a"][:, 0], y["a"])
    loss = loss + F.cross_entropy(model(other)["b"], targets["b"])
    term.bind(model, {task.name: task for task in tasks()})
    value = term(Context(model, batch, model.features(other), model(other)))
    steps = torch.autograd.grad(loss + 0.7 * value, list(model.parameters()))
    wanted = [p.detach() - 0.1 * g for p, g in zip(model.parameters(), steps, strict=True)]
    made = trainer(model, objectives=[term], mixture=pt.data.Zip)
    sources = {"one": pt.Arrays(x, y, batch_size=8), "two": pt.Arrays(other, targets, batch_size=4)}
    assert made.objective_values(sources)[f"{term.name}/value"] == pytest.approx(value.item())
    history = made.fit(sources, epochs=1)
    for found, step in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(found.detach(), step)
    assert history[0][f"train/{term.name}/loss"] == pytest.approx(value.item())


def test_parameter_groups_can_name_an_adaptor():
    groups = {"a-features": {"lr": 0.0}}
    objectives = terms()
    before = [weights(o) for o in objectives]
    trainer(objectives=objectives, groups=groups).fit(data(), epochs=1)
    assert [same(weights(o), b) for o, b in zip(objectives, before, strict=True)] == [True, False]


@pytest.mark.parametrize("balancer", [pt.aggregation.MGDA, pt.scalarization.DynamicWeightAverage])
@pytest.mark.parametrize("schedule", [pt.schedules.Joint, pt.schedules.AlternateEpochs, pt.schedules.AlternateBatches])
def test_terms_take_part_in_balancing_and_resume_exactly(balancer: type, schedule: type, tmp_path: Path):
    def run(resume: Path | None = None) -> SaveAll:
        keeper = SaveAll(None if resume else tmp_path)
        objectives = [*terms(), LogitDistillation("b", teacher(), name="b-out")]
        fit = trainer(
            network("dropout"), balancer=balancer(), schedule=schedule(), callbacks=[keeper], objectives=objectives,
            optimizer=sgd(0.05, momentum=0.9),
        )  # fmt: skip
        history = fit.fit(data(), epochs=4, resume=resume)
        assert "train/b-out/loss" in history[0]
        return keeper

    assert same(run().state, run(tmp_path / "2.ckpt").state)


def test_another_teacher_or_block_may_not_resume(tmp_path: Path):
    trainer(objectives=terms(), callbacks=[SaveAll(tmp_path)]).fit(data(), epochs=1)
    other = [FeatureDistillation(n, network("norm+dropout", form="single", seed=8), a) for n, a in adaptors().items()]
    for objectives in (other, terms(shared=True), terms(weight=0.5)):
        with pytest.raises(ValueError, match="objectives: saved"):
            trainer(objectives=objectives).fit(data(), epochs=2, resume=tmp_path / "1.ckpt")


# Outputs


def logit_loss(kind: Any, student: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    term = LogitDistillation("t", Given(wanted), temperature)
    term.double()
    term.bind(network(), {"t": kind})
    return term(context(None, {"t": student}, len(student)))


KINDS: dict[str, Any] = {
    "classes": (pt.classification("t", 5), (7, 5)),
    "binary": (pt.binary("t"), (7, 1)),
    "labels": (pt.multilabel("t", 4), (7, 4)),
    "regression": (pt.regression("t"), (7, 1)),
}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_outputs_are_the_only_minimum(kind: str, temperature: float):
    task, shape = KINDS[kind]
    wanted = torch.randn(shape, dtype=torch.float64)
    assert float(logit_loss(task, wanted, wanted, temperature)) == pytest.approx(0, abs=1e-12)
    assert float(logit_loss(task, wanted + torch.randn(shape), wanted, temperature)) > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_class_distillation_is_hinton_s(temperature: float):
    """T^2 times cross-entropy with soft targets less their entropy."""
    student, wanted = torch.randn(2, 7, 5, dtype=torch.float64)
    soft = (wanted / temperature).softmax(1)
    cross = F.cross_entropy(student / temperature, soft)
    entropy = -(soft * soft.log()).sum(1).mean()
    found = logit_loss(KINDS["classes"][0], student, wanted, temperature)
    torch.testing.assert_close(found, temperature**2 * (cross - entropy))


@pytest.mark.parametrize("kind", ["binary", "labels"])
def test_label_distillation_is_that_of_two_classes(kind: str):
    task, shape = KINDS[kind]
    student, wanted = torch.randn(2, *shape, dtype=torch.float64)

    def two(outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros_like(outputs), outputs], -1).reshape(-1, 2)

    wanted_value = logit_loss(pt.classification("t", 2), two(student), two(wanted), 3.0)
    torch.testing.assert_close(logit_loss(task, student, wanted, 3.0), wanted_value)


def test_at_high_temperature_it_matches_centred_outputs():
    """Hinton et al., section 2.1: the limit is the squared difference of centred outputs over twice their number."""
    student, wanted = torch.randn(2, 7, 5, dtype=torch.float64)
    gap = (student - student.mean(1, keepdim=True)) - (wanted - wanted.mean(1, keepdim=True))
    found = logit_loss(KINDS["classes"][0], student, wanted, 1e4)
    assert float(found) == pytest.approx(float((gap**2).sum(1).mean() / 10), rel=1e-3)


def test_student_outputs_follow_the_teacher_s_without_a_label():
    x = data()[0]
    y = {"a": torch.full((24,), math.nan), "b": torch.full((24,), -100)}
    y["a"][0], y["b"][0] = 0.0, 0
    whole = teacher("hard").eval()
    model = network()
    objectives = [LogitDistillation(n, whole) for n in "ab"]
    kinds = tasks(weight=0.001)  # the one label each has must not decide
    trainer(model, tasks=kinds, objectives=objectives, optimizer=adam(0.03), batch_size=24).fit((x, y), epochs=60)
    chances = {"a": torch.sigmoid, "b": lambda outputs: outputs.softmax(1)}
    with torch.no_grad():
        for name, chance in chances.items():
            found, before, wanted = (chance(m(x)[name]) for m in (model, network(), whole))
            assert (found - wanted).abs().mean() < 0.2 * (before - wanted).abs().mean()


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: FeatureDistillation("c", teacher(), nn.Identity()), ValueError, "a teacher must answer the task it teaches, found none for `c`: known: `a`, `b`"),
        (lambda: LogitDistillation("c", teacher()), ValueError, "found none for `c`"),
        (lambda: FeatureDistillation("a", 3, nn.Identity()), TypeError, "`teacher` must be a trained network, found int for task `a`"),
        (lambda: FeatureDistillation("a", teacher(), 3), TypeError, "`adaptor` must be a module, found int for task `a`"),
        (lambda: FeatureDistillation("a", teacher("partitioned"), nn.Identity()), ValueError, "a teacher must tell its features, found Partitioned without a boundary"),
        (lambda: FeatureDistillation("a", teacher(), nn.Identity(), weight=0), ValueError, "`weight` must be above 0, found 0"),
        (lambda: LogitDistillation("a", teacher(), temperature=0), ValueError, "`temperature` must be above 0 and finite, found 0"),
        (lambda: LogitDistillation("a", teacher(), temperature=math.inf), ValueError, "`temperature` must be above 0 and finite, found inf"),
        (lambda: kdmtl({"a": teacher()}, adaptors()), ValueError, "`teachers` and `adaptors` must be for the same tasks, found ['a'] and ['a', 'b']"),
        (lambda: kdmtl({n: teacher() for n in "ab"}, adaptors(), {"a": 1.0}), ValueError, "`teachers` and `weights` must be for the same tasks"),
        (lambda: kdmtl({n: teacher() for n in "ab"}, dict.fromkeys("ab", nn.Identity())), ValueError, "an adaptor of its own"),
        (lambda: trainer(objectives=[FeatureDistillation("c", teacher(names="abc"), nn.Identity(), shared=True)]), ValueError, "a teacher's task must be one of the student's, found `c`: known: `a`, `b`"),
        (lambda: trainer(objectives=[FeatureDistillation("c", teacher(names="abc"), nn.Identity())]), ValueError, "a teacher's task must be one of the student's, found `c`: known: `a`, `b`"),
        (lambda: trainer(objectives=[LogitDistillation("c", teacher(names="abc"))]), ValueError, "a teacher's task must be one of the student's, found `c`: known: `a`, `b`"),
        (lambda: trainer(network(form="single"), objectives=terms()), ValueError, "a student must have a feature boundary, found SingleTask"),
        (lambda: trainer(network(form="mtan"), objectives=terms()).fit(data(), epochs=1), TypeError, "the student's shared features must be one tensor, as those of HardSharing and Monitored are, found tuple"),
        (lambda: trainer(objectives=[FeatureDistillation("a", nn.Linear(3, 9), nn.Linear(6, 8))]).fit(data(), epochs=1), ValueError, "an adaptor must give what the teacher's features are, (8, 9), found (8, 8) for task `a`"),
        (lambda: trainer(objectives=[LogitDistillation("b", nn.Linear(3, 4))]).fit(data(), epochs=1), ValueError, "outputs of one shape, found (8, 4) and (8, 3) for task `b`"),
        (lambda: trainer(objectives=[*terms(), *terms()]), ValueError, "tasks and objectives must have different names"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)


def test_tasks_of_a_user_s_own_kind_are_refused():
    class Own(pt.Task):
        outputs = 1
        present = own_losses = fill = check = predict = lambda *_: None

    task = Own("a", None, pt.binary("a").metric, 1.0, ())
    with pytest.raises(TypeError, match="outputs of binary, class, label and regression tasks can be distilled"):
        LogitDistillation("a", nn.Linear(3, 1)).bind(network(), {"a": task})


def test_a_configuration_can_name_a_run_as_teacher(tmp_path: Path):
    from polytask.studies import load, run

    assert run(digits("SingleTask", 1), tmp_path / "teacher").state == "done"
    adaptor = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 8}}
    trained = {"class_path": "polytask.studies.trained", "init_args": {"folder": str(tmp_path / "teacher")}}
    terms = [
        {"class_path": "FeatureDistillation", "init_args": {"task": name, "teacher": trained, "adaptor": adaptor}}
        for name in ("left", "right")
    ]
    record = run(digits("HardSharing", 1, objectives=terms), tmp_path / "student")
    assert record.state == "done", record.error
    student = load(tmp_path / "student")
    wanted = load(tmp_path / "teacher").model
    assert same(weights(student.objectives["left-features"].teacher), weights(wanted))
    assert {"train/left-features/loss", "train/right-features/loss"} <= set(student.history[0])


def made(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def linear(inputs: int, outputs: int) -> dict[str, Any]:
    return made("torch.nn.Linear", in_features=inputs, out_features=outputs)


def answering(task: str, outputs: int) -> dict[str, Any]:
    return made("HardSharing", trunk=linear(100, 8), heads={task: linear(8, outputs)})


MISFITS = {
    "other classes": (
        {"objectives": [made("LogitDistillation", task="left", teacher=answering("left", 7))]},
        "teacher and student must give outputs of one shape, found (64, 7) and (64, 10) for task `left`",
    ),
    "other inputs": (
        {"objectives": [made("LogitDistillation", task="left", teacher=linear(64, 10))]},
        "a teacher must take what it is given, of shape (64, 100), for task `left`, found: mat1 and mat2",
    ),
    "another task": (
        {"objectives": [made("LogitDistillation", task="links", teacher=answering("links", 10))]},
        "a teacher's task must be one of the student's, found `links`: known: `left`, `right`",
    ),
    "other features": (
        {"objectives": [made("FeatureDistillation", task="left", teacher=linear(100, 8), adaptor=linear(8, 9))]},
        "an adaptor must give what the teacher's features are, (64, 8), found (64, 9) for task `left`",
    ),
    "another adaptor": (
        {"objectives": [made("FeatureDistillation", task="left", teacher=linear(100, 8), adaptor=linear(9, 8))]},
        "an adaptor must take what it is given, of shape (64, 8), for task `left`, found: mat1 and mat2",
    ),
    "annealed to other classes": (
        {"callbacks": [made("TeacherAnnealing", teachers=answering("left", 7))]},
        "teacher and student must give outputs of one shape, found (64, 7) and (64, 10) for task `left`",
    ),
    "annealed to another task": (
        {"callbacks": [made("TeacherAnnealing", teachers=answering("links", 10))]},
        "a teacher's task must be one of the student's, found `links`: known: `left`, `right`",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(case: str, tmp_path: Path, capsys: Any):
    from polytask.cli import main

    settings, message = MISFITS[case]
    (tmp_path / "run.yaml").write_text(json.dumps(digits("HardSharing", 1, **settings)))
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"polytask: error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_rehearsal_leaves_the_network_as_it_was():
    model, adaptor = network("norm+dropout"), nn.Linear(6, 6)
    terms = [FeatureDistillation("a", teacher(), adaptor), LogitDistillation("b", teacher())]
    fit = trainer(model, objectives=terms)
    before, random = weights(model) | weights(adaptor), torch.get_rng_state()
    fit.rehearse(data())
    assert same(weights(model) | weights(adaptor), before) and torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in (*model.modules(), *(part for term in terms for part in term.modules())))
    assert all(parameter.grad is None for parameter in model.parameters())


class OfLeft(pt.objective.Objective):
    """A term of one's own that concerns one source alone."""

    def __init__(self) -> None:
        super().__init__("left-only")

    def count(self, batch: pt.Batch) -> int:
        return batch.size if batch.source == "left" else 0

    def forward(self, context: Context) -> torch.Tensor:
        if context.batch.source != "left":
            raise ValueError("the term must be asked about `left` only, found another source")
        return context.predictions["a"].square().mean()


@pytest.mark.parametrize("mixture", [pt.data.Zip, pt.data.RoundRobin])
def test_a_term_is_asked_about_the_batches_that_concern_it_alone(mixture: Any):
    fit = two_sources.trainer(mixture=mixture, objectives=[OfLeft()])
    fit.rehearse(two_sources.both())
    history = fit.fit(two_sources.both(), epochs=1)
    assert math.isfinite(history.column("train/left-only/loss")[0])
    assert math.isfinite(fit.objective_values(two_sources.both())["left-only/value"])


class Drawn(pt.objective.Objective):
    """A term of one's own that draws."""

    def __init__(self) -> None:
        super().__init__("drawn")

    def forward(self, context: Context) -> torch.Tensor:
        return context.features.square().mean() * torch.rand(()).add(0.5)


def test_a_rehearsal_changes_no_random_stream_and_no_order_of_the_data():
    def served(rehearsed: bool) -> tuple[Any, torch.Tensor]:
        x, y = data()
        rows = [{"x": x[i], "a": y["a"][i], "b": y["b"][i]} for i in range(24)]
        batches = DataLoader(rows, 6, shuffle=True, generator=torch.Generator().manual_seed(5))  # a list of rows  # pyright: ignore[reportArgumentType]
        torch.manual_seed(9)
        fit = trainer(network(), objectives=[Drawn()])
        if rehearsed:
            fit.rehearse(batches)
        after = torch.get_rng_state()
        fit.fit(batches, epochs=2)
        return weights(fit.model), after

    (plain, before), (rehearsed, after) = served(False), served(True)
    assert torch.equal(before, after) and same(plain, rehearsed)
