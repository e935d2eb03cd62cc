"""The figures of studies: which points they show, and how lines and bars are drawn."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from patchcert.studies.config import CERTIFICATES
from patchcert.studies.drawing import (
    COLUMN_WIDTH,
    PALETTE,
    Axes,
    Drawing,
    Figure,
    FixedLocator,
    FuncFormatter,
    Line2D,
    MaxNLocator,
    NullLocator,
    save_drawing,
    shortened,
    to_rgba,
    typeset,
)
from patchcert.studies.headline import DEFENSE_COLUMNS, first_settings
from patchcert.studies.wording import certificate_words, percent, rule_words

_LINE_WORDS = (
    "Solid lines are deterministic theorems, dash-dotted ones hold with confidence over the draw, dashed ones are "
    "heuristics; bands are 95 % intervals."
)
_LINE_STYLES: dict[str, Any] = {
    "deterministic": "-",
    "probabilistic": "-.",
    "heuristic": "--",
    "reported": (0, (1, 1)),
}
_CLEAN_STYLES: dict[str, Any] = {"": ":", "measured": "-", "reported": _LINE_STYLES["reported"]}
_CLEAN_MARKERS = {"": None, "measured": "o", "reported": "*"}
_MARKERS = {
    "counting": "s",
    "placement": "o",
    "random_crops_reported": "^",
    "random_crops_exact": "v",
    "fresh_draw": "D",
    "reported": "*",
    "sampled": "P",
}
_INFEASIBLE: dict[str, Any] = {"linestyle": "", "marker": "x", "markersize": 5}
# Inches: what labels, axes and legend rows need inside one column of a paper.
_PLOT_HEIGHT, _TALL_PLOT_HEIGHT, _LEGEND_ROW = 1.75, 2.4, 0.145
_LONGEST_TITLE = 40
_LEFT, _RIGHT, _BOTTOM, _TOP, _TOP_AXIS = 0.5, 0.16, 0.42, 0.08, 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line or bar of a figure.

    Attributes:
        defense: name of the defense.
        certificate: name of the certificate, "clean" for the accuracy without a patch, or "reported".
        label: words of the legend.
        guarantee: of the certificate, or "reported" for published numbers; sets the line style. Clean accuracy has
            "reported", "measured" where published numbers stand beside it, or nothing.
        x: positions on the horizontal axis.
        y: accuracies in [0, 1], or what the figure's ``y_label`` names.
        low: lower ends of their 95 % intervals.
        high: upper ends.
        feasible: whether anything could be certified there.
    """

    defense: str
    certificate: str
    label: str
    guarantee: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    feasible: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureData:
    """Everything a figure shows, before it is drawn.

    Attributes:
        name: file name without ending.
        caption: what is shown, one or two sentences.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        percent: whether the values are fractions that are shown as percent.
        kind: lines over numbers, or bars.
        lines: what is drawn.
        patches: (share of the image, label) of the patches on a patch-area axis.
        log2: whether the horizontal axis is logarithmic.
        tall: whether the plot is higher than usual, for lines that lie close together.
        level: lines drawn across the whole width, such as the accuracy with all views.
    """

    name: str
    caption: str
    x_label: str
    y_label: str = "accuracy (% of images)"
    percent: bool = True
    kind: Literal["lines", "bars"] = "lines"
    lines: tuple[Line, ...]
    patches: tuple[tuple[float, str], ...] = ()
    log2: bool = False
    tall: bool = False
    level: tuple[Line, ...] = ()


def figures_of(answers: pd.DataFrame, headline_patch: str) -> list[FigureData]:
    """The figures that the answers have the data for.

    Args:
        answers: rows of one or several studies.
        headline_patch: label of the patch of the figures that show a single one.

    Returns:
        Bars of clean and certified accuracy; certified accuracy against patch area, vote threshold and number of draws,
        each where at least two positions were asked.
    """
    at_patch = answers[answers["patch"] == headline_patch]
    figures = [
        patch_area_figure(answers),
        accuracy_bars(at_patch, headline_patch),
        vote_threshold_figure(at_patch, headline_patch),
        num_draws_figure(at_patch, headline_patch),
    ]
    return [figure for figure in figures if figure is not None]


