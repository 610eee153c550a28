import pytest
import torch
from sklearn.datasets import load_digits

from polytask.data import MultiDigits


def small(**arguments):
    return MultiDigits(**{"pairs": (1, 1, 1), **arguments})


def test_splits_have_the_promised_shapes_ranges_and_types():
    data = MultiDigits(pairs=(3, 1, 2))
    for split, size in zip(data.load(), (3 * 1077, 360, 2 * 360), strict=True):
        assert split.inputs.shape == (size, 100)
        assert split.inputs.dtype == torch.float32
        assert (split.inputs.min(), split.inputs.max()) == (0, 1)
        for task in data.tasks:
            target = split.targets[task.name]
            assert torch.equal(task.check(target, "here"), target)
            assert len(target) == size
            assert len(target.unique()) == 10


def test_no_source_digit_is_in_two_splits_and_all_are_used():
    used = [set(rows.flatten().tolist()) for rows in MultiDigits().sources()]
    assert [len(rows) for rows in used] == [1077, 360, 360]
    assert set.union(*used) == set(range(1797))


def test_classes_are_stratified():
    labels = torch.from_numpy(load_digits().target)
    shares = [labels[rows[:, 0]].bincount() / len(rows) for rows in small().sources()]
    for share in shares[1:]:
        torch.testing.assert_close(share, shares[0], atol=0.005, rtol=0)


def test_every_composite_is_the_two_digits_that_sources_names():
    data = small(flat=False, shift=3)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    for split, rows in zip(data.load(), data.sources(), strict=True):
        image, (left, right) = split.inputs[:, 0], rows.T
        assert image.shape[1:] == (11, 11)
        assert torch.equal(split.targets["left"], labels[left])
        assert torch.equal(split.targets["right"], labels[right])
        assert torch.equal(image[:, :3, :8], images[left][:, :3])  # above the right digit
        assert torch.equal(image[:, 8:, 3:], images[right][:, 5:])  # below the left digit
        assert torch.equal(image[:, 3:8, 3:8], torch.maximum(images[left][:, 3:, 3:], images[right][:, :5, :5]))
        assert not image[:, :3, 8:].any()
        assert not image[:, 8:, :3].any()


def test_flat_changes_the_shape_only():
    flat, square = (small(flat=flat).load().test for flat in (True, False))
    assert square.inputs.shape == (360, 1, 10, 10)
    assert torch.equal(square.inputs.flatten(1), flat.inputs)
    assert torch.equal(square.targets["right"], flat.targets["right"])


def test_one_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = (small(seed=seed).load().train.inputs for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_pairs_of_one_split_leave_its_digits_as_they_are():
    for few, many in zip(MultiDigits((1, 1, 1)).sources(), MultiDigits((3, 2, 5)).sources(), strict=True):
        assert set(few.flatten().tolist()) == set(many.flatten().tolist())


def test_the_problem_can_be_learnt_and_is_not_trivial():
    train, _, test = MultiDigits().load()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Linear(100, 20)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(100):
        left, right = net(train.inputs).split(10, dim=1)
        loss = torch.nn.functional.cross_entropy(left, train.targets["left"])
        loss = loss + torch.nn.functional.cross_entropy(right, train.targets["right"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for logits, target in zip(net(test.inputs).split(10, dim=1), test.targets.values(), strict=True):
        assert 0.8 < (logits.argmax(1) == target).float().mean() < 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": (1, 0, 1)}, "`pairs` must be at least 1, found 0"),
        ({"pairs": (1, 1)}, "`pairs` must give train, validation and test, found 2 numbers"),
        ({"shift": 0}, r"`shift` must be in 1\.\.8, found 0"),
        ({"shift": 9}, r"`shift` must be in 1\.\.8, found 9"),
        ({"seed": -1}, r"`seed` must be in 0\.\.4294967295, found -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiDigits(**arguments)
