"""uint8 images and view numbers in, the tensors of those views out: on the device, without a loop over views."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.views.encoding import EncodingConfig

_GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


class ViewCutter(nn.Module):
    """Cuts views out of image batches and encodes them.

    Removed pixels are replaced (``torch.where``) or never read (gather), so values that are huge, infinite or NaN
    outside a view cannot reach it. Inputs are never written to.
    """

    def __init__(self, views: Any, encoding: EncodingConfig, image_channels: int) -> None:
        """Prepares the index tables of a view set.

        Args:
            views: a view set of ``patchcert.geometry``.
            encoding: normalisation, NULL and positional encoding.
            image_channels: channels of the images, 1 or more.

        Raises:
            ModelError: crops cannot be NULL-encoded (nothing is removed), scattered cells cannot be cut off.
        """
        super().__init__()
        is_grid = hasattr(views, "row_indices")
        wanted = "cut" if views.kind == "crop" else "null"
        if encoding.removed != wanted and (views.kind == "crop" or not is_grid):
            raise ModelError(
                f"encoding: {views.describe()} need removed={wanted!r}, not {encoding.removed!r}.\n"
                f"  Set --classifier.encoding.removed {wanted}"
            )
        self.views = views
        self.encoding = encoding
        self.image_channels = image_channels
        self.num_input_channels = encoding.num_input_channels(image_channels)
        self.view_size: tuple[int, int] = views.view_size
        height, width = views.image_size
        mean = torch.tensor(encoding.mean or (0.0,), dtype=torch.float32).view(-1, 1, 1)
        std = torch.tensor(encoding.std or (1.0,), dtype=torch.float32).view(-1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.positional = (
            nn.Parameter(torch.zeros(image_channels, height, width)) if encoding.positional_bound > 0 else None
        )
        if encoding.coordinates:
            across = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
            self.register_buffer("coordinates", torch.stack(across), persistent=False)
        self._num_column_starts = 0
        if views.kind == "cell":
            self.register_buffer("cells_Vm", torch.from_numpy(views.cells), persistent=False)
            self.register_buffer("cell_of_pixel_HW", torch.from_numpy(views.cell_of_pixel), persistent=False)
        if is_grid:
            rows_Rh, columns_Cw = np.asarray(views.row_indices), np.asarray(views.column_indices)
            self._num_column_starts = len(columns_Cw)
            if encoding.removed == "cut":
                self.register_buffer("rows_Rh", torch.from_numpy(rows_Rh), persistent=False)
                self.register_buffer("columns_Cw", torch.from_numpy(columns_Cw), persistent=False)
                self.view_size = (rows_Rh.shape[1], columns_Cw.shape[1])
                for name, indices_Sl, size in (("all_rows", rows_Rh, height), ("all_columns", columns_Cw, width)):
                    reach = int(indices_Sl[-1, 0]) + indices_Sl.shape[1]
                    self.register_buffer(name, torch.arange(reach) % size, persistent=False)
            else:
                self.register_buffer("row_mask_RH", _index_mask(rows_Rh, height), persistent=False)
                self.register_buffer("column_mask_CW", _index_mask(columns_Cw, width), persistent=False)

    def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Turns images into the pixels that views are cut from.

        Args:
            images_BCHW: uint8, or float that is already in [0, 1]; shape (B, C, H, W).

        Returns:
            float32 (B, C, H, W): normalised, with the positional encoding added; two more channels of coordinates.

        Raises:
            ModelError: images of another shape, or of another integer type, whose range nobody knows.
        """
        expected = (self.image_channels, *self.views.image_size)
        if tuple(images_BCHW.shape[1:]) != expected:
            raise ModelError(
                f"the model reads images of shape (channels, height, width) {expected}, not "
                f"{tuple(images_BCHW.shape[1:])}.\n"
                "  Prepare the dataset at the model's image size:  patchcert prepare RECIPE"
            )
        if images_BCHW.dtype != torch.uint8 and not images_BCHW.is_floating_point():
            raise ModelError(
                f"the model reads uint8 images or floats in [0, 1], not {images_BCHW.dtype}.\n"
                "  Convert the images to torch.uint8."
            )
        pixels = images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW.float()
        pixels = (pixels - self.mean) / self.std
        if self.positional is not None:
            # 1 / std is the range of a pixel that runs over [0, 1] before normalisation.
            pixels = pixels + torch.tanh(self.positional) * (self.encoding.positional_bound / self.std)
        if self.encoding.coordinates:
            pixels = torch.cat([pixels, self.coordinates.expand(len(pixels), -1, -1, -1)], dim=1)
        return pixels

    def continued(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Continues images across their seams as far as views reach, so that each view is a plain window.

        Args:
            pixels_BCHW: what ``encode`` returned; the views must be cut off (removed="cut").

        Returns:
            float32 (B, C', H', W'); the view that starts at (r, c) is the window of the size of a view at (r, c).
        """
        return pixels_BCHW.index_select(2, self.all_rows).index_select(3, self.all_columns)

    def cut(self, pixels_BCHW: torch.Tensor, views_Bn: torch.Tensor) -> torch.Tensor:
        """Cuts n views out of each image.

        Args:
            pixels_BCHW: what ``encode`` returned.
            views_Bn: int64 view numbers in [0, num_views), shape (B, n); (1, n) means the same views of each image.
                Views that have no numbers (PixelViews) are named by the pixels that they retain, shape (B, n, pixels).

        Returns:
            float32 (B * n, C', h, w), image by image; C' is doubled by NULL encoding.
        """
        if self.encoding.removed == "cut":
            return self._crops(pixels_BCHW, views_Bn)
        batch = len(pixels_BCHW)
        retained_BnHW = self._retained(views_Bn)
        # (x, 1 - x) is taken of pixels in their normalised range, as the published ImageNet models do.
        doubled = torch.cat([pixels_BCHW, 1 - pixels_BCHW], dim=1)
        views = torch.where(retained_BnHW[:, :, None], doubled[:, None], 0.0)
        return views.reshape(batch * views_Bn.shape[1], *views.shape[2:])

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        """Draws views uniformly and independently, as ``cut`` takes them.

        Args:
            shape: (B, n), or (1, n) for the same views of each image.
            generator: on the CPU, where the views are drawn.
        """
        if self.views.kind != "pixel":
            return torch.randint(self.views.num_views, shape, generator=generator)
        height, width = self.views.image_size
        return torch.rand(*shape, height * width, generator=generator).topk(self.views.num_pixels, dim=2).indices

    def spread(self, num_views: int, generator: torch.Generator) -> torch.Tensor:
        """Takes views at even distances from a random first one on: along bands, or over both axes of a grid.

        On a grid their rows lie at even distances and their columns a golden section of all columns apart, so that any
        number of them covers it evenly and none is taken twice.

        Args:
            num_views: how many, from 1 to all.
            generator: on the CPU, where the first one is drawn.

        Returns:
            int64 (1, num_views), as ``cut`` takes them: the same views of each image.

        Raises:
            ModelError: more views than there are, or views that have no order.
        """
        if self.views.kind == "pixel" or num_views > self.views.num_views:
            raise ModelError(
                f"views: {num_views} of {self.views.describe()} cannot be spread evenly.\n"
                "  Set --training.view-sampling image, or fewer --training.views-per-image"
            )
        total = self.views.num_views
        first, place_n = torch.randint(total, (1, 1), generator=generator), torch.arange(num_views)
        num_columns = self._num_column_starts
        if num_columns in (0, 1, total):
            return (first + place_n * total // num_views) % total
        num_rows = total // num_columns
        step = next(g for g in range(round(num_columns * _GOLDEN_SECTION), total) if math.gcd(g, num_columns) == 1)
        rows_1n = (first // num_columns + place_n * num_rows // num_views) % num_rows
        return rows_1n * num_columns + (first % num_columns + place_n * step) % num_columns

    def _crops(self, pixels_BCHW: torch.Tensor, views_Bn: torch.Tensor) -> torch.Tensor:
        batch, channels, _, width = pixels_BCHW.shape
        rows = self.rows_Rh[views_Bn // self._num_column_starts]
        columns = self.columns_Cw[views_Bn % self._num_column_starts]
        height_out, width_out = rows.shape[-1], columns.shape[-1]
        where = rows[..., :, None] * width + columns[..., None, :]
        flat = pixels_BCHW.flatten(2)
        if len(views_Bn) == 1:
            views = flat[:, :, where[0].flatten()]
        else:
            views = flat.gather(2, where.flatten(1)[:, None].expand(-1, channels, -1))
        views = views.view(batch, channels, views_Bn.shape[1], height_out, width_out)
        return views.transpose(1, 2).reshape(-1, channels, height_out, width_out)

    def _retained(self, views_Bn: torch.Tensor) -> torch.Tensor:
        if self._num_column_starts:
            rows = self.row_mask_RH[views_Bn // self._num_column_starts]
            columns = self.column_mask_CW[views_Bn % self._num_column_starts]
            return rows[..., :, None] & columns[..., None, :]
        if self.views.kind == "pixel":
            height, width = self.views.image_size
            return self._marked(height * width, views_Bn).unflatten(2, (height, width))
        if self.views.kind == "cell":
            return self._marked(self.views.num_grid_cells, self.cells_Vm[views_Bn])[..., self.cell_of_pixel_HW]
        masks = torch.from_numpy(self.views.retained(views_Bn.flatten().cpu().numpy()))
        return masks.view(*views_Bn.shape, *masks.shape[1:]).to(views_Bn.device)

    @staticmethod
    def _marked(size: int, indices_Bnm: torch.Tensor) -> torch.Tensor:
        """Bool (B, n, size): which of ``size`` things the m indices of each view name."""
        marked = torch.zeros(*indices_Bnm.shape[:2], size, dtype=torch.bool, device=indices_Bnm.device)
        return marked.scatter_(2, indices_Bnm, True)


def _index_mask(indices_Sl: np.ndarray, size: int) -> torch.Tensor:
    """Bool (S, size): which of ``size`` positions each row of indices names."""
    mask = torch.zeros(len(indices_Sl), size, dtype=torch.bool)
    return mask.scatter_(1, torch.from_numpy(np.ascontiguousarray(indices_Sl)), True)