def patch_area_figure(answers: pd.DataFrame) -> FigureData | None:
    """Certified accuracy against patch area, square patches, each certificate at its first setting."""
    rows = first_settings(answers)
    rows = rows[(rows["patch_height"] == rows["patch_width"]) & (rows["patch_area"] == rows["patch_height"] ** 2)]
    lines = _lines(rows, "patch_fraction", [*DEFENSE_COLUMNS, "certificate"], _legend(rows))
    patches = rows[["patch_fraction", "patch"]].drop_duplicates().sort_values("patch_fraction")
    if not _is_curve(lines):
        return None
    return FigureData(
        name="patch_area",
        caption=(
            f"Certified accuracy against the area of a square patch that may lie anywhere in the image. {_LINE_WORDS}"
        ),
        x_label="patch area (% of the image)",
        y_label="certified accuracy (% of images)",
        lines=lines,
        patches=tuple(patches.itertuples(index=False, name=None)),
    )


def vote_threshold_figure(at_patch: pd.DataFrame, patch: str) -> FigureData | None:
    """Certified and clean accuracy against the vote threshold, at one patch."""
    rows = at_patch[at_patch["vote_rule"] == "threshold"]
    certified = _lines(rows, "vote_threshold", [*DEFENSE_COLUMNS, "certificate"], _legend(rows, with_setting=False))
    if not _is_curve(certified):
        return None
    clean = _clean_lines(rows, "vote_threshold", DEFENSE_COLUMNS)
    return FigureData(
        name="vote_threshold",
        caption=(
            f"Certified accuracy against a {patch} patch, and clean accuracy, for every vote threshold asked. "
            "Bands are 95 % intervals."
        ),
        x_label="vote threshold (softmax score)",
        lines=(*certified, *clean),
    )


def num_draws_figure(at_patch: pd.DataFrame, patch: str) -> FigureData | None:
    """Certified accuracy against the number of drawn views, at one patch; theorems over all views as levels."""
    drawn = at_patch[at_patch["draws"] != "all"]
    if drawn.empty:
        return None
    # The first confidence asked; replacement and law make lines of their own.
    first = drawn.groupby(DEFENSE_COLUMNS, sort=False)["min_confidence"].transform("first")
    drawn = drawn[drawn["min_confidence"] == first]
    several = drawn["defense"].nunique() > 1
    lines = _lines(
        drawn,
        "num_draws",
        [*DEFENSE_COLUMNS, "certificate", "draws"],
        lambda row: f"{shortened(row['defense'])}, " * several + f"{certificate_words(row)}, {row['draws']}",
    )
    if not _is_curve(lines):
        return None
    defenses = drawn["defense"].unique()
    full = at_patch[
        (at_patch["certificate"] == "placement")
        & (at_patch["vote_rule"] == "top_class")
        & at_patch["defense"].isin(defenses)
    ]
    levels = _lines(
        full,
        "num_draws",
        [*DEFENSE_COLUMNS, "certificate"],
        lambda row: f"{shortened(row['defense'])}, " * several + f"placement, all {row['num_views']} views",
    )
    return FigureData(
        name="num_draws",
        caption=(f"Certified accuracy against a {patch} patch for growing numbers of drawn views. {_LINE_WORDS}"),
        x_label="drawn views per image",
        y_label="certified accuracy (% of images)",
        lines=lines,
        log2=True,
        level=levels,
    )


