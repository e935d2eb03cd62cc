import threading

import numpy as np
import pytest

from patchcert.data import DataConfig, PreparedDataset, prepare
from patchcert.data.reading_ahead import read_ahead
from patchcert.errors import DatasetError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    config = DataConfig(dataset="digits", limit=50, rows_per_group=8)
    return prepare(config, (32, 32), str(tmp_path_factory.mktemp("digits")), splits=["test"])["test"]


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 50), (8, 16), (9, 10), (7, 33), (5, 5)])
def test_rows_come_in_order_and_no_row_group_twice(dataset, start, stop):
    batches = list(read_ahead(dataset, start, stop))
    whole = dataset.read(start, stop)
    for field in ("image_ids", "images_NHWC", "labels_N"):
        found = np.concatenate([getattr(batch, field) for batch in batches])
        np.testing.assert_array_equal(found, getattr(whole, field))
    assert len(batches) == max(1, -(-stop // 8) - start // 8)


def test_the_next_rows_are_read_while_the_first_are_worked_on_and_no_more(dataset, monkeypatch):
    ranges, read_second = [], threading.Event()
    read = PreparedDataset.read

    def watched(self, start, stop):
        ranges.append((start, stop))
        if len(ranges) == 2:
            read_second.set()
        return read(self, start, stop)

    monkeypatch.setattr(PreparedDataset, "read", watched)
    batches = read_ahead(dataset, 0, 50)
    next(batches)
    assert read_second.wait(10), "nothing is read ahead"
    assert ranges == [(0, 8), (8, 16)]
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_errors_arrive_where_the_rows_would(dataset):
    with pytest.raises(DatasetError, match=r"rows 48 to 56 .* but it has 50"):
        for _ in read_ahead(dataset, 40, 60):
            pass
