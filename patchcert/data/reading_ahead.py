"""Reads a range of prepared images row group by row group, the next one while the caller works."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from patchcert.data.parallel import ordered_map
from patchcert.data.prepared import ImageBatch, PreparedDataset


def read_ahead(dataset: PreparedDataset, start: int, stop: int) -> Iterator[ImageBatch]:
    """Reads and decodes each row group while the caller works on the one before.

    At most two row groups are in memory at a time, however many rows are asked for.

    Args:
        dataset: a prepared split.
        start: first row.
        stop: row after the last.

    Yields:
        The rows in order; borders lie between row groups, so that none is read twice.

    Raises:
        DatasetError: the range leaves the dataset, or a shard is damaged.
    """
    size = dataset.rows_per_group
    borders = [start, *range((start // size + 1) * size, stop, size), stop]
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        yield from ordered_map(pool, lambda rows: dataset.read(*rows), itertools.pairwise(borders), num_ahead=2)
