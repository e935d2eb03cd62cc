"""Runs a suite: trains its models side by side, votes, answers its studies, and reports over all of them."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from patchcert.console import Terminal
from patchcert.data.registry import dataset_spec
from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, PatchcertError, RecipeError
from patchcert.pipeline import Pipeline, RunOptions
from patchcert.readiness import Stage, check_stages
from patchcert.recipes import Recipe
from patchcert.studies.config import StudyConfig, VarianceConfig
from patchcert.studies.results import SUMMARY, StudyResult
from patchcert.suites import Networks, Suite
from patchcert.trained_models import may_be_trained
from patchcert.votes import VoteTable
from patchcert.votes.table import SUCCESS
from patchcert.workspace import Workspace, canonical_settings, settings_key

if TYPE_CHECKING:
    from patchcert.studies.paper_tables import FilledTable
    from patchcert.studies.suite_networks import NetworkRun
    from patchcert.studies.variance_results import VarianceResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """Options of ``patchcert study SUITE``."""

    quick: bool = False
    """A small edition of at most 5 minutes on 2 cores: few or bundled images, fewer models, short training."""
    networks: Literal["auto", "published", "one-pass"] = "auto"
    """published: the paper's own networks; one-pass: those that score all views at once; auto: one-pass without GPU."""
    only: tuple[str, ...] = ()
    """Experiments to run, as ``patchcert show SUITE`` names them; unset: all. Lines of the others stay empty."""
    models: tuple[str, ...] = ()
    """EXPERIMENT=FOLDER: a trained checkpoint in place of the one that the suite would train, for every experiment of
    that model. Network, encoding and views must be those of the experiment; width and dropout follow the checkpoint."""
    out: str | None = None
    """Folder for report, tables and figures; unset: one of its own in the work folder."""

    def chosen_networks(self, device: str) -> Networks:
        """The networks that are meant, on a kind of device ("auto", "cpu" or "cuda")."""
        from patchcert.provenance import environment

        if self.networks != "auto":
            return self.networks
        return "published" if device == "cuda" or (device == "auto" and environment()["gpus"]) else "one-pass"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteOutcome:
    """What became of a suite.

    Attributes:
        folder: report, tables and figures.
        tables: with their numbers.
        studies: folder of each study.
        networks: who voted, with the wall times of model runs and answers.
        missing: experiments without a study, and why.
    """

    folder: Folder
    tables: "list[FilledTable]"
    studies: dict[str, Folder]
    networks: "list[NetworkRun]"
    missing: dict[str, str]


