"""Writes a dataset with one image of every kind of damage that large collections have."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(image, format="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def photo(seed, size=(40, 48)):
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HWC)


BAD = {
    "truncated": (lambda: encoded(photo(1))[:600], 0, "it cannot be decoded"),
    "zero-byte": (lambda: b"", 0, "it has no bytes"),
    "no-picture": (lambda: b"<html>404 Not Found</html>", 0, "no image in a format"),
    "one-pixel": (lambda: encoded(Image.new("RGB", (1, 1))), 0, "it is 1x1 pixels"),
    "huge": (lambda: encoded(Image.new("1", (12_000, 9_000)), "PNG"), 0, "9000x12000 = 108,000,000 pixels"),
    "label-below": (lambda: encoded(photo(2)), -1, "its label is -1"),
    "label-above": (lambda: encoded(photo(3)), 1000, "its label is 1000"),
}
"""Name -> (its bytes, its label, words of the reason); beside these, ``doubled`` comes twice."""

UNUSUAL = {
    "cmyk": (lambda: encoded(photo(4).convert("CMYK")), "CMYK to RGB"),
    "grey": (lambda: encoded(photo(5).convert("L")), "L to RGB"),
    "alpha": (lambda: encoded(photo(6).convert("RGBA"), "PNG"), "RGBA to RGB; a PNG file by another name"),
    "wrong-suffix": (lambda: encoded(photo(7), "PNG"), "a PNG file by another name"),
}
"""Name -> (its bytes, the words of its conversion); these are kept."""


def write_broken_dataset(folder, num_images, *, doubled=True):
    """Parquet files of 1,000 classes in the layout of public hubs, the odd ones spread over the rows.

    Args:
        folder: where to; made here.
        num_images: rows of the dataset.
        doubled: whether one image_id comes twice.

    Returns:
        The row of each odd image, by its image_id.
    """
    good = [encoded(photo(seed)) for seed in range(100, 120)]
    rows = [(f"photo-{row:06d}.jpg", good[row % len(good)], row % 1000) for row in range(num_images)]
    odd = [(f"{name}.jpg", make(), label) for name, (make, label, _) in BAD.items()]
    odd += [(f"{name}.jpg", make(), 5) for name, (make, _) in UNUSUAL.items()]
    odd += [("doubled.jpg", good[0], 1), ("doubled.jpg", good[1], 2)] if doubled else []
    places = {}
    for index, row in enumerate(odd):
        place = (index + 1) * num_images // (len(odd) + 2)
        rows[place] = row
        places.setdefault(row[0], []).append(place)
    names, images, labels = zip(*rows, strict=True)
    structs = pa.array([{"bytes": data, "path": name} for data, name in zip(images, names, strict=True)])
    table = pa.table({"image": structs, "label": pa.array(labels, pa.int64()), "image_id": pa.array(names)})
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "test-00000-of-00001.parquet", row_group_size=500)
    return places