def accuracy_bars(at_patch: pd.DataFrame, patch: str) -> FigureData | None:
    """Clean and certified accuracy of every defense and certificate at one patch."""
    rows = first_settings(at_patch)
    if rows.empty:
        return None
    return FigureData(
        name="clean_and_certified",
        caption=(
            f"Clean accuracy and certified accuracy against a {patch} patch that may lie anywhere in the image. "
            "Hatched bars are heuristics; whiskers are 95 % intervals."
        ),
        x_label="accuracy (% of images)",
        y_label="",
        kind="bars",
        lines=tuple(
            line for defense in rows["defense"].unique() for line in _bars_of(rows[rows["defense"] == defense])
        ),
    )


def save(data: FigureData, folder: Path) -> dict[str, Path]:
    """Draws a figure and writes it as PNG (200 dpi) and SVG; equal data gives equal bytes.

    Returns:
        Paths by ending, "png" and "svg".
    """
    return save_drawing(
        Drawing(
            name=data.name,
            caption=data.caption,
            draw=lambda: _draw_bars(data) if data.kind == "bars" else _draw_lines(data),
        ),
        folder,
    )


def _legend(rows: pd.DataFrame, with_setting: bool = True) -> Any:
    """Words for a line: the defense where there are several, the certificate, and its setting."""
    several = len(rows[DEFENSE_COLUMNS].drop_duplicates()) > 1

    def words(row: pd.Series) -> str:
        setting = f", {row['num_draws']} draws" if row["draws"] != "all" else f", {rule_words(row)}"
        return f"{shortened(row['defense'])}: " * several + certificate_words(row) + setting * with_setting

    return words


def _lines(rows: pd.DataFrame, x: str, by: Sequence[str], label: Any) -> tuple[Line, ...]:
    lines = []
    for _, group in rows.groupby(list(by), sort=False, dropna=False):
        points = group.drop_duplicates(x).sort_values(x, kind="stable")
        lines.append(_line(points, x, "certified", label(group.iloc[0])))
    return tuple(lines)


def _clean_lines(rows: pd.DataFrame, x: str, by: Sequence[str]) -> tuple[Line, ...]:
    several = len(rows[DEFENSE_COLUMNS].drop_duplicates()) > 1
    lines = []
    for _, group in rows.groupby(list(by), sort=False):
        points = group.drop_duplicates(x).sort_values(x, kind="stable")
        lines.append(
            _line(points, x, "clean", f"{shortened(group['defense'].iloc[0])}: " * several + "clean, no patch")
        )
    return tuple(lines)


def _line(points: pd.DataFrame, x: str, metric: str, label: str) -> Line:
    first = points.iloc[0]
    return Line(
        defense=first["defense"],
        certificate="clean" if metric == "clean" else first["certificate"],
        label=label,
        guarantee="" if metric == "clean" else first["guarantee"],
        x=tuple(float(value) for value in points[x]),
        y=tuple(points[f"{metric}_accuracy"]),
        low=tuple(points[f"{metric}_low"]),
        high=tuple(points[f"{metric}_high"]),
        feasible=tuple(bool(value) or metric == "clean" for value in points["feasible"]),
    )


def _bars_of(rows: pd.DataFrame) -> list[Line]:
    """Bars of one defense: its clean accuracy once for each way of voting, then each certificate."""
    bars = []
    votings = [
        # A fresh draw is about the prediction of all views; the others predict from the drawn ones.
        rule_words(row)
        if row["draws"] == "all" or row["certificate"] == "fresh_draw"
        else f"{row['num_draws']} {row['draws']}"
        for _, row in rows.iterrows()
    ]
    for voting, group in rows.groupby(pd.Series(votings, index=rows.index), sort=False):
        bars.append(_line(group.iloc[:1], "num_views", "clean", f"clean, {voting}"))
        bars += [
            _line(group.iloc[[i]], "num_views", "certified", certificate_words(group.iloc[i]))
            for i in range(len(group))
        ]
    return bars


def _is_curve(lines: Sequence[Line]) -> bool:
    return any(len(line.x) > 1 for line in lines)


