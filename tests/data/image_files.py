"""Makes the image files the data tests read."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(array, format="PNG", **options):
    """Encode a uint8 array (H, W), (H, W, 3) or (H, W, 4)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format, **options)
    return buffer.getvalue()


def cmyk_photo(array):
    """A JPEG in the colours of a printer, as some photo archives hold."""
    buffer = io.BytesIO()
    Image.fromarray(array).convert("CMYK").save(buffer, format="JPEG")
    return buffer.getvalue()


def random_image(height, width, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def hub_table(images, labels, **columns):
    struct = pa.array([{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(images)])
    return pa.table({"image": struct, "label": pa.array(labels, pa.int64()), **columns})


def write_hub(folder, split, num_rows, *, num_files=1, size=(8, 8), channels=3, num_classes=3, group_rows=7, seed=0):
    """Write Parquet files of random images; return the pixels and labels in file order."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [random_image(*size, channels, seed=seed * 10_000 + row) for row in range(num_rows)]
    labels = [row % num_classes for row in range(num_rows)]
    for index, rows in enumerate(np.array_split(np.arange(num_rows), num_files)):
        table = hub_table([encode(images[row]) for row in rows], [labels[row] for row in rows])
        pq.write_table(table, folder / f"{split}-{index:05d}-of-{num_files:05d}.parquet", row_group_size=group_rows)
    return np.stack(images).reshape(num_rows, *size, channels), np.array(labels)
