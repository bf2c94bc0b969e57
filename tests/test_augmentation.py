"""Random changes to training images: shape, range and what they show."""

import math

import pytest
import torch

from sat_core import augmentation


@pytest.mark.parametrize("name", augmentation.AUGMENTATIONS)
def test_augmentations_keep_shape_and_range_and_repeat_with_the_seed(name):
    change = augmentation.AUGMENTATIONS[name]
    x = torch.rand(16, 3, 24, 24)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(change(x))
    assert torch.equal(*results)
    assert results[0].shape == x.shape and results[0].min() >= 0 and results[0].max() <= 1 + 1e-6
    assert not torch.equal(results[0], x)


def test_crop_is_a_shifted_copy_and_flip_a_mirror():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 9, 9) + 0.1
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    windows = padded.unfold(2, 9, 1).unfold(3, 9, 1)  # every possible crop
    found = set()
    for i, image in enumerate(augmentation.crop(x)):
        matches = (windows[i] == image[:, None, None]).all(dim=-1).all(dim=-1).all(dim=0).nonzero()
        assert len(matches) == 1
        found.add(tuple(matches[0].tolist()))
    assert len(found) > 30  # of 81 places
    flipped = augmentation.flip(x)
    mirrored = [torch.equal(f, o.flip(2)) for f, o in zip(flipped, x, strict=True)]
    same = [torch.equal(f, o) for f, o in zip(flipped, x, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48


def test_resized_crop_shows_a_window_of_the_image():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(256, 1, 32, 32)
    out = augmentation.resized_crop(ramp)
    spans = (out[:, 0, 16, -1] - out[:, 0, 16, 0]) / (ramp[0, 0, 0, -1] - ramp[0, 0, 0, 0])
    assert (spans > 0.15).all() and (spans <= 1.0 + 1e-6).all()
    assert spans.min() < 0.4 and spans.max() > 0.9


def test_affine_takes_whole_pixels_of_the_image_as_the_authors_does():
    x = torch.rand(8, 1, 20, 20) + 1  # 0 is the black outside
    warped = augmentation.affine(x)
    for image, result in zip(x, warped, strict=True):
        assert set(result.flatten().tolist()) <= {0.0, *image.flatten().tolist()}
        assert not torch.equal(image, result)


def test_brightness_is_of_a_tenth():
    torch.manual_seed(0)
    factors = augmentation.brightness(torch.full((1000, 1, 2, 2), 0.5)) / 0.5
    assert 0.9 - 1e-6 <= factors.min() < 0.905 and 1.095 < factors.max() <= 1.1 + 1e-6


def test_affine_shifts_by_a_tenth_and_turns_by_five_degrees_at_most():
    """Seen in images whose pixels are their own coordinates, from -1 to 1, plus 10; 0 is the black outside."""
    torch.manual_seed(0)
    line = torch.linspace(-1, 1, 201)
    coordinates = torch.stack(torch.meshgrid(line, line, indexing="ij")) + 10
    shown = augmentation.affine(coordinates.expand(500, -1, -1, -1)) - 10
    middle, right = shown[:, :, 100, 100], shown[:, :, 100, 150]
    assert 0.19 < middle.abs().max() <= 0.2 + 0.01
    turn = (right - middle)[:, 0] / 0.5
    assert 0.07 < turn.abs().max() < math.sin(math.radians(5)) / 0.9 + 0.03
