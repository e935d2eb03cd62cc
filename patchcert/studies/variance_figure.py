"""The figure of a variance study: how certified accuracy scatters between draws."""

import pandas as pd

from patchcert.studies.config import CERTIFICATES
from patchcert.studies.drawing import COLUMN_WIDTH, PALETTE, Drawing, Figure, typeset
from patchcert.studies.wording import certificate_words, percent


def variance_figure(repeats: pd.DataFrame, patch: str) -> Drawing:
    """One panel for each certificate and way to draw, one box for each number of drawn views.

    Args:
        repeats: rows of ``VarianceTables.repeats``.
        patch: label of the patch that is shown.
    """
    return Drawing(
        name="variance",
        caption=(
            f"How certified accuracy (heuristic) against a {patch} patch scatters between "
            f"{repeats['repeat'].nunique()} independent draws of the views of every image, around its mean, which "
            "stands above. Boxes hold the middle half of the draws, whiskers 5 % to 95 %, dots are the rest."
        ),
        draw=lambda: _draw(repeats[repeats["patch"] == patch]),
    )


def _draw(at_patch: pd.DataFrame) -> Figure:
    panels = list(at_patch.groupby(["certificate", "draws"], sort=False))
    figure = Figure(figsize=(COLUMN_WIDTH, 0.45 + 1.5 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, ((certificate, draws), rows) in zip(all_axes, panels, strict=True):
        by_draws = list(rows.groupby("num_draws"))
        colour = PALETTE[list(CERTIFICATES).index(certificate) % len(PALETTE)]
        boxes = axes.boxplot(
            [_deviations(group["certified_accuracy"]) for _, group in by_draws],
            whis=(5, 95),
            widths=0.45,
            patch_artist=True,
            medianprops={"color": "#222222", "linewidth": 1.0},
            flierprops={"marker": ".", "markersize": 2.5, "markeredgecolor": colour},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.45, linewidth=0.7)
        axes.set_xticks(range(1, len(by_draws) + 1), [str(num_draws) for num_draws, _ in by_draws])
        words = certificate_words({"certificate": certificate, "guarantee": CERTIFICATES[certificate].guarantee})
        axes.set_title(typeset(f"{words}, {draws}"), fontsize=7.5, loc="left", pad=12)
        for position, (_, group) in enumerate(by_draws, start=1):
            mean = f"mean {percent(group['certified_accuracy'].mean())} %"
            axes.annotate(
                mean if group["feasible"].all() else "infeasible",
                (position, 1),
                (0, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
            )
        axes.grid(False, axis="x")
    figure.supylabel("certified accuracy minus its mean (percentage points)", fontsize=8)
    all_axes[-1].set_xlabel("drawn views per image")
    return figure


def _deviations(accuracies: pd.Series) -> pd.Series:
    return 100 * (accuracies - accuracies.mean())
