"""Figures of where a defense is weak: by class, by size, by placement of the patch, and single images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patchcert.certificates import certified_accuracy_by_side, wilson_interval
from patchcert.studies.closer_look import ImageOutcomes
from patchcert.studies.drawing import (
    COLUMN_WIDTH,
    PALETTE,
    Drawing,
    Figure,
    LineCollection,
    Rectangle,
    shortened,
    typeset,
)

_MOST_CLASSES = 20
# Letters of the names of classes beside an axis and above a small picture.
_LONGEST_CLASS, _LONGEST_TITLE = 32, 24


def class_figure(by_class: pd.DataFrame, defense: str, patch: str, class_names: list[str] | None = None) -> Drawing:
    """Clean and certified accuracy by class, the worst first; of many classes the worst and the best ten.

    Args:
        by_class: rows of ``accuracy_by_class``.
        defense: name of the defense.
        patch: label of the patch.
        class_names: names of the classes; None: their numbers.
    """
    half = _MOST_CLASSES // 2
    shown = by_class if len(by_class) <= _MOST_CLASSES else pd.concat([by_class.head(half), by_class.tail(half)])
    cut = "" if len(by_class) == len(shown) else f", the {half} weakest and the {half} strongest of {len(by_class)}"
    return Drawing(
        name="classes",
        caption=(
            f"{defense}: clean accuracy and certified accuracy against a {patch} patch by class{cut}. "
            "Whiskers are 95 % intervals."
        ),
        draw=lambda: _draw_classes(shown, class_names),
    )


def _draw_classes(rows: pd.DataFrame, class_names: list[str] | None) -> Figure:
    figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 0.17 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name, offset, colour, marker in (("clean", -0.16, "#555555", "s"), ("certified", 0.16, PALETTE[0], "o")):
        value = 100 * rows[f"{name}_accuracy"]
        whiskers = [value - 100 * rows[f"{name}_low"], 100 * rows[f"{name}_high"] - value]
        axes.errorbar(
            value,
            [position + offset for position in range(len(rows))],
            xerr=whiskers,
            fmt=marker,
            markersize=3.2,
            color=colour,
            linewidth=0.9,
            label=name,
        )
    names = [class_names[label] if class_names else str(label) for label in rows["label"]]
    axes.set_yticks(
        range(len(rows)),
        [
            f"{typeset(shortened(name, _LONGEST_CLASS))} ({images})"
            for name, images in zip(names, rows["num_images"], strict=True)
        ],
    )
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy (% of images of the class)")
    axes.set_ylabel("class (images)")
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    return figure


def square_curve(outcomes: Sequence[ImageOutcomes], image_size: tuple[int, int]) -> Drawing | None:
    """Certified accuracy against the area of a square of every side, from the largest square of each image.

    Args:
        outcomes: of one or several defenses.
        image_size: (height, width) in pixels.

    Returns:
        None where no study looked for largest squares.
    """
    looked = [images for images in outcomes if images.largest_square_N is not None]
    if not looked:
        return None
    return Drawing(
        name="largest_square",
        caption=(
            "Certified accuracy against the area of a square patch of every side, from the largest square that each "
            "image withstands anywhere (deterministic). Bands are 95 % intervals."
        ),
        draw=lambda: _draw_squares(looked, image_size),
    )


def _draw_squares(outcomes: Sequence[ImageOutcomes], image_size: tuple[int, int]) -> Figure:
    figure = Figure(figsize=(COLUMN_WIDTH, 2.5 + 0.145 * len(outcomes)), layout="constrained")
    axes = figure.subplots()
    last = max(int(images.largest_square_N.max()) for images in outcomes) + 1  # type: ignore[union-attr]
    sides = np.arange(min(last, *image_size) + 1)
    areas = 100 * sides**2 / (image_size[0] * image_size[1])
    for images, colour in zip(outcomes, PALETTE * len(outcomes), strict=False):
        shares = certified_accuracy_by_side(images.largest_square_N, images.predictions_N, images.labels_N, sides[-1])
        total = len(images.labels_N)
        bounds = np.array([wilson_interval(round(share * total), total) for share in shares])
        # Between two sides only the smaller square is known to hold: steps, not slopes.
        axes.step(
            areas,
            100 * shares,
            where="pre",
            color=colour,
            label=typeset(f"{shortened(images.defense)}: {images.words}"),
        )
        axes.fill_between(areas, *(100 * bounds.T), step="pre", color=colour, alpha=0.13, linewidth=0)
    axes.set_xlim(0, areas[-1])
    axes.set_ylim(0, 100)
    axes.set_xlabel("patch area (% of the image)")
    axes.set_ylabel("certified accuracy (% of images)")
    top = axes.secondary_xaxis("top")
    # Labels of small squares would overlap.
    shown = [side for side in sides[1:] if areas[side] > 0.04 * areas[-1]]
    kept = [side for i, side in enumerate(shown) if i == 0 or areas[side] - areas[shown[i - 1]] > 0.035 * areas[-1]]
    top.set_xticks([areas[side] for side in kept], [str(side) for side in kept])
    top.tick_params(length=2, labelsize=6.5)
    top.set_xlabel("side of the square (pixels)", fontsize=7, labelpad=2)
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def placement_map(failures: npt.NDArray[np.int64], num_right: int, defense: str, patch: str) -> Drawing:
    """Heat map of the places at which a patch can change right predictions.

    Args:
        failures: how many right predictions the patch can change at each place of its upper left corner, 2-D.
        num_right: images that are predicted right.
        defense: name of the defense.
        patch: label of the patch.
    """
    return Drawing(
        name="placements",
        caption=(
            f"{defense}: share of the {num_right} rightly predicted images whose prediction a {patch} patch may change "
            "when its upper left corner lies there (placement certificate)."
        ),
        draw=lambda: _draw_placements(100 * failures / max(num_right, 1)),
    )


def _draw_placements(shares: npt.NDArray[np.float64]) -> Figure:
    figure = Figure(figsize=(COLUMN_WIDTH, 2.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", interpolation="nearest", origin="upper")
    axes.grid(False)
    axes.set_xlabel("left column of the patch (pixel)")
    axes.set_ylabel("top row of the patch (pixel)")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("images it can break (%)")
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An image with the worst place of a patch.

    Attributes:
        image_id: its name.
        pixels_HWC: uint8.
        label: name of its class.
        votes_to_spare: margin at that place.
        box: (top, left, height, width) of the patch, in pixels.
        covered: the footprint inside the box, boolean.
        affected: pixels that some affected view retains, boolean, shape (H, W).
    """

    image_id: str
    pixels_HWC: npt.NDArray[np.uint8]
    label: str
    votes_to_spare: int
    box: tuple[int, int, int, int]
    covered: npt.NDArray[np.bool_]
    affected: npt.NDArray[np.bool_]


