"""Rows of answers, or of a variance study, in, a table for the terminal out."""

import pandas as pd
from rich.table import Table

from patchcert.studies.headline import DEFENSE_COLUMNS, first_settings
from patchcert.studies.wording import certificate_words, draw_words, interval_words, percent, rule_words


def console_table(answers: pd.DataFrame, *, every_setting: bool = False) -> Table:
    """A table of accuracies in percent with 95 % intervals.

    Args:
        answers: rows of one or several studies.
        every_setting: all rows; else each certificate at the setting that its study lists first.
    """
    rows = answers if every_setting else first_settings(answers)
    several = len(answers[DEFENSE_COLUMNS].drop_duplicates()) > 1
    first = answers.iloc[0]
    images = f"{first['num_images']} {first['split']} images of {first['dataset']}, " * (not several)
    left_out = len(answers) - len(rows)
    table = Table(
        title=None if several else first["defense"],
        caption=f"{images}accuracies in percent with 95 % intervals"
        + f"; {left_out} more rows in answers.csv" * (left_out > 0),
    )
    for name in (["defense"] * several) + ["patch", "certificate", "guarantee", "votes", "views"]:
        table.add_column(name, overflow="fold")
    table.add_column("clean", justify="right", no_wrap=True)
    table.add_column("certified", justify="right", no_wrap=True)
    previous = None
    for _, row in rows.iterrows():
        group = row["defense"], row["certificate"]
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        table.add_row(
            *([row["defense"]] * several),
            row["patch"],
            certificate_words(row).removesuffix(" (heuristic)"),
            row["guarantee"],
            rule_words(row),
            draw_words(row).replace("replacement", "repl."),
            interval_words(row, "clean"),
            interval_words(row, "certified") if row["feasible"] else "infeasible",
            style=None if row["guarantee"] != "heuristic" else "dim",
        )
    return table


def variance_table(summary: pd.DataFrame) -> Table:
    """A table of certified accuracy over repeated draws, and of what each image's draws scatter by.

    Args:
        summary: one row for each question, as ``VarianceAccumulator.tables`` makes it.
    """
    first = summary.iloc[0]
    table = Table(
        title=first["defense"],
        caption=(
            f"{first['num_images']} {first['split']} images of {first['dataset']}, {first['repeats']} draws of each, "
            f"certified from p_c \u2265 {first['min_confidence']:g} on (heuristic); "
            "intervals (half width, 95 %, of the mean) and variances in 1e-2, means over images"
        ),
    )
    for name in ("patch", "certificate", "draws", "views"):
        table.add_column(name, overflow="fold")
    for name in ("clean", "certified", "5 % to 95 %", "n_2to1 / n interval", "variance", "p_c interval", "variance"):
        table.add_column(name, justify="right")
    previous = None
    for _, row in summary.sort_values(["patch_area", "patch"], kind="stable").iterrows():
        if previous not in (None, row["patch"]):
            table.add_section()
        previous = row["patch"]
        spread = f"{percent(row['certified_accuracy_p05'])} to {percent(row['certified_accuracy_p95'])}"
        figures = [f"{name}_{figure}" for name in ("flip_votes", "confidence") for figure in ("interval", "variance")]
        table.add_row(
            row["patch"],
            certificate_words(row).removesuffix(" (heuristic)"),
            row["draws"].replace("replacement", "repl."),
            str(row["num_draws"]),
            percent(row["clean_accuracy"]),
            percent(row["certified_accuracy"]) if row["feasible"] else "infeasible",
            spread if row["feasible"] else "",
            *(f"{100 * row[figure]:.2f}" for figure in figures),
        )
    return table
