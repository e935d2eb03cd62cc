"""A run that is continued by another number of workers: the same images, none of them twice, and a record of it."""

import numpy as np
import pytest
import torch

from patchcert.geometry import BandViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import MemoryFeed, StreamFeed, open_feed
from patchcert.training.loop import Trainer, workers_of_epochs

CONFIG = TrainingConfig(epochs=3, batch_size=48, views_per_image=1, learning_rate=0.01)


def trainer(dataset, *, rank=0, num_workers=1):
    classifier = initial_classifier(
        ClassifierConfig(network="drs-mnist-cnn", width=0.1), BandViews(image_size=(32, 32), width=4), 1, 10, seed=0
    )
    feed = open_feed(dataset, CONFIG, rank=rank, world_size=num_workers)
    return Trainer(classifier, CONFIG, feed, torch.device("cpu"), rank=rank, num_workers=num_workers)


def batches(feed, dataset, world_size, epoch=1):
    """Images of each step of an epoch, of all workers together, as sorted numbers of bytes."""
    parts = [feed(dataset, CONFIG, rank=rank, world_size=world_size).epoch(epoch) for rank in range(world_size)]
    return [
        sorted(image.numpy().tobytes() for images, _ in step for image in images) for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_number_of_workers_takes_the_same_steps(prepared_digits, world_size):
    """From memory, workers together learn from the batches that one alone would learn from."""
    dataset = prepared_digits["train"]
    assert batches(MemoryFeed, dataset, world_size) == batches(MemoryFeed, dataset, 1)
    counts = [len(batches(StreamFeed, dataset, workers)) for workers in (1, world_size)]
    assert counts[0] == counts[1] == dataset.num_rows // CONFIG.batch_size


def test_workers_that_stream_share_out_an_epoch_without_an_image_twice(prepared_digits):
    dataset = prepared_digits["train"]
    every, seen = {}, {}
    for image in dataset.read_all().images_NHWC.transpose(0, 3, 1, 2):
        every[image.tobytes()] = every.get(image.tobytes(), 0) + 1
    for step in batches(StreamFeed, dataset, 2):
        for image in step:
            seen[image] = seen.get(image, 0) + 1
    assert all(count <= every[image] for image, count in seen.items())


def test_state_of_one_worker_is_continued_by_each_of_two(prepared_digits):
    dataset = prepared_digits["train"]
    alone = trainer(dataset)
    alone.run_epoch()
    state = alone.state()
    assert workers_of_epochs(state) == [[1, 1]]
    for rank in range(2):
        again = trainer(dataset, rank=rank, num_workers=2)
        again.load_state(state)
        assert again.next_epoch == 1 and again.total_steps == alone.total_steps
        figures = again.run_epoch()
        assert np.isfinite(figures.loss)
        assert workers_of_epochs(again.state()) == [[1, 1], [2, 1]]
    assert workers_of_epochs(state) == [[1, 1]], "a state that was saved is not written to"


def test_states_of_versions_that_did_not_count_workers_are_of_one():
    assert workers_of_epochs({"next_epoch": 4}) == [[1, 4]]
