"""How fast ImageNet photos are prepared and fed to training, beside decoding each photo anew for each view.

Start: python benchmarks/input_pipeline.py          (one core, two minutes; needs imagenet-sample in $PATCHCERT_DATA)
Result: tables, and benchmarks/results/input_pipeline.json
Stop: Ctrl-C; the file is written at the end.

Speeds are images a second of processor time, all threads counted: what one core does, whoever else uses the machine.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from patchcert.data import DataConfig, PreparedDataset, dataset_spec, prepare
from patchcert.data.decoding import encode_png
from patchcert.data.prepared import row_digest
from patchcert.data.sources import open_source
from patchcert.data.splits import find_split
from patchcert.models.checkpoint import initial_classifier
from patchcert.provenance import environment
from patchcert.recipes import Recipe, find_recipe
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import StreamFeed

RESULTS = Path(__file__).parent / "results" / "input_pipeline.json"
RECIPES = ("crop80-imagenet", "column25-imagenet")
NUM_IMAGENET = 1_281_167 + 50_000
# The stream is measured on the sample, repeated, because a thousand photos fit into one window of it.
REPEATS = 5
WORKER_BATCH = 128
BEST_OF = 3
NUM_FULL_SIZE, NUM_NAIVE, NUM_STORED, NUM_MEMBERS = 200, 500, 200, 20_000
# Training ResNet50 at 224x224 in mixed precision on one GPU, to scale by multiply-adds. A100: reported by NVIDIA
# (DeepLearningExamples, ResNet50 v1.5 for PyTorch). H200: that times the ratio of the dense bfloat16 peaks, 989 to 312
# TFLOP/s, more than small convolutions will reach.
RESNET50_IMAGES_PER_SECOND = {"A100": 2_470, "H200, at most": 7_830}


def per_second(work: Callable[[], Any], num_images: int) -> float:
    """Images a second of processor time."""
    started = time.process_time()
    work()
    return num_images / (time.process_time() - started)


def photos() -> pa.Table:
    """The sample's photos."""
    source = find_split(
        dataset_spec("imagenet-sample"),
        DataConfig(dataset="imagenet-sample"),
        open_source(dataset_spec("imagenet-sample"), None),
        "test",
    ).select()
    rows = list(source.take(0, source.num_rows).read())
    images = [{"bytes": row.data, "path": row.image_id} for row in rows]
    return pa.table({"image": images, "label": pa.array([row.label for row in rows], pa.int64())})


def full_size(table: pa.Table) -> pa.Table:
    """The first photos with as many pixels as ImageNet's have, 500x375; being enlarged they take fewer bytes."""
    images = []
    for row in table["image"].slice(0, NUM_FULL_SIZE).to_pylist():
        with Image.open(io.BytesIO(row["bytes"])) as image:
            buffer = io.BytesIO()
            image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        images.append({"bytes": buffer.getvalue(), "path": row["path"]})
    return pa.table({"image": images, "label": table["label"].slice(0, NUM_FULL_SIZE)})


def prepared(table: pa.Table, recipe: Recipe, folder: Path, repeats: int = 1) -> tuple[PreparedDataset, float]:
    """Photos prepared as a recipe says, and images a second."""
    source = folder / "source"
    source.mkdir(parents=True)
    for index in range(repeats):
        pq.write_table(table, source / f"test-{index:05d}.parquet", row_group_size=100)
    config = DataConfig(
        dataset="imagenet-sample",
        source=str(source),
        resize=recipe.data.resize,
        rows_per_group=recipe.data.rows_per_group,
        rows_per_shard=recipe.data.rows_per_shard,
    )
    made: dict[str, PreparedDataset] = {}

    def work() -> None:
        made.update(prepare(config, recipe.views.image_size, folder / "prepared", num_threads=1))

    speed = per_second(work, repeats * table.num_rows)
    return made["test"], speed


def prepare_row(name: str, table: pa.Table, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """How fast photos are prepared, and what the time goes into."""
    dataset, speed = prepared(table, recipe, folder)
    files = [row["bytes"] for row in table["image"].to_pylist()]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    pixels = dataset.read(0, 1).images_NHWC.tobytes()

    def decode() -> None:
        for data in files:
            Image.open(io.BytesIO(data)).load()

    def resize() -> None:
        for image in images:
            scale = max(recipe.views.image_size) / max(image.size)
            image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)

    def digest() -> None:
        for index in range(len(files)):
            row_digest(str(index), 0, pixels)

    parts = {work.__name__: speed / per_second(work, len(files)) for work in (decode, resize, digest)}
    return {
        "photos": name,
        "recipe": recipe.name,
        "bytes_of_a_file": round(float(np.mean([len(data) for data in files]))),
        "images_per_second_and_core": round(speed, 1),
        "hours_for_imagenet_on_16_cores": round(NUM_IMAGENET / speed / 3600 / 16, 3),
        "gigabytes_of_imagenet": round(NUM_IMAGENET * dataset.num_bytes / dataset.num_rows / 1e9),
        "share_of_time": {name: round(share, 2) for name, share in parts.items()},
    }


