"""Rows that are alike become one parameter, for the optimizer and for the gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import helpers
from torch import nn

import polytask as pt
from polytask.models import HardSharing
from polytask.sparsity.compact import baked, compact
from polytask.sparsity.rows import Layer, to_rows
from polytask.sparsity.sharing import DEAD, cluster, find_sharing, is_tied, similarity, tie, untie


def pairs(count: int, width: int = 30, noise: float = 0.2) -> torch.Tensor:
    """Rows i and count + i are alike; in so many dimensions all others are far apart."""
    random = torch.Generator().manual_seed(3)
    rows = torch.randn(count, width, generator=random)
    return torch.cat([rows, rows + noise * torch.randn(count, width, generator=random)])


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 1000))
def test_similarity_is_symmetric_and_one_only_for_equal_rows(count, width, seed):
    rows = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    alike = similarity(rows)
    assert torch.equal(alike, alike.T)
    torch.testing.assert_close(alike.diagonal(), torch.ones(count, dtype=torch.float64))
    assert bool((alike.abs() <= 1 + 1e-12).all())
    # the definition, entry by entry
    for i in range(count):
        for j in range(count):
            largest = max(rows[i].square().sum().item(), rows[j].square().sum().item())
            assert abs(alike[i, j].item() - (rows[i] @ rows[j]).item() / largest) <= 1e-12


def test_rows_of_one_direction_and_different_lengths_are_not_alike():
    rows = torch.tensor([[1.0, 1.0], [10.0, 10.0]])
    assert similarity(rows)[0, 1].item() == pytest.approx(0.1)


@pytest.mark.parametrize("preference", [0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("damping", [0.5, 0.7, 0.9])
def test_noisy_pairs_are_found_whatever_preference_and_damping(preference, damping):
    labels = cluster(pairs(40), preference, damping)
    assert labels.tolist() == [*range(40), *range(40)]


def test_more_preference_gives_no_fewer_clusters_and_above_one_each_row_its_own():
    rows = pairs(15, width=6, noise=0.5)
    counts = [int(cluster(rows, preference).max()) + 1 for preference in (-1.0, 0.0, 0.5, 0.9, 1.1)]
    assert counts == sorted(counts) and counts[-1] == 30


@pytest.mark.parametrize(
    ("rows", "expected"), [(torch.ones(5, 3), [0] * 5), (torch.ones(1, 3), [0]), (torch.eye(3), [0, 1, 2])]
)
def test_equal_similarities_have_the_plain_answer(rows, expected):
    assert cluster(rows, preference=0.5).tolist() == expected


def test_one_seed_gives_one_clustering():
    assert torch.equal(cluster(pairs(20), 0.5, seed=1), cluster(pairs(20), 0.5, seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 1.0}, r"`damping` must be in \[0.5, 1\), found 1.0"),
        ({"iterations": 0}, "`iterations` must be at least 1, found 0"),
        ({"iterations": 2}, "must converge, found that it did not within 2 iterations for 40 rows"),
    ],
)
def test_bad_settings_and_no_convergence_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        cluster(pairs(20), 0.5, **options)


def test_zero_rows_cannot_be_compared():
    with pytest.raises(ValueError, match="must not be zero, found 1 of 2"):
        similarity(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="must be finite, found 1 of 2 not"):
        similarity(torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.1}, r"`damping` must be in \[0.5, 1\), found 0.1"),
        ({"iterations": 0}, "`iterations` must be at least 1, found 0"),
        ({"preference": float("nan")}, "`preference` must be finite, found nan"),
        ({"preference": {"y": 0.3}}, "`preference` names a layer that is not in play, `y`: known: `x`"),
        ({"seed": -1}, "`seed` must be at least 0, found -1"),
    ],
)
def test_a_wrong_setting_is_no_reason_to_share_nothing(options, message):
    """It is refused, where a layer that does not converge is left apart."""
    with pytest.raises(ValueError, match=message):
        find_sharing([Layer("x", nn.Linear(6, 3))], **options)


def test_every_seed_of_a_study_is_one_of_the_clustering():
    rows = pairs(10)
    assert torch.equal(cluster(rows, 0.5, seed=2**40 + 3), cluster(rows, 0.5, seed=3))


def shareable(granularity: int = 1) -> tuple[nn.Module, list[Layer]]:
    """A network whose middle layer has pairs of rows that are alike, and dead ones."""
    model = HardSharing(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 30), nn.ReLU()),
        {"a": nn.Linear(30, 1)},
    )
    alike = pairs(4, width=30 * 4).reshape(8, 30, 4).transpose(0, 1).reshape(30, 32)
    with torch.no_grad():
        model.trunk[3].weight.copy_(alike)
        model.trunk[3].weight[:, 8:12] = 0
    return model, [Layer("trunk.3", model.trunk[3], spread=4, size=granularity)]


def test_dead_rows_have_no_cluster_and_units_are_compared_whole():
    _, layers = shareable(4)
    found = find_sharing(layers, preference=0.7)
    assert found.labels["trunk.3"].tolist() == [0, 1, DEAD, 2, 0, 1, 3, 2]
    assert found.apart == {}


def test_single_rows_are_compared_under_the_other_granularity():
    _, layers = shareable(1)
    labels = find_sharing(layers, preference=0.7).labels["trunk.3"]
    assert len(labels) == 32 and (labels[8:12] == DEAD).all()
    assert torch.equal(labels[:8], labels[16:24])


def test_a_layer_that_does_not_converge_stays_apart_and_says_so():
    _, layers = shareable(4)
    found = find_sharing(layers, preference=0.7, iterations=2)
    assert "did not within 2 iterations" in found.apart["trunk.3"]
    assert found.labels["trunk.3"].tolist() == [0, 1, DEAD, 2, 3, 4, 5, 6]


def test_a_dead_layer_has_nothing_to_share():
    layer = Layer("x", nn.Linear(3, 2))
    nn.init.zeros_(layer.module.weight)
    assert find_sharing([layer]).labels["x"].tolist() == [DEAD] * 3


def test_grouped_convolutions_stay_apart():
    layer = Layer("x", nn.Conv2d(4, 4, 3, groups=2))
    assert "grouped" in find_sharing([layer]).apart["x"]


@pytest.mark.parametrize("size", [1, 4])
def test_tied_rows_are_the_means_of_their_clusters_and_one_parameter_each(size):
    model, layers = shareable(size)
    labels = find_sharing(layers, preference=0.7).labels["trunk.3"]
    before = to_rows(model.trunk[3]).detach().reshape(len(labels), -1)
    tie(model, {"trunk.3": labels})
    after = to_rows(model.trunk[3]).reshape(len(labels), -1)
    for number in range(int(labels.max()) + 1):
        members = labels == number
        torch.testing.assert_close(after[members], before[members].mean(0).expand(int(members.sum()), -1))
    assert not after[labels == DEAD].any()
    parameter = dict(model.named_parameters())["trunk.3.parametrizations.weight.original"]
    assert parameter.shape == (int(labels.max()) + 1, 30 * size)


def test_the_gradient_of_a_cluster_is_the_sum_of_its_members():
    model, layers = shareable(4)
    labels = find_sharing(layers, preference=0.7).labels["trunk.3"]
    tie(model, {"trunk.3": labels})
    free = baked(model)
    x = torch.randn(6, 1, 4, 4)
    for net in (model, free):
        net(x)["a"].square().sum().backward()
    single = to_rows(free.trunk[3], free.trunk[3].weight.grad).reshape(8, -1)
    tied = model.trunk[3].parametrizations.weight.original.grad
    for number in range(4):
        torch.testing.assert_close(tied[number], single[labels == number].sum(0))
    assert torch.equal(model.trunk[3].weight, free.trunk[3].weight)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_are_tied_by_input_channel(kind):
    net = nn.Sequential(kind(4, 3, 2))
    tie(net, {"0": [0, 1, DEAD, 0]})
    weight = net[0].weight
    assert torch.equal(weight[:, 0], weight[:, 3]) and not weight[:, 2].any() and weight[:, 1].any()


def test_sharing_survives_training_and_compaction_removes_what_is_double():
    model, layers = shareable(4)
    tie(model, find_sharing(layers, preference=0.7).labels)
    x = torch.randn(24, 1, 4, 4)
    data = (x, {"a": (x.mean((1, 2, 3)) > 0).float()})
    trainer = pt.Trainer(model, [pt.binary("a")], optimizer=helpers.adam(), batch_size=8, progress=False)
    before = model.trunk[3].weight.detach().clone()
    trainer.fit(data, epochs=2)
    rows = to_rows(model.trunk[3]).detach().reshape(8, -1)
    assert not torch.equal(model.trunk[3].weight, before)
    assert not rows[2].any()
    assert torch.equal(rows[0], rows[4]) and torch.equal(rows[1], rows[5]) and torch.equal(rows[3], rows[7])

    small = compact(model, x).model
    assert is_tied(model.trunk[3]) and not is_tied(small.trunk[3])
    assert small.trunk[0].out_channels == 7 and small.trunk[3].weight.shape == (30, 16)  # 4 distinct units, 4 positions
    torch.testing.assert_close(small(x)["a"], model.eval()(x)["a"], rtol=1e-5, atol=1e-6)


def test_untied_weights_are_the_same_and_plain():
    model, layers = shareable(4)
    tie(model, find_sharing(layers, preference=0.7).labels)
    weight = model.trunk[3].weight.detach().clone()
    copied = copy.deepcopy(model)
    untie(model)
    assert torch.equal(model.trunk[3].weight, weight)
    assert [name for name, _ in model.trunk[3].named_parameters()] == ["weight", "bias"]
    assert type(model.trunk[3]) is nn.Linear
    assert is_tied(copied.trunk[3]) and torch.equal(copied.trunk[3].weight, weight)  # copies are left alone


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"nowhere": [0]}, "found none named `nowhere`"),
        ({"trunk.3": [0, 1, 2]}, r"one per row or per group of rows of equal size, found \(3,\)"),
        ({"trunk.3": [0, 2, DEAD, 2]}, r"without a gap, with at least one, found \[0, 2\]"),
        ({"trunk.3": [DEAD] * 8}, r"without a gap, with at least one, found \[\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    model, _ = shareable()
    with pytest.raises(ValueError, match=message):
        tie(model, labels)
    assert not is_tied(model.trunk[3])


def test_a_layer_is_tied_once():
    model, _ = shareable()
    tie(model, {"trunk.3": [0] * 8})
    with pytest.raises(ValueError, match=r"found `trunk.3` parametrised already"):
        tie(model, {"trunk.3": [0] * 8})
