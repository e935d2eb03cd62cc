"""Writes the filled tables of a paper as CSV, LaTeX and Markdown."""

import re
from collections.abc import Sequence

from rich.table import Table

from patchcert.studies.paper import Metric
from patchcert.studies.paper_tables import FilledRow, FilledTable, number_words

METRIC_TITLES: dict[Metric, str] = {
    "certified": "certified accuracy (%)",
    "clean": "clean accuracy (%)",
    "milliseconds": "ms an image",
    "n_2to1_interval": "n_2to1 / n, interval (1e-2)",
    "n_2to1_variance": "n_2to1 / n, variance (1e-2)",
    "p_c_interval": "p_c, interval (1e-2)",
    "p_c_variance": "p_c, variance (1e-2)",
}
"""What the columns of a metric hold."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "–": "--",
    "°": r"$^\circ$",
}
_ESCAPE = re.compile("|".join(re.escape(character) for character in _LATEX))

_FORMULA = re.compile(r"(?<!\w)p_c(?!\w)")


def latex_text(text: str) -> str:
    """Text as LaTeX sets it: special characters escaped, p_c as a formula, line breaks and other controls as spaces."""
    visible = "".join(letter if letter.isprintable() else " " for letter in text)
    return "$p_c$".join(_ESCAPE.sub(lambda found: _LATEX[found[0]], part) for part in _FORMULA.split(visible))


def columns(table: FilledTable) -> list[tuple[Metric, tuple[str, ...]]]:
    """The metrics of a table and the columns that each needs: a column that no line fills is left out."""
    names = ("reported", "measured", "difference")
    found = []
    for position, metric in enumerate(table.table.metrics):
        numbers = [row.numbers[position] for row in table.rows]
        filled = {
            "reported": any(number.reported is not None for number in numbers),
            "measured": True,
            "difference": any(number.difference is not None for number in numbers),
        }
        found.append((metric, tuple(name for name in names if filled[name])))
    return found


def cells(row: FilledRow, table: FilledTable) -> list[str]:
    """The numbers of a line as text, in the order of ``columns``; what no votes could reach is called infeasible."""
    found = []
    for number, (_, names) in zip(row.numbers, columns(table), strict=True):
        words = dict(zip(("reported", "measured", "difference"), number_words(number), strict=True))
        if number.metric == "certified" and row.certificate and not row.feasible:
            words["measured"] = f"infeasible ({words['measured']})" if number.measured else "infeasible"
        found += [words[name] for name in names]
    return found


def certificate_cell(row: FilledRow) -> str:
    """Certificate and guarantee of a line, in words."""
    return f"{row.certificate} ({row.guarantee})" if row.certificate else "–"


def latex(table: FilledTable) -> str:
    """The table as LaTeX: a ``table`` float with booktabs rules, shrunk where it is wider than the text.

    Needs the packages booktabs, graphicx and inputenc (utf8).
    """
    names, groups = table.table.row_names, columns(table)
    title = f"{table.table.source}, {table.table.number}: {table.table.title}. {_caption(table)}"
    heads, rules, position = [], [], len(names) + 2
    for metric, titles in groups:
        heads.append(rf"\multicolumn{{{len(titles)}}}{{c}}{{{latex_text(METRIC_TITLES[metric])}}}")
        rules.append(rf"\cmidrule(lr){{{position}-{position + len(titles) - 1}}}")
        position += len(titles)
    layout = "l" * (len(names) + 1) + "r" * (position - len(names) - 2)
    below = [*names, "certificate", *(title for _, titles in groups for title in titles)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(title)}}}",
        rf"\label{{tab:{table.table.name}}}",
        r"\footnotesize",
        # On one line: a line break within the box would be a space in it.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{" + rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join([""] * (len(names) + 1) + heads) + r" \\",
        " ".join(rules),
        " & ".join(latex_text(word) for word in below) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        lines.append(
            " & ".join(latex_text(text) for text in (*row.labels, certificate_cell(row), *cells(row, table))) + r" \\"
        )
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def console_tables(tables: Sequence[FilledTable]) -> list[Table]:
    """The tables for the terminal."""
    found = []
    for table in tables:
        shown = Table(title=f"{table.table.number}: {table.table.title}", title_justify="left")
        for name in (*table.table.row_names, "certificate"):
            shown.add_column(name, overflow="fold")
        for metric, titles in columns(table):
            for number, title in enumerate(titles):
                shown.add_column(f"{METRIC_TITLES[metric]}\n{title}" if number == 0 else f"\n{title}", justify="right")
        previous = None
        for row in table.rows:
            if previous is not None and row.labels[0] != previous and len(row.labels) > 1:
                shown.add_section()
            previous = row.labels[0]
            shown.add_row(
                *row.labels,
                certificate_cell(row),
                *cells(row, table),
                style="dim" if row.guarantee in ("", "heuristic") else None,
            )
        found.append(shown)
    return found


def _caption(table: FilledTable) -> str:
    return " ".join(text for text in (table.table.note, "Brackets are 95 % intervals.") if text)
