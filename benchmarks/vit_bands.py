"""Time to score all bands of an image with a vision transformer: dropped tokens against all tokens.

Start: python benchmarks/vit_bands.py            (one core, about four minutes)
       python benchmarks/vit_bands.py --cases 0 1 2        (the small network alone, half a minute)
Result: a table, and benchmarks/results/vit_bands.json; a case that is not asked for keeps its old figures
Stop: Ctrl-C; finished cases are kept.

The baseline is the same network on NULL-encoded images, as for any other classifier: removed patches are tokens, too.
Networks have start weights and images are noise, because neither changes the time. Both ways take turns in one process;
each figure is processor time, the best of a few runs. All tokens of 224 bands take minutes, so a few bands stand for
all of them: there every view costs the same.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from patchcert.geometry import BandViews, BlockViews, GridViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.classifier import BaseClassifier
from patchcert.models.config import ClassifierConfig
from patchcert.provenance import environment
from patchcert.views.encoding import EncodingConfig

RESULTS = Path(__file__).parent / "results" / "vit_bands.json"
REPEATS = 2
VIEWS_OF_ALL_TOKENS = 4
SMALL, LARGE = (32, 32), (224, 224)
CASES = (
    ("vit-small", 1.0, BandViews(image_size=SMALL, width=4), 10, 8),
    ("vit-small", 0.5, BandViews(image_size=SMALL, width=4), 10, 8),
    ("vit-small", 0.5, BlockViews(image_size=SMALL, block_size=12, stride=4), 10, 8),
    ("torchvision:vit_b_16", 1.0, BandViews(image_size=LARGE, width=19, stride=10), 1000, 1),
    ("torchvision:vit_b_16", 1.0, BandViews(image_size=LARGE, width=19), 1000, 1),
)


def milliseconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def classifier_of(network: str, width: float, views: GridViews, num_classes: int, removed: str) -> BaseClassifier:
    config = ClassifierConfig(network=network, width=width, encoding=EncodingConfig(removed=removed))
    return initial_classifier(config, views, 3, num_classes, seed=0).eval()


def gigamacs(classifier: BaseClassifier, image: torch.Tensor, views_1n: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        classifier(image, views_1n)
    return counter.get_total_flops() / 2e9


@torch.inference_mode()
def measure(network: str, width: float, views: GridViews, num_classes: int, num_images: int) -> dict:
    images = torch.randint(0, 256, (num_images, 3, *views.image_size), dtype=torch.uint8)
    every_view = torch.arange(views.num_views)[None]
    dropping, all_tokens = (classifier_of(network, width, views, num_classes, way) for way in ("drop", "null"))
    few = torch.linspace(0, views.num_views - 1, min(views.num_views, VIEWS_OF_ALL_TOKENS)).long()[None]
    share = few.shape[1] / views.num_views
    with_dropping, with_all_tokens = [], []
    dropping(images, few)
    all_tokens(images, few)
    for _ in range(REPEATS):
        with_dropping.append(milliseconds(lambda: dropping(images)) / num_images)
        with_all_tokens.append(milliseconds(lambda: all_tokens(images, few)) / share / num_images)
    alone = torch.cat([dropping(images[:1], view[None, None]) for view in few[0]], dim=1)
    together = dropping(images[:1])[:, few[0]]
    return {
        "network": network if width == 1 else f"{network} of width {width}",
        "case": views.describe(),
        "views": views.num_views,
        "ms_per_image_dropped_tokens": min(with_dropping),
        "ms_per_image_all_tokens": min(with_all_tokens),
        "times_faster": min(with_all_tokens) / min(with_dropping),
        "gigamacs_per_image_dropped_tokens": gigamacs(dropping, images[:1], every_view),
        "gigamacs_per_image_all_tokens": gigamacs(all_tokens, images[:1], few) / share,
        "largest_difference_to_views_alone": float((together - alone).abs().max()),
    }


def main(cases: tuple[int, ...] = tuple(range(len(CASES)))) -> None:
    """Measures case by case.

    Args:
        cases: numbers of the cases, in the order of the table.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {row["case_number"]: row for row in json.loads(RESULTS.read_text())["results"]} if RESULTS.exists() else {}
    print(f"{'network':24}{'case':62}{'dropped ms':>12}{'all ms':>11}{'x faster':>10}{'x fewer GMAC':>14}")
    for number in cases:
        row = {"case_number": number, **measure(*CASES[number]), "load_average_of_the_machine": os.getloadavg()[0]}
        rows[number] = row
        fewer = row["gigamacs_per_image_all_tokens"] / row["gigamacs_per_image_dropped_tokens"]
        print(
            f"{row['network']:24}{row['case']:62}{row['ms_per_image_dropped_tokens']:12.1f}"
            f"{row['ms_per_image_all_tokens']:11.1f}{row['times_faster']:10.1f}{fewer:14.1f}",
            flush=True,
        )
        about = {
            "threads": 1,
            "clock": "processor time",
            "best_of": REPEATS,
            "images_per_pass": {"vit-small": 8, "torchvision:vit_b_16": 1},
            "views_timed_with_all_tokens": VIEWS_OF_ALL_TOKENS,
        }
        found = {"environment": environment(), "about": about, "results": [rows[key] for key in sorted(rows)]}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    tyro.cli(main)
