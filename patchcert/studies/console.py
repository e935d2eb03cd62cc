"""Rows of answers in, a table for the terminal out."""

import pandas as pd
from rich.table import Table

from patchcert.studies.headline import DEFENSE_COLUMNS, first_settings
from patchcert.studies.wording import certificate_words, draw_words, interval_words, rule_words


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
