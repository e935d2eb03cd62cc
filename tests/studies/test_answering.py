import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.simulated import simulated_part, subject_of

from patchcert.certificates import (
    certify_counting,
    certify_fresh_draw,
    certify_placement,
    certify_random_crops_reported,
    clopper_pearson_lower,
    wilson_interval,
)
from patchcert.errors import StudyError
from patchcert.geometry import BandViews, BlockViews, CropViews, PixelViews, SampledViews
from patchcert.studies import StudyConfig, answer_part, combine, per_image_table, summarise
from patchcert.studies.answering import ANSWER_COLUMNS
from patchcert.studies.questions import questions
from patchcert.votes import draw_views

CROPS = CropViews(image_size=(12, 10), crop_size=(4, 3))
CROP_CONFIG = StudyConfig(
    patches=("1x1", "2x3", "5x4"),
    certificates=("counting", "placement", "random_crops_reported", "random_crops_exact", "fresh_draw"),
    vote_thresholds=(0.3,),
    num_draws=(16, 40),
    replacement=("with", "without"),
    min_confidences=(0.5, 0.95),
)


@pytest.fixture(scope="module")
def part():
    return simulated_part(CROPS, 60, num_classes=5, score_floor=0.1, first_row=7)


@pytest.fixture(scope="module")
def asked(part):
    return questions(CROP_CONFIG, CROPS, part.score_floor)


@pytest.fixture(scope="module")
def independent(part, asked):
    """Question -> its answer by ``independent_answer``."""
    return {question: independent_answer(part, CROPS, question) for question in asked}


def independent_answer(part, views, question):
    """Predictions and verdicts for one question about one image after another, with nothing shared."""
    predictions, certified = [], []
    for i, row in enumerate(range(part.first_row, part.first_row + len(part.labels_N))):
        one = part.rows(i, i + 1)
        if question.vote_threshold is not None:
            votes_VK = one.votes(vote_threshold=question.vote_threshold)[0]
        else:
            votes_VK = np.eye(part.num_classes, dtype=bool)[one.top_classes_NV[0]]
        if question.certificate == "fresh_draw":
            outcome = certify_fresh_draw(
                one.votes("top_class"),
                views,
                question.patch,
                num_classes=part.num_classes,
                num_draws=question.num_draws,
                min_confidence=question.min_confidence,
                replacement=question.replacement,
            )
        elif question.replacement is not None:
            drawn = draw_views(
                views.num_views,
                question.num_draws,
                range(row, row + 1),
                replacement=question.replacement,
                seed=question.seed,
            )
            outcome = certify_random_crops_reported(
                votes_VK[drawn[0]].sum(axis=0)[None],
                num_draws=question.num_draws,
                affected=views.affected(question.patch),
                num_views=views.num_views,
                min_confidence=question.min_confidence,
                replacement=question.replacement,
                law="exact" if question.certificate == "random_crops_exact" else "reported",
            )
        elif question.certificate == "counting":
            outcome = certify_counting(votes_VK.sum(axis=0)[None], views.affected(question.patch))
        else:
            outcome = certify_placement(votes_VK[None], views, question.patch)
        assert outcome.guarantee == question.kind.guarantee
        predictions.append(outcome.predictions_N[0])
        certified.append(outcome.certified_N[0])
    return np.array(predictions), np.array(certified)


def test_answers_equal_those_of_one_question_and_one_image_at_a_time(part, asked, independent):
    columns = answer_part(part, CROPS, asked).columns
    for question in asked:
        predictions_N, certified_N = independent[question]
        np.testing.assert_array_equal(columns[f"prediction/{question.ballot_key}"], predictions_N)
        np.testing.assert_array_equal(columns[f"certified/{question.key}"], certified_N)
        if question.min_confidence is None:
            np.testing.assert_array_equal(columns[f"margin/{question.key}"] >= 0, certified_N)
        else:
            confidence = columns[f"confidence/{question.confidence_key}"]
            np.testing.assert_array_equal(confidence >= question.min_confidence, certified_N)


