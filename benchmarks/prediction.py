"""Time to score all views of an image: public code's loop over views, the generic path, one pass, plain inference.

Start: python benchmarks/prediction.py            (one core, about three minutes)
Result: a table, and benchmarks/results/prediction.json
Stop: Ctrl-C; the file is written at the end.

Networks have start weights and images are noise, because neither changes the time. Every figure is the best of a few
runs, in one process; the ratios compare figures of the same process.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchcert.geometry import BandViews, CropViews, GridViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.classifier import BaseClassifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import build_network
from patchcert.prediction.config import PredictionConfig
from patchcert.prediction.scoring import ViewScorer
from patchcert.provenance import environment
from patchcert.views.encoding import EncodingConfig

RESULTS = Path(__file__).parent / "results" / "prediction.json"
CPU = torch.device("cpu")
BATCH = 16
REPEATS = 25
IMAGE_SIZE, CHANNELS, CLASSES = (32, 32), 3, 10
COLUMNS = BandViews(image_size=IMAGE_SIZE, width=4)
CROPS = CropViews(image_size=IMAGE_SIZE, crop_size=(10, 10))
# Width and number of networks whose logits are averaged.
ONE_PASS = ((1.0, 2), (1.0, 1), (0.5, 1))


def milliseconds(work: Callable[[], object], num_images: int, repeats: int) -> float:
    """Per image, best of a few runs: what the code can do, with the least noise of other processes."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1e3 * min(seconds) / num_images


@torch.no_grad()
def columns_one_by_one(classifier: BaseClassifier, images_NHWC: np.ndarray) -> np.ndarray:
    """What public code does: for each column, ablate the whole batch and run the network on it."""
    images = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255
    votes = []
    for start in range(32):
        kept = [(start + offset) % 32 for offset in range(4)]
        ablated = torch.zeros(len(images), 6, 32, 32)
        ablated[:, :3, :, kept] = images[:, :, :, kept]
        ablated[:, 3:, :, kept] = 1 - images[:, :, :, kept]
        votes.append(classifier.network(ablated).argmax(1))
    return torch.stack(votes, dim=1).numpy()


@torch.no_grad()
def crops_one_by_one(classifier: BaseClassifier, images_NHWC: np.ndarray) -> np.ndarray:
    """What public code does: for each position, crop the whole batch and run the network on it."""
    images = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255
    votes = []
    for top in range(23):
        for left in range(23):
            crops = images[:, :, top : top + 10, left : left + 10].contiguous()
            votes.append(classifier.network(crops).argmax(1))
    return torch.stack(votes, dim=1).numpy()


def classifier_of(views: GridViews, network: str, removed: str, width: float = 1.0, members: int = 1) -> BaseClassifier:
    encoding = EncodingConfig(removed=removed, coordinates=network.endswith("-network"))
    config = ClassifierConfig(network=network, width=width, members=members, encoding=encoding)
    return initial_classifier(config, views, CHANNELS, CLASSES, seed=0).eval()


def plain_inference(images_NHWC: np.ndarray) -> float:
    """One forward pass of ResNet18 on a batch of whole images."""
    torch.manual_seed(0)
    network = build_network(ClassifierConfig(network="resnet18-small"), CHANNELS, IMAGE_SIZE, CLASSES).eval()
    network.to(memory_format=torch.channels_last)
    images = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)

    @torch.no_grad()
    def work():
        network((images.float() / 255).contiguous(memory_format=torch.channels_last))

    work()
    return milliseconds(work, len(images), REPEATS)


def one_pass(views: GridViews, network: str, width: float, members: int, images_NHWC: np.ndarray) -> dict:
    classifier = classifier_of(views, network, "cut", width, members)
    config = PredictionConfig(score_floor=0.1)
    scorer = ViewScorer(classifier, config, CPU)
    scorer.score(images_NHWC)
    took = milliseconds(lambda: scorer.score(images_NHWC), len(images_NHWC), REPEATS)
    images = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        together_BVK = classifier(images)
    with torch.no_grad():
        alone_BVK = classifier(images, torch.arange(views.num_views)[None])
    return {
        "path": f"one pass, {f'{members} x ' if members > 1 else ''}{network} of width {width}",
        "ms_per_image": took,
        "multiply_adds_per_image": counter.get_total_flops() // 2 // len(images),
        "largest_difference_to_views_alone": float((together_BVK - alone_BVK).abs().max()),
    }