def _colours(lines: Sequence[Line]) -> list[tuple[str, float]]:
    """Colour and opacity of each line: one colour for each defense, or for each certificate of a single defense."""
    defenses = list(dict.fromkeys(line.defense for line in lines))
    if len(defenses) > 1:
        return [
            (PALETTE[defenses.index(line.defense) % len(PALETTE)], 0.55 if line.certificate == "counting" else 1.0)
            for line in lines
        ]
    # The same certificate has the same colour in every figure.
    colours = dict(zip(CERTIFICATES, itertools.cycle(PALETTE), strict=False)) | {"clean": "#555555"}
    return [(colours[line.certificate], 1.0) for line in lines]


def _draw_lines(data: FigureData) -> Figure:
    drawn = (*data.lines, *data.level)
    scale_x = 100 if data.name == "patch_area" else 1
    scale_y = 100 if data.percent else 1
    styles = {id(line): _style(line, colour) for line, colour in zip(drawn, _colours(drawn), strict=True)}
    for line in data.level:
        styles[id(line)]["marker"] = None
    handles = [Line2D([], [], label=typeset(line.label), **styles[id(line)]) for line in drawn]
    if not all(all(line.feasible) for line in data.lines):
        handles.append(Line2D([], [], color="#444444", label="infeasible: no votes suffice", **_INFEASIBLE))

    bottom = _BOTTOM + _LEGEND_ROW * (len(handles) + 0.4)
    top = _TOP_AXIS if data.patches else _TOP
    plot_height = _TALL_PLOT_HEIGHT if data.tall else _PLOT_HEIGHT
    height = bottom + plot_height + top
    figure = Figure(figsize=(COLUMN_WIDTH, height))
    width = COLUMN_WIDTH - _LEFT - _RIGHT
    axes = figure.add_axes((_LEFT / COLUMN_WIDTH, bottom / height, width / COLUMN_WIDTH, plot_height / height))
    for line in data.level:
        colour = styles[id(line)]["color"]
        axes.axhline(scale_y * line.y[0], color=colour, linewidth=1.0)
        axes.axhspan(scale_y * line.low[0], scale_y * line.high[0], **_band(colour))
    for line in data.lines:
        style = styles[id(line)]
        x, y, low, high = (np.array(values) for values in (line.x, line.y, line.low, line.high))
        feasible = np.array(line.feasible)
        axes.plot(x * scale_x, scale_y * y, clip_on=False, zorder=3, markevery=list(np.flatnonzero(feasible)), **style)
        if line.guarantee != "reported":
            axes.fill_between(x * scale_x, scale_y * low, scale_y * high, **_band(style["color"]))
        crosses = {"color": style["color"], "clip_on": False, "zorder": 4} | _INFEASIBLE
        axes.plot(x[~feasible] * scale_x, scale_y * y[~feasible], **crosses)
    # From zero always; up to 100 unless all of it happens far below.
    highest = max(value for line in drawn for value in line.high)
    axes.set_ylim(0, next(100 * top for top in (0.1, 0.2, 0.4, 1.0) if highest <= top) if data.percent else None)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_ylabel(data.y_label)
    axes.set_xlabel(data.x_label)
    _set_x_axis(axes, data, np.array([value for line in data.lines for value in line.x]) * scale_x)
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.35 * _LEFT / COLUMN_WIDTH, 0),
        borderaxespad=0.2,
        frameon=False,
        handlelength=2.6,
        labelspacing=0.25,
    )
    return figure


def _band(colour: str) -> dict[str, Any]:
    """An interval: filled faintly, with an edge that is seen where the band is no wider than the line."""
    return {"facecolor": to_rgba(colour, 0.2), "edgecolor": to_rgba(colour, 0.55), "linewidth": 0.4}


