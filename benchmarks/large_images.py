"""Time, memory and cost to score all views of a 224x224 image in one pass, beside one plain pass of a ResNet.

Start: python benchmarks/large_images.py            (one core, about five minutes)
Result: a table, and benchmarks/results/large_images.json
Stop: Ctrl-C; the file is written at the end.

Each case runs in a process of its own, so that its peak memory is its own: what a process needs beyond having loaded
torch and the model. Networks have start weights and images are noise, because neither changes the time; every figure is
the best of a few runs.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchcert.geometry import BandViews, CropViews, GridViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import build_network
from patchcert.prediction.config import PredictionConfig
from patchcert.prediction.scoring import score_views
from patchcert.provenance import environment
from patchcert.recipes import find_recipe

RESULTS = Path(__file__).parent / "results" / "large_images.json"
SIZE, CLASSES = (224, 224), 1000
REPEATS = 3
BANDS = [("bandnet19-imagenet", "resnet50", BandViews(image_size=SIZE, width=19, stride=s)) for s in (1, 4, 7, 10)]
CROPS = [("cropnet80-imagenet", "resnet34", CropViews(image_size=SIZE, crop_size=80, stride=s)) for s in (1, 4, 7, 10)]


def memory(field: str) -> int:
    """Bytes this process holds (VmRSS), or the most it held since the last ``forget_peak`` (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Makes what the process holds now its peak; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def best_seconds(work) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@torch.inference_mode()
def measure(recipe_name: str, plain_name: str, views: GridViews) -> dict:
    torch.set_num_threads(1)
    recipe = find_recipe(recipe_name)
    classifier = initial_classifier(recipe.classifier, views, 3, CLASSES, seed=0).eval()
    plain = build_network(ClassifierConfig(network=f"torchvision:{plain_name}"), 3, SIZE, CLASSES).eval()
    plain.to(memory_format=torch.channels_last)
    image_NHWC = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    image = torch.from_numpy(image_NHWC.transpose(0, 3, 1, 2).copy())
    forget_peak()
    before = memory("VmRSS")
    config = PredictionConfig(score_floor=0.1)
    seconds = best_seconds(lambda: score_views(classifier, image_NHWC, config, torch.device("cpu")))
    needed = memory("VmHWM") - before
    pixels = (image.float() / 255).contiguous(memory_format=torch.channels_last)
    plain_seconds = best_seconds(lambda: plain(pixels))
    with FlopCounterMode(display=False) as counter:
        together = classifier(image)
    with FlopCounterMode(display=False) as plain_counter:
        plain(pixels)
    few = torch.linspace(0, views.num_views - 1, 7).long()[None]
    return {
        "recipe": recipe_name,
        "case": views.describe(),
        "views": views.num_views,
        "width": recipe.classifier.width,
        "gigamacs_per_image": counter.get_total_flops() / 2e9,
        "plain_network": plain_name,
        "multiply_adds_of_plain": counter.get_total_flops() / plain_counter.get_total_flops(),
        "seconds_per_image": seconds,
        "time_of_plain": seconds / plain_seconds,
        "peak_mebibytes": needed / 2**20,
        "largest_difference_to_views_alone": float((together[:, few[0]] - classifier(image, few)).abs().max()),
    }


def main() -> None:
    print(f"{'recipe':20}{'case':58}{'GMAC':>7}{'of plain':>10}{'s an image':>12}{'of plain':>10}{'peak MiB':>10}")
    rows = []
    for case in [*BANDS, *CROPS]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, case)
        rows.append(row)
        print(
            f"{row['recipe']:20}{row['case']:58}{row['gigamacs_per_image']:7.2f}{row['multiply_adds_of_plain']:10.2f}"
            f"{row['seconds_per_image']:12.3f}{row['time_of_plain']:10.2f}{row['peak_mebibytes']:10.0f}",
            flush=True,
        )
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"threads": 1, "images_per_pass": 1, "load_average_of_the_machine": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps({"environment": environment(), "about": about, "results": rows}, indent=1) + "\n")
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    main()
