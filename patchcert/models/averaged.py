"""Networks of one shape in, a module that averages their logits out."""

from collections.abc import Sequence

import torch
from torch import nn


class AveragedNetworks(nn.Module):
    """Several networks that differ in their start weights; a view's logits are the mean of theirs.

    Each learns on its own from the same batches, so that their errors differ and the mean is more often right than any
    of them. Whatever one network guarantees about a view (its scores are a function of the retained pixels alone) holds
    for the mean.

    Source: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation using deep ensembles.
    Deviation: logits are averaged instead of probabilities.

    Attributes:
        members: the networks.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Joins two or more networks."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Scores views.

        Args:
            inputs: what each member reads.

        Returns:
            logits (n, num_classes): the mean; in training (members * n, num_classes), member by member.
        """
        logits = [member(*inputs) for member in self.members]
        return torch.cat(logits) if self.training else torch.stack(logits).mean(dim=0)
