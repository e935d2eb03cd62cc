"""Images and view numbers in, logits of a vision transformer out that leaves out patches a view removes entirely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from patchcert.errors import ModelError
from patchcert.models.vision_transformer import SmallVisionTransformer

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer

# Without gradients, views are scored so many tokens at a time: enough for full speed, and a bound on the memory.
_TOKENS_PER_PASS = {"cpu": 4096, "cuda": 2**17}


class TokenDroppingTransformer(nn.Module):
    """Scores band and block views from the tokens of those patches that a view retains a pixel of.

    Views with equally many rows and columns of kept patches form a bucket and go through the transformer together, so
    that no token is padding. Kept patches are NULL-encoded: (x, 1 - x), and (0, 0) where a pixel is removed. Parameters
    have torchvision's names, so that weights fit the network with and without dropped tokens.

    Source: Salman et al. 2022, Certified patch robustness via smoothed vision transformers, section 4.
    Guarantee: the scores of a view are a function of its retained pixels alone, whatever the others hold (1e30,
        infinity, NaN): removed pixels are replaced, and views never share arithmetic.
    """

    def __init__(self, transformer: VisionTransformer | SmallVisionTransformer, views: Any) -> None:
        """Takes a transformer apart and tabulates which patches and pixels each view keeps.

        Args:
            transformer: reads NULL-encoded images of the size of ``views``.
            views: BandViews or BlockViews, of any axis, size and stride.
        """
        super().__init__()
        self.class_token, self.conv_proj = transformer.class_token, transformer.conv_proj
        self.encoder, self.heads = transformer.encoder, transformer.heads
        self._patch = int(self.conv_proj.kernel_size[0])
        self._num_patch_columns = views.image_size[1] // self._patch
        self._num_column_starts = len(views.column_indices)
        counts = []
        for name, indices_Sl, size in (
            ("row", views.row_indices, views.image_size[0]),
            ("column", views.column_indices, views.image_size[1]),
        ):
            counts_S, patches_Sn, pixels_Snp = _kept(indices_Sl, size, self._patch)
            self.register_buffer(f"{name}_counts", counts_S, persistent=False)
            self.register_buffer(f"{name}_patches", patches_Sn, persistent=False)
            self.register_buffer(f"{name}_pixels", pixels_Snp, persistent=False)
            counts.append(sorted(set(counts_S.tolist())))
        self._buckets = [(rows, columns) for rows in counts[0] for columns in counts[1]]

    def forward(self, pixels_BCHW: torch.Tensor, views_Bn: torch.Tensor) -> torch.Tensor:
        """Scores n views of each image.

        Args:
            pixels_BCHW: what ``ViewCutter.encode`` returned.
            views_Bn: int64 view numbers, shape (B, n), or (1, n) for the same views of each image.

        Returns:
            logits (B * n, num_classes), image by image.
        """
        batch, channels, height, width = pixels_BCHW.shape
        p = self._patch
        patches = pixels_BCHW.view(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        patches_BTCpp = patches.reshape(batch, -1, channels, p, p)
        views_S = views_Bn.expand(batch, -1).flatten()
        images_S = torch.arange(batch, device=views_S.device).repeat_interleave(views_Bn.shape[1])
        rows_S, columns_S = views_S // self._num_column_starts, views_S % self._num_column_starts
        row_counts_S, column_counts_S = self.row_counts[rows_S], self.column_counts[columns_S]
        members, logits = [], []
        for num_rows, num_columns in self._buckets:
            chosen = ((row_counts_S == num_rows) & (column_counts_S == num_columns)).nonzero()[:, 0]
            if not len(chosen):
                continue
            passes = 1
            if not torch.is_grad_enabled():
                passes = -(-len(chosen) * (num_rows * num_columns + 1) // _TOKENS_PER_PASS[chosen.device.type])
            size = -(-len(chosen) // passes)
            # All passes have one shape: the last one repeats the first views.
            filled = chosen[torch.arange(passes * size, device=chosen.device) % len(chosen)]
            scored = [
                self._score(patches_BTCpp, images_S[part], rows_S[part], columns_S[part], (num_rows, num_columns))
                for part in filled.split(size)
            ]
            members.append(chosen)
            logits.append(torch.cat(scored)[: len(chosen)])
        return torch.cat(logits)[torch.cat(members).argsort()]

    def _score(
        self,
        patches_BTCpp: torch.Tensor,
        images_S: torch.Tensor,
        rows_S: torch.Tensor,
        columns_S: torch.Tensor,
        bucket: tuple[int, int],
    ) -> torch.Tensor:
        """Logits of views of one bucket."""
        num_rows, num_columns = bucket
        patch_rows, row_pixels = self.row_patches[rows_S, :num_rows], self.row_pixels[rows_S, :num_rows]
        patch_columns, column_pixels = (
            self.column_patches[columns_S, :num_columns],
            self.column_pixels[columns_S, :num_columns],
        )
        patches_St = (patch_rows[:, :, None] * self._num_patch_columns + patch_columns[:, None]).flatten(1)
        retained = (row_pixels[:, :, None, :, None] & column_pixels[:, None, :, None, :]).flatten(1, 2)
        kept_StCpp = patches_BTCpp[images_S[:, None], patches_St]
        doubled = torch.cat([kept_StCpp, 1 - kept_StCpp], dim=2)
        encoded_StD = torch.where(retained[:, :, None], doubled, 0.0).flatten(2)
        tokens = F.linear(encoded_StD, self.conv_proj.weight.flatten(1), self.conv_proj.bias)
        positions = self.encoder.pos_embedding[0]
        tokens = tokens + positions[1 + patches_St]
        first = (self.class_token[0] + positions[:1]).expand(len(tokens), 1, -1)
        tokens = self.encoder.dropout(torch.cat([first, tokens], dim=1))
        return self.heads(self.encoder.ln(self.encoder.layers(tokens))[:, 0])


def drop_tokens(network: nn.Module, views: Any, name: str) -> TokenDroppingTransformer:
    """Makes a network drop the tokens of patches that a view removes entirely.

    Args:
        network: built for NULL-encoded views.
        views: the view set.
        name: of the network, for messages.

    Raises:
        ModelError: the network has no tokens.
    """
    from torchvision.models import VisionTransformer

    if not isinstance(network, (VisionTransformer, SmallVisionTransformer)):
        raise ModelError(
            f"classifier: encoding removed='drop' leaves out tokens, but {name!r} has none.\n"
            "  Use vit-small or torchvision:vit_b_16, or set --classifier.encoding.removed null"
        )
    return TokenDroppingTransformer(network, views)


def _kept(indices_Sl: np.ndarray, size: int, patch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Along one axis: number of kept patches (S,), their numbers (S, most), their retained pixels (S, most, patch)."""
    retained_SH = np.zeros((len(indices_Sl), size), dtype=bool)
    np.put_along_axis(retained_SH, indices_Sl, True, axis=1)
    retained_STp = retained_SH.reshape(len(indices_Sl), -1, patch)
    is_kept_ST = retained_STp.any(axis=2)
    counts_S = is_kept_ST.sum(axis=1)
    patches_Sn = np.argsort(~is_kept_ST, axis=1, kind="stable")[:, : counts_S.max()]
    pixels_Snp = np.take_along_axis(retained_STp, patches_Sn[:, :, None], axis=1)
    return torch.from_numpy(counts_S), torch.from_numpy(patches_Sn), torch.from_numpy(pixels_Snp)
