"""Votes near their threshold: verdicts and score margins against every way in which the doubtful votes may fall."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    ballots_of,
    band_pixels,
    can_be_flipped_by_one_rival,
    incidence_by_pixels,
    placement_pixels,
    tally,
    winner,
)
from studies.simulated import simulated_part, subject_of

from patchcert.geometry import BandViews
from patchcert.studies import StudyConfig, answer_part, per_image_table, summarise
from patchcert.studies.answering import FARTHEST
from patchcert.studies.questions import questions
from patchcert.votes import SCORE_SCALE, VotePart, rounded_score

VIEWS = BandViews(image_size=(2, 6), width=1)
INCIDENCE_PV = incidence_by_pixels(band_pixels((2, 6), 1, "column", 1), placement_pixels((2, 6), [[True]]))
FLOOR = 0.1
# 0.3 lies between two stored scores, 0.2 on one, and 1/15 as it prints just above one (its floor is lower).
THRESHOLDS = {0.3: FLOOR, 0.2: FLOOR, 0.06666666666666667: 0.001}


def part_of_scores(scores_NVK, score_floor):
    kept = scores_NVK >= rounded_score(score_floor)
    return VotePart(
        image_ids=np.array([f"{i:03d}" for i in range(len(scores_NVK))]),
        labels_N=np.zeros(len(scores_NVK), dtype=np.int64),
        top_classes_NV=scores_NVK.argmax(axis=2).astype(np.uint16),
        num_entries_NV=kept.sum(axis=2, dtype=np.uint16),
        entry_classes=np.nonzero(kept)[2].astype(np.uint16),
        entry_scores=scores_NVK[kept].astype(np.uint16),
        num_classes=scores_NVK.shape[2],
        score_floor=score_floor,
    )


def near_threshold_scores(seed, threshold, num_images=2):
    """Clear scores that mostly back class 0 or 1, and a few within 4 units of the threshold."""
    rng = np.random.default_rng(seed)
    shares = rng.choice([0.1, 0.5, 0.9], (num_images, 1, 3))
    scores_NVK = np.where(rng.random((num_images, 6, 3)) < shares, 50_000, 0)
    close = rng.random(scores_NVK.shape) < 0.25
    return np.where(close, rounded_score(threshold) + rng.integers(-4, 5, scores_NVK.shape), scores_NVK)


def outcomes(scores_VK, threshold, units, holds):
    """Whether the plain prediction holds, for every way in which votes within so many units may fall."""
    exact = Fraction(repr(threshold)) * SCORE_SCALE
    votes_VK = scores_VK >= rounded_score(threshold)
    before = winner(tally(ballots_of(votes_VK), 3))
    doubtful = np.argwhere([[abs(int(score) - exact) <= units for score in row] for row in scores_VK])
    for fallen in itertools.product([False, True], repeat=len(doubtful)):
        votes = votes_VK.copy()
        votes[tuple(doubtful.T)] = fallen
        yield winner(tally(ballots_of(votes), 3)) == before and holds(votes)


def holds_everywhere(votes_VK):
    return not can_be_flipped_by_one_rival(ballots_of(votes_VK), INCIDENCE_PV, 3)


def holds_by_counts(votes_VK):
    """One moved vote (one view is affected): one less for the winner, one more for any rival."""
    counts = tally(ballots_of(votes_VK), 3)
    before = winner(counts)
    rivals = [k for k in range(3) if k != before]
    return all(winner([n - (k == before) + (k == rival) for k, n in enumerate(counts)]) == before for rival in rivals)


def answered(scores_NVK, threshold, tolerance):
    part = part_of_scores(scores_NVK, THRESHOLDS[threshold])
    config = StudyConfig(patches=("1x1",), vote_thresholds=(threshold,), top_class=False, score_tolerance=tolerance)
    asked = questions(config, VIEWS, part.score_floor)
    return asked, answer_part(part, VIEWS, asked).columns


@examples(60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(THRESHOLDS)), st.sampled_from([0.0, 0.5, 1.0, 2.5, 4.0]))
def test_certified_means_however_the_doubtful_votes_fall(seed, threshold, units):
    scores_NVK = near_threshold_scores(seed, threshold)
    asked, columns = answered(scores_NVK, threshold, units / SCORE_SCALE)
    for question, holds in zip(asked, (holds_by_counts, holds_everywhere), strict=True):
        # Without a tolerance not even a score exactly at the threshold is in doubt.
        within = Fraction(repr(units / SCORE_SCALE)) * SCORE_SCALE if units else Fraction(-1)
        expected = [all(outcomes(scores_VK, threshold, within, holds)) for scores_VK in scores_NVK]
        near = [all(outcomes(scores_VK, threshold, max(within, Fraction(1)), holds)) for scores_VK in scores_NVK]
        assert columns[f"certified/{question.key}"].tolist() == expected
        hangs = [now and not then for now, then in zip(expected, near, strict=True)]
        assert columns[f"near_threshold/{question.key}"].tolist() == hangs
    plain = [winner(tally(ballots_of(scores_VK >= rounded_score(threshold)), 3)) for scores_VK in scores_NVK]
    assert columns[f"prediction/{asked[0].ballot_key}"].tolist() == plain


@examples(60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(THRESHOLDS)))
def test_score_margins_are_the_last_unit_at_which_the_verdict_holds(seed, threshold):
    scores_NVK = near_threshold_scores(seed, threshold)
    asked, columns = answered(scores_NVK, threshold, 0.0)
    certified_N = columns[f"certified/{asked[1].key}"]
    margins_N = columns[f"score_margin/{asked[1].key}"] * SCORE_SCALE
    np.testing.assert_allclose(margins_N, margins_N.round(), atol=1e-6)
    for scores_VK, certified, units in zip(
        scores_NVK, certified_N, margins_N.round().astype(int).tolist(), strict=True
    ):

        def stays(units, scores_VK=scores_VK, certified=certified):
            found = outcomes(scores_VK, threshold, units, holds_everywhere)
            return all(found) if certified else not any(found)

        if units > 0:
            assert stays(units)
        if units < 2 ** (int(min(FARTHEST, (threshold - THRESHOLDS[threshold]) * SCORE_SCALE)).bit_length() - 1):
            assert not stays(units + 1)


def real_sized():
    views = BandViews(image_size=(12, 12), width=3)
    return views, simulated_part(views, 80, num_classes=5, score_floor=FLOOR)


def test_a_tolerance_only_ever_takes_certificates_and_follows_the_score_margin():
    views, part = real_sized()
    config = {"patches": ("2x2", "1x1"), "headline_patch": "2x2", "vote_thresholds": (0.3,), "top_class": False}
    plain = answer_part(part, views, questions(StudyConfig(**config), views, FLOOR)).columns
    margin_N = plain["score_margin/placement/2x2/threshold=0.3/all"]
    assert "score_margin/placement/1x1/threshold=0.3/all" not in plain
    lost = 0
    for tolerance in (0.001, 0.01, 0.05):
        asked = questions(StudyConfig(**config, score_tolerance=tolerance), views, FLOOR)
        columns = answer_part(part, views, asked).columns
        rows = summarise([answer_part(part, views, asked)], asked, subject_of(views, part))
        assert (rows["score_tolerance"] == tolerance).all()
        for question in asked:
            was_N = plain[f"certified/{question.certificate}/{question.patch.label}/threshold=0.3/all"]
            assert (columns[f"certified/{question.key}"] <= was_N).all()
            lost += int((was_N & ~columns[f"certified/{question.key}"]).sum())
        certified_N = columns[f"certified/placement/2x2/threshold=0.3/all/tolerance={tolerance}"]
        was_N = plain["certified/placement/2x2/threshold=0.3/all"]
        np.testing.assert_array_equal(certified_N, was_N & (margin_N + 1 / SCORE_SCALE > tolerance))
        counted_N = columns[f"certified/counting/2x2/threshold=0.3/all/tolerance={tolerance}"]
        assert (counted_N <= certified_N).all()
    assert lost > 0


@pytest.mark.parametrize("chunk_bytes", [1, 20_000])
def test_chunks_and_parts_leave_near_ties_as_they_are(chunk_bytes):
    views, part = real_sized()
    config = StudyConfig(patches=("2x2",), vote_thresholds=(0.3,), score_tolerance=0.002)
    asked = questions(config, views, FLOOR)
    pieces = [answer_part(part.rows(*rows), views, asked, chunk_bytes=chunk_bytes) for rows in ((0, 31), (31, 80))]
    assert per_image_table(pieces).equals(per_image_table([answer_part(part, views, asked)]))


def test_a_threshold_at_the_score_floor_has_no_score_margin():
    scores_NVK = near_threshold_scores(0, 0.3)
    asked = questions(StudyConfig(patches=("1x1",), vote_thresholds=(0.3,)), VIEWS, 0.3)
    columns = answer_part(part_of_scores(scores_NVK, 0.3), VIEWS, asked).columns
    assert not [name for name in columns if name.startswith("score_margin/")]


def test_notes_say_how_many_certificates_hang_on_a_hair():
    """Three images of six votes, two to spare, all right: none close, one close, one with a vote less at all."""
    scores_NVK = np.zeros((3, 6, 2), dtype=np.int64)
    scores_NVK[:, :, 0] = 50_000
    scores_NVK[1:, :4, 0] = 0
    scores_NVK[1, 5, 0] = rounded_score(0.3)
    part = part_of_scores(scores_NVK, FLOOR)
    asked = questions(StudyConfig(patches=("1x1",), vote_thresholds=(0.3,)), VIEWS, FLOOR)
    columns = answer_part(part, VIEWS, asked).columns
    answers = summarise([answer_part(part, VIEWS, asked)], asked, subject_of(VIEWS, part))
    assert (answers["score_tolerance"] == 0).all()
    notes = dict(zip((question.key for question in asked), answers["note"], strict=True))
    assert columns["margin/placement/1x1/threshold=0.3/all"].tolist() == [4, 0, 0]
    assert notes["placement/1x1/threshold=0.3/all"] == (
        "2 of 3 certified images hang on one vote, 1 on scores within 1/65535 of the threshold"
    )
    assert notes["placement/1x1/top_class/all"] == "0 of 3 certified images hang on one vote"