def by_hand(classes_S, num_selection, num_classes, probability, min_confidence):
    """Prediction and verdict of one image from its samples, as Cohen et al. 2019 write them."""
    prediction = np.bincount(classes_S[:num_selection], minlength=num_classes).argmax()
    votes, total = (classes_S[num_selection:] == prediction).sum(), len(classes_S) - num_selection
    return prediction, clopper_pearson_lower(votes, total, min_confidence) > 0.5 + probability


def test_samples_are_drawn_from_the_votes_of_all_views(part):
    config = StudyConfig(
        certificates=("sampled",), patches=("1x1", "2x3"), num_selection=20, num_estimation=(80, 300), seed=5
    )
    asked = questions(config, CROPS, None)
    columns = answer_part(part, CROPS, asked).columns
    certified = 0
    for question in asked:
        num_samples = 20 + question.num_draws
        for i, row in enumerate(range(7, 67)):
            drawn = draw_views(CROPS.num_views, num_samples, range(row, row + 1), replacement=True, seed=5)[0]
            prediction, verdict = by_hand(
                part.top_classes_NV[i, drawn].astype(int), 20, 5, CROPS.affected_probability(question.patch), 0.95
            )
            assert columns[f"prediction/{question.ballot_key}"][i] == prediction
            assert columns[f"certified/{question.key}"][i] == verdict
            certified += verdict
    assert 0 < certified < 60 * len(asked)
    pieces = [answer_part(part.rows(*rows), CROPS, asked, chunk_bytes=1) for rows in ((0, 31), (31, 60))]
    assert per_image_table(pieces).equals(per_image_table([answer_part(part, CROPS, asked)]))


def test_samples_that_were_voted_on_are_split_into_choice_and_estimate():
    views = SampledViews(views=PixelViews(image_size=(9, 7), num_pixels=2), num_samples=150)
    part = simulated_part(views, 40, num_classes=3)
    config = StudyConfig(certificates=("sampled",), patches=("1x1", "3x3"), num_selection=30, num_estimation=(120, 90))
    asked = questions(config, views, None)
    columns = answer_part(part, views, asked).columns
    for question in asked:
        probability = views.affected_probability(question.patch)
        for i in range(40):
            samples = part.top_classes_NV[i, : 30 + question.num_draws].astype(int)
            prediction, verdict = by_hand(samples, 30, 3, probability, 0.95)
            assert columns[f"prediction/{question.ballot_key}"][i] == prediction
            assert columns[f"certified/{question.key}"][i] == verdict
    answers = summarise([answer_part(part, views, asked)], asked, subject_of(views, part, "sparse2-test"))
    assert set(answers["guarantee"]) == {"probabilistic"} and set(answers["min_confidence"]) == {0.95}
    assert answers["certified_accuracy"].max() > 0 and (answers["num_views"] == 150).all()
    assert answers["base_accuracy"].unique() == [(part.top_classes_NV == part.labels_N[:, None]).mean()]


@settings(max_examples=4)
@given(
    cuts=st.lists(st.integers(1, 59), max_size=5, unique=True), chunk_bytes=st.sampled_from([1, 5_000, 20_000, 2**26])
)
def test_answers_do_not_depend_on_parts_order_or_chunks(part, asked, cuts, chunk_bytes):
    asked = [question for question in asked if question.patch.label == "2x3"]
    whole = per_image_table([answer_part(part, CROPS, asked)])
    borders = [0, *sorted(cuts), 60]
    pieces = [
        answer_part(part.rows(start, stop), CROPS, asked, chunk_bytes=chunk_bytes)
        for start, stop in itertools.pairwise(borders)
    ]
    assert per_image_table(pieces[::-1]).equals(whole)


