import dataclasses
from typing import get_args

import pytest

from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews, Patch, PixelViews, SampledViews
from patchcert.studies.config import CERTIFICATES
from patchcert.studies.published import Metric, published_numbers, reported

THRESHOLD = {"certificate": "counting", "vote_rule": "threshold", "draws": "all", "min_confidence": float("nan")}
DRAWN = {"certificate": "random_crops_reported", "vote_rule": "top_class", "vote_threshold": float("nan")}


def found(column_study, views, row, *, metric="certified", **changes):
    subject = dataclasses.replace(column_study.subject, views=views.identity(), **changes)
    return {number.value for number in reported(subject, {"num_draws": views.num_views, **row}, metric)}


def test_numbers_are_fractions_and_patches_are_readable():
    numbers = published_numbers()
    assert len(numbers) > 150
    for number in numbers:
        assert number.value > 0 and number.source and number.table
        assert number.value < 1 or number.metric == "milliseconds"
        assert number.metric in get_args(Metric)
        assert number.certificate in ("", *CERTIFICATES)
        if number.patch:
            assert Patch.parse(number.patch, (299, 299)).label == number.patch


@pytest.mark.parametrize(
    ("views", "dataset", "threshold", "certified", "clean"),
    [
        (BandViews(image_size=(32, 32), width=4), "cifar10", 0.3, 0.5783, 0.8393),
        (BlockViews(image_size=(32, 32), block_size=12), "cifar10", 0.3, 0.5569, 0.8644),
        (BandViews(image_size=(28, 28), width=2), "mnist", 0.3, 0.5283, 0.9666),
        (BandViews(image_size=(28, 28), width=2, axis="row"), "mnist", 0.3, 0.4535, 0.9366),
        (BlockViews(image_size=(28, 28), block_size=8), "mnist", 0.2, 0.44, 0.9594),
    ],
)
def test_structured_ablation_papers_are_found(column_study, views, dataset, threshold, certified, clean):
    row = THRESHOLD | {"patch": "5x5", "vote_threshold": threshold}
    assert found(column_study, views, row, dataset=dataset) == {certified}
    assert found(column_study, views, row, dataset=dataset, metric="clean") == {clean}


def test_sampled_smoothing_is_found_beside_exhaustive_votes(column_study):
    row = DRAWN | {"certificate": "sampled", "patch": "5x5", "num_draws": 10_000, "draws": "with replacement"}
    row |= {"min_confidence": 0.95}
    columns = BandViews(image_size=(28, 28), width=6)
    assert found(column_study, columns, row, dataset="mnist") == {0.1648}
    exhaustive = THRESHOLD | {"vote_rule": "top_class", "vote_threshold": float("nan"), "patch": "5x5"}
    assert found(column_study, columns, exhaustive, dataset="mnist") == {0.2233}
    for num_pixels, certified, clean in ((5, 0.0804, 0.3232), (10, 0.0573, 0.749)):
        pixels = PixelViews(image_size=(28, 28), num_pixels=num_pixels)
        views = SampledViews(views=pixels, num_samples=11_000)
        assert found(column_study, views, row, dataset="mnist") == {certified}
        assert found(column_study, views, row, dataset="mnist", metric="clean") == {clean}
        assert not found(column_study, views, row | {"num_draws": 1_000}, dataset="mnist")


def test_a_number_without_its_size_is_kept_but_matches_nothing(column_study):
    """The best two blocks of Table 7: neither pitch nor threshold are recorded."""
    assert [number.value for number in published_numbers() if number.defense == "two_blocks"] == [0.4345, 0.9229]
    views = CellViews(image_size=(28, 28), pitch=4, num_cells=2)
    assert not found(column_study, views, THRESHOLD | {"patch": "5x5", "vote_threshold": 0.3}, dataset="mnist")


def test_times_and_the_variance_study_are_there_as_numbers_of_their_own():
    milliseconds = {
        (number.dataset, number.defense): number.value
        for number in published_numbers()
        if number.metric == "milliseconds"
    }
    assert milliseconds["cifar10", "crop"] == 0.7 and milliseconds["imagenet", "drs_measured_by_rc"] == 703.2
    assert len(milliseconds) == 8
    variances = {number.num_draws: number.value for number in published_numbers() if number.metric == "p_c_variance"}
    assert variances == {64: 0.009, 128: 0.005, 256: 0.003, 512: 0.001}


def test_draws_confidences_and_shapes_of_the_crop_paper_are_found(column_study):
    crops = CropViews(image_size=(32, 32), crop_size=10)

    def crop(patch, num_draws=128, draws="with replacement", confidence=0.95):
        row = DRAWN | {"patch": patch, "num_draws": num_draws, "draws": draws, "min_confidence": confidence}
        return found(column_study, crops, row)

    assert crop("5x5") == {0.523} and crop("5x5", confidence=0.99) == {0.496}
    assert crop("12x2") == {0.475} and crop("2x12") == {0.475} and crop("7x7") == {0.48}
    assert crop("5x5", 512) == {0.55} and crop("5x5", 512, "without replacement") == {0.008}
    assert crop("5x5", 100) == set()


@pytest.mark.parametrize(
    "changes", [{"dataset": "digits"}, {"split": "validation"}, {"dataset": "imagenet-sample"}, {"dataset": "mnist"}]
)
def test_other_images_match_nothing(column_study, changes):
    views = BandViews(image_size=(32, 32), width=4)
    row = THRESHOLD | {"patch": "5x5", "vote_threshold": 0.3}
    assert found(column_study, views, row)
    assert found(column_study, views, row, **changes) in (set(), {0.3234})  # mnist has a number of its own at width 4


def test_other_settings_match_nothing(column_study):
    row = THRESHOLD | {"patch": "5x5", "vote_threshold": 0.3}
    column = BandViews(image_size=(32, 32), width=4)
    assert not found(column_study, column, row | {"patch": "6x6"})
    assert not found(column_study, column, row | {"vote_threshold": 0.2})
    assert not found(column_study, column, row | {"certificate": "placement"})
    assert not found(column_study, column, row | {"vote_rule": "top_class", "vote_threshold": float("nan")})
    assert not found(column_study, BandViews(image_size=(32, 32), width=4, stride=2), row)
    assert not found(column_study, CropViews(image_size=(32, 32), crop_size=(10, 12)), row)


def test_jpeg_edition_is_compared_with_the_original(column_study):
    row = THRESHOLD | {"patch": "5x5", "vote_threshold": 0.3}
    assert found(column_study, BandViews(image_size=(32, 32), width=4), row, dataset="cifar10-jpeg") == {0.5783}
