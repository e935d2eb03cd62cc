import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from oracles import incidence_by_pixels, placement_pixels
from view_set_cases import patches_inside, view_sets

from patchcert.certificates import CertificateError, certify_placement, failing_placements
from patchcert.geometry import CropViews, Patch


def margin_at(votes_VK, hit_V, num_classes):
    """Votes to spare of the prediction when one rival gets the vote of every affected view, for the worst rival."""
    predicted = int(votes_VK.sum(axis=0).argmax())
    kept = votes_VK[~hit_V].sum(axis=0)
    rivals = [rival for rival in range(num_classes) if rival != predicted]
    return min(kept[predicted] - kept[rival] - hit_V.sum() - (rival < predicted) for rival in rivals)


@examples(300)
@given(st.data())
def test_a_placement_fails_iff_its_affected_views_can_make_a_rival_win(data):
    views, pixels = data.draw(view_sets(max_height=5, max_width=5))
    patch = data.draw(patches_inside(views.image_size, max_side=3))
    incidence_PV = incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num_classes, favourite = data.draw(st.integers(2, 4)), rng.integers(0, 2)
    votes_NVK = rng.random((5, len(pixels), num_classes)) < data.draw(st.sampled_from([0.0, 0.1, 0.4]))
    votes_NVK[:, :, favourite] |= rng.random((5, len(pixels))) < 0.9
    is_top_class = data.draw(st.booleans())
    votes = votes_NVK
    if is_top_class:
        votes = np.where(rng.random((5, len(pixels))) < 0.8, favourite, rng.integers(0, num_classes, (5, len(pixels))))
        votes_NVK = votes[:, :, None] == np.arange(num_classes)

    failures = failing_placements(
        votes, views, patch, num_classes=num_classes, chunk_bytes=data.draw(st.sampled_from([1, 2**24]))
    )

    margins_NP = [[margin_at(votes_VK, hit_V, num_classes) for hit_V in incidence_PV] for votes_VK in votes_NVK]
    np.testing.assert_array_equal(failures.images_P, (np.array(margins_NP) < 0).sum(axis=0))
    np.testing.assert_array_equal(failures.placements_N, (np.array(margins_NP) < 0).sum(axis=1))
    np.testing.assert_array_equal(failures.worst_N, np.argmin(margins_NP, axis=1))
    outcome = certify_placement(votes, views, patch, num_classes=num_classes)
    np.testing.assert_array_equal(outcome.margin_N, np.min(margins_NP, axis=1))


def test_doubtful_votes_count_for_the_attacker_at_every_placement():
    views, patch = CropViews(image_size=(8, 8), crop_size=3), Patch(height=2, width=2)
    rng = np.random.default_rng(3)
    votes_NVK = rng.random((20, 36, 3)) < np.array([0.9, 0.3, 0.2])
    doubtful_NVK = rng.random(votes_NVK.shape) < 0.05
    failures = failing_placements(votes_NVK, views, patch, doubtful=doubtful_NVK)
    plain = failing_placements(votes_NVK, views, patch)
    assert (failures.images_P >= plain.images_P).all() and (failures.images_P > plain.images_P).any()
    certified_N = certify_placement(votes_NVK, views, patch, doubtful=doubtful_NVK).certified_N
    np.testing.assert_array_equal(failures.placements_N == 0, certified_N)


def test_parts_add_up():
    views, patch = CropViews(image_size=(9, 7), crop_size=(3, 2)), Patch(height=2, width=3)
    votes_NV = np.random.default_rng(0).integers(0, 3, (30, views.num_views)) // 2
    whole = failing_placements(votes_NV, views, patch, num_classes=3)
    pieces = [failing_placements(votes_NV[rows], views, patch, num_classes=3) for rows in (slice(0, 11), slice(11, 30))]
    np.testing.assert_array_equal(sum(piece.images_P for piece in pieces), whole.images_P)
    for name in ("placements_N", "worst_N"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    assert whole.images_P.shape == (8 * 5,)


def test_votes_of_other_views_are_refused():
    with pytest.raises(CertificateError, match="The votes have 5 views, but the view set has 36"):
        failing_placements(
            np.zeros((2, 5), dtype=int),
            CropViews(image_size=(8, 8), crop_size=3),
            Patch(height=1, width=1),
            num_classes=2,
        )
