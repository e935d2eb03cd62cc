import dataclasses

import numpy as np
import pytest
from studies import simulated

from patchcert.certificates import compare_paired, wilson_interval
from patchcert.studies import StudyConfig
from patchcert.studies.closer_look import accuracy_by_class, compare_defenses, image_outcomes, images_at_the_edge


@pytest.fixture(scope="module")
def outcomes(results):
    return [image_outcomes(result.answers, result.per_image(), "5x5") for result in results]


def test_outcomes_are_those_of_the_headline(results, outcomes):
    for result, images in zip(results, outcomes, strict=True):
        rows = result.answers.query("patch == '5x5' and certificate == 'placement'")
        assert images.correct_N.mean() == rows["clean_accuracy"].iloc[0]
        assert images.certified_N.mean() == rows["certified_accuracy"].iloc[0]
    assert outcomes[0].words == "placement, score \u2265 0.3" and outcomes[1].words == "placement, top class"


def test_a_tolerance_and_a_missing_theorem_are_found(tmp_path, column_study):
    config = dataclasses.replace(column_study.config, score_tolerance=0.05)
    study = simulated.make_study(column_study.views, column_study.part, config, "tolerant")
    result = simulated.write(study, tmp_path / "tolerant")
    rows = result.answers.query("patch == '2x2' and certificate == 'placement' and vote_threshold == 0.3")
    images = image_outcomes(result.answers, result.per_image(), "2x2")
    assert images.certified_N.mean() == rows["certified_accuracy"].iloc[0]
    assert image_outcomes(result.answers, result.per_image(), "11x11") is None


def test_classes_add_up_to_the_whole_and_come_worst_first(outcomes):
    for images in outcomes:
        rows = accuracy_by_class(images)
        assert rows["num_images"].sum() == 300 and rows["certified_accuracy"].is_monotonic_increasing
        for name, success_N in (("clean", images.correct_N), ("certified", images.certified_N)):
            assert (rows["num_images"] * rows[f"{name}_accuracy"]).sum() == pytest.approx(success_N.sum())
        row = rows.iloc[4]
        of_class_N = images.labels_N == row["label"]
        bounds = wilson_interval(int((images.certified_N & of_class_N).sum()), int(of_class_N.sum()))
        assert (row["certified_low"], row["certified_high"]) == bounds


def test_edges_are_the_fewest_votes_on_either_side(outcomes):
    for images in outcomes:
        losing, gaining = images_at_the_edge(images, 5)
        right = images.margin_N[images.correct_N]
        np.testing.assert_array_equal(losing["votes_to_spare"], np.sort(right[right >= 0])[:5])
        np.testing.assert_array_equal(gaining["votes_to_spare"], np.sort(right[right < 0])[::-1][:5])
        margins = dict(zip(images.image_ids, images.margin_N, strict=True))
        assert [margins[name] for name in losing["image_id"]] == list(losing["votes_to_spare"])


def test_pairs_are_compared_image_by_image(outcomes):
    first, second = outcomes
    (row,) = compare_defenses(outcomes).to_dict("records")
    both = int((first.certified_N & second.certified_N).sum())
    assert (row["both"], row["neither"]) == (both, int((~first.certified_N & ~second.certified_N).sum()))
    assert row["both"] + row["neither"] + row["only_first"] + row["only_second"] == row["num_images"] == 300
    assert row["agreement"] == pytest.approx((row["both"] + row["neither"]) / 300)
    paired = compare_paired(first.certified_N, second.certified_N, np.random.default_rng(0))
    assert (row["difference"], row["low"], row["high"]) == (paired.difference, paired.low, paired.high)
    assert row["p_value"] == paired.p_value and row["low"] <= row["difference"] <= row["high"]


def test_other_images_are_not_compared(outcomes):
    first, second = outcomes
    assert compare_defenses([first, dataclasses.replace(second, split_digest="ef" * 32)]).empty
    assert compare_defenses([first, dataclasses.replace(second, image_ids=second.image_ids[::-1])]).empty
    assert len(compare_defenses([first, second, dataclasses.replace(second, defense="third")])) == 3


def test_a_study_of_heuristics_only_has_no_outcomes(tmp_path, crop_study):
    config = StudyConfig(certificates=("random_crops_reported",), num_draws=(64,), patches=("1x1",))
    part = crop_study.part.rows(0, 20)
    study = simulated.make_study(crop_study.views, part, config, "heuristics")
    result = simulated.write(study, tmp_path / "study")
    assert image_outcomes(result.answers, result.per_image(), "1x1") is None
