"""Filled tables of a paper in, the points of its figures out: measured curves, and published ones beside them."""

from collections.abc import Sequence

from patchcert.studies.figures import FigureData, Line
from patchcert.studies.paper import PaperFigure
from patchcert.studies.paper_tables import Comparison, FilledRow, FilledTable, is_number

_Point = tuple[float, FilledRow, Comparison]
# A certificate of each guarantee, whose marker the measured curve gets.
_MARKED_AS = {"heuristic": "random_crops_reported", "probabilistic": "fresh_draw"}


def paper_figures(figures: Sequence[PaperFigure], tables: Sequence[FilledTable]) -> list[FigureData]:
    """The figures that the tables have at least two measured positions for.

    Args:
        figures: what papers draw.
        tables: the filled tables they are drawn from.
    """
    by_name = {table.table.name: table for table in tables}
    drawn = [_figure(figure, by_name[figure.table]) for figure in figures if figure.table in by_name]
    return [figure for figure in drawn if figure is not None]


def _figure(figure: PaperFigure, table: FilledTable) -> FigureData | None:
    names = table.table.row_names
    at = names.index(figure.x)
    curves: dict[tuple[str, str], list[_Point]] = {}
    levels: list[Line] = []
    for row in table.rows:
        labels = dict(zip(names, row.labels, strict=True))
        if any(labels[name] not in wanted for name, wanted in figure.where.items()):
            continue
        # A row name that is held at one label says nothing about a curve.
        series = ", ".join(
            f"{name} {label}" if is_number(label) else label
            for name, label in labels.items()
            if name != figure.x and (name not in figure.where or len(figure.where[name]) > 1)
        )
        for number in row.numbers:
            if number.metric not in figure.metrics:
                continue
            if is_number(row.labels[at]):
                curves.setdefault((series, number.metric), []).append((float(row.labels[at]), row, number))
            elif number.measured is not None and number.metric != "clean":
                words = ", ".join(text for text in (series, row.labels[at]) if text)
                levels.append(_measured(words, [(0.0, row, number)], several=len(figure.metrics) > 1))
    several = len(figure.metrics) > 1
    lines = [_measured(series, points, several=several) for (series, _), points in curves.items() if _drawn(points)]
    if not any(len(line.x) > 1 for line in lines):
        return None
    lines += [
        _reported(series, points, several=several)
        for (series, _), points in curves.items()
        if any(number.difference is not None for _, _, number in _drawn(points))
    ]
    times = figure.metrics == ("milliseconds",)
    which = "" if several else f"{figure.metrics[0]} "
    return FigureData(
        name=figure.name,
        caption=f"{figure.number}. {figure.caption}",
        x_label=figure.x_label,
        y_label="ms an image, one worker" if times else f"{which}accuracy (% of images)",
        percent=not times,
        lines=tuple(lines),
        level=tuple(levels),
        log2=figure.log2,
        tall=several or len(lines) > 3,
    )


def _drawn(points: Sequence[_Point]) -> list[_Point]:
    return sorted((point for point in points if point[2].measured is not None), key=lambda point: point[0])


def _measured(series: str, points: Sequence[_Point], *, several: bool) -> Line:
    points = _drawn(points)
    numbers = [number for _, _, number in points]
    row, metric = points[0][1], numbers[0].metric
    values = [float(number.measured or 0.0) for number in numbers]
    return Line(
        defense=series or "measured",
        certificate="clean" if metric == "clean" else _MARKED_AS.get(row.guarantee, "placement"),
        label=_words(series, metric, several, "measured" if not series else ""),
        guarantee="measured" if metric == "clean" else row.guarantee,
        x=tuple(x for x, _, _ in points),
        y=tuple(values),
        low=tuple(value if number.low is None else number.low for value, number in zip(values, numbers, strict=True)),
        high=tuple(
            value if number.high is None else number.high for value, number in zip(values, numbers, strict=True)
        ),
        feasible=tuple(row.feasible or metric != "certified" for _, row, _ in points),
    )


def _reported(series: str, points: Sequence[_Point], *, several: bool) -> Line:
    known = sorted((x, number.reported) for x, _, number in points if number.reported is not None)
    metric = points[0][2].metric
    y = tuple(value for _, value in known)
    return Line(
        defense=f"{series}, reported".removeprefix(", "),
        certificate="clean" if metric == "clean" else "reported",
        label=_words(series, metric, several, "reported"),
        guarantee="reported",
        x=tuple(x for x, _ in known),
        y=y,
        low=y,
        high=y,
        feasible=(True,) * len(y),
    )


def _words(series: str, metric: str, several: bool, which: str) -> str:
    return ", ".join(text for text in (series, which, metric if several else "") if text)
