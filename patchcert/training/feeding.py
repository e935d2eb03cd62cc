"""A prepared split in, shuffled batches of uint8 images out; the order is a function of (seed, epoch, rank) alone."""

import concurrent.futures
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from patchcert.errors import TrainingError
from patchcert.training.config import TrainingConfig

_ROWS_PER_RANGE = 500
_RANGES_PER_WINDOW = 8

Batch = tuple[torch.Tensor, torch.Tensor]


class Feed(Protocol):
    """Batches of one worker."""

    steps_per_epoch: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields ``steps_per_epoch`` batches (uint8 (B, C, H, W), int64 (B,)) on the CPU."""


def open_feed(dataset: Any, config: TrainingConfig, *, rank: int = 0, world_size: int = 1) -> Feed:
    """Chooses between memory and streaming by ``config.memory_gib``.

    Raises:
        TrainingError: a batch that cannot be shared out evenly, or fewer images than one batch.
    """
    if config.batch_size % world_size:
        raise TrainingError(
            f"training: batch_size {config.batch_size} cannot be shared evenly by {world_size} workers.\n"
            f"  Use a multiple of {world_size}."
        )
    if dataset.num_rows < config.batch_size:
        raise TrainingError(
            f"training: {dataset.name}/{dataset.split} has {dataset.num_rows} images, fewer than one batch of "
            f"{config.batch_size}.\n  Set --training.batch-size {max(1, dataset.num_rows // 2)} or lower."
        )
    size = dataset.num_rows * dataset.num_channels * dataset.image_size[0] * dataset.image_size[1]
    feed = MemoryFeed if size <= config.memory_gib * 2**30 else StreamFeed
    return feed(dataset, config, rank=rank, world_size=world_size)


class MemoryFeed:
    """Holds all images and takes every world_size-th of one global permutation."""

    def __init__(self, dataset: Any, config: TrainingConfig, *, rank: int, world_size: int) -> None:
        """Reads the whole split."""
        self._rank, self._world_size, self._seed = rank, world_size, config.seed
        self._batch = config.batch_size // world_size
        images = dataset.read_all()
        self._images = torch.from_numpy(np.ascontiguousarray(images.images_NHWC.transpose(0, 3, 1, 2)))
        self._labels = torch.from_numpy(np.ascontiguousarray(images.labels_N.astype(np.int64)))
        self.steps_per_epoch = dataset.num_rows // config.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See ``Feed``."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._images))[
            self._rank :: self._world_size
        ]
        for step in range(self.steps_per_epoch):
            rows = torch.from_numpy(order[step * self._batch : (step + 1) * self._batch])
            yield self._images[rows], self._labels[rows]


class StreamFeed:
    """Reads ranges of rows in a shuffled order, a window of ranges at a time, and shuffles within the window.

    Every worker takes an equal share of the shuffled ranges laid end to end, so that some are cut at its borders. A
    thread reads the next window while this one is used, and waits then: at most two windows are in memory.
    """

    def __init__(self, dataset: Any, config: TrainingConfig, *, rank: int, world_size: int) -> None:
        """Opens the split; nothing is read yet."""
        self._dataset, self._seed, self._rank = dataset, config.seed, rank
        self._batch = config.batch_size // world_size
        self._share = dataset.num_rows // world_size
        self._ranges_U2 = np.array(dataset.parts(_ROWS_PER_RANGE))
        self.steps_per_epoch = self._share // self._batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See ``Feed``."""
        ranges_U2 = self._my_ranges(epoch)
        windows = [
            ranges_U2[first : first + _RANGES_PER_WINDOW] for first in range(0, len(ranges_U2), _RANGES_PER_WINDOW)
        ]
        order_rng = np.random.default_rng([self._seed, epoch, self._rank])
        images_left, labels_left = self._read(ranges_U2[:0], 0)
        # The reader ends with the block, whether the epoch is used up, left early or fails.
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(self._read, windows[0], 0)
            for following in [*windows[1:], None]:
                images, labels = upcoming.result()
                # Fewer rows than a batch are left of each window; the next one was read with room for them in front.
                images[: len(images_left)], labels[: len(labels_left)] = images_left, labels_left
                num_left = len(labels) % self._batch
                if following is not None:
                    upcoming = reader.submit(self._read, following, num_left)
                order = order_rng.permutation(len(labels))
                for start in range(0, len(labels) - num_left, self._batch):
                    rows = order[start : start + self._batch]
                    batch = np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2))
                    yield torch.from_numpy(batch), torch.from_numpy(labels[rows])
                left = order[len(order) - num_left :]
                images_left, labels_left = images[left], labels[left]

    def _my_ranges(self, epoch: int) -> np.ndarray:
        """Row ranges (start, stop) of this worker in an epoch, in order, int64 (U, 2)."""
        starts, stops = np.random.default_rng([self._seed, epoch]).permutation(self._ranges_U2).T
        lengths = stops - starts
        passed = np.cumsum(lengths) - lengths
        share = self._rank * self._share, (self._rank + 1) * self._share
        mine = np.stack([starts + np.clip(border - passed, 0, lengths) for border in share], axis=1)
        return mine[mine[:, 0] < mine[:, 1]]

    def _read(self, ranges_U2: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of ranges of rows, behind ``room`` rows that the caller fills."""
        num_rows = room + sum(stop - start for start, stop in ranges_U2.tolist())
        images = np.empty((num_rows, *self._dataset.image_size, self._dataset.num_channels), np.uint8)
        labels = np.empty(num_rows, np.int64)
        row = room
        for start, stop in ranges_U2.tolist():
            part = self._dataset.read(start, stop)
            images[row : row + stop - start], labels[row : row + stop - start] = part.images_NHWC, part.labels_N
            row += stop - start
        return images, labels
