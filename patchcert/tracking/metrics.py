"""Which numbers of a result become metrics of its run, and its answers as one table."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from patchcert.studies.results import StudyResult
    from patchcert.studies.variance_results import VarianceResult


def study_metrics(result: "StudyResult") -> dict[int, dict[str, float]]:
    """The numbers of a study that become metrics.

    Headline numbers are scalars (step 0): tables of runs show only a metric's value at its highest step. Deterministic
    theorems are named ``cert_acc``, heuristics ``heuristic_cert_acc``, theorems about a draw
    ``probabilistic_cert_acc``. On curves the step is the position on the axis: 0.01 % of area, 0.001 of threshold,
    number of drawn views.

    Returns:
        Step -> metric name -> value; accuracies in [0, 1].
    """
    import pandas as pd

    from patchcert.studies.headline import first_settings, strongest_theorem

    answers = result.answers
    steps: dict[int, dict[str, float]] = {0: {"base_acc": float(answers["base_accuracy"].iloc[0])}}

    def add(step: int, curve: str, values: dict[str, float]) -> None:
        steps.setdefault(step, {}).update({f"{curve}/{name}": float(value) for name, value in values.items()})

    theorems = pd.concat([strongest_theorem(answers, patch) for patch in answers["patch"].unique()])
    heuristics = first_settings(answers[answers["certificate"] == "random_crops_reported"])
    sampled = first_settings(answers[answers["certificate"] == "sampled"])
    for rows, prefix in ((theorems, ""), (heuristics, "heuristic_"), (sampled, "probabilistic_")):
        for _, row in rows.sort_values("patch_area", kind="stable").iterrows():
            accuracies = {f"{prefix}cert_acc": row["certified_accuracy"]}
            accuracies |= {f"{prefix}cert_acc_ci_{end}": row[f"certified_{end}"] for end in ("low", "high")}
            is_square = row["patch_height"] ** 2 == row["patch_width"] ** 2 == row["patch_area"]
            percent = 100 * row["patch_fraction"]
            # Where two squares round to one area the larger one comes later and stays: the weaker claim.
            name = f"{percent:.1f}pct" if is_square else row["patch"].replace("@", "_")
            steps[0][f"{prefix}cert_acc_{name}"] = row["certified_accuracy"]
            steps[0][f"{prefix}clean_acc"] = row["clean_accuracy"]
            if is_square:
                add(round(100 * percent), "curve_patch_area", accuracies | {"patch_area_pct": percent})

    at_patch = answers[answers["patch"] == result.headline_patch]
    by_threshold = at_patch[at_patch["vote_rule"] == "threshold"]
    if len(theorems):
        for _, row in by_threshold[by_threshold["certificate"] == theorems["certificate"].iloc[0]].iterrows():
            values = {"cert_acc": row["certified_accuracy"], "clean_acc": row["clean_accuracy"]}
            add(round(1000 * row["vote_threshold"]), "curve_threshold", values)
    for certificate, prefix in (("random_crops_reported", "heuristic_"), ("fresh_draw", "probabilistic_")):
        drawn = at_patch[at_patch["certificate"] == certificate]
        for _, row in drawn[drawn["min_confidence"] == drawn["min_confidence"].head(1).max()].iterrows():
            name = f"{prefix}cert_acc_{row['draws'].replace(' ', '_')}"
            add(row["num_draws"], "curve_n_crops", {name: row["certified_accuracy"]})
    return steps


def variance_metrics(result: "VarianceResult") -> dict[int, dict[str, float]]:
    """The numbers of a variance study that become metrics, at its headline patch; the step is the number of draws.

    ``cert_prob_...`` is the share of images that one draw certifies by p_c as reported (a heuristic): mean, standard
    deviation, 5 % and 95 % quantile over the repeats. ``interval_mean`` is the mean over images of the interval of p_c.
    Draws without replacement have names of their own where both were made.

    Returns:
        Step -> metric name -> value; fractions.
    """
    at_patch = result.summary[result.summary["patch"] == result.headline_patch]
    rows = at_patch[at_patch["certificate"] == at_patch["certificate"].iloc[0]]
    steps: dict[int, dict[str, float]] = {}
    for _, row in rows.iterrows():
        way = "" if row["draws"] == rows["draws"].iloc[0] else f"_{row['draws'].replace(' ', '_')}"
        figures = {
            "cert_prob_mean": row["certified_accuracy"],
            "cert_prob_std": row["certified_accuracy_std"],
            "cert_prob_p05": row["certified_accuracy_p05"],
            "cert_prob_p95": row["certified_accuracy_p95"],
            "interval_mean": row["confidence_interval"],
        }
        named = {f"variance_n_crops/{name}{way}": float(value) for name, value in figures.items()}
        steps.setdefault(int(row["num_draws"]), {}).update(named)
    return steps


def answers_table(answers: "pd.DataFrame") -> "pd.DataFrame":
    """The answers with text labels, as MLflow's table view compares them between runs."""
    import pandas as pd

    from patchcert.studies.wording import certificate_words, draw_words, rule_words

    rows = [row for _, row in answers.iterrows()]
    return pd.DataFrame(
        {
            "area": [f"{100 * row['patch_fraction']:.1f}%" for row in rows],
            "patch": [row["patch"] for row in rows],
            "certificate": [certificate_words(row) for row in rows],
            "guarantee": [row["guarantee"] for row in rows],
            "votes": [rule_words(row) for row in rows],
            "views": [draw_words(row) for row in rows],
            "clean": answers["clean_accuracy"].round(4).to_list(),
            "certified": answers["certified_accuracy"].round(4).to_list(),
            "certified_low": answers["certified_low"].round(4).to_list(),
            "certified_high": answers["certified_high"].round(4).to_list(),
            "note": answers["note"].to_list(),
        }
    )
