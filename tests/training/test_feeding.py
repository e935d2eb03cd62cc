import threading
import time

import numpy as np
import pytest
import torch

from patchcert.data import PreparedDataset
from patchcert.errors import DatasetError, TrainingError
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import MemoryFeed, StreamFeed, open_feed

NUM_ROWS, ROWS_PER_RANGE, ROWS_PER_WINDOW = 9_130, 500, 4_000
IN_MEMORY, STREAMED = {"memory_gib": 1.0}, {"memory_gib": 0.0}
BOTH = pytest.mark.parametrize("memory", [IN_MEMORY, STREAMED], ids=["memory", "stream"])


def feeds(dataset, world_size=1, **settings):
    config = TrainingConfig(**settings)
    return [open_feed(dataset, config, rank=rank, world_size=world_size) for rank in range(world_size)]


def numbers_of(images_BCHW):
    return images_BCHW[:, 0, 0, 0].long() * 256 + images_BCHW[:, 0, 0, 1].long()


def epoch_of(feed, epoch=0):
    """Numbers of the images of an epoch, one row for each batch."""
    batches = []
    for images_BCHW, labels_B in feed.epoch(epoch):
        assert images_BCHW.dtype == torch.uint8
        assert images_BCHW.shape[1:] == (1, 4, 3)
        assert labels_B.dtype == torch.int64
        numbers = numbers_of(images_BCHW)
        # The rest of the image and the label belong to the number.
        assert torch.equal(images_BCHW[:, 0, 3, 2].long(), numbers % 251)
        assert torch.equal(labels_B, numbers % 10)
        batches.append(numbers.numpy())
    return np.stack(batches)


