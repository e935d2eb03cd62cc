"""Studies of a suite in, for each vote table: the network behind it, and the wall time of its model run and answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from patchcert.studies.results import StudyResult
from patchcert.studies.variance_results import VarianceResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkRun:
    """One vote table of a suite: who voted, how long that took, and how long everything that was read off it took.

    Attributes:
        experiments: names of the experiments that read it.
        network: name of the network and its width, in words; empty where the checkpoint is not at hand.
        training: how it was trained, in words.
        recipe: name that its results are filed under.
        model_digest: digest of the checkpoint, hex.
        images: images that were voted on.
        views: views of an image.
        questions: number of questions that were answered.
        repeats: repeats of every random draw; 0: none.
        model_seconds: wall time of the model run that made the votes; None where nobody took it.
        model_images: images of that model run: fewer than all where it continued a run that was cut off.
        answer_seconds: wall time of all answers.
        draw_seconds: wall time of all repeated draws.
    """

    experiments: tuple[str, ...]
    network: str
    training: str
    recipe: str
    model_digest: str
    images: int
    views: int
    questions: int
    repeats: int
    model_seconds: float | None
    model_images: int
    answer_seconds: float
    draw_seconds: float

    @property
    def model_words(self) -> str:
        """The model run and its wall time: "61.2 s for 10,000 images x 529 views"."""
        if self.model_seconds is None:
            return "not timed"
        return f"{self.model_seconds:.1f} s for {self.model_images:,} images \u00d7 {self.views:,} views"

    @property
    def answer_words(self) -> str:
        """The answers and their wall time: "20.1 s for 87 questions, 7.7 s for 200 repeats of every draw"."""
        words = f"{self.answer_seconds:.1f} s for {self.questions} questions"
        return words + (f", {self.draw_seconds:.1f} s for {self.repeats} repeats of every draw" if self.repeats else "")


def network_runs(
    results: Mapping[str, StudyResult],
    checkpoints: Mapping[str, Mapping[str, Any]],
    variances: Mapping[str, VarianceResult],
) -> list[NetworkRun]:
    """Brings together the studies that read the same votes.

    Args:
        results: studies by name of the experiment.
        checkpoints: config.json of the checkpoint behind each experiment, where it is at hand.
        variances: repeated draws by name of the experiment.
    """
    by_votes: dict[tuple[str, ...], list[str]] = {}
    for name, result in results.items():
        subject = result.subject
        key = (subject.defense, subject.model_digest, str(sorted(subject.views.items())), subject.split_digest)
        by_votes.setdefault(key, []).append(name)
    return [_network_run(names, results, checkpoints, variances) for names in by_votes.values()]


def networks_table(networks: Sequence[NetworkRun]) -> Table:
    """Who voted and both wall times, for the terminal."""
    shown = Table(title="The networks behind these numbers, and wall times", title_justify="left")
    for title in ("experiments", "network", "model run", "answers"):
        shown.add_column(title, overflow="fold")
    for run in networks:
        words = "; ".join(part for part in (run.network, run.training, f"checkpoint {run.model_digest[:12]}") if part)
        shown.add_row(", ".join(run.experiments), words, run.model_words, run.answer_words)
    return shown


def _network_run(
    names: list[str],
    results: Mapping[str, StudyResult],
    checkpoints: Mapping[str, Mapping[str, Any]],
    variances: Mapping[str, VarianceResult],
) -> NetworkRun:
    studies = [results[name] for name in names]
    drawn = [variances[name] for name in names if name in variances]
    first = studies[0]
    config = next((checkpoints[name] for name in names if name in checkpoints), {})
    voting = next((study.run["voting"] for study in studies if study.run.get("voting")), {})
    return NetworkRun(
        experiments=tuple(names),
        network=_network(config),
        training=_training(config.get("provenance", {})),
        recipe=first.subject.defense,
        model_digest=first.subject.model_digest,
        images=first.subject.num_images,
        views=int(first.answers["num_views"].iloc[0]),
        questions=sum(len(study.answers) for study in studies),
        repeats=max((int(result.identity["variance"]["repeats"]) for result in drawn), default=0),
        model_seconds=float(voting["seconds"]) if "seconds" in voting else None,
        model_images=int(voting.get("images", first.subject.num_images)),
        answer_seconds=sum(float(study.run.get("study_seconds", 0.0)) for study in studies),
        draw_seconds=sum(float(result.run.get("draw_seconds", 0.0)) for result in drawn),
    )


def _network(config: Mapping[str, Any]) -> str:
    classifier = config.get("classifier", {})
    if not classifier:
        return ""
    return f"{classifier['network']}, width {classifier['width']:g}"


def _training(provenance: Mapping[str, Any]) -> str:
    """How a checkpoint was trained, from what was written beside its weights."""
    training, dataset = provenance.get("training"), provenance.get("dataset")
    if not training or not dataset:
        return ""
    views = training.get("views_per_image")
    each = "all views" if views == 0 else "1 view" if views == 1 else f"{views} views"
    epochs = "1 epoch" if training["epochs"] == 1 else f"{training['epochs']} epochs"
    return f"{epochs} on {dataset['name']} ({dataset['split']}), {each} an image and step"
