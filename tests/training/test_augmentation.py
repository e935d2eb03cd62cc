from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from patchcert.training.augmentation import augment
from patchcert.training.config import TrainingConfig


def slowly_moved(image_CHW, down, right, mirrored):
    """Content moved down and to the right, zeros elsewhere, then mirrored if so."""
    moved = np.zeros_like(image_CHW)
    channels, height, width = image_CHW.shape
    for channel, row, column in product(range(channels), range(height), range(width)):
        if 0 <= row + down < height and 0 <= column + right < width:
            moved[channel, row + down, column + right] = image_CHW[channel, row, column]
    return moved[:, :, ::-1] if mirrored else moved


def images(num_images, channels=3, height=6, width=7, seed=0):
    # No pixel is 0, the colour of what comes in from outside.
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(1, 256, (num_images, channels, height, width), dtype=np.uint8))


def augmented(images_BCHW, seed=0, **settings):
    return augment(images_BCHW, TrainingConfig(**settings), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "flips"), [("shift", (False,)), ("shift_flip", (False, True))])
def test_every_move_is_the_slow_one_and_equally_likely(kind, flips):
    reach = 2
    image = images(1)
    batch = image.expand(3000, -1, -1, -1)
    moves = list(product(range(-reach, reach + 1), range(-reach, reach + 1), flips))
    slow = {slowly_moved(image[0].numpy(), *move).tobytes(): index for index, move in enumerate(moves)}
    assert len(slow) == len(moves)

    moved = augmented(batch, augmentation=kind, shift_pixels=reach)

    assert moved.dtype == torch.uint8
    assert moved.shape == batch.shape
    counts = np.bincount([slow[one.numpy().tobytes()] for one in moved.contiguous()], minlength=len(moves))
    assert chisquare(counts).pvalue > 1e-4


def test_images_of_a_batch_move_independently():
    batch = images(40)
    moved = augmented(batch, augmentation="shift_flip", shift_pixels=2)
    moves = list(product(range(-2, 3), range(-2, 3), (False, True)))
    found = [
        [move for move in moves if np.array_equal(slowly_moved(image, *move), one)]
        for image, one in zip(batch.numpy(), moved.numpy(), strict=True)
    ]
    assert all(len(fits) == 1 for fits in found)
    assert len({fits[0] for fits in found}) > 15


def test_none_returns_the_images():
    batch = images(3)
    assert augmented(batch) is batch


def test_flips_alone():
    batch = images(64)
    moved = augmented(batch, augmentation="shift_flip", shift_pixels=0)
    mirrored = (moved == batch.flip(3)).flatten(1).all(dim=1)
    assert ((moved == batch).flatten(1).all(dim=1) ^ mirrored).all()
    assert 10 < mirrored.sum() < 54


def test_shifts_beyond_the_image():
    moved = augmented(images(200), augmentation="shift", shift_pixels=30)
    assert (moved == 0).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["none", "shift", "shift_flip", "trivial_augment"])
def test_images_are_not_written_to_and_the_generator_decides(kind, channels):
    batch = images(5, channels)
    before = batch.clone()
    one, same, other = (augmented(batch, seed=seed, augmentation=kind, shift_pixels=2) for seed in (1, 1, 2))
    assert torch.equal(batch, before)
    assert batch._version == 0
    assert torch.equal(one, same)
    assert kind == "none" or not torch.equal(one, other)


def test_trivial_augment_changes_most_images_after_the_move_and_each_its_own_way():
    batch = images(1, height=12, width=12).expand(300, -1, -1, -1)
    moved = augmented(batch, augmentation="shift_flip", shift_pixels=1)
    changed = augmented(batch, augmentation="trivial_augment", shift_pixels=1)
    assert changed.dtype == torch.uint8 and changed.shape == batch.shape
    same = (changed == moved).flatten(1).all(dim=1)
    # The identity is one of 14 operations, and some others have a strength without effect.
    assert 10 < same.sum() < 150
    assert len({one.numpy().tobytes() for one in changed}) > 100


def test_trivial_augment_leaves_the_random_state_of_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augmented(images(4), augmentation="trivial_augment")
    assert torch.equal(torch.rand(3), expected)


def test_trivial_augment_of_a_share_leaves_the_other_images_moved_only():
    batch = images(1, height=12, width=12).expand(400, -1, -1, -1)
    moved = augmented(batch, augmentation="shift_flip", shift_pixels=1)
    same = {}
    for share in (0.01, 0.5, 1.0):
        changed = augmented(batch, augmentation="trivial_augment", augmentation_share=share, shift_pixels=1)
        same[share] = int((changed == moved).flatten(1).all(dim=1).sum())
    assert same[0.01] > 380
    assert 180 < same[0.5] - same[1.0] / 2 < 220
