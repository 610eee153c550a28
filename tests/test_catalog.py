import pytest
from tests.helpers import data
from torch import nn

import polytask as pt
from polytask.catalog import KINDS, Cost, catalog
from polytask.studies.spec import find_class
from polytask.training.cost import peak_memory

TOLD = {"TorchJD", "EpsilonConstraint"}  # what cannot do without settings
BALANCERS = [entry for entry in catalog("balancer") if entry.name not in TOLD]
NAMES = "abc"


def test_every_kind_has_its_members():
    names = {kind: [entry.name for entry in catalog(kind)] for kind in KINDS}
    assert {"AlternateBatches", "AlternateEpochs", "Joint"} <= set(names["schedule"])
    assert {"Linear", "MGDA"} <= set(names["balancer"])
    assert {"HardSharing", "SingleTask", "Partitioned"} <= set(names["model"])
    assert {"EarlyStopping", "Checkpoint", "LSUV", "TeacherAnnealing"} <= set(names["callback"])
    assert {"GrOWL", "FeatureDistillation", "LogitDistillation"} <= set(names["objective"])
    assert {"CircleRhombus", "MultiDigits", "MNIST", "MultiMNIST"} <= set(names["data set"])


@pytest.mark.parametrize("entry", catalog(), ids=lambda entry: entry.name)
def test_every_entry_says_what_it_is_and_can_be_named(entry):
    assert entry.summary and "\n" not in entry.summary and "`" not in entry.summary
    assert find_class(entry.path) is entry.cls is find_class(entry.name)


def test_methods_from_papers_link_to_them():
    papers = {entry.name: entry.paper for entry in catalog()}
    assert papers["AlternateEpochs"] == "https://arxiv.org/abs/2312.16340"
    assert papers["MultiDigits"] == "https://arxiv.org/abs/1710.09829"
    assert papers["Joint"] == ""


def test_needs_are_told():
    needs = {entry.name: entry.needs for entry in catalog()}
    assert (needs["MGDA"], needs["Linear"], needs["MNIST"]) == ("task gradients", "", "files")


def test_every_kind_of_evidence_has_words():
    """A balancer that asks for something is listed with what it asks for."""
    from polytask.balancing.base import Needs
    from polytask.catalog import _EVIDENCE

    assert set(_EVIDENCE) == set(Needs)


class Counted(nn.Linear):
    """Counts the passes through it."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        y = super().forward(x)
        if y.grad_fn is not None:  # a hook on y would fire where the pass ends at y, too
            y.grad_fn.register_hook(self._count)
        return y

    def _count(self, *_):
        self.backwards += 1


def one_step(balancer, gradients="exact", width=8):
    """A step with three tasks; gives the counting trunk and heads, and the step itself."""
    trunk, outputs = Counted(width, width), {"a": 1, "b": 3, "c": 1}
    heads = {name: Counted(4, outputs[name]) for name in NAMES}
    tasks = [pt.binary("a"), pt.classification("b", 3), pt.regression("c")]
    shared = nn.Sequential(nn.Linear(3, width), trunk, nn.Linear(width, 4))
    trainer = pt.Trainer(
        pt.models.HardSharing(shared, heads), tasks, balancer=balancer, gradients=gradients, batch_size=8,
        progress=False,
    )  # fmt: skip
    return trunk, list(heads.values()), lambda: trainer.fit(data(8, NAMES), epochs=1)


@pytest.mark.parametrize("entry", BALANCERS, ids=lambda entry: entry.name)
def test_the_passes_that_are_told_are_those_that_are_made(entry):
    trunk, heads, step = one_step(entry.cls())
    step()
    number = {"1": 1, "K": 3}
    assert trunk.forwards == entry.cost.forward and trunk.backwards == number[entry.cost.trunk]
    assert {(head.forwards, head.backwards) for head in heads} == {(entry.cost.forward, entry.cost.heads)}


@pytest.mark.parametrize("entry", BALANCERS, ids=lambda entry: entry.name)
def test_only_the_modes_that_are_told_make_it_cheaper(entry):
    for mode, trunk_passes in (("features", 1), ("low_memory", None)):
        if mode not in entry.cost.modes and (entry.cost.trunk == "K" or (entry.name == "GREAT" and not trunk_passes)):
            with pytest.raises(ValueError, match=f"gradients='{mode}'"):
                one_step(entry.cls(), mode)
            continue
        trunk, _, step = one_step(entry.cls(), mode)
        step()
        if mode in entry.cost.modes:
            assert trunk.backwards == trunk_passes or (trunk_passes is None and trunk.backwards > 3)
        else:  # one pass is what it takes in any mode
            assert trunk.backwards == 1


@pytest.mark.parametrize("entry", BALANCERS, ids=lambda entry: entry.name)
def test_as_many_shared_gradients_are_kept_as_told(entry):
    width = 400
    _, _, step = one_step(entry.cls(), width=width)
    kept = peak_memory(step) / (4 * width * width)  # in sizes of the shared block, next to which all else is small
    assert kept >= 3 if entry.cost.gradients == "K" else 1 <= kept < 2.5


@pytest.mark.parametrize("entry", catalog("balancer"), ids=lambda entry: entry.name)
def test_what_goes_into_the_checkpoint_is_told(entry):
    stateful = "get_extra_state" in vars(entry.cls) or entry.name == "TorchJD"
    assert bool(entry.keeps) is stateful and "\n" not in entry.keeps
    if entry.name not in TOLD:
        assert stateful or not [*entry.cls().buffers(), *entry.cls().parameters()]


def test_costs_have_words():
    assert str(Cost.of(pt.scalarization.FAMO)).startswith("2 forward; backward: trunk 1, each head 1; 1 shared")
    assert str(Cost.of(pt.aggregation.MGDA)).endswith("K shared gradients kept")
    assert catalog("schedule")[0].cost is None
