"""Paired comparison against a direct bootstrap over images and the binomial by hand."""

import numpy as np
import pytest

from patchcert.certificates import CertificateError, compare_paired


def results(only_first, only_second, both, neither):
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemar_is_the_exact_binomial():
    """8 against 2 of 10: 2 * (1 + 10 + 45) / 1024."""
    comparison = compare_paired(*results(8, 2, 30, 10), np.random.default_rng(0))
    assert comparison.p_value == pytest.approx(112 / 1024)
    assert (comparison.only_first, comparison.only_second, comparison.num_images) == (8, 2, 50)
    assert comparison.difference == pytest.approx(6 / 50)
    assert compare_paired(*results(3, 3, 5, 5), np.random.default_rng(0)).p_value == 1.0
    assert compare_paired(*results(0, 0, 5, 5), np.random.default_rng(0)).p_value == 1.0


def test_bootstrap_interval_is_that_of_resampled_images():
    first, second = results(40, 25, 100, 35)
    rng = np.random.default_rng(1)
    picks = rng.integers(0, 200, (20_000, 200))
    direct = np.quantile(first[picks].mean(axis=1) - second[picks].mean(axis=1), [0.025, 0.975])
    comparison = compare_paired(first, second, rng, num_resamples=20_000)
    assert (comparison.low, comparison.high) == pytest.approx(direct, abs=0.006)
    assert comparison.low < comparison.difference < comparison.high


def test_same_generator_same_interval():
    pair = results(40, 25, 100, 35)
    assert compare_paired(*pair, np.random.default_rng(3)) == compare_paired(*pair, np.random.default_rng(3))


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ([True], [True, False], {}, r"shapes \(1,\) and \(2,\)"),
        ([1], [0], {}, "types int64"),
        (np.zeros(0, bool), np.zeros(0, bool), {}, "0 images"),
        ([True], [True], {"num_resamples": 0}, "0 resamples"),
        ([True], [True], {"confidence": 1.2}, "confidence is 1.2"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(first, second, options, message):
    with pytest.raises(CertificateError, match=message):
        compare_paired(first, second, np.random.default_rng(0), **options)
