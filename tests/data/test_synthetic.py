import pytest
import torch

from polytask.data import CircleRhombus
from polytask.task import Binary


def test_the_splits_are_those_of_the_papers_example():
    splits = CircleRhombus().load()
    assert [len(split.inputs) for split in splits] == [750, 150, 1000]
    positives = [{task: int(target.sum()) for task, target in split.targets.items()} for split in splits]
    assert positives == [
        {"circle": 151, "rhombus": 389},
        {"circle": 32, "rhombus": 74},
        {"circle": 219, "rhombus": 525},
    ]


def test_inputs_lie_in_the_square_and_targets_follow_from_them():
    for split in CircleRhombus(seed=7).load():
        assert split.inputs.dtype == torch.float32
        assert split.inputs.abs().max() <= 1
        for task, norm, radius in (("circle", 2, 0.5), ("rhombus", 1, 1.0)):
            size = torch.linalg.vector_norm(split.inputs.double(), ord=norm, dim=1)
            clear = (size - radius).abs() > 1e-6  # nearer points may have crossed the border by rounding
            assert torch.equal(split.targets[task][clear], (size <= radius).float()[clear])


def test_targets_pass_the_tasks_own_check_unchanged():
    data = CircleRhombus()
    train = data.load().train
    assert {task.name for task in data.tasks} == train.targets.keys()
    for task in data.tasks:
        assert isinstance(task, Binary)
        assert torch.equal(task.check(train.targets[task.name], "train"), train.targets[task.name])


def test_one_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = (CircleRhombus(seed).load().train.inputs for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_splits_share_no_point():
    points = torch.cat([split.inputs for split in CircleRhombus().load()])
    assert len(points.unique(dim=0)) == len(points)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"`seed` must be in 0..4294967295, found {seed}"):
        CircleRhombus(seed)
