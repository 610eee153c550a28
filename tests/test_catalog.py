import pytest

from polytask.catalog import KINDS, catalog
from polytask.studies.spec import find_class


def test_every_kind_has_its_members():
    names = {kind: [entry.name for entry in catalog(kind)] for kind in KINDS}
    assert {"AlternateBatches", "AlternateEpochs", "Joint"} <= set(names["schedule"])
    assert {"Linear", "MGDA"} <= set(names["balancer"])
    assert {"HardSharing", "SingleTask", "Partitioned"} <= set(names["model"])
    assert {"EarlyStopping", "Checkpoint"} <= set(names["callback"])
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
