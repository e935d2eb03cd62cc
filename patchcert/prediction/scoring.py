"""A base classifier and uint8 images in; per view the top class and the once-rounded scores above a floor out."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.geometry import SampledViews, ViewSet
from patchcert.models.classifier import BaseClassifier
from patchcert.prediction.batches import device_batches
from patchcert.prediction.config import PredictionConfig
from patchcert.prediction.lowering import lowered
from patchcert.votes.scores import SCORE_SCALE, rounded_score

_Scores = Callable[..., torch.Tensor]


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

    @classmethod
    def joined(cls, parts: Sequence["ScoredViews"]) -> "ScoredViews":
        """One after the other; at least one, all scored with the same settings."""
        arrays = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(cls)}
        return cls(**{name: None if values[0] is None else np.concatenate(values) for name, values in arrays.items()})


class ViewScorer:
    """Scores all views of images with one base classifier; prepared once, used for many batches.

    A network that offers to score all views of an image in one pass is asked to; on CPUs any other is rewritten where
    that is possible (``lowering``) and else gets chunks of views. All forward passes have one shape, which settings,
    view set, network and kind of device decide (the last ones are filled up and cut), so a score depends on the image
    and not on the images that came with it or how many they were.

    Attributes:
        chunk_images: images in one forward pass.
        chunk_views: views of each in one forward pass.
    """

    chunk_images: int
    chunk_views: int

    def __init__(self, classifier: BaseClassifier, config: PredictionConfig, device: torch.device) -> None:
        """Plans the passes.

        Args:
            classifier: in evaluation mode, on ``device``; changing it later has no effect that can be relied on.
            config: floor, precision, chunk size, shortcuts.
            device: where to compute.

        Raises:
            ModelError: TF32 on a CPU, or a network that torch.compile cannot compile here.
        """
        if config.precision == "tf32" and device.type != "cuda":
            raise ModelError(
                f"prediction: precision tf32 is arithmetic of NVIDIA GPUs, but the device is {device.type}.\n"
                "  Use --prediction.precision float32, or bfloat16"
            )
        self._classifier, self._config, self._device = classifier, config, device
        self._voted = config.voted_views(classifier.views)
        self._floor = rounded_score(config.score_floor) if config.score_floor > 0 else None
        with self._arithmetic():
            self._floats_per_view = 0 if classifier.one_pass else _largest_features(classifier, device)
        self._all_views: _Scores = classifier.all_views
        self._some_views: _Scores = classifier.some_views
        if config.compile:
            self._all_views, self._some_views = (
                torch.compile(function, dynamic=False) for function in (classifier.all_views, classifier.some_views)
            )
        self._plan()
        if config.compile:
            self._try_compiled()

    def score(
        self, images_NHWC: np.ndarray, image_ids: Sequence[str] | None = None, *, first_row: int = 0
    ) -> ScoredViews:
        """Scores every view of every image, or samples of them (``config.num_samples``).

        Where memory runs out, chunks are halved with a warning and the images scored again, all with the same chunks;
        the smaller size stays.

        Args:
            images_NHWC: uint8, shape (N, H, W, C).
            image_ids: names for error messages.
            first_row: row of the first image in its dataset; samples are drawn by row.

        Returns:
            The scored views of the N images, in order.

        Raises:
            ModelError: a score that is not finite (names the images), or too little memory for a single view.
        """
        while True:
            try:
                return self._score(images_NHWC, image_ids, first_row)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                problem = str(error).partition("\n")[0]
            # Outside of the except block: the error holds the frames, and so the tensors, of the failed pass.
            self._halve(problem)

    def _plan(self) -> None:
        classifier, config = self._classifier, self._config
        num_views = self._voted.num_views
        self._lowered = None
        if classifier.one_pass:
            self.chunk_images = config.images_per_pass(num_views, classifier.views.image_size, self._device.type)
            self.chunk_views = num_views
            return
        floats = self._floats_per_view
        wants_shortcuts = config.shortcuts and not config.compile and config.precision == "float32"
        if wants_shortcuts and self._device.type == "cpu":
            self._lowered = lowered(classifier, config.shared_floats(floats))
        if self._lowered is not None:
            floats = self._lowered.floats_per_view
        chunk = config.views_per_chunk(floats, self._device.type)
        self.chunk_images = max(1, chunk // num_views)
        # Chunks of equal size: less padding in the last one.
        self.chunk_views = -(-num_views // -(-num_views // min(chunk, num_views)))

    def _halve(self, problem: str) -> None:
        views = self.chunk_images * self.chunk_views
        least = self._classifier.views.num_views if self._classifier.one_pass else 1
        if views <= least:
            height, width = self._classifier.cutter.view_size
            what = (
                "all views of one image in a single pass" if self._classifier.one_pass else f"one {height}x{width} view"
            )
            raise ModelError(
                f"prediction: there is too little memory for {what} on {self._device}: {problem}.\n"
                "  Use a smaller network or another device, or run fewer workers on this one: --resources.workers"
            )
        self._config = dataclasses.replace(self._config, chunk_views=views // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"Memory ran out with {views} views in one pass; going on with {views // 2}. "
            f"Next time: --prediction.chunk-views {views // 2}",
            RuntimeWarning,
            stacklevel=3,
        )
        self._plan()

    @torch.inference_mode()
    def _score(self, images_NHWC: np.ndarray, image_ids: Sequence[str] | None, first_row: int) -> ScoredViews:
        num_views, floor = self._voted.num_views, self._floor
        # A copy where the caller's array is read-only, which torch cannot express.
        images = torch.from_numpy(np.require(images_NHWC.transpose(0, 3, 1, 2), requirements=["C", "W"]))
        top_classes = np.empty((len(images), num_views), dtype=np.uint16)
        num_entries = np.zeros((len(images), num_views), dtype=np.uint16)
        empty = np.empty(0, dtype=np.uint16)
        classes_of_chunk, scores_of_chunk = [empty], [empty]
        for first, batch in device_batches(images, self.chunk_images, self._device):
            real = min(self.chunk_images, len(images) - first)
            views_BV = _view_names(self._voted, first_row + first, real, self.chunk_images).to(self._device)
            for start, logits_BnK in self._passes(batch, views_BV):
                logits_BnK = logits_BnK[:real, : num_views - start]
                _check_finite(logits_BnK, first, image_ids)
                # argmax returns the first of equal values: the lower class wins a tie.
                where = np.s_[first : first + real, start : start + logits_BnK.shape[1]]
                top_classes[where] = logits_BnK.argmax(dim=2).cpu().numpy()
                if floor is not None:
                    scores_BnK = torch.round(logits_BnK.softmax(dim=2) * SCORE_SCALE).to(torch.int32)
                    reaches_BnK = scores_BnK >= floor
                    num_entries[where] = reaches_BnK.sum(dim=2).cpu().numpy()
                    classes_of_chunk.append(reaches_BnK.nonzero()[:, 2].cpu().numpy().astype(np.uint16))
                    scores_of_chunk.append(scores_BnK[reaches_BnK].cpu().numpy().astype(np.uint16))
        # Chunks of one image follow each other and an image is never split across groups of images, so that plain
        # concatenation keeps entries in (image, view, class) order.
        return ScoredViews(
            top_classes_NV=top_classes,
            num_entries_NV=None if floor is None else num_entries,
            entry_classes=None if floor is None else np.concatenate(classes_of_chunk),
            entry_scores=None if floor is None else np.concatenate(scores_of_chunk),
        )

    def _passes(self, batch: torch.Tensor, views_BV: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the first view and logits (B, n, K) of each chunk of views; the last chunk begins anew at view 0."""
        num_views = self._voted.num_views
        with self._arithmetic():
            pixels_BCHW = self._classifier.cutter.encode(batch)
            shared = None if self._lowered is None else self._lowered.features(pixels_BCHW)
        for start in range(0, num_views, self.chunk_views):
            some_n = torch.arange(start, start + self.chunk_views, device=self._device) % num_views
            with (
                self._arithmetic(),
                torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16"),
            ):
                if self._classifier.one_pass:
                    logits_BnK = self._all_views(pixels_BCHW)
                elif shared is not None:
                    logits_BnK = self._lowered.logits(shared, some_n)
                else:
                    logits_BnK = self._some_views(pixels_BCHW, views_BV[:, some_n])
            yield start, logits_BnK

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """On GPUs "float32" would else mean TF32, ten bits of mantissa, and kernels chosen by a race."""
        tf32, matmul = self._config.precision == "tf32", torch.backends.cuda.matmul
        before = matmul.allow_tf32
        try:
            matmul.allow_tf32 = tf32
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=tf32):
                yield
        finally:
            matmul.allow_tf32 = before

    @torch.inference_mode()
    def _try_compiled(self) -> None:
        """Compiles now, so that a missing compiler is found before any work."""
        views = self._classifier.views
        blank = torch.zeros(self.chunk_images, self._classifier.image_channels, *views.image_size, dtype=torch.uint8)
        try:
            views_BV = _view_names(self._voted, 0, 0, self.chunk_images).to(self._device)
            next(self._passes(blank.to(self._device), views_BV))
        except Exception as error:  # the compiler's own errors have no common class
            raise ModelError(
                f"prediction: torch.compile cannot compile {self._classifier.config.network!r} here: "
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}\n"
                "  Install a C++ compiler (for GPUs: Triton), or use --prediction.no-compile"
            ) from error


def score_views(
    classifier: BaseClassifier,
    images_NHWC: np.ndarray,
    config: PredictionConfig,
    device: torch.device,
    image_ids: Sequence[str] | None = None,
    *,
    first_row: int = 0,
) -> ScoredViews:
    """Scores every view of every image once; for many batches keep a ``ViewScorer``, whose settings these are."""
    return ViewScorer(classifier, config, device).score(images_NHWC, image_ids, first_row=first_row)


@torch.inference_mode()
def _largest_features(classifier: BaseClassifier, device: torch.device) -> int:
    """Numbers in the largest output of any layer for one view."""
    blank = torch.zeros(1, classifier.cutter.num_input_channels, *classifier.cutter.view_size, device=device)
    largest = blank.numel()

    def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    hooks = [module.register_forward_hook(see) for module in classifier.network.modules()]
    try:
        classifier.network(blank)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def _is_out_of_memory(error: Exception) -> bool:
    """GPUs have a class for it, the CPU's allocator only words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


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
