"""A prepared split in, shuffled batches of uint8 images out; the order is a function of (seed, epoch, rank) alone."""

import collections
import concurrent.futures
import contextlib
import math
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from patchcert.errors import TrainingError
from patchcert.training.config import TrainingConfig

_MOST_ROWS_PER_RANGE = 500
_LEAST_ROWS_PER_WINDOW = 4_000
_READERS = 4
_BATCHES_AHEAD = 2

Batch = tuple[torch.Tensor, torch.Tensor]


class Feed(Protocol):
    """Batches of one worker."""

    steps_per_epoch: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields ``steps_per_epoch`` batches (uint8 (B, C, H, W) in any memory layout, int64 (B,)) on the CPU."""


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

    A range is a row group where those are small, so that nothing is read twice; the more and smaller ranges a window
    has, the more classes meet in a batch although the shards may be sorted by class. Every worker takes an equal share
    of the shuffled ranges laid end to end, so that some are cut at its borders. Threads read the next window while this
    one is used, and wait then: at most two windows are in memory. Another one puts the next batches together. New
    memory takes longer to get than to fill, so windows and batches go where earlier ones were.
    """

    def __init__(self, dataset: Any, config: TrainingConfig, *, rank: int, world_size: int) -> None:
        """Opens the split; nothing is read yet."""
        self._dataset, self._seed, self._rank = dataset, config.seed, rank
        self._batch = config.batch_size // world_size
        self._share = dataset.num_rows // world_size
        rows_per_range = min(dataset.rows_per_group, _MOST_ROWS_PER_RANGE)
        self._ranges_U2 = np.array(dataset.parts(rows_per_range))
        self._image_shape = (*dataset.image_size, dataset.num_channels)
        image_bytes = math.prod(self._image_shape)
        rows_per_window = max(_LEAST_ROWS_PER_WINDOW, int(config.memory_gib * 2**30 / 2 / image_bytes))
        self._ranges_per_window = max(1, rows_per_window // rows_per_range)
        self._rows_per_window = min(self._ranges_per_window * rows_per_range, self._share)
        self._kept: list[Batch] = []
        self._pin = torch.cuda.is_available()
        self.steps_per_epoch = self._share // self._batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See ``Feed``."""
        batches = self._batches(epoch)
        maker = concurrent.futures.ThreadPoolExecutor(1)
        # The threads end with the block, whether the epoch is used up, left early or fails.
        with contextlib.closing(batches):
            try:
                ahead = collections.deque(maker.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
                while (batch := ahead.popleft().result()) is not None:
                    ahead.append(maker.submit(next, batches, None))
                    yield batch
            finally:
                maker.shutdown(cancel_futures=True)

    def _batches(self, epoch: int) -> Generator[Batch, None, None]:
        ranges_U2 = self._my_ranges(epoch)
        size = self._ranges_per_window
        windows = [ranges_U2[first : first + size] for first in range(0, len(ranges_U2), size)]
        order_rng = np.random.default_rng([self._seed, epoch, self._rank])
        images_left, labels_left = self._empty(0)
        memory = _BatchMemory((self._batch, *self._image_shape), pinned=self._pin)
        with (
            self._buffers(min(2, len(windows))) as buffers,
            concurrent.futures.ThreadPoolExecutor(_READERS) as readers,
            concurrent.futures.ThreadPoolExecutor(1) as window_reader,
        ):
            upcoming = window_reader.submit(self._read, windows[0], 0, buffers[0], readers)
            for index, following in enumerate([*windows[1:], None], start=1):
                images, labels = upcoming.result()
                # Fewer rows than a batch are left of each window; the next one was read with room for them in front.
                images[: len(images_left)], labels[: len(labels_left)] = images_left, labels_left
                num_left = len(labels) % self._batch
                if following is not None:
                    upcoming = window_reader.submit(self._read, following, num_left, buffers[index % 2], readers)
                order = torch.from_numpy(order_rng.permutation(len(labels)))
                for start in range(0, len(labels) - num_left, self._batch):
                    rows = order[start : start + self._batch]
                    batch = memory.take()
                    torch.index_select(images, 0, rows, out=batch)
                    # Channels stay last in memory: turning them here would cost more than all the rest.
                    yield batch.permute(0, 3, 1, 2), labels[rows]
                left = order[len(order) - num_left :]
                images_left, labels_left = images[left], labels[left]

    @contextlib.contextmanager
    def _buffers(self, count: int) -> Iterator[list[Batch]]:
        """Room for windows, which take turns in it.

        An epoch leaves its buffers to the next one; one that runs beside another gets its own.
        """
        buffers: list[Batch] = []
        with contextlib.suppress(IndexError):
            while len(buffers) < count:
                buffers.append(self._kept.pop())
        buffers += [self._empty(self._rows_per_window + self._batch) for _ in range(count - len(buffers))]
        try:
            yield buffers
        finally:
            self._kept = buffers

    def _my_ranges(self, epoch: int) -> np.ndarray:
        """Row ranges (start, stop) of this worker in an epoch, in order, int64 (U, 2)."""
        starts, stops = np.random.default_rng([self._seed, epoch]).permutation(self._ranges_U2).T
        lengths = stops - starts
        passed = np.cumsum(lengths) - lengths
        share = self._rank * self._share, (self._rank + 1) * self._share
        mine = np.stack([starts + np.clip(border - passed, 0, lengths) for border in share], axis=1)
        return mine[mine[:, 0] < mine[:, 1]]

    def _read(self, ranges_U2: np.ndarray, room: int, buffer: Batch, readers: concurrent.futures.Executor) -> Batch:
        """Images (N, H, W, C) and labels of ranges of rows, behind ``room`` rows for the caller; in the buffer."""
        lengths_U = ranges_U2[:, 1] - ranges_U2[:, 0]
        ends_U = room + np.cumsum(lengths_U)
        images, labels = (values[: int(ends_U[-1])] for values in buffer)

        def read_range(start: int, first: int, end: int) -> None:
            self._dataset.fill(start, images.numpy()[first:end], labels.numpy()[first:end])

        for _ in readers.map(read_range, ranges_U2[:, 0].tolist(), (ends_U - lengths_U).tolist(), ends_U.tolist()):
            pass
        return images, labels

    def _empty(self, num_rows: int) -> Batch:
        return _empty_images((num_rows, *self._image_shape)), torch.empty(num_rows, dtype=torch.int64)


class _BatchMemory:
    """Memory for batches; what its users have let go of is given out again."""

    def __init__(self, shape: tuple[int, ...], *, pinned: bool) -> None:
        self._shape, self._pinned = shape, pinned
        self._blocks: list[np.ndarray] = []
        self._users: list[weakref.ref[np.ndarray]] = []

    def take(self) -> torch.Tensor:
        if self._pinned:
            # torch keeps such memory for the next one itself.
            return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)
        free = next((index for index, user in enumerate(self._users) if user() is None), len(self._blocks))
        if free == len(self._blocks):
            self._blocks.append(_empty_images(self._shape).numpy())
        # Every tensor on this memory holds this view of it, and so does nothing else.
        view = self._blocks[free][:]
        self._users[free : free + 1] = [weakref.ref(view)]
        return torch.from_numpy(view)


def _empty_images(shape: tuple[int, ...]) -> torch.Tensor:
    """uint8 in huge pages, which NumPy asks the system for; torch would take 4 KiB ones, one fault each."""
    return torch.from_numpy(np.empty(shape, np.uint8))