def example_figure(examples: Sequence[Example], defense: str, patch: str) -> Drawing:
    """Images with the patch at its worst place, and the outline of what the affected views see."""
    return Drawing(
        name="examples",
        caption=(
            f"{defense}: images closest to losing and to gaining their certificate against a {patch} patch (orange), "
            "which lies at its worst place. What the views see that it touches lies inside the dashed blue outline."
        ),
        draw=lambda: _draw_examples(examples),
    )


def _draw_examples(examples: Sequence[Example]) -> Figure:
    columns = min(3, len(examples))
    rows = -(-len(examples) // columns)
    figure = Figure(figsize=(COLUMN_WIDTH, 0.1 + 1.42 * rows), layout="constrained")
    for axes in (all_axes := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for example, axes in zip(examples, all_axes.flat, strict=False):
        pixels = example.pixels_HWC
        axes.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
        top, left, height, width = example.box
        shade = np.zeros((height, width, 4))
        shade[example.covered] = (0.835, 0.369, 0.0, 0.55)
        axes.imshow(shade, extent=(left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5), zorder=2)
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=PALETTE[1], linewidth=1.2, zorder=3)
        )
        for colour, style, thickness in (("white", "-", 1.6), (PALETTE[0], (0, (3, 2)), 1.2)):
            axes.add_collection(
                LineCollection(
                    _outline(example.affected), colors=colour, linestyles=[style], linewidths=thickness, zorder=4
                )
            )
        spare = example.votes_to_spare
        axes.set_xlim(-0.8, pixels.shape[1] - 0.2)
        axes.set_ylim(pixels.shape[0] - 0.2, -0.8)
        words = f"{spare} to spare" if spare >= 0 else f"lacks {-spare}"
        axes.set_title(typeset(f"{shortened(example.label, _LONGEST_TITLE)}: {words}"), fontsize=6.5, pad=2)
    return figure


def _outline(mask: npt.NDArray[np.bool_]) -> list[Any]:
    """Line segments between pixels inside and outside a mask; its rim lies on the border of the image where it ends."""
    padded = np.pad(mask, 1)
    across, down = (np.argwhere(np.diff(padded.astype(np.int8), axis=axis)) for axis in (0, 1))
    lines = [[(column - 1.5, row - 0.5), (column - 0.5, row - 0.5)] for row, column in across]
    lines += [[(column - 0.5, row - 1.5), (column - 0.5, row - 0.5)] for row, column in down]
    return _joined(lines)


def _joined(lines: list[Any]) -> list[Any]:
    """Neighbouring segments of one direction as one, so that dashes run on."""
    joined: list[Any] = []
    for vertical in (False, True):
        same = [line for line in lines if (line[0][0] == line[1][0]) == vertical]
        for start, end in sorted(same, key=lambda line: (line[0][1 - vertical], line[0][vertical])):
            if joined and joined[-1][1] == start and (joined[-1][0][0] == joined[-1][1][0]) == vertical:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
    return joined
