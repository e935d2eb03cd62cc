"""Vote tables of trained models in; every certificate of the same votes side by side, as one CSV table, out.

    python benchmarks/certificates_on_votes.py patchcert-work/votes/column2-mnist-* patchcert-work/votes/crop10-*

Theorems stand beside heuristics on purpose: the column `guarantee` tells them apart. Draws use seed 0.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from patchcert.certificates import (
    Outcome,
    certify_counting,
    certify_fresh_draw,
    certify_placement,
    certify_random_crops_reported,
    certify_sampled,
    wilson_interval,
)
from patchcert.geometry import DrawnViews, Patch
from patchcert.votes import VoteTable, draw_views

NUM_DRAWS = 128
MIN_CONFIDENCE = 0.95
NUM_SELECTION, NUM_ESTIMATION = 1_000, 10_000
THRESHOLDS = (0.2, 0.3, 0.4)


def counts_of(votes, num_classes):
    if votes.dtype == bool:
        return votes.sum(axis=1)
    return np.stack([(votes == label).sum(axis=1) for label in range(num_classes)], axis=1)


def questions(table: VoteTable, patch: Patch) -> Iterator[tuple[str, str, Callable]]:
    """(certificate, votes and views in words, part -> outcome)."""
    views, num_classes = table.views, table.num_classes
    affected = views.affected(patch)

    def top(part):
        return part.votes("top_class")

    rules = [("top class", top)]
    if table.score_floor is not None:
        rules += [(f"score >= {t}", lambda part, t=t: part.votes(vote_threshold=t)) for t in THRESHOLDS]
    for words, cast in rules:
        yield (
            "counting",
            f"{words}, all {views.num_views}",
            lambda part, cast=cast: certify_counting(counts_of(cast(part), num_classes), affected),
        )
        yield (
            "placement",
            f"{words}, all {views.num_views}",
            lambda part, cast=cast: certify_placement(cast(part), views, [patch], num_classes=num_classes),
        )
    drawn = DrawnViews.draw(views, NUM_DRAWS, np.random.default_rng(0), replacement=views.num_views < NUM_DRAWS)
    yield (
        "placement of a fixed draw",
        f"top class, {NUM_DRAWS} listed",
        lambda part: certify_placement(top(part)[:, list(drawn.view_indices)], drawn, [patch], num_classes=num_classes),
    )
    for replacement in (True, False) if views.num_views >= NUM_DRAWS else (True,):
        how = f"top class, {NUM_DRAWS} with{'' if replacement else 'out'} replacement"
        yield (
            "fresh draw",
            how,
            lambda part, replacement=replacement: certify_fresh_draw(
                top(part),
                views,
                [patch],
                num_classes=num_classes,
                num_draws=NUM_DRAWS,
                min_confidence=MIN_CONFIDENCE,
                replacement=replacement,
            ),
        )
        for law in ("reported",) if replacement else ("reported", "exact"):

            def reported(part, replacement=replacement, law=law):
                rows = range(part.first_row, part.first_row + len(part.labels_N))
                which = draw_views(views.num_views, NUM_DRAWS, rows, replacement=replacement, seed=0)
                return certify_random_crops_reported(
                    counts_of(np.take_along_axis(top(part), which, axis=1), num_classes),
                    num_draws=NUM_DRAWS,
                    affected=affected,
                    num_views=views.num_views,
                    min_confidence=MIN_CONFIDENCE,
                    replacement=replacement,
                    law=law,
                )

            if views.kind == "crop":
                yield f"p_c, {law} law", how, reported

    def sampled(part):
        rng = np.random.default_rng([0, part.first_row])
        shares_NK = counts_of(top(part), num_classes) / views.num_views
        return certify_sampled(
            rng.multinomial(NUM_SELECTION, shares_NK),
            rng.multinomial(NUM_ESTIMATION, shares_NK),
            num_samples=NUM_ESTIMATION,
            affected_probability=affected / views.num_views,
            min_confidence=MIN_CONFIDENCE,
        )

    yield "sampled smoothing", f"top class, {NUM_SELECTION:,} + {NUM_ESTIMATION:,} sampled", sampled


def answer(table: VoteTable, defense: str, patch: Patch) -> list[dict]:
    asked = list(questions(table, patch))
    right, certified = np.zeros(len(asked), int), np.zeros(len(asked), int)
    seconds = np.zeros(len(asked))
    guarantees = [""] * len(asked)
    for index in range(table.num_parts):
        part = table.read_part(index)
        for number, (_, _, certify) in enumerate(asked):
            started = time.perf_counter()
            outcome: Outcome = certify(part)
            seconds[number] += time.perf_counter() - started
            correct_N = outcome.predictions_N == part.labels_N
            right[number] += correct_N.sum()
            certified[number] += (correct_N & outcome.certified_N).sum()
            guarantees[number] = outcome.guarantee
    dataset = table.identity["dataset"]
    rows = []
    for number, (certificate, words, _) in enumerate(asked):
        low, high = wilson_interval(certified[number], table.num_images)
        rows.append(
            {
                "votes": defense,
                "dataset": dataset["name"],
                "num_images": table.num_images,
                "patch": patch.label,
                "certificate": certificate,
                "guarantee": guarantees[number],
                "votes_and_views": words,
                "clean_accuracy": round(right[number] / table.num_images, 4),
                "certified_accuracy": round(certified[number] / table.num_images, 4),
                "certified_low": round(float(low), 4),
                "certified_high": round(float(high), 4),
                "images_per_second": round(table.num_images / seconds[number]),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="folders of vote tables")
    parser.add_argument("--patch", default="5x5")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "certificates_on_votes.csv"))
    arguments = parser.parse_args()
    rows = []
    for location in arguments.tables:
        table = VoteTable.open(location)
        patch = Patch.parse(arguments.patch, table.views.image_size)
        defense = Path(location).name.rpartition("-")[0] or location
        rows += answer(table, defense, patch)
        for row in rows:
            print(*row.values(), sep="  ")
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
