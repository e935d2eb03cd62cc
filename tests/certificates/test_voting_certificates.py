"""Counting and placement against oracles that try every placement and every vote of the affected views."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import (
    any_votes,
    ballots_of,
    can_be_flipped,
    can_be_flipped_by_one_rival,
    incidence_by_pixels,
    placement_pixels,
    single_votes,
    tally,
    winner,
)
from view_set_cases import patches_inside, view_sets

from patchcert.certificates import (
    CertificateError,
    Outcome,
    certified_accuracy_by_side,
    certify_counting,
    certify_placement,
    largest_certified_square,
    predict,
    votes_to_flip,
)
from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews, Patch

CASES = examples(1000)
SOME_CASES = examples(400)


@st.composite
def top_class_votes(draw, num_views, max_classes=4):
    """One vote a view, over few classes so that ties are common; K may exceed the classes that got a vote."""
    num_classes = draw(st.integers(2, max_classes))
    voted = draw(st.integers(1, num_classes))
    return num_classes, np.array(draw(st.lists(st.integers(0, voted - 1), min_size=num_views, max_size=num_views)))


@st.composite
def threshold_votes(draw, num_views, max_classes=3):
    """Any set of votes a view, abstentions included; most views vote alike so that certificates are common."""
    num_classes = draw(st.integers(2, max_classes))
    favourite = draw(st.integers(0, num_classes - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    votes = rng.random((num_views, num_classes)) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.6]))
    votes[:, favourite] = rng.random(num_views) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    return votes


def one_hot(classes, num_classes):
    return np.asarray(classes)[..., None] == np.arange(num_classes)


@CASES
@given(st.data())
def test_placement_certifies_exactly_what_no_assignment_of_top_class_votes_flips(data):
    views, pixels = data.draw(view_sets(max_height=4, max_width=4))
    patch = data.draw(patches_inside(views.image_size, max_side=2))
    incidence = incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask))
    assume(incidence.sum(axis=1).max() <= 5)
    num_classes, classes = data.draw(top_class_votes(len(pixels), max_classes=3))
    ballots = [(int(k),) for k in classes]

    outcome = certify_placement(classes[None], views, patch, num_classes=num_classes)

    assert outcome.predictions_N[0] == winner(tally(ballots, num_classes))
    assert outcome.certified_N[0] != can_be_flipped(ballots, incidence, num_classes, single_votes(num_classes))


@SOME_CASES
@given(st.data())
def test_placement_certifies_exactly_what_no_assignment_of_threshold_votes_flips(data):
    views, pixels = data.draw(view_sets(max_height=4, max_width=4))
    patch = data.draw(patches_inside(views.image_size, max_side=2))
    incidence = incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask))
    assume(incidence.sum(axis=1).max() <= 3)
    votes = data.draw(threshold_votes(len(pixels)))
    num_classes = votes.shape[1]

    outcome = certify_placement(votes[None], views, patch)

    flipped = can_be_flipped(ballots_of(votes), incidence, num_classes, any_votes(num_classes))
    assert outcome.certified_N[0] != flipped
    assert flipped == can_be_flipped_by_one_rival(ballots_of(votes), incidence, num_classes)


@SOME_CASES
@given(st.data())
def test_counting_with_doubtful_votes_certifies_what_holds_however_they_fall(data):
    """Every way in which the doubtful votes may fall, then every rival with ``affected`` moved votes."""
    num_classes, num_views = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 8))
    affected = data.draw(st.integers(0, 2))
    votes = data.draw(threshold_votes(num_views, num_classes))
    num_classes = votes.shape[1]
    places = st.tuples(st.integers(0, num_views - 1), st.integers(0, num_classes - 1))
    doubtful = np.zeros_like(votes)
    for place in data.draw(st.lists(places, max_size=5)):
        doubtful[place] = True
    certain, possible = (votes & ~doubtful).sum(axis=0), (votes | doubtful).sum(axis=0)

    outcome = certify_counting(votes.sum(axis=0)[None], affected, doubtful=(certain[None], possible[None]))

    before = winner(tally(ballots_of(votes), num_classes))
    margins = []
    for fallen in product([False, True], repeat=int(doubtful.sum())):
        cast = votes.copy()
        cast[doubtful] = fallen
        counts = tally(ballots_of(cast), num_classes)
        margins += [
            counts[before] - counts[rival] - 2 * affected - (rival < before)
            for rival in range(num_classes)
            if rival != before
        ]
    assert outcome.predictions_N[0] == before
    assert outcome.margin_N[0] == min(margins) and outcome.certified_N[0] == (min(margins) >= 0)
    if not doubtful.any():
        assert outcome.margin_N[0] == certify_counting(votes.sum(axis=0)[None], affected).margin_N[0]


@pytest.mark.parametrize(
    ("doubtful", "message"),
    [
        (([[2, 1, 0]], [[2, 1, 0]]), r"shapes \(1, 3\) and \(1, 3\), but the counts have \(1, 2\)"),
        (([[3, 1]], [[3, 1]]), "1 counts do not lie between"),
        (([[2, 1]], [[1, 1]]), "1 counts do not lie between"),
        (([[2, -1]], [[2, 1]]), "vote count is -1"),
    ],
)
def test_doubtful_counts_that_cannot_be_are_refused(doubtful, message):
    with pytest.raises(CertificateError, match=message):
        certify_counting([[2, 1]], 0, doubtful=doubtful)


@CASES
@given(st.data())
def test_placement_is_exact_and_counting_sound_on_larger_sets(data):
    views, pixels = data.draw(view_sets())
    patch = data.draw(patches_inside(views.image_size))
    incidence = incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask))
    votes = data.draw(st.one_of(threshold_votes(len(pixels), max_classes=5), top_class_votes(len(pixels))))
    if isinstance(votes, tuple):
        num_classes, classes = votes
        votes = one_hot(classes, num_classes)
        np.testing.assert_array_equal(
            certify_placement(classes[None].astype(np.uint16), views, patch, num_classes=num_classes).margin_N,
            certify_placement(votes[None], views, patch).margin_N,
        )
    num_classes = votes.shape[1]

    placement = certify_placement(votes[None], views, patch)
    counting = certify_counting(votes.sum(axis=0)[None], views.affected(patch))

    flipped = can_be_flipped_by_one_rival(ballots_of(votes), incidence, num_classes)
    assert placement.certified_N[0] != flipped
    assert not (counting.certified_N[0] and flipped)
    assert counting.margin_N[0] <= placement.margin_N[0], "placement may never certify less than counting"


@SOME_CASES
@given(st.data())
def test_margin_is_the_least_lead_over_all_placements_and_rivals(data):
    views, pixels = data.draw(view_sets())
    patch = data.draw(patches_inside(views.image_size))
    votes = data.draw(threshold_votes(len(pixels), max_classes=5))
    leads = []
    y = winner(votes.sum(axis=0))
    for affected in incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask)):
        kept = votes[~affected].sum(axis=0)
        leads += [kept[y] - kept[c] - affected.sum() - (c < y) for c in range(votes.shape[1]) if c != y]
    assert certify_placement(votes[None], views, patch).margin_N[0] == min(leads)


@SOME_CASES
@given(st.data())
def test_union_of_patches_is_each_one_and_larger_patches_never_certify_more(data):
    views, pixels = data.draw(view_sets())
    large = data.draw(patches_inside(views.image_size))
    small_mask = large.mask & (np.random.default_rng(data.draw(st.integers(0, 999))).random(large.size) < 0.6)
    assume(small_mask.any())
    small = Patch(height=large.height, width=large.width, footprint=small_mask)
    other = data.draw(patches_inside(views.image_size))
    votes = np.stack([data.draw(threshold_votes(len(pixels), max_classes=2)) for _ in range(3)])
    votes = votes if votes.ndim == 3 else votes[None]

    margins = [certify_placement(votes, views, p).margin_N for p in (large, small, other)]

    np.testing.assert_array_equal(
        certify_placement(votes, views, [large, other]).margin_N, np.minimum(margins[0], margins[2])
    )
    assert (margins[1] >= margins[0]).all()
    assert views.affected(small) <= views.affected(large)


@SOME_CASES
@given(st.data())
def test_largest_certified_square_is_where_placement_stops(data):
    views, pixels = data.draw(view_sets())
    votes = data.draw(threshold_votes(len(pixels)))[None]
    sides = range(1, min(views.image_size) + 1)
    certified = [certify_placement(votes, views, Patch(height=p, width=p)).certified_N[0] for p in sides]
    assert certified == sorted(certified, reverse=True)
    assert largest_certified_square(votes, views)[0] == sum(certified)


@SOME_CASES
@given(st.data())
def test_doubtful_votes_stand_for_every_way_they_might_have_been_cast(data):
    """Certified with doubts iff certified, with the same prediction, for each of the outcomes of the doubtful votes."""
    views, pixels = data.draw(view_sets(max_height=4, max_width=4))
    patch = data.draw(patches_inside(views.image_size, max_side=2))
    votes = data.draw(threshold_votes(len(pixels)))
    doubtful = np.zeros(votes.size, dtype=bool)
    doubtful[data.draw(st.lists(st.integers(0, votes.size - 1), max_size=4))] = True
    flat = np.flatnonzero(doubtful)
    variants = np.repeat(votes.ravel()[None], 2 ** len(flat), axis=0)
    variants[:, flat] = np.arange(len(variants))[:, None] >> np.arange(len(flat)) & 1
    each = certify_placement(variants.reshape(-1, *votes.shape), views, patch)

    outcome = certify_placement(votes[None], views, patch, doubtful=doubtful.reshape(1, *votes.shape))

    assert outcome.predictions_N[0] == predict(votes.sum(axis=0)[None])[0]
    assert outcome.certified_N[0] == (each.certified_N & (each.predictions_N == outcome.predictions_N[0])).all()


@SOME_CASES
@given(st.data())
def test_a_doubtful_top_class_vote_may_go_to_any_class(data):
    views, pixels = data.draw(view_sets(max_height=4, max_width=4))
    patch = data.draw(patches_inside(views.image_size, max_side=2))
    num_classes, classes = data.draw(top_class_votes(len(pixels), max_classes=3))
    doubtful = np.zeros(len(classes), dtype=bool)
    doubtful[data.draw(st.lists(st.integers(0, len(classes) - 1), max_size=3))] = True
    flat = np.flatnonzero(doubtful)
    variants = np.repeat(classes[None], num_classes ** len(flat), axis=0)
    variants[:, flat] = np.arange(len(variants))[:, None] // num_classes ** np.arange(len(flat)) % num_classes
    each = certify_placement(variants, views, patch, num_classes=num_classes)

    outcome = certify_placement(classes[None], views, patch, num_classes=num_classes, doubtful=doubtful[None])

    assert outcome.certified_N[0] == (each.certified_N & (each.predictions_N == outcome.predictions_N[0])).all()


@pytest.mark.parametrize("chunk_bytes", [1, 5_000, 60_000])
@pytest.mark.parametrize("rule", ["top_class", "threshold"])
def test_chunks_change_nothing(chunk_bytes, rule):
    views = CropViews(image_size=(9, 12), crop_size=(3, 4))
    votes = np.random.default_rng(0).integers(0, 30, (40, views.num_views))
    votes[:, : views.num_views // 2] = 3
    patches = [Patch(height=2, width=3), Patch.rotated(3, 3, 30, "exact")]
    options = {"num_classes": 30} if rule == "top_class" else {}
    votes = votes if rule == "top_class" else one_hot(votes, 30)
    whole = certify_placement(votes, views, patches, **options)
    parts = certify_placement(votes, views, patches, chunk_bytes=chunk_bytes, **options)
    np.testing.assert_array_equal(whole.margin_N, parts.margin_N)
    np.testing.assert_array_equal(whole.predictions_N, parts.predictions_N)


def test_no_images_give_no_verdicts():
    views = BandViews(image_size=(8, 9), width=2)
    outcome = certify_placement(np.zeros((0, 9), dtype=np.uint16), views, Patch(height=2, width=2), num_classes=3)
    assert outcome.certified_N.shape == outcome.margin_N.shape == (0,)


def test_working_memory_follows_the_chunk_size():
    views = CropViews(image_size=(32, 32), crop_size=(10, 10))
    votes = np.random.default_rng(0).integers(0, 10, (3000, views.num_views)).astype(np.uint16)
    views.affected_views(Patch())
    peaks = []
    for chunk_bytes in (2**20, 2**23):
        tracemalloc.start()
        certify_placement(votes, views, Patch(), num_classes=10, chunk_bytes=chunk_bytes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert peaks[-1] < chunk_bytes + 200_000  # beside the results
    assert peaks[0] < peaks[1] < votes.size * 8 / 2


def test_a_view_set_that_the_patch_misses_certifies_everything_without_doubt():
    views = CropViews(image_size=(1, 2), crop_size=1, stride=2)
    outcome = certify_placement(
        np.array([[1]]), views, Patch(height=1, width=2, footprint=[[False, True]]), num_classes=2
    )
    assert outcome.certified_N[0]


# Closed forms of the papers, and the mistakes of public tools.


@SOME_CASES
@given(st.lists(st.integers(0, 9), min_size=2, max_size=5), st.integers(0, 6))
def test_votes_to_flip_is_the_fewest_moved_votes_that_change_the_winner(counts, affected):
    y = winner(counts)
    moves = [
        m
        for m in range(20)
        for c in range(len(counts))
        if winner([n - m * (k == y) + m * (k == c) for k, n in enumerate(counts)]) != y
    ]
    assert votes_to_flip([counts])[0] == min(moves)
    assert certify_counting([counts], affected).certified_N[0] == (affected < min(moves))


def test_drs_theorem_1_and_2_numbers():
    """CIFAR-10, 5x5: blocks s=12 need a lead of 2 * 16**2 = 512, columns s=4 one of 16; one more if ties are lost."""
    block = BlockViews(image_size=(32, 32), block_size=12)
    column = BandViews(image_size=(32, 32), width=4)
    for views, lead in ((block, 512), (column, 16)):
        affected = views.affected(Patch(height=5, width=5))
        assert 2 * affected == lead
        counts = [[lead, 0], [0, lead], [0, lead + 1], [lead - 1, 0]]
        assert certify_counting(counts, affected).certified_N.tolist() == [True, False, True, False]


def test_pitfall_2_a_class_behind_the_runner_up_can_overtake():
    """Class 0 wins ties, so it needs fewer votes than class 2, the runner-up by count."""
    assert certify_counting([[3, 9, 3]], 3).certified_N.tolist() == [False]
    assert certify_counting([[2, 9, 3]], 3).certified_N.tolist() == [True]
    # By placement: every window that takes two votes of class 1 also takes one of its runner-up 2, but none of class 0,
    # which then ties and wins. As class 3 it loses the tie.
    views = BandViews(image_size=(1, 15), width=1)
    for third, certified in ((0, False), (3, True)):
        votes = np.array([[1, 1, 2] * 4 + [third] * 3])
        outcome = certify_placement(votes, views, Patch(height=1, width=3), num_classes=4)
        assert outcome.certified_N.tolist() == [certified]
        assert outcome.margin_N.tolist() == [0 if certified else -1]


def test_pitfall_2_a_class_without_votes_can_overtake():
    views = BandViews(image_size=(1, 4), width=1)
    votes = np.zeros((1, 4, 3), dtype=bool)
    votes[0, :2, 1] = True  # two views vote for class 1, two abstain
    assert certify_placement(votes, views, Patch(height=1, width=1)).margin_N.tolist() == [-1]
    assert not certify_counting(votes.sum(axis=1), 1).certified_N[0]


def test_pitfall_3_one_tie_rule_for_prediction_and_certificate():
    assert predict([[2, 2, 1], [1, 2, 2], [0, 0, 0]]).tolist() == [0, 1, 0]
    assert certify_counting([[4, 2, 0], [2, 4, 0]], 1).certified_N.tolist() == [True, False]
    assert votes_to_flip([[4, 2, 0], [2, 4, 0], [2, 2, 0]]).tolist() == [2, 1, 1]


@pytest.mark.parametrize(("label", "expected"), [(0, 1.0), (1, 0.0)])
def test_pitfall_5_all_or_nothing_is_reported_as_one_and_zero(label, expected):
    outcome = certify_counting([[9, 0], [9, 0]], 1)
    assert outcome.certified_accuracy([label, label]) == expected
    assert outcome.clean_accuracy([label, label]) == expected


def test_pitfall_6_votes_are_never_written_to():
    views = BandViews(image_size=(4, 6), width=2)
    classes = np.zeros((2, 6), dtype=np.uint16)
    votes = one_hot(classes, 3)
    doubtful = np.ones_like(votes)
    for array in (classes, votes, doubtful):
        array.setflags(write=False)
    certify_placement(classes, views, Patch(height=1, width=1), num_classes=3)
    certify_placement(votes, views, Patch(height=1, width=1), doubtful=doubtful)
    largest_certified_square(classes, views, num_classes=3)


def test_certified_accuracy_never_rises_with_the_side():
    curve = certified_accuracy_by_side([0, 3, 2, 2], [1, 1, 0, 1], [1, 1, 1, 1], 4)
    np.testing.assert_array_equal(curve, [0.75, 0.5, 0.5, 0.25, 0.0])


def test_cells_and_footprints_without_dense_arrays_at_imagenet_size():
    """Every view votes for class 7 but one corner crop: the worst placement leaves 21,025 - 12,321 views."""
    views = CropViews(image_size=(224, 224), crop_size=(80, 80))
    votes = np.full((1, views.num_views), 7, dtype=np.uint16)
    patch = Patch(height=32, width=32)
    margin = certify_placement(votes, views, patch, num_classes=1000).margin_N[0]
    assert margin == 21_025 - 2 * 12_321 - 1
    cells = CellViews(image_size=(28, 28), pitch=4, num_cells=2)
    votes = np.zeros((1, cells.num_views), dtype=np.uint16)
    margin = certify_placement(votes, cells, Patch(height=5, width=5), num_classes=10).margin_N[0]
    assert margin == cells.num_views - 2 * cells.affected(Patch(height=5, width=5))


VIEWS = BandViews(image_size=(8, 9), width=2)
PATCH = Patch(height=2, width=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: predict([1, 2]), r"shape \(2,\), but must be \(images, classes\)"),
        (lambda: predict([[1], [2]]), "at least 2 classes"),
        (lambda: predict([[0.5, 0.5]]), "type float64, but must be integers"),
        (lambda: votes_to_flip([[1, -2]]), "vote count is -2"),
        (lambda: certify_counting([[1, 2]], -1), "affected views is -1"),
        (lambda: certify_counting([[1, 2]], 1.5), "affected views is 1.5"),
        (lambda: certify_placement(np.zeros((1, 9)), VIEWS, PATCH, num_classes=2), "type float64"),
        (lambda: certify_placement(np.zeros((1, 9, 2)), VIEWS, PATCH), "type float64"),
        (lambda: certify_placement(np.zeros((1, 9), int), VIEWS, PATCH), "num_classes is None"),
        (lambda: certify_placement(np.full((1, 9), 2), VIEWS, PATCH, num_classes=2), "classes 2 to 2, but num_classes"),
        (lambda: certify_placement(np.full((1, 9), -1), VIEWS, PATCH, num_classes=2), "classes -1 to -1"),
        (lambda: certify_placement(np.zeros((1, 9), int), VIEWS, PATCH, num_classes=1), "have 1 classes"),
        (lambda: certify_placement(np.zeros((1, 8, 2), bool), VIEWS, PATCH), "have 8 views, but the view set has 9"),
        (lambda: certify_placement(np.zeros((1, 9, 2), bool), VIEWS, PATCH, num_classes=3), "num_classes is 3"),
        (lambda: certify_placement(np.zeros((1, 9, 2), bool), VIEWS, []), "0 patches"),
        (lambda: certify_placement(np.zeros((1, 9, 2), bool), VIEWS, PATCH, chunk_bytes=0), "chunk_bytes is 0"),
        (
            lambda: certify_placement(np.zeros((1, 9, 2), bool), VIEWS, PATCH, doubtful=np.zeros((1, 9), bool)),
            r"doubtful votes have the shape \(1, 9\)",
        ),
        (lambda: certify_counting([[1, 2]], 0).clean_accuracy([1, 1]), r"shape \(2,\), but there are 1"),
        (lambda: certify_counting(np.zeros((0, 2), int), 0).clean_accuracy([]), "at least one image"),
        (lambda: certified_accuracy_by_side([1], [1, 2], [1], 3), r"\(1,\) largest squares, \(2,\) predictions"),
        (
            lambda: Outcome(predictions_N=np.zeros(2, int), certified_N=np.zeros(1, bool), guarantee="heuristic"),
            r"certified_N has the shape \(1,\)",
        ),
        (
            lambda: Outcome(predictions_N=np.zeros(1, int), certified_N=np.zeros(1, bool), guarantee="likely"),
            "guarantee is 'likely'",
        ),
    ],
)
def test_votes_that_cannot_be_certified_are_refused(make, message):
    with pytest.raises(CertificateError, match=message):
        make()