@pytest.mark.parametrize(("batch_size", "world_size"), [(110, 1), (110, 2), (110, 5), (830, 10), (NUM_ROWS, 1)])
def test_memory_gives_every_image_once_an_epoch_over_all_workers(numbered_images, batch_size, world_size):
    workers = feeds(numbered_images, world_size, batch_size=batch_size, **IN_MEMORY)
    assert all(isinstance(worker, MemoryFeed) for worker in workers)
    for epoch in (0, 3):
        given = [epoch_of(worker, epoch) for worker in workers]
        assert {numbers.shape for numbers in given} == {(NUM_ROWS // batch_size, batch_size // world_size)}
        assert sorted(np.concatenate(given, axis=None)) == list(range(NUM_ROWS))


@pytest.mark.parametrize("world_size", [1, 4])
def test_memory_leaves_out_less_than_a_batch(numbered_images, world_size):
    given = [epoch_of(worker) for worker in feeds(numbered_images, world_size, batch_size=128, **IN_MEMORY)]
    numbers = np.concatenate(given, axis=None)
    assert len(np.unique(numbers)) == len(numbers) == NUM_ROWS // 128 * 128


@pytest.mark.parametrize(("world_size", "share"), [(1, 2), (1, 300), (2, 64), (3, 300), (7, 2), (30, 64)])
def test_streams_give_equal_numbers_of_steps_and_no_image_twice(numbered_images, world_size, share):
    workers = feeds(numbered_images, world_size, batch_size=share * world_size, **STREAMED)
    assert all(isinstance(worker, StreamFeed) for worker in workers)
    (steps,) = {worker.steps_per_epoch for worker in workers}
    for epoch in range(2):
        given = [epoch_of(worker, epoch) for worker in workers]
        assert {numbers.shape for numbers in given} == {(steps, share)}
        numbers = np.concatenate(given, axis=None)
        assert len(np.unique(numbers)) == len(numbers)
        # Less than a batch is left out for each worker, and what does not divide by their number.
        assert len(numbers) > NUM_ROWS - world_size * (share + 1)


def test_one_stream_leaves_out_less_than_a_batch(numbered_images):
    (feed,) = feeds(numbered_images, batch_size=83, **STREAMED)
    assert sorted(epoch_of(feed).ravel()) == list(range(NUM_ROWS))


def test_what_one_epoch_leaves_out_comes_in_another(numbered_images):
    workers = feeds(numbered_images, 4, batch_size=256, **STREAMED)
    given = np.concatenate([epoch_of(worker, epoch) for epoch in range(12) for worker in workers], axis=None)
    assert len(np.unique(given)) == NUM_ROWS


@BOTH
def test_the_order_is_a_function_of_seed_epoch_and_worker(numbered_images, memory):
    def order(epoch, rank=0, seed=0):
        return epoch_of(feeds(numbered_images, 2, batch_size=200, seed=seed, **memory)[rank], epoch)

    one = order(5)
    used = feeds(numbered_images, 2, batch_size=200, **memory)[0]
    for epoch in range(2):
        epoch_of(used, epoch)
    np.testing.assert_array_equal(epoch_of(used, 5), one)
    for other in (order(6), order(5, rank=1), order(5, seed=1)):
        assert (other == one).mean() < 0.01


@BOTH
def test_a_single_range_is_shuffled_anew_each_epoch(prepared_digits, memory):
    (feed,) = feeds(prepared_digits["validation"], batch_size=200, **memory)
    (one,), (other,) = ([labels_B for _, labels_B in feed.epoch(epoch)] for epoch in (0, 1))
    assert torch.equal(one.sort().values, other.sort().values)
    assert (one == other).float().mean() < 0.3


@BOTH
def test_batches_are_shuffled(numbered_images, memory):
    (feed,) = feeds(numbered_images, batch_size=100, **memory)
    order = epoch_of(feed).ravel()
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.mean() < 0.01
    # Every batch of a window mixes its ranges.
    assert np.median([len(np.unique(batch // ROWS_PER_RANGE)) for batch in epoch_of(feed)]) >= 6


@BOTH
def test_giving_out_batches_leaves_the_images_alone(numbered_images, memory):
    (feed,) = feeds(numbered_images, batch_size=1000, **memory)
    before = epoch_of(feed)
    for images_BCHW, labels_B in feed.epoch(0):
        images_BCHW.zero_()
        labels_B.zero_()
    np.testing.assert_array_equal(epoch_of(feed), before)


@BOTH
def test_batches_that_are_kept_stay_as_they_are(numbered_images, memory):
    (feed,) = feeds(numbered_images, batch_size=100, **memory)
    one_by_one = epoch_of(feed)
    kept = [numbers_of(images_BCHW) for images_BCHW, _ in list(feed.epoch(0))]
    np.testing.assert_array_equal(np.stack(kept), one_by_one)


@BOTH
def test_parts_of_batches_that_are_kept_stay_as_they_are(numbered_images, memory):
    (feed,) = feeds(numbered_images, batch_size=100, **memory)
    one_by_one = epoch_of(feed)
    kept = [images_BCHW[7:8] for images_BCHW, _ in feed.epoch(0)]
    np.testing.assert_array_equal(numbers_of(torch.cat(kept)), one_by_one[:, 7])


@BOTH
def test_epochs_side_by_side_do_not_disturb_each_other(numbered_images, memory):
    (feed,) = feeds(numbered_images, batch_size=100, **memory)
    alone = [epoch_of(feed, epoch) for epoch in (0, 1)]
    pairs = zip(feed.epoch(0), feed.epoch(1), strict=True)
    together = [[numbers_of(images_BCHW) for images_BCHW, _ in pair] for pair in pairs]
    np.testing.assert_array_equal(np.array(together).swapaxes(0, 1), alone)


class _Watched:
    """A prepared dataset that counts the rows read from it."""

    def __init__(self, dataset):
        self._dataset, self.num_read, self._lock = dataset, 0, threading.Lock()

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def fill(self, start, images_NHWC, labels_N):
        with self._lock:
            self.num_read += len(labels_N)
        self._dataset.fill(start, images_NHWC, labels_N)


class TestReader:
    def test_ends_when_the_epoch_is_used_up_or_left_early(self, numbered_images):
        before = set(threading.enumerate())
        (feed,) = feeds(numbered_images, batch_size=100, **STREAMED)
        epoch_of(feed)
        assert set(threading.enumerate()) == before
        batches = feed.epoch(1)
        next(batches)
        assert set(threading.enumerate()) > before
        batches.close()
        assert set(threading.enumerate()) == before

    def test_ends_when_the_consumer_fails(self, numbered_images):
        before = set(threading.enumerate())
        (feed,) = feeds(numbered_images, batch_size=100, **STREAMED)
        with pytest.raises(ZeroDivisionError):
            for images_BCHW, _ in feed.epoch(0):
                images_BCHW.shape[0] / 0
        assert set(threading.enumerate()) == before

    def test_is_at_most_one_window_ahead(self, numbered_images):
        watched = _Watched(numbered_images)
        feed = StreamFeed(watched, TrainingConfig(batch_size=100, **STREAMED), rank=0, world_size=1)
        assert watched.num_read == 0
        for step, _ in enumerate(feed.epoch(0)):
            if step < 2:
                time.sleep(0.2)  # It could read more now, if it did not wait.
            # Two more batches are put together while this one is used.
            assert watched.num_read <= (step + 2) * 100 + 2 * ROWS_PER_WINDOW
        assert watched.num_read == NUM_ROWS

    def test_hands_over_its_errors(self, numbered_images):
        before = set(threading.enumerate())
        dataset = PreparedDataset.open(numbered_images.folder)
        (feed,) = feeds(dataset, batch_size=100, **STREAMED)
        shard = numbered_images.folder.path(numbered_images.shards[0].file)
        with open(shard, "rb") as file:
            whole = file.read()
        try:
            with open(shard, "wb") as file:
                file.write(whole[:1000])
            with pytest.raises(DatasetError, match="is damaged"):
                epoch_of(feed)
        finally:
            with open(shard, "wb") as file:
                file.write(whole)
        assert set(threading.enumerate()) == before


def places(feed, epoch):
    """Addresses of the batches of an epoch."""
    return {images_BCHW.data_ptr() for images_BCHW, _ in feed.epoch(epoch)}


def test_streams_use_their_memory_again(numbered_images):
    (feed,) = feeds(numbered_images, batch_size=100, **STREAMED)
    # One is used, two wait, one is put together.
    assert len(places(feed, 0)) <= 4


class TestChoice:
    def test_is_by_the_size_of_the_images(self, numbered_images):
        size = NUM_ROWS * 4 * 3 / 2**30
        assert isinstance(feeds(numbered_images, batch_size=10, memory_gib=size)[0], MemoryFeed)
        assert isinstance(feeds(numbered_images, batch_size=10, memory_gib=size * 0.999)[0], StreamFeed)

    @BOTH
    def test_batches_that_cannot_be_shared(self, numbered_images, memory):
        words = "batch_size 100 cannot be shared evenly by 3 workers.\n  Use a multiple of 3"
        with pytest.raises(TrainingError, match=words):
            feeds(numbered_images, 3, batch_size=100, **memory)

    @BOTH
    def test_batches_larger_than_the_dataset(self, numbered_images, memory):
        words = r"mnist/trainval has 9130 images, fewer than one batch of 9131.\n  Set --training.batch-size 4565"
        with pytest.raises(TrainingError, match=words):
            feeds(numbered_images, batch_size=9131, **memory)