def matrix_product_peak() -> float:
    """Most multiply-adds a second in single precision on this core: of a product, and of a wide convolution.

    Both are matrix products, by libraries that differ in how near they get to the machine on a given processor.
    """
    one = torch.rand(512, 512)
    features = torch.rand(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        product = 512**3 / milliseconds(lambda: one @ one, 1, repeats=10 * REPEATS)
        convolved = 8 * 32 * 32 * 9 * 64**2 / milliseconds(lambda: convolution(features), 1, repeats=10 * REPEATS)
    return 1e3 * max(product, convolved)


def measure(name, views, network, removed, loop, one_pass_network) -> list[dict]:
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *IMAGE_SIZE, CHANNELS), dtype=np.uint8)
    plain = plain_inference(images)
    published = classifier_of(views, network, removed)
    config = PredictionConfig(score_floor=0.1)
    by_loop = loop(published, images)
    # Prepared once for each worker of a vote stage, as its network is.
    started = time.perf_counter()
    scorer = ViewScorer(published, config, CPU)
    by_generic_path = scorer.score(images).top_classes_NV
    first = time.perf_counter() - started
    rows = [
        {"path": "plain ResNet18, one pass an image", "ms_per_image": plain},
        {
            "path": f"loop over views, {network}",
            "ms_per_image": milliseconds(lambda: loop(published, images), BATCH, repeats=3),
        },
        {
            "path": f"generic path, {network}",
            "ms_per_image": milliseconds(lambda: scorer.score(images), BATCH, repeats=3),
            "seconds_of_the_first_call_with_preparation": first,
            "share_of_votes_as_by_loop": float((by_loop == by_generic_path).mean()),
        },
    ]
    rows += [one_pass(views, one_pass_network, width, members, images) for width, members in ONE_PASS]
    slowest = rows[1]["ms_per_image"]
    return [
        {
            "case": name,
            "views": views.num_views,
            **row,
            "times_faster_than_loop": slowest / row["ms_per_image"],
            "share_of_plain_inference": row["ms_per_image"] / plain,
        }
        for row in rows
    ]


def main() -> None:
    torch.set_num_threads(1)
    peak = matrix_product_peak()
    rows = [
        *measure("columns of width 4", COLUMNS, "resnet18-small", "null", columns_one_by_one, "band-network"),
        *measure("crops of 10x10", CROPS, "resnet9", "cut", crops_one_by_one, "crop-network"),
    ]
    # The machine may have been slower at the start than later.
    peak = max(peak, matrix_product_peak())
    for row in rows:
        if "multiply_adds_per_image" in row:
            row["share_of_matrix_product_peak"] = row["multiply_adds_per_image"] * 1e3 / row["ms_per_image"] / peak
    print(f"{'case':20}{'path':42}{'ms an image':>12}{'x loop':>9}{'of plain':>10}{'of peak':>9}")
    for row in rows:
        share = row.get("share_of_matrix_product_peak")
        print(
            f"{row['case']:20}{row['path']:42}{row['ms_per_image']:12.2f}{row['times_faster_than_loop']:9.1f}"
            f"{row['share_of_plain_inference']:10.2f}{'' if share is None else format(share, '.0%'):>9}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    about = {
        "threads": 1,
        "image": "32x32x3 uint8",
        "images_per_pass": BATCH,
        "peak_multiply_adds_per_second": peak,
        "peak_measured_by": "float32, the faster of a product of 512x512 matrices and a 3x3 convolution of 64 channels",
        "load_average_of_the_machine": os.getloadavg()[0],
    }
    RESULTS.write_text(json.dumps({"environment": environment(), "about": about, "results": rows}, indent=1) + "\n")
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    main()
