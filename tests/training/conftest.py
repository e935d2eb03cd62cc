import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchcert.data import DataConfig, prepare


@pytest.fixture(scope="session")
def numbered_images(tmp_path_factory):
    """9,130 images of 4x3 pixels that carry their own number: more than two windows of a stream."""
    rows, files = [], tmp_path_factory.mktemp("numbered")
    for number in range(9_130):
        pixels = np.full((4, 3), number % 251, np.uint8)
        pixels[0, :2] = divmod(number, 256)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 10})
    pq.write_table(pa.Table.from_pylist(rows), files / "train-00000-of-00001.parquet")
    # Stretching to the size they have leaves pixels as they are.
    config = DataConfig(dataset="mnist", source=str(files), resize="stretch")
    return prepare(config, (4, 3), str(tmp_path_factory.mktemp("prepared")), splits=["trainval"])["trainval"]
