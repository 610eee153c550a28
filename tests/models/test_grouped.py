"""Grouped: hard sharing within groups, single-task learning between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import NAN, Witness, adam, data, heads, network, same, trainer, trunk, weights

import polytask as pt
from polytask.models import Grouped


def grouped(groups: list[list[str]], kind: str = "norm+dropout", names: str = "abc") -> Grouped:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Grouped(trunk(kind), heads(names, kind), groups)


def _trained(model: pt.models.Model, **options: Any) -> tuple[list[Any], pt.History]:
    made = trainer(model, "abc", **options)
    history = made.fit(data(24, "abc", missing=True), data(9, "abc", seed=1), epochs=3)
    return list(weights(model).values()), history


@pytest.mark.parametrize(
    ("form", "groups"), [("hard", [["a", "b", "c"]]), ("single", [["a"], ["b"], ["c"]])], ids=["one", "each"]
)
@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: {"optimizer": adam(), "clip_norm": 0.5, "accumulate": 2},
        lambda: {"balancer": pt.aggregation.MGDA()},
        lambda: {"balancer": pt.scalarization.FAMO()},
    ],
    ids=["plain", "adam", "mgda", "famo"],
)
def test_the_limits_are_hard_sharing_and_single_task(form: str, groups: list[list[str]], options: Any):
    expected, history = _trained(network("norm+dropout", "abc", form=form), **options())
    found, rows = _trained(grouped(groups), **options())
    assert rows == history
    assert same(found, expected)


def test_one_group_has_a_boundary_and_may_alternate():
    options = {"schedule": pt.schedules.AlternateEpochs(1, 1)}
    expected, history = _trained(network("norm+dropout", "abc"), **options)
    found, rows = _trained(grouped([["a", "b", "c"]]), **options)
    assert rows == history and same(found, expected)
    with pytest.raises(ValueError, match="an update must touch at least one trainable parameter"):
        _trained(grouped([["a", "b"], ["c"]]), **options)


def test_a_group_trains_as_it_would_alone():
    model = grouped([["a", "c"], ["b"]], "norm")
    alone = grouped([["a", "c"]], "norm", "ac")
    alone.load_state_dict({k: v.clone() for k, v in model.state_dict().items() if k in alone.state_dict()})
    trainer(model, "abc").fit(data(24, "abc"), epochs=2)
    trainer(alone, "ac").fit(data(24, "ac"), epochs=2)
    left = weights(model)
    for name, value in weights(alone).items():
        torch.testing.assert_close(left[name], value)


def test_blocks_and_outputs():
    model = grouped([["b"], ["a", "c"]])
    blocks = model.blocks()
    assert not blocks.shared.parameters and not model.boundary
    everything = {id(p) for p in model.parameters()}
    assert {id(p) for p in blocks.specific_parameters()} == everything
    common = {id(p) for p in blocks.specific["a"].parameters} & {id(p) for p in blocks.specific["c"].parameters}
    assert common == {id(p) for p in model.trunks[1].parameters()}
    x = torch.randn(4, 3)
    model.eval()
    for task, index in (("a", 1), ("b", 0), ("c", 1)):
        with torch.no_grad():
            features = model.representation(task, None, x)
            assert same(features, model.trunks[index](x))
            assert same(model(x, [task])[task], model.heads[task](features))
    with pytest.raises(TypeError, match="Grouped has no feature boundary"):
        model.features(x)


def test_a_group_without_targets_rests():
    x, y = data(24, "abc")
    y["a"][:8] = NAN
    y["c"][:8] = NAN
    witness = Witness()
    made = trainer(grouped([["b"], ["a", "c"]]), "abc", callbacks=[witness], optimizer=adam())
    made.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=1)
    first, *others = (names for _, _, names in witness.updates)
    assert first == ("b",) and set(others) == {("a", "b", "c")}
    assert witness.frozen_seen and witness.live_seen


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["a", "b"]], "every task must be in one group, found `c` in none"),
        ([["a", "b"], ["b", "c"]], "every task must be in one group, found `b` twice"),
        ([["a", "b", "c"], []], r"a group must be a list of at least one task, found \[\]"),
        (["abc"], "a group must be a list of at least one task, found 'abc'"),
        ([["a", "b"], ["Z"]], "`groups` must hold tasks, found `Z`: known: `a`, `b`, `c`"),
    ],
)
def test_refusals(groups: Any, message: str):
    with pytest.raises(ValueError, match=message):
        grouped(groups)


def test_trunks_of_ones_own():
    trunks = [trunk(), trunk()]
    model = Grouped(trunks, heads("abc"), [["a"], ["b", "c"]])
    assert list(model.trunks) == trunks
    with pytest.raises(ValueError, match="every group must have a trunk, found 2 trunks for 1 groups"):
        Grouped(trunks, heads("abc"), [["a", "b", "c"]])


def test_one_trunk_for_two_groups_is_refused():
    one = trunk()
    with pytest.raises(ValueError, match="found one parameter in the trunk of group 0 and the trunk of group 1"):
        Grouped([one, one], heads("abc"), [["a"], ["b", "c"]])