def one_view_per_decode(
    files: list[bytes], image_size: int, view_size: tuple[int, int], *, tensors: bool
) -> Iterable[Any]:
    """The usual loader of public code: decode, resize, pad, mirror, make a tensor and cut one view, for each view."""
    height, width = view_size
    rng = np.random.default_rng(0)
    for data in files:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        scale = image_size / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
        padded = Image.new("RGB", (image_size, image_size))
        padded.paste(image, ((image_size - image.width) // 2, (image_size - image.height) // 2))
        if rng.random() < 0.5:
            padded = padded.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        top, left = rng.integers(0, image_size - height + 1), rng.integers(0, image_size - width + 1)
        if not tensors:
            yield np.asarray(padded.crop((left, top, left + width, top + height)))
            continue
        whole = torch.from_numpy(np.array(padded)).permute(2, 0, 1).contiguous().float() / 255
        yield whole[:, top : top + height, left : left + width]


def consumed(items: Iterable[Any]) -> None:
    """Takes everything."""
    for _ in items:
        pass


def feed_rows(table: pa.Table, recipe: Recipe, view_size: tuple[int, int], folder: Path) -> list[dict[str, Any]]:
    """Images a second of the usual loader and of the stream of prepared shards."""
    files = [row["bytes"] for row in table["image"].to_pylist()][:NUM_NAIVE]
    rows = []
    for name, tensors in (("decode for each view, as published", True), ("the same without tensors", False)):

        def work(tensors: bool = tensors) -> None:
            consumed(one_view_per_decode(files, recipe.views.image_size[0], view_size, tensors=tensors))

        speed = max(per_second(work, len(files)) for _ in range(BEST_OF))
        rows.append({"recipe": recipe.name, "path": name, "images_per_second_and_core": speed, "views_per_image": 1})
    dataset, _ = prepared(table, recipe, folder, REPEATS)
    training = TrainingConfig(batch_size=WORKER_BATCH, memory_gib=0.0)
    feed = StreamFeed(dataset, training, rank=0, world_size=1)
    num_images = feed.steps_per_epoch * WORKER_BATCH
    consumed(feed.epoch(0))
    epochs = [feed.epoch(epoch) for epoch in range(1, 1 + BEST_OF)]
    speed = max(per_second(lambda batches=batches: consumed(batches), num_images) for batches in epochs)  # type: ignore[misc]
    rows.append(
        {
            "recipe": recipe.name,
            "path": "stream of prepared shards",
            "images_per_second_and_core": speed,
            "views_per_image": recipe.training.views_per_image,
            "megabytes_per_second_and_core": speed * dataset.num_bytes / dataset.num_rows / 1e6,
        }
    )
    for row in rows:
        row["views_per_second_and_core"] = row["images_per_second_and_core"] * row["views_per_image"]
        row["times_naive_images"] = row["images_per_second_and_core"] / rows[0]["images_per_second_and_core"]
        row["times_naive_views"] = row["views_per_second_and_core"] / rows[0]["images_per_second_and_core"]
    return rows


def storage_rows(dataset: PreparedDataset) -> list[dict[str, Any]]:
    """Size and speed of what a shard could hold."""
    images_NHWC = dataset.read(0, NUM_STORED).images_NHWC
    raw = images_NHWC[0].nbytes
    scratch = np.ones_like(images_NHWC)
    labels = np.zeros(NUM_STORED, np.int64)
    speed = per_second(lambda: dataset.fill(0, scratch, labels), NUM_STORED)
    rows = [{"storage": "raw", "bytes_of_an_image": raw, "images_read_per_second_and_core": speed}]
    for name, options in (("png", None), ("jpeg q95 4:4:4", {"quality": 95, "subsampling": 0})):
        files = []
        for image_HWC in images_NHWC:
            buffer = io.BytesIO()
            if options is None:
                files.append(encode_png(image_HWC, dataset.image_size, dataset.num_channels))
            else:
                Image.fromarray(image_HWC).save(buffer, "JPEG", **options)
                files.append(buffer.getvalue())

        def read(files: list[bytes] = files) -> None:
            for data in files:
                np.asarray(Image.open(io.BytesIO(data)))

        size = round(float(np.mean([len(data) for data in files])))
        rows.append(
            {
                "storage": name,
                "bytes_of_an_image": size,
                "images_read_per_second_and_core": per_second(read, NUM_STORED),
            }
        )
    for row in rows:
        row["gigabytes_of_imagenet"] = round(NUM_IMAGENET * row["bytes_of_an_image"] / 1e9)
    return rows


def index_speed(folder: Path) -> float:
    """Members of a tar archive found a second."""
    folder.mkdir()
    name = dataset_spec("imagenet").source_archives["train"]
    with tarfile.open(folder / name, "w") as archive:
        for index in range(NUM_MEMBERS):
            info = tarfile.TarInfo(f"n01440764/n01440764_{index}.JPEG")
            info.size = 4_096
            archive.addfile(info, io.BytesIO(bytes(4_096)))
    rows = open_source(dataset_spec("imagenet"), str(folder)).find(["train"])
    assert rows is not None
    return per_second(lambda: rows.num_rows, NUM_MEMBERS)


def multiply_adds(recipe: Recipe) -> int:
    """Of one view, forward."""
    classifier = initial_classifier(recipe.classifier, recipe.views, 3, 1000, 0).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        classifier(
            torch.zeros((1, 3, *recipe.views.image_size), dtype=torch.uint8), torch.zeros((1, 1), dtype=torch.int64)
        )
    return counter.get_total_flops() // 2


def consumption_rows(feeding: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a GPU would consume: ESTIMATES, the speed of ResNet50 scaled by multiply-adds of forward passes."""
    resnet50 = 4.09e9
    rows = []
    for name, (naive, *_, stream) in zip(RECIPES, feeding, strict=True):
        recipe = find_recipe(name)
        work = multiply_adds(recipe)
        for gpu, resnet50_speed in RESNET50_IMAGES_PER_SECOND.items():
            images = resnet50_speed * resnet50 / work / recipe.training.views_per_image
            rows.append(
                {
                    "recipe": name,
                    "gpu": gpu,
                    "multiply_adds_of_a_view": work,
                    "estimated_images_per_second": round(images),
                    "cores_that_feed_it": round(images / stream["images_per_second_and_core"], 2),
                    "cores_that_decode_for_each_view": round(
                        images * recipe.training.views_per_image / naive["images_per_second_and_core"], 1
                    ),
                }
            )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    crops, columns = (find_recipe(name) for name in RECIPES)
    table = photos()
    large = full_size(table)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        preparing = [
            prepare_row("sample, shorter side 256", table, crops, folder / "a"),
            prepare_row("sample, shorter side 256", table, columns, folder / "b"),
            prepare_row("enlarged to 500x375", large, crops, folder / "c"),
            prepare_row("enlarged to 500x375", large, columns, folder / "d"),
        ]
        feeding = [feed_rows(table, crops, (80, 80), folder / "e"), feed_rows(table, columns, (299, 25), folder / "f")]
        storing = storage_rows(PreparedDataset.open(folder / "a" / "prepared" / "test"))
        indexing = index_speed(folder / "g")
    consuming = consumption_rows(feeding)
    for row in preparing:
        print(f"prepare {row['photos']:28}{row['recipe']:20}{row['images_per_second_and_core']:8.0f} images/s and core")
    for row in (row for rows in feeding for row in rows):
        print(
            f"feed    {row['recipe']:20}{row['path']:38}{row['images_per_second_and_core']:8.0f} images/s and core, "
            f"{row['times_naive_images']:5.1f}x images, {row['times_naive_views']:5.1f}x views"
        )
    for row in storing:
        print(
            f"store   {row['storage']:20}{row['bytes_of_an_image']:8} bytes, {row['gigabytes_of_imagenet']:4} GB, "
            f"{row['images_read_per_second_and_core']:8.0f} images/s and core"
        )
    print(f"index   {indexing:,.0f} members of an archive a second")
    for row in consuming:
        print(
            f"GPU     {row['recipe']:20}{row['gpu']:15}{row['estimated_images_per_second']:8} images/s (estimate): "
            f"{row['cores_that_feed_it']} cores feed it, {row['cores_that_decode_for_each_view']} without preparation"
        )
    about = {
        "unit": "images a second of processor time, all threads counted",
        "photos_of_the_sample": table.num_rows,
        "repeated_for_the_stream": REPEATS,
        "batch_of_a_worker": WORKER_BATCH,
        "feeding_is_the_best_of": BEST_OF,
        "resnet50_training_images_per_second": RESNET50_IMAGES_PER_SECOND,
        "load_average_of_the_machine": os.getloadavg()[0],
    }
    found = {
        "environment": environment(),
        "about": about,
        "preparing": preparing,
        "feeding": [row for rows in feeding for row in rows],
        "storing": storing,
        "archive_members_indexed_per_second": round(indexing),
        "estimated_consumption": consuming,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    main()