def _style(line: Line, colour: tuple[str, float]) -> dict[str, Any]:
    is_clean = line.certificate == "clean"
    is_open = is_clean or (line.guarantee == "heuristic" and not line.label.endswith("without replacement"))
    return {
        "color": colour[0],
        "alpha": colour[1],
        "linestyle": (_CLEAN_STYLES if is_clean else _LINE_STYLES)[line.guarantee],
        "linewidth": 0.9,
        "marker": _CLEAN_MARKERS[line.guarantee] if is_clean else _MARKERS.get(line.certificate),
        "markerfacecolor": "white" if is_open else colour[0],
        "markeredgewidth": 0.9,
        # Where both theorems agree, the square shows around the circle.
        "markersize": 5.2 if line.certificate == "counting" else 3.8,
    }


def _set_x_axis(axes: Axes, data: FigureData, positions: np.ndarray) -> None:
    if data.log2:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(positions))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        return
    if data.name == "vote_threshold":
        axes.xaxis.set_major_locator(
            FixedLocator(sorted(set(positions))) if len(set(positions)) <= 8 else MaxNLocator(6)
        )
        return
    highest = positions.max()
    if not data.patches:
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(positions))))
        return
    axes.set_xlim(0, highest * 1.02)
    if len({fraction for fraction, _ in data.patches}) != len(data.patches):
        return
    # Sizes in pixels along the top, those that would overlap left out from the large end.
    shown: list[tuple[float, str]] = []
    for fraction, label in reversed(data.patches):
        if not shown or shown[-1][0] - 100 * fraction > 0.11 * highest:
            shown.append((100 * fraction, label))
    top = axes.secondary_xaxis("top")
    top.set_xticks([position for position, _ in shown], [label.replace("x", "\u00d7") for _, label in shown])
    top.tick_params(length=2, labelsize=6.5)
    top.set_xlabel("patch (pixels)", fontsize=7, labelpad=2)


def _draw_bars(data: FigureData) -> Figure:
    defenses = list(dict.fromkeys(line.defense for line in data.lines))
    positions, titles, height = [], [], 0.0
    for i, line in enumerate(data.lines):
        if i == 0 or line.defense != data.lines[i - 1].defense:
            height += 1.15 if i else 0.4
            titles.append((height - 0.85, line.defense))
        elif line.certificate == "clean":
            height += 0.25
        positions.append(height)
        height += 1
    if len(defenses) == 1:
        titles = []
    figure = Figure(figsize=(COLUMN_WIDTH, 0.65 + 0.19 * (height + 1)), layout="constrained")
    axes = figure.subplots()
    for line, position, (colour, _) in zip(data.lines, positions, _colours(data.lines), strict=True):
        is_clean = line.certificate == "clean"
        value, low, high = (100 * part[0] for part in (line.y, line.low, line.high))
        axes.barh(
            position,
            value,
            height=0.78,
            color="#c9c9c9" if is_clean else ("white" if line.guarantee == "heuristic" else colour),
            edgecolor="#8c8c8c" if is_clean else colour,
            hatch="/////" if line.guarantee == "heuristic" else None,
            linewidth=0.7,
        )
        axes.errorbar(
            value,
            position,
            xerr=[[value - low], [high - value]],
            color="#222222",
            linewidth=0.8,
            capsize=1.8,
            capthick=0.8,
        )
        words = percent(line.y[0]) if line.feasible[0] else "infeasible"
        axes.annotate(words, (high, position), (4, 0), textcoords="offset points", va="center", fontsize=6.5)
    for position, title in titles:
        shown = typeset(shortened(title, _LONGEST_TITLE))
        # A title wider than the bars must not narrow them.
        axes.text(0, position, shown, fontsize=7.5, fontweight="bold", va="center").set_in_layout(False)
    axes.set_yticks(positions, [typeset(line.label) for line in data.lines])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(height - 0.3, positions[0] - (1.3 if titles else 0.7))
    axes.set_xlim(0, 108)
    axes.xaxis.set_major_locator(FixedLocator(range(0, 101, 20)))
    axes.set_xlabel(data.x_label)
    return figure
