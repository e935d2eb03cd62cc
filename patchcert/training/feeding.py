"""A prepared split in, shuffled batches of uint8 images out; the order is a function of (seed, epoch, rank) alone."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from patchcert.errors import TrainingError
from patchcert.training.config import TrainingConfig

_ROWS_PER_UNIT = 500
_UNITS_PER_WINDOW = 8

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
        images = dataset.read(0, dataset.num_rows)
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

    The next window is read by a thread while this one is used, so at most two windows are in memory.
    """

    def __init__(self, dataset: Any, config: TrainingConfig, *, rank: int, world_size: int) -> None:
        """Opens the split; nothing is read yet."""
        self._dataset, self._seed = dataset, config.seed
        self._rank, self._world_size = rank, world_size
        self._batch = config.batch_size // world_size
        self._units = [
            (start, min(start + _ROWS_PER_UNIT, dataset.num_rows))
            for start in range(0, dataset.num_rows, _ROWS_PER_UNIT)
        ]
        if len(self._units) < world_size:
            raise TrainingError(
                f"training: {dataset.num_rows} images cannot be streamed to {world_size} workers.\n"
                "  Raise --training.memory-gib or use fewer workers."
            )
        # The short last range goes to another worker each epoch; every worker takes as many steps as the poorest could.
        rows_of_poorest = (len(self._units) // world_size) * _ROWS_PER_UNIT - (-dataset.num_rows % _ROWS_PER_UNIT)
        self.steps_per_epoch = rows_of_poorest // self._batch
        if self.steps_per_epoch < 1:
            raise TrainingError(
                f"training: streamed ranges of {_ROWS_PER_UNIT} images leave a worker fewer than its batch of "
                f"{self._batch}.\n  Raise --training.memory-gib or lower --training.batch-size."
            )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See ``Feed``."""
        rng = np.random.default_rng([self._seed, epoch])
        mine = rng.permutation(len(self._units))[self._rank :: self._world_size]
        windows: queue.Queue[Any] = queue.Queue(maxsize=1)
        stop = threading.Event()

        def put(item: Any) -> bool:
            while not stop.is_set():
                try:
                    windows.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for first in range(0, len(mine), _UNITS_PER_WINDOW):
                    parts = [self._dataset.read(*self._units[unit]) for unit in mine[first : first + _UNITS_PER_WINDOW]]
                    images = np.concatenate([part.images_NHWC for part in parts])
                    labels = np.concatenate([part.labels_N for part in parts]).astype(np.int64)
                    if not put((images, labels)):
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        order_rng = np.random.default_rng([self._seed, epoch, self._rank])
        try:
            yield from self._batches(windows, order_rng)
        finally:
            stop.set()
            thread.join()

    def _batches(self, windows: "queue.Queue[Any]", order_rng: np.random.Generator) -> Iterator[Batch]:
        images: np.ndarray | None = None
        labels: np.ndarray | None = None
        given = 0
        while given < self.steps_per_epoch:
            item = windows.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            # What was left of the last window goes before this one.
            images = item[0] if images is None else np.concatenate([images, item[0]])
            labels = item[1] if labels is None else np.concatenate([labels, item[1]])
            order = order_rng.permutation(len(images))
            for start in range(0, len(order) - self._batch + 1, self._batch):
                if given == self.steps_per_epoch:
                    return
                rows = order[start : start + self._batch]
                given += 1
                batch = np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2))
                yield torch.from_numpy(batch), torch.from_numpy(labels[rows])
            left = order[len(order) - len(order) % self._batch :]
            images, labels = images[left], labels[left]