class SuiteRun:
    """The experiments of one suite, in a work folder, on one Ray.

    What is there already is kept: models, parts of vote tables and studies. One experiment that fails stops no other.
    """

    def __init__(
        self,
        suite: Suite,
        recipes: Mapping[str, Recipe],
        options: RunOptions,
        terminal: Terminal,
        models: Mapping[str, str] | None = None,
    ) -> None:
        """Prepares nothing yet.

        Args:
            suite: tables and figures.
            recipes: the whole recipe of each experiment, overrides of the command line included.
            options: where it runs and is recorded.
            terminal: for the reader.
            models: folders of trained checkpoints by name of an experiment; experiments of the same model share them.

        Raises:
            RecipeError: two checkpoints for one model.
            CheckpointError: a folder holds no checkpoint.
        """
        self.suite, self.options, self.terminal = suite, options, terminal
        self.workspace = Workspace(options.work)
        self.recipes, self._given = _with_models(recipes, models or {})
        self._missing: dict[str, str] = {}

    def run(self, out: str | None = None) -> SuiteOutcome:
        """Trains, votes, answers and reports.

        Args:
            out: folder of the report; None: ``suites/<name>-<fingerprint>`` in the work folder.

        Raises:
            PatchcertError: no experiment could be answered, or the report cannot be written.
        """
        from patchcert.stages.cluster import connected
        from patchcert.tracking import answering

        self._check(out)
        tracking = answering(self.options.tracking, self.workspace, self.terminal.say)
        # Studies are published together at the end.
        options = dataclasses.replace(self.options, tracking=tracking)
        with connected(options.resources, verbose=options.verbose) as ray:
            models = self._train(ray, options)
            results, variances = self._answer(models, options)
        return self._report(models, results, variances, tracking, out)

    def _check(self, out: str | None) -> None:
        """Raises what any experiment would refuse, before the first one begins."""
        for name, recipe in self.recipes.items():
            stages: tuple[Stage, ...] = ("vote", "study") if name in self._given else ("train", "vote", "study")
            try:
                check_stages(recipe, stages, self.workspace, self.options.resources)
            except CheckpointError as error:
                # A model that lies damaged in the work folder stops its own experiment, not the others.
                if name in self._given:
                    raise CheckpointError(f"{name}: {error}") from None
            except PatchcertError as error:
                raise type(error)(f"{name}: {error}") from None
        if out is not None:
            Folder(out).check_writable()

    def plan(self) -> list[tuple[str, str, str]]:
        """(experiment, name of its results, what is there already) of every experiment, without computing anything."""
        found = []
        for name, recipe in self.recipes.items():
            there = {
                "model": name in self._given or may_be_trained(recipe, self.workspace),
                "votes": _count(self.workspace, "votes", recipe.name, SUCCESS) > 0,
                "study": _count(self.workspace, "studies", recipe.name, SUMMARY) > 0,
            }
            found.append((name, recipe.name, ", ".join(words for words, is_there in there.items() if is_there) or "–"))
        return found

    def folder(self) -> Folder:
        """Folder of the report, named by everything that the suite asks."""
        return self.workspace.folder.folder(f"suites/{self.suite.name}-{settings_key(self._settings())}")

    def _settings(self) -> dict[str, Any]:
        """Everything that the suite asks; of a checkpoint that was named its digest in place of its training."""
        from patchcert.models.checkpoint import read_checkpoint_config

        settings = {name: _settings(recipe) for name, recipe in self.recipes.items()}
        for name, folder in self._given.items():
            settings[name]["training"] = {"checkpoint": read_checkpoint_config(folder)["digest"]}
        return settings

    def _train(self, ray: Any, options: RunOptions) -> dict[str, Folder]:
        """Trains every model that is missing, as many at a time as cores or GPUs allow: key -> checkpoint."""
        models: dict[str, Folder] = {}
        waiting: dict[str, Pipeline] = {}
        resources = options.resources
        cluster = ray.cluster_resources()
        one_each = dataclasses.replace(resources, workers=resources.workers or 1)
        for name, recipe in self.recipes.items():
            if (key := _model_key(recipe)) in models or key in waiting:
                continue
            if name in self._given:
                models[key] = self._given[name]
                continue
            pipeline = Pipeline(recipe, dataclasses.replace(options, resources=one_each), self.terminal)
            with self._reporting(name):
                # Images are prepared before models are trained side by side: two would write the same files.
                pipeline.prepare(_splits(recipe))
                if may_be_trained(recipe, self.workspace):
                    models[key] = pipeline.train()
                else:
                    waiting[key] = pipeline
        return models | self._side_by_side(waiting, slots(cluster, resources), cluster)

    def _side_by_side(self, waiting: dict[str, Pipeline], most: int, cluster: Mapping[str, float]) -> dict[str, Folder]:
        lanes = min(most, len(waiting))
        if lanes > 1:
            terminal = Terminal(live=False)
            for key, pipeline in waiting.items():
                resources = pipeline.options.resources
                share = max(1, int(cluster.get("CPU", 1)) // (lanes * resources.workers))
                alone = dataclasses.replace(resources, cpus_per_worker=resources.cpus_per_worker or share)
                options = dataclasses.replace(pipeline.options, resources=alone)
                waiting[key] = Pipeline(pipeline.recipe, options, terminal)
            self.terminal.say(f"training {len(waiting)} models, {lanes} at a time")
        left: queue.SimpleQueue[tuple[str, Pipeline]] = queue.SimpleQueue()
        for entry in waiting.items():
            left.put(entry)
        models: dict[str, Folder] = {}

        def work() -> None:
            while True:
                try:
                    key, pipeline = left.get_nowait()
                except queue.Empty:
                    return
                name = next(name for name, recipe in self.recipes.items() if _model_key(recipe) == key)
                with self._reporting(name):
                    models[key] = pipeline.train()

        if lanes <= 1:
            work()
            return models
        # Daemons, so that an interrupted command ends without waiting for them; what they saved stays.
        threads = [threading.Thread(target=work, name=f"lane-{lane}", daemon=True) for lane in range(lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
        return models

    def _answer(
        self, models: Mapping[str, Folder], options: RunOptions
    ) -> "tuple[dict[str, StudyResult], dict[str, VarianceResult]]":
        """Votes and answers experiment by experiment, each on all cores; those of equal votes share their table.

        Returns:
            Studies, and repeated draws, by name of the experiment.
        """
        results: dict[str, StudyResult] = {}
        variances: dict[str, VarianceResult] = {}
        tables: dict[str, VoteTable] = {}
        for name, recipe in self.recipes.items():
            model = models.get(_model_key(recipe))
            if model is None:
                trained_by = next(
                    other for other in self.recipes if _model_key(self.recipes[other]) == _model_key(recipe)
                )
                self._missing.setdefault(name, self._missing.get(trained_by, "its model was not trained"))
                continue
            pipeline = Pipeline(recipe, options, self.terminal)
            with self._reporting(name):
                votes = _votes_key(recipe)
                if votes not in tables:
                    tables[votes] = pipeline.vote(str(model))
                results[name] = pipeline.answer(tables[votes], reuse=True)
                if repeats := self.suite.experiment(name).repeats:
                    variances[name] = pipeline.draw(_repeated(recipe.study, repeats), tables[votes], reuse=True)
        return results, variances

    def _report(
        self,
        models: Mapping[str, Folder],
        results: dict[str, StudyResult],
        variances: "dict[str, VarianceResult]",
        tracking: Any,
        out: str | None,
    ) -> SuiteOutcome:
        from patchcert.models.checkpoint import read_checkpoint_config
        from patchcert.studies.suite_networks import network_runs
        from patchcert.studies.suite_writing import SuiteReport, write_suite
        from patchcert.tracking import publish

        suite = self.suite
        known = [experiment.name for experiment in suite.experiments]
        folder = Folder(out or self.folder())
        checkpoints = {name: read_checkpoint_config(models[_model_key(self.recipes[name])]) for name in results}
        networks = network_runs(results, checkpoints, variances)
        tables = write_suite(
            folder,
            SuiteReport(
                title=suite.title,
                source=suite.source,
                headline=suite.headline,
                tables=suite.tables,
                figures=suite.figures,
                results=results,
                scatters={name: drawn.summary for name, drawn in variances.items()},
                networks=networks,
                missing=self._missing,
                left_out=tuple(name for name in known if name not in self.recipes),
                notes=suite.notes,
                settings=self._settings(),
            ),
        )
        studies = {name: result.folder for name, result in results.items()}
        results_folders = [*studies.values(), *(drawn.folder for drawn in variances.values())]
        if tracking.mode == "off" and self.options.tracking.mode != "off":
            command = "patchcert publish " + " ".join(result.uri for result in results_folders)
            self.terminal.say(f"Publish the studies when the tracker is back:  {command}")
        else:
            publish(results_folders, tracking, self.workspace, self.terminal.say)
        return SuiteOutcome(folder=folder, tables=tables, studies=studies, networks=networks, missing=self._missing)

    def _reporting(self, name: str) -> "_Reporting":
        return _Reporting(name, self._missing, self.terminal.say)


class _Reporting:
    """Context that turns the failure of one experiment into an entry of what is missing."""

    def __init__(self, name: str, missing: dict[str, str], say: Callable[[str], object]) -> None:
        self._name, self._missing, self._say = name, missing, say

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        message = str(error) if isinstance(error, PatchcertError) else f"{type(error).__name__}: {error}"
        self._missing[self._name] = message.splitlines()[0] if message else type(error).__name__
        self._say(f"{self._name} failed, the others go on: {message}")
        return True


def chosen_recipes(suite: Suite, only: tuple[str, ...], override: Callable[[Recipe], Recipe]) -> dict[str, Recipe]:
    """The whole recipes of a suite's experiments, the same overrides applied to each.

    Args:
        suite: the suite.
        only: names of experiments; empty: all.
        override: recipe -> recipe.

    Raises:
        RecipeError: an experiment that the suite does not have.
    """
    known = [experiment.name for experiment in suite.experiments]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise RecipeError(f"{suite.name} has no experiment {unknown[0]!r}.\n  This edition has: {', '.join(known)}.")
    return {name: override(suite.experiment(name).build()) for name in only or known}


def named_models(suite: Suite, words: tuple[str, ...]) -> dict[str, str]:
    """The checkpoints of ``EXPERIMENT=FOLDER`` words, by name of the experiment.

    Raises:
        RecipeError: a word of another form, or an experiment that the suite does not have.
    """
    known = [experiment.name for experiment in suite.experiments]
    models = {}
    for word in words:
        name, is_pair, folder = word.partition("=")
        if not (is_pair and folder) or name not in known:
            wrong = (
                f"{suite.name} has no experiment {name!r}" if is_pair and folder else f"{word!r} names no checkpoint"
            )
            raise RecipeError(f"--models: {wrong}.\n  Write EXPERIMENT=FOLDER; the experiments are {', '.join(known)}.")
        models[name] = folder
    return models


def _with_models(
    recipes: Mapping[str, Recipe], models: Mapping[str, str]
) -> tuple[dict[str, Recipe], dict[str, Folder]]:
    """Recipes that fit the checkpoints that were named, and the checkpoint of each experiment that has one."""
    from patchcert.models.checkpoint import read_checkpoint_config

    by_key: dict[str, Folder] = {}
    for name, location in models.items():
        if name not in recipes:
            continue
        key, folder = _model_key(recipes[name]), Folder(location)
        if by_key.get(key, folder).uri != folder.uri:
            raise RecipeError(
                f"two checkpoints are named for the one model of {name}: {by_key[key]} and {folder}.\n"
                "  Name one of them."
            )
        by_key[key] = folder
    fitted, given = dict(recipes), {}
    for name, recipe in recipes.items():
        if (folder := by_key.get(_model_key(recipe))) is None:
            continue
        given[name] = folder
        made = read_checkpoint_config(folder)["classifier"]
        classifier = recipe.classifier
        # Another network is refused when it votes, and its width means nothing here.
        if made["network"] == classifier.network:
            follows = {"width": made["width"], "dropout": made["dropout"], "members": made.get("members", 1)}
            classifier = dataclasses.replace(classifier, **follows)
        fitted[name] = dataclasses.replace(recipe, classifier=classifier)
    return fitted, given


def slots(cluster: Mapping[str, float], resources: Any) -> int:
    """How many trainings the cluster holds at a time."""
    workers = resources.workers or 1
    num_gpus = int(cluster.get("GPU", 0)) if resources.device != "cpu" else 0
    if num_gpus:
        return max(1, num_gpus // workers)
    return max(1, int(cluster.get("CPU", 1)) // (workers * max(1, resources.cpus_per_worker)))


def _splits(recipe: Recipe) -> list[str]:
    wanted = [recipe.training.split, recipe.study.split]
    if "validation" in dataset_spec(recipe.data.dataset).splits:
        wanted.append("validation")
    return list(dict.fromkeys(wanted))


def _repeated(study: StudyConfig, repeats: int) -> VarianceConfig:
    """Every draw of a study, many times."""
    return VarianceConfig(
        repeats=repeats,
        num_draws=tuple(sorted(study.num_draws)),
        replacement=study.replacement,
        patches=(study.headline_patch,),
        min_confidence=study.min_confidences[0],
    )


def _settings(recipe: Recipe) -> dict[str, Any]:
    values = canonical_settings(recipe)
    values["data"].pop("source")
    return values


def _model_key(recipe: Recipe) -> str:
    """Names the model that a recipe trains."""
    values = _settings(recipe)
    return settings_key({name: values[name] for name in ("name", "data", "views", "classifier", "training")})


def _votes_key(recipe: Recipe) -> str:
    """Names the votes that a recipe's model casts."""
    return settings_key(_model_key(recipe), canonical_settings(recipe.prediction), recipe.study.split)


def _count(workspace: Workspace, kind: str, name: str, marker: str) -> int:
    """How many finished folders of a recipe lie in the work folder."""
    folder = workspace.folder.folder(kind)
    key_length = len(settings_key())
    return sum(found[:-key_length] == f"{name}-" and folder.folder(found).exists(marker) for found in folder.folders())