def test_votes_are_not_written_to(part, asked):
    frozen = dataclasses.replace(part)
    for field in dataclasses.fields(frozen):
        if isinstance(value := getattr(frozen, field.name), np.ndarray):
            value = value.copy()
            value.flags.writeable = False
            object.__setattr__(frozen, field.name, value)
    answer_part(frozen, CROPS, asked)


def test_rows_hold_what_was_asked_and_measured(part, asked, independent):
    subject = subject_of(CROPS, part, "crop4-test")
    answers = summarise([answer_part(part, CROPS, asked)], asked, subject)
    assert tuple(answers.columns) == ANSWER_COLUMNS and len(answers) == len(asked)
    for question, (_, row) in zip(asked, answers.iterrows(), strict=True):
        predictions_N, certified_N = independent[question]
        correct_N = predictions_N == part.labels_N
        assert row["clean_accuracy"] == correct_N.mean()
        assert row["certified_accuracy"] == (correct_N & certified_N).mean()
        assert (row["certified_low"], row["certified_high"]) == wilson_interval(
            int((correct_N & certified_N).sum()), 60
        )
        assert (row["clean_low"], row["clean_high"]) == wilson_interval(int(correct_N.sum()), 60)
        assert (row["patch"], row["patch_area"]) == (question.patch.label, question.patch.area)
        assert row["patch_fraction"] == question.patch.area / 120
        assert row["num_draws"] == question.num_draws and row["affected"] == question.affected
    assert answers["base_accuracy"].unique() == [(part.top_classes_NV == part.labels_N[:, None]).mean()]
    assert dict(zip(answers["certificate"], answers["guarantee"], strict=True)) == {
        "counting": "deterministic",
        "placement": "deterministic",
        "random_crops_reported": "heuristic",
        "random_crops_exact": "heuristic",
        "fresh_draw": "probabilistic",
    }
    placement = answers[answers["certificate"] == "placement"]["certified_accuracy"].to_numpy()
    assert (placement >= answers[answers["certificate"] == "counting"]["certified_accuracy"].to_numpy()).all()


@pytest.mark.parametrize(("is_right", "expected"), [(True, 1.0), (False, 0.0)])
def test_all_and_none_certified_print_one_and_zero(is_right, expected):
    views = BandViews(image_size=(9, 14), width=2)
    part = simulated_part(views, 8, num_classes=3)
    classes_NV = np.repeat(part.labels_N[:, None] if is_right else (part.labels_N[:, None] + 1) % 3, 14, axis=1)
    part = dataclasses.replace(part, top_classes_NV=classes_NV.astype(np.uint16))
    asked = questions(StudyConfig(patches=("1x1",)), views, None)
    answers = summarise([answer_part(part, views, asked)], asked, subject_of(views, part, "column2"))
    assert (answers[["base_accuracy", "clean_accuracy", "certified_accuracy"]] == expected).all(axis=None)


def test_infeasible_rows_certify_nothing_and_say_what_they_need():
    views = BandViews(image_size=(9, 14), width=2)
    part = simulated_part(views, 30, num_classes=3)
    asked = questions(StudyConfig(patches=("9x8",)), views, None)
    answers = summarise([answer_part(part, views, asked)], asked, subject_of(views, part, "column2"))
    assert not answers["feasible"].any() and (answers["certified_accuracy"] == 0).all()
    assert answers["note"].str.contains("infeasible: needs a lead of 18 votes, there are 14 views").all()


def test_quarantined_images_count_as_wrong(part, asked):
    parts = [answer_part(part, CROPS, asked)]
    whole = summarise(parts, asked, subject_of(CROPS, part, "crop4"))
    counted = summarise(parts, asked, subject_of(CROPS, part, "crop4", num_quarantined=20))
    for name in ("base_accuracy", "clean_accuracy", "certified_accuracy"):
        np.testing.assert_allclose(counted[name], whole[name] * 60 / 80)
    assert (counted["num_images"] == 80).all()
    assert counted["note"].str.contains("20 unreadable images count as wrong").all()


