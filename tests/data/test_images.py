import math

import pytest
import torch

from polytask.data import Arrays, Normalise, Rotation
from polytask.data.images import rotate


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_quarter_turn_is_rot90():
    """Anticlockwise, as torch counts quarter turns."""
    images = torch.rand(3, 2, 7, 7)
    for turns in range(5):
        turned = rotate(images, torch.full((3,), turns * math.pi / 2))
        torch.testing.assert_close(turned, torch.rot90(images, turns, (2, 3)), atol=1e-5, rtol=0)


def test_pixels_of_a_rectangle_stay_square():
    """A point moves on the circle about the centre, whatever the sides."""
    image = torch.zeros(1, 1, 21, 41)
    image[0, 0, 10, 26] = 1  # six pixels right of the centre
    turned = rotate(image, torch.tensor([math.pi / 2]))
    assert divmod(int(turned.argmax()), 41) == (4, 20)  # six above it
    torch.testing.assert_close(rotate(image, torch.tensor([math.pi])), image.flip(2, 3), atol=1e-4, rtol=0)


def test_each_image_is_turned_by_its_own_angle_within_the_range():
    image = torch.zeros(200, 1, 65, 65)
    image[:, 0, 32, 60] = 1
    turned = Rotation(20)(image, generator())[:, 0]  # (B, H, W)
    mass = turned.sum((1, 2))
    rows, columns = torch.arange(65.0), torch.arange(65.0)
    y, x = 32 - (turned.sum(2) @ rows) / mass, (turned.sum(1) @ columns) / mass - 32
    angles = torch.rad2deg(torch.atan2(y, x))
    assert angles.abs().max() < 20.5
    assert angles.min() < -15 and angles.max() > 15
    assert abs(angles.mean()) < 2
    assert len(angles.unique()) > 190


def test_corners_are_filled():
    turned = Rotation(180, (1.0, 2.0, -3.0))(torch.full((50, 3, 16, 16), 7.0), generator())
    wanted = torch.tensor([1.0, 2.0, -3.0])
    torch.testing.assert_close(turned[:, :, 0, 0].amin(0), wanted)  # at 45 degrees a corner is all new
    torch.testing.assert_close(turned[:, :, 8, 8], torch.full((50, 3), 7.0))


def test_no_angle_changes_nothing():
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(Rotation(0, (0.5, 0.1, 0.2))(images, generator()), images, atol=1e-5, rtol=0)


def test_draws_come_from_the_generator_alone():
    images, state = torch.rand(4, 3, 8, 8), torch.get_rng_state()
    one, again, other = (Rotation()(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_as_augmentation_it_is_new_at_every_visit_and_the_same_in_every_run():
    def batches(seed):
        source = Arrays(torch.ones(6, 1, 8, 8), {}, batch_size=6, seed=seed, augment=Rotation(90))
        source.bind({}, torch.device("cpu"), "train")
        return [batch.inputs for epoch in range(2) for (batch,) in source.steps(epoch)]

    first, second = batches(0)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, batches(0), (first, second)))


def test_a_source_says_how_it_augments():
    """Two settings must not resume each other's runs."""

    def described(augment):
        source = Arrays(torch.ones(6, 1, 8, 8), {}, batch_size=6, augment=augment)
        source.bind({}, torch.device("cpu"), "train")
        return source.describe()["augment"]

    assert described(None) is None
    assert described(Rotation(10.0)) == described(Rotation(10.0)) != described(Rotation(20.0))
    assert "0x" not in described(lambda inputs, generator: inputs)


def test_normalise_is_a_layer_without_parameters_or_state():
    layer = Normalise([0.5, 0.25], [0.5, 2.0])
    images = torch.rand(3, 2, 4, 4)
    wanted = torch.stack([(images[:, 0] - 0.5) / 0.5, (images[:, 1] - 0.25) / 2.0], 1)
    assert torch.equal(layer(images), wanted)
    assert not list(layer.parameters()) and not layer.state_dict()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Normalise([0.5], [0.0]), "`std` must be above 0, found 0.0"),
        (lambda: Normalise([0.5], [0.5, 0.5]), "one number per channel, found 1 and 2"),
        (lambda: Normalise([], []), "one number per channel, found 0 and 0"),
        (lambda: Rotation(181), r"`degrees` must be in 0\.\.180, found 181"),
        (lambda: Rotation(5, (0.0, 0.0))(torch.zeros(1, 3, 4, 4), generator()), r"C = 2 channels, .* \(1, 3, 4, 4\)"),
        (lambda: Rotation()(torch.zeros(3, 4, 4), generator()), r"shape \(B, C, H, W\) .* found \(3, 4, 4\)"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
