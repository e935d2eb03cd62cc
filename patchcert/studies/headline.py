"""Rows of answers in, the few that headlines and figures show out: settings as listed, never by their result."""

import pandas as pd

SETTING_COLUMNS = ["vote_rule", "vote_threshold", "draws", "num_draws", "min_confidence"]
DEFENSE_COLUMNS = ["defense", "dataset", "split_digest"]


def first_settings(answers: pd.DataFrame) -> pd.DataFrame:
    """Keeps, for each defense and certificate, the rows of the setting that its study lists first.

    Choosing by accuracy would tune on the images that are reported.

    Args:
        answers: rows of one or several studies, in the order of their questions.

    Returns:
        The rows kept, in the same order.
    """
    # NaN equals no NaN: settings that do not apply become a number that none can have.
    settings = answers[SETTING_COLUMNS].fillna({"vote_threshold": -1.0, "min_confidence": -1.0})
    certificates = answers.groupby([*DEFENSE_COLUMNS, "certificate"], sort=False).ngroup()
    return answers[(settings == settings.groupby(certificates).transform("first")).all(axis=1)]


def strongest_theorem(answers: pd.DataFrame, patch: str) -> pd.DataFrame:
    """One row for each defense: its sharpest deterministic certificate at a patch.

    Placement is never weaker than counting, whatever the votes, so that taking it chooses nothing by its result.

    Args:
        answers: rows of one or several studies.
        patch: label of the patch.

    Returns:
        Rows in the order of the defenses; a defense without a theorem at this patch has none.
    """
    rows = first_settings(answers[(answers["patch"] == patch) & (answers["guarantee"] == "deterministic")])
    sharpest = rows.assign(weakness=rows["certificate"] != "placement").sort_values("weakness", kind="stable")
    return sharpest.drop_duplicates(DEFENSE_COLUMNS).sort_index().drop(columns="weakness")