def test_repeats_average_independent_draws(part):
    single = StudyConfig(patches=("1x1", "2x3"), certificates=("random_crops_reported",), num_draws=(16,))
    repeated = dataclasses.replace(single, repeats=9)
    subject = subject_of(CROPS, part, "crop4")
    asked = questions(repeated, CROPS, part.score_floor)
    answers = summarise([answer_part(part, CROPS, asked)], asked, subject)
    top_classes_NV = part.top_classes_NV.astype(np.int64)
    for question, (_, row) in zip(asked, answers.iterrows(), strict=True):
        clean, certified = [], []
        for repeat in range(9):
            rows = range(part.first_row, part.first_row + 60)
            drawn_ND = draw_views(CROPS.num_views, 16, rows, replacement=True, seed=0, repeat=repeat)
            votes_NDK = np.eye(5, dtype=np.int64)[np.take_along_axis(top_classes_NV, drawn_ND, axis=1)]
            outcome = certify_random_crops_reported(
                votes_NDK.sum(axis=1),
                num_draws=16,
                affected=question.affected,
                num_views=CROPS.num_views,
                min_confidence=0.95,
            )
            clean.append(outcome.clean_accuracy(part.labels_N))
            certified.append(outcome.certified_accuracy(part.labels_N))
        assert row["clean_accuracy"] == pytest.approx(np.mean(clean))
        assert row["certified_accuracy"] == pytest.approx(np.mean(certified))
        assert "mean of 9 draws" in row["note"]
    assert len(set(clean)) > 1, "repeats draw anew"


def test_views_of_another_number_are_refused(part, asked):
    with pytest.raises(StudyError, match="votes are those of 72 views, the study asks about row bands"):
        answer_part(part, BandViews(image_size=(12, 10), width=2, axis="row"), asked)


def test_missing_doubled_and_foreign_parts_are_refused(part, asked):
    subject = subject_of(CROPS, part, "crop4")
    first = answer_part(part.rows(0, 30), CROPS, asked)
    with pytest.raises(StudyError, match="hold 30 images"):
        summarise([first], asked, subject)
    with pytest.raises(StudyError, match=r"hold 60 images \(30 different ones\)"):
        summarise([first, first], asked, subject)
    with pytest.raises(StudyError, match="not of 0"):
        summarise([], asked, subject)
    with pytest.raises(StudyError, match="answer different questions"):
        summarise([first, answer_part(part.rows(30, 60), CROPS, asked[:2])], asked, subject)


def answers_of(views, **changes):
    part = simulated_part(views, 20, num_classes=3)
    asked = questions(StudyConfig(patches=("1x1", "2x2")), views, None)
    return summarise([answer_part(part, views, asked)], asked, subject_of(views, part, **changes))


def test_rows_of_other_images_are_marked_in_a_comparison():
    views = BlockViews(image_size=(8, 9), block_size=3)
    same = combine([answers_of(views), answers_of(views, defense="b")])
    assert not same["note"].str.contains("not comparable").any()
    other = combine([answers_of(views), answers_of(views, defense="b", split="validation", split_digest="ef" * 32)])
    assert not other["note"].iloc[:4].str.contains("not comparable").any()
    assert other["note"].iloc[4:].str.contains("not comparable: other images than cifar10 test .20 images, abab").all()


def test_patches_on_different_tensors_are_never_mixed():
    views = BlockViews(image_size=(8, 9), block_size=3)
    resized = answers_of(views, defense="b", resize="stretch", interpolation="bilinear")
    assert set(resized["tensor"]) == {"network input"}
    with pytest.raises(StudyError, match="native tensor and some on the network input tensor"):
        combine([answers_of(views), resized])
    with pytest.raises(StudyError, match="at least one study, not 0"):
        combine([])
