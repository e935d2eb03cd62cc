"""Logits of views and labels in, the loss of one step out: cross-entropy, or what the worst patch leaves of a lead."""

from typing import Any

import torch
import torch.nn.functional as F

from patchcert.errors import TrainingError
from patchcert.geometry import Patch
from patchcert.training.config import TrainingConfig

# The share of the run over which the margin's weight rises from 0: leads mean nothing before views are told apart.
_RISE = 0.5
# Soft votes overstate close calls, so the lead has to survive with this share of all votes to spare.
_SPARE_SHARE = 0.05
_MAX_INCIDENCES = 2**26


class Objective:
    """The loss that ``TrainingConfig.objective`` names.

    Source: the margin is the idea of Metzen & Yatsura 2021 (BagCert): train on the certificate itself.
    Deviation: votes are softmax scores, not steps with a sigmoid's gradient; the lead has to survive each placement
        (methods.md 3.2) instead of twice the largest number of affected views; and cross-entropy keeps a share of the
        loss, all of it at the start (schedule: the margin's share rises linearly over the first half of the run).
    """

    def __init__(self, config: TrainingConfig, views: Any, device: torch.device) -> None:
        """Finds the views that each placement of the patch affects.

        Raises:
            TrainingError: too many placements and views to hold.
        """
        self._config = config
        self._affected_PV: torch.Tensor | None = None
        if config.objective == "certified_margin":
            patch = Patch.parse(config.margin_patch, views.image_size)
            rows, columns = patch.placements(views.image_size)
            if rows * columns * views.num_views > _MAX_INCIDENCES:
                raise TrainingError(
                    f"training: certified_margin weighs {rows * columns} placements of a {patch.label} patch against "
                    f"{views.num_views} views in each step, {_MAX_INCIDENCES} pairs at most.\n"
                    "  Use a larger stride of the views, or --training.objective cross_entropy"
                )
            affected_PV = views.incidence(patch, only_undominated=True)
            self._affected_PV = torch.from_numpy(affected_PV).to(device, torch.float32)

    def __call__(
        self, logits_BnK: torch.Tensor, labels_B: torch.Tensor, progress: float, views_n: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of one step.

        Args:
            logits_BnK: logits of n views of each image.
            labels_B: int64 labels of the images.
            progress: share of the run that is over, in [0, 1].
            views_n: numbers of the n views, the same of each image; None: all views. A spread of them estimates the
                margin of all: a placement affects about the same share of it.
        """
        targets = labels_B[:, None].expand(-1, logits_BnK.shape[1]).flatten()
        loss = F.cross_entropy(logits_BnK.flatten(0, 1), targets, label_smoothing=self._config.label_smoothing)
        if self._affected_PV is None:
            return loss
        weight = self._config.margin_weight * min(1.0, progress / _RISE)
        affected_Pn = self._affected_PV if views_n is None else self._affected_PV[:, views_n]
        margins_B = certified_margins(logits_BnK, labels_B, affected_Pn)
        return (1 - weight) * loss + weight * F.relu(_SPARE_SHARE - margins_B).mean()


def certified_margins(logits_BVK: torch.Tensor, labels_B: torch.Tensor, affected_PV: torch.Tensor) -> torch.Tensor:
    """What is left of the label's lead over its strongest rival after the worst placement, in soft votes.

    Args:
        logits_BVK: logits of all views.
        labels_B: int64 labels.
        affected_PV: 1 where a placement affects a view, else 0; float32.

    Returns:
        float32 (B,), a share of the V votes in [-1, 1]; with hard votes, > 0 is the placement certificate.
    """
    votes_BVK = logits_BVK.softmax(dim=2)
    label_votes_BV1 = votes_BVK.gather(2, labels_B[:, None, None].expand(-1, votes_BVK.shape[1], 1))
    leads_BVK = label_votes_BV1 - votes_BVK
    # The attacker takes the lead away where views are affected, and casts those votes for the rival.
    left_BPK = (1 - affected_PV) @ leads_BVK - affected_PV.sum(dim=1)[:, None]
    is_label_B1K = F.one_hot(labels_B, votes_BVK.shape[2])[:, None].bool()
    return left_BPK.masked_fill(is_label_B1K, torch.inf).amin(dim=(1, 2)) / votes_BVK.shape[1]
