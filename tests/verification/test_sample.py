"""How a sample is drawn, and what is said about its size."""

import itertools

import numpy as np
import pytest

from patchcert.verification.sample import chance_to_see, reach_in_words, sampled


@pytest.mark.parametrize(("num_images", "num_forged", "num_sampled"), [(6, 2, 3), (7, 0, 2), (5, 5, 1), (6, 4, 3)])
def test_the_chance_is_that_of_all_samples(num_images, num_forged, num_sampled):
    samples = list(itertools.combinations(range(num_images), num_sampled))
    seen = sum(min(sample) < num_forged for sample in samples)
    chance = chance_to_see(num_forged, num_images, num_sampled)
    assert chance == pytest.approx(seen / len(samples))
    assert chance >= 1 - (1 - num_forged / num_images) ** num_sampled - 1e-12


def test_words():
    assert reach_in_words(10_000, 64) == (
        "64 of 10,000 images scored again: forgery of 5 % or more of the images would be seen with 96 %"
    )
    assert reach_in_words(40, 40) == "40 of 40 images scored again: forgery of any image would be seen"
    assert reach_in_words(10_000, 5_000).endswith("seen with 99 %")
    assert reach_in_words(100, 96).endswith("seen with 100 %")
    assert reach_in_words(1_000_000, 1).endswith("seen with 5 %")


def test_a_seed_gives_its_sample_and_another_gives_another():
    rows = np.arange(3, 500)
    one, again, other = (sampled(rows, 20, seed) for seed in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()
    assert len(set(one.tolist())) == 20 and set(one.tolist()) <= set(rows.tolist()) and (np.diff(one) > 0).all()
    assert sampled(rows, 10_000, 0).tolist() == rows.tolist()


def test_every_image_is_as_likely():
    counts = sum(np.bincount(sampled(np.arange(10), 3, seed), minlength=10) for seed in range(2_000))
    assert counts.min() > 500 and counts.max() < 700
