"""How every figure is drawn and saved: one style, and nothing of the user's own matplotlib settings.

All of matplotlib that the package uses is imported here, because importing it reads the environment.
"""

import contextlib
import dataclasses
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def _without_user_settings() -> Iterator[None]:
    """Lets matplotlib be imported without its variables and settings files, any of which can make the import fail."""
    if "matplotlib" in sys.modules:
        yield
        return
    # A notebook exports MPLBACKEND for itself; an empty settings file is found before the one in the home folder.
    variables = {"MPLBACKEND": None, "MATPLOTLIBRC": os.devnull}
    before = {name: os.environ.get(name) for name in variables}
    logger, exists = logging.getLogger("matplotlib"), os.path.exists
    level = logger.level
    try:
        _set_variables(variables)
        # Nothing but this hides a settings file in the current folder, which goes before all others.
        os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
        # A home folder that cannot be written costs a temporary cache, which nobody needs to hear about.
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
        os.path.exists = exists
        _set_variables(before)


def _set_variables(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


with _without_user_settings():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

__all__ = [
    "COLUMN_WIDTH",
    "PALETTE",
    "Axes",
    "Drawing",
    "Figure",
    "FixedLocator",
    "FuncFormatter",
    "Line2D",
    "LineCollection",
    "MaxNLocator",
    "NullLocator",
    "Rectangle",
    "save_drawing",
    "shortened",
    "to_rgba",
    "typeset",
]

# Okabe and Ito 2008, told apart with every common colour blindness; its yellow is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Inches: one column of a paper.
COLUMN_WIDTH = 3.4
_RESOLUTION = 200
# A name is cut before it leaves no room for the plot.
_LONGEST_NAME = 48
_FORMULA = re.compile(r"(?<![\w\\])p_c(?!\w)")
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # A fixed salt and no date make equal figures equal bytes.
    "svg.hashsalt": "patchcert",
    "svg.fonttype": "path",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure that is drawn in its own way, in the style of all figures.

    Attributes:
        name: file name without ending.
        caption: what is shown, one or two sentences.
        draw: makes the figure.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


def typeset(words: str) -> str:
    """Return words as they are drawn: p_c as a formula, all else letter by letter, whatever names it is made of."""
    visible = "".join(letter if letter.isprintable() else " " for letter in words)
    # Legends leave out what begins with an underscore.
    indent = " " * visible.startswith("_")
    return _FORMULA.sub(r"$p_\\mathrm{c}$", indent + visible.replace("$", r"\$"))


def shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """Return a name that leaves room for the plot: of a long one, its start and its end."""
    if len(name) <= most:
        return name
    end = most // 3
    return f"{name[: most - end - 1]}\u2026{name[len(name) - end :]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps matplotlib from telling of every letter that its font lacks and draws as a box."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in (r"Glyph \d+ .*missing from", r"Matplotlib currently does not support"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)


def save_drawing(drawing: Drawing, folder: Path) -> dict[str, Path]:
    """Draw a figure and write it as PNG (200 dpi) and SVG; equal drawings give equal bytes, whatever the environment.

    Returns:
        Paths by ending, "png" and "svg".
    """
    paths = {ending: folder / f"{drawing.name}.{ending}" for ending in ("png", "svg")}
    with matplotlib.rc_context(), _quiet():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = drawing.draw()
        FigureCanvasAgg(figure).print_figure(paths["png"], dpi=_RESOLUTION, metadata={"Software": None})
        # The places found for one file hold for the other; finding them takes a third of the time.
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_figure(paths["svg"], metadata={"Date": None, "Creator": None})
    return paths
