import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from view_set_cases import patches_inside, view_sets

from patchcert.certificates import certify_placement
from patchcert.errors import TrainingError
from patchcert.geometry import BandViews, CropViews, Patch
from patchcert.training.config import TrainingConfig
from patchcert.training.objective import Objective, certified_margins

CPU = torch.device("cpu")
BANDS = BandViews(image_size=(16, 16), width=3)
MARGIN = {"objective": "certified_margin", "margin_patch": "2x2", "views_per_image": 0}


def loss_of(logits_BVK, labels_B, progress=1.0, views=BANDS, **settings):
    return Objective(TrainingConfig(**settings), views, CPU)(logits_BVK, labels_B, progress)


@st.composite
def voted_images(draw):
    views, _ = draw(view_sets())
    patch = draw(patches_inside(views.image_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    votes_NV = rng.integers(0, 3, (6, views.num_views))
    # Some images with a clear winner, so that some are certified.
    votes_NV[::2] = np.where(rng.random(votes_NV[::2].shape) < 0.9, 1, votes_NV[::2])
    return views, patch, votes_NV, rng.integers(0, 3, 6)


@given(voted_images())
def test_margin_of_hard_votes_is_the_placement_certificate(case):
    views, patch, votes_NV, labels_N = case
    logits_NVK = torch.nn.functional.one_hot(torch.from_numpy(votes_NV), 3) * 1e4
    affected_PV = torch.from_numpy(views.incidence(patch, only_undominated=True)).float()

    margins_N = certified_margins(logits_NVK.float(), torch.from_numpy(labels_N), affected_PV).numpy()

    outcome = certify_placement(votes_NV, views, [patch], num_classes=3)
    proven_N = outcome.certified_N & (outcome.predictions_N == labels_N)
    # A lead of 0 is a tie, which the certificate grants to the lower class and the margin to none.
    clear_N = np.abs(margins_N) > 1e-6
    np.testing.assert_array_equal((margins_N > 0)[clear_N], proven_N[clear_N])
    assert (np.abs(margins_N) <= 1 + 1e-6).all()


def test_cross_entropy_is_that_of_each_view():
    logits_BVK = torch.randn(4, 16, 5, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 3, 4, 3])
    by_hand = -torch.stack([logits_BVK[b].log_softmax(1)[:, label] for b, label in enumerate(labels_B)]).mean()
    torch.testing.assert_close(loss_of(logits_BVK, labels_B, views_per_image=0), by_hand)
    torch.testing.assert_close(loss_of(logits_BVK, labels_B, 0.0, **MARGIN), by_hand)


def test_margin_rises_over_the_first_half_of_the_run_and_keeps_its_share():
    generator = torch.Generator().manual_seed(1)
    logits_BVK, labels_B = torch.randn(4, 16, 5, generator=generator), torch.tensor([0, 3, 4, 3])
    affected_PV = torch.from_numpy(BANDS.incidence(Patch(height=2, width=2))).float()
    entropy = loss_of(logits_BVK, labels_B)
    hinge = (0.05 - certified_margins(logits_BVK, labels_B, affected_PV)).relu().mean()
    for progress, weight in ((0.0, 0.0), (0.25, 0.3), (0.5, 0.6), (1.0, 0.6)):
        loss = loss_of(logits_BVK, labels_B, progress, **MARGIN, margin_weight=0.6)
        torch.testing.assert_close(loss, (1 - weight) * entropy + weight * hinge)


def test_margin_pulls_on_the_views_that_the_worst_placement_leaves():
    logits_BVK = torch.zeros(1, 16, 2)
    logits_BVK[0, :, 0] = 0.2
    logits_BVK[0, 5:9, 0] = 2.0  # here a patch costs most
    logits_BVK.requires_grad_()
    loss_of(logits_BVK, torch.tensor([0]), **MARGIN, margin_weight=1.0).backward()
    pulled_V = logits_BVK.grad[0, :, 0] < 0
    assert pulled_V.tolist() == [not 5 <= view <= 8 for view in range(16)]


def test_certified_images_cost_nothing():
    logits_BVK = torch.zeros(3, 16, 4)
    logits_BVK[..., 2] = 50.0
    loss = loss_of(logits_BVK, torch.tensor([2, 2, 2]), **MARGIN, margin_weight=1.0)
    assert float(loss) == 0


def test_spread_views_are_weighed_by_the_placements_that_affect_them():
    generator = torch.Generator().manual_seed(2)
    logits_BVK, labels_B = torch.randn(4, 16, 5, generator=generator), torch.tensor([0, 3, 4, 3])
    views_n = torch.tensor([3, 7, 11, 15])
    settings = MARGIN | {"views_per_image": 4, "view_sampling": "spread", "margin_weight": 1.0}
    objective = Objective(TrainingConfig(**settings), BANDS, CPU)
    # Bands of width 3 that start every 4 columns: a 2x2 patch reaches one of them, wherever it lies.
    leads_BnK = logits_BVK[:, views_n].softmax(2)
    leads_BnK = leads_BnK.gather(2, labels_B[:, None, None].expand(-1, 4, 1)) - leads_BnK
    worst_B = torch.tensor(
        [
            min(
                float(sum(leads_BnK[b, i, rival] for i in range(4) if i != hit) - 1) / 4
                for hit in range(4)
                for rival in range(5)
                if rival != labels_B[b]
            )
            for b in range(4)
        ]
    )
    found = objective(logits_BVK[:, views_n], labels_B, 1.0, views_n)
    torch.testing.assert_close(found, (0.05 - worst_B).relu().mean())


def test_too_many_pairs_are_refused():
    views = CropViews(image_size=(224, 224), crop_size=80)
    training = TrainingConfig(**MARGIN | {"margin_patch": "2%"})
    with pytest.raises(TrainingError, match="37249 placements of a 32x32 patch against 21025 views"):
        Objective(training, views, CPU)
