"""A base classifier and uint8 images in; per view the top class and the once-rounded scores above a floor out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from patchcert.errors import ModelError
from patchcert.geometry import SampledViews, ViewSet
from patchcert.models.classifier import BaseClassifier
from patchcert.prediction.config import PredictionConfig
from patchcert.votes.scores import SCORE_SCALE, rounded_score


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredViews:
    """What a vote table stores of N images; see ``patchcert.votes.table``.

    Attributes:
        top_classes_NV: uint16, class of the highest score, the lower class on a tie.
        num_entries_NV: uint16, how many scores of each view reach the floor; None without a floor.
        entry_classes: uint16, classes of those scores, view by view in ascending class order.
        entry_scores: uint16, the scores in units of 1 / SCORE_SCALE.
    """

    top_classes_NV: np.ndarray
    num_entries_NV: np.ndarray | None
    entry_classes: np.ndarray | None
    entry_scores: np.ndarray | None


# On GPUs "float32" would else mean TF32 in convolutions, ten bits of mantissa, and kernels chosen by a race.
@torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
@torch.inference_mode()
def score_views(
    classifier: BaseClassifier,
    images_NHWC: np.ndarray,
    config: PredictionConfig,
    device: torch.device,
    image_ids: Sequence[str] | None = None,
    *,
    first_row: int = 0,
) -> ScoredViews:
    """Scores every view of every image, or samples of them (``config.num_samples``).

    A network that offers to score all views of an image in one pass is asked to; any other gets chunks of views. All
    forward passes have one shape, which settings, view set and device decide (the last ones are padded and cut), so a
    score depends on the image and not on the images that came with it or how many they were.

    Args:
        classifier: in evaluation mode, on ``device``.
        images_NHWC: uint8, shape (N, H, W, C).
        config: floor, precision and chunk size.
        device: where to compute.
        image_ids: names for error messages.
        first_row: row of the first image in its dataset; samples are drawn by row.

    Returns:
        The scored views of the N images, in order.

    Raises:
        ModelError: a score that is not finite; names the images.
    """
    voted = config.voted_views(classifier.views)
    num_views = voted.num_views
    if classifier.one_pass:
        chunk_images = config.images_per_pass(num_views, classifier.views.image_size, device.type)
        chunk_views = num_views
    else:
        chunk = config.views_per_chunk(classifier.cutter.view_size, device.type)
        chunk_images = max(1, chunk // num_views)
        # Chunks of equal size: less padding in the last one.
        chunk_views = -(-num_views // -(-num_views // min(chunk, num_views)))
    floor = rounded_score(config.score_floor) if config.score_floor > 0 else None
    # A copy where the caller's array is read-only, which torch cannot express.
    images = torch.from_numpy(np.require(images_NHWC.transpose(0, 3, 1, 2), requirements=["C", "W"]))
    top_classes = np.empty((len(images), num_views), dtype=np.uint16)
    num_entries = np.zeros((len(images), num_views), dtype=np.uint16)
    classes_of_chunk: list[np.ndarray] = []
    scores_of_chunk: list[np.ndarray] = []
    view_starts = range(0, num_views, chunk_views)
    for first in range(0, len(images), chunk_images):
        batch = images[first : first + chunk_images]
        real = len(batch)
        if real < chunk_images:
            batch = torch.cat([batch, batch.new_zeros(chunk_images - real, *batch.shape[1:])])
        batch = batch.to(device, non_blocking=True)
        pixels_BCHW = classifier.cutter.encode(batch)
        all_views_BV = _view_names(voted, first_row + first, real, chunk_images).to(device)
        for start in view_starts:
            views_Bn = all_views_BV[:, torch.arange(start, start + chunk_views, device=device) % num_views]
            real_views = min(chunk_views, num_views - start)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                if classifier.one_pass:
                    logits_BnK = classifier.all_views(pixels_BCHW)
                else:
                    logits_BnK = classifier.some_views(pixels_BCHW, views_Bn)
            logits_BnK = logits_BnK[:real, :real_views]
            _check_finite(logits_BnK, first, image_ids)
            # argmax returns the first of equal values: the lower class wins a tie.
            where = np.s_[first : first + real, start : start + real_views]
            top_classes[where] = logits_BnK.argmax(dim=2).cpu().numpy()
            if floor is not None:
                scores_BnK = torch.round(logits_BnK.softmax(dim=2) * SCORE_SCALE).to(torch.int32)
                reaches_BnK = scores_BnK >= floor
                num_entries[where] = reaches_BnK.sum(dim=2).cpu().numpy()
                classes_of_chunk.append(reaches_BnK.nonzero()[:, 2].cpu().numpy().astype(np.uint16))
                scores_of_chunk.append(scores_BnK[reaches_BnK].cpu().numpy().astype(np.uint16))
    # Chunks of one image follow each other and an image is never split across groups of images, so that plain
    # concatenation keeps entries in (image, view, class) order.
    if floor is None:
        return ScoredViews(top_classes_NV=top_classes, num_entries_NV=None, entry_classes=None, entry_scores=None)
    empty = np.empty(0, dtype=np.uint16)
    return ScoredViews(
        top_classes_NV=top_classes,
        num_entries_NV=num_entries,
        entry_classes=np.concatenate([empty, *classes_of_chunk]),
        entry_scores=np.concatenate([empty, *scores_of_chunk]),
    )


def _view_names(voted: ViewSet, first_row: int, num_images: int, batch: int) -> torch.Tensor:
    """Names of the voted views as the cutter takes them: (1, V) numbers, or the pixels (batch, V, k) of samples."""
    if not isinstance(voted, SampledViews):
        return torch.arange(voted.num_views)[None]
    pixels_BVk = np.zeros((batch, voted.num_samples, voted.views.num_pixels), dtype=np.int64)
    for image in range(num_images):
        pixels_BVk[image] = voted.pixels(first_row + image)
    return torch.from_numpy(pixels_BVk)


def _check_finite(logits_BnK: torch.Tensor, first: int, image_ids: Sequence[str] | None) -> None:
    finite_B = logits_BnK.isfinite().all(dim=2).all(dim=1)
    if not finite_B.all():
        rows = (~finite_B).nonzero()[:, 0].tolist()
        names = [image_ids[first + row] if image_ids is not None else f"row {first + row}" for row in rows]
        shown = ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ModelError(
            f"the base classifier returned scores that are not finite for {shown}.\n"
            "  Check the checkpoint (a diverged training?) or use --prediction.precision float32"
        )
