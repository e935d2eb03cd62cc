"""Runs the stages of one recipe: prepare, train, vote, study, variance."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from patchcert import __version__
from patchcert.console import Terminal
from patchcert.data import PreparedDataset, prepare
from patchcert.data.prepared import DATASET_FILE, available_cpus
from patchcert.data.registry import dataset_spec
from patchcert.data.shards import Spread, in_processes
from patchcert.data.splits import count_images
from patchcert.data.storage import Folder
from patchcert.errors import StudyError
from patchcert.models.checkpoint_config import read_checkpoint_config
from patchcert.next_commands import command_line
from patchcert.readiness import Stage, check_split, check_stages
from patchcert.recipes import Recipe
from patchcert.stages.resources import Resources
from patchcert.studies.config import VarianceConfig
from patchcert.studies.results import StudyResult
from patchcert.tracking import TrackingConfig, answering, check_address
from patchcert.trained_models import (
    TrainedModel,
    code_changed,
    find_model,
    finished_model,
    may_be_trained,
    no_such_model,
    prepared_training_split,
    untrained_key,
)
from patchcert.votes import VoteTable
from patchcert.votes.table import QUARANTINE
from patchcert.workspace import Workspace, canonical_settings

if TYPE_CHECKING:
    from patchcert.stages.estimate import VoteEstimate
    from patchcert.stages.vote import VoteProgress
    from patchcert.stages.vote_worker import Receipt
    from patchcert.studies.variance_results import VarianceResult
    from patchcert.tracking import TrainingRun

_PROBE_IMAGES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run happens and where its results go; none of it changes a result."""

    work: str | None = None
    """Work folder or URI; unset: PATCHCERT_WORK, else ./patchcert-work."""
    resources: Resources = dataclasses.field(default_factory=Resources)
    """Hardware."""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    """Experiment tracker."""
    verbose: bool = False
    """Show what Ray and the workers print."""


class Pipeline:
    """The stages of one recipe, in a work folder, on one Ray."""

    def __init__(
        self, recipe: Recipe, options: RunOptions, terminal: Terminal, words: Sequence[str] | None = None
    ) -> None:
        """Prepare nothing yet; Ray starts with the first stage that needs it.

        Args:
            recipe: what is run.
            options: where it runs.
            terminal: for the reader.
            words: recipe and overrides as they were typed, for commands that the reader is shown; None: the name alone.
        """
        self.recipe, self.options, self.terminal = recipe, options, terminal
        self._words = [recipe.name] if words is None else list(words)
        self.workspace = Workspace(options.work)
        if options.tracking.mode != "off":
            check_address(options.tracking.uri)
        self._is_shared = False

    def command(self, name: str, *more: object) -> str:
        """Return a command of this recipe that can be pasted: ``patchcert NAME RECIPE``, the overrides, and more."""
        return command_line(name, *self._words, *more)

    def check(self, stages: Collection[Stage], *, out: str | None = None) -> None:
        """Raise now what these stages would refuse later.

        Args:
            stages: those that are to run.
            out: folder of the results, if it was named.

        Raises:
            PatchcertError: a setting that a stage refuses, a folder that cannot be written, or in strict mode a tracker
                that cannot be used.
        """
        check_stages(self.recipe, stages, self.workspace, self.options.resources)
        if out is not None:
            Folder(out).check_writable()
        # Otherwise a tracker that fails is one warning, where it is first needed.
        if self.options.tracking.mode == "strict" and set(stages) != {"vote"}:
            answering(self.options.tracking, self.workspace, self.terminal.say)

    def check_draws(self, config: VarianceConfig, table: VoteTable | None = None) -> None:
        """Raise what is wrong with repeated draws from a vote table; None: the one that the recipe would make."""
        from patchcert.studies.variance import draw_questions

        patches = config.patches or self.recipe.study.patches
        views = self.recipe.voted_views if table is None else table.views
        draw_questions(dataclasses.replace(config, patches=patches), views)

    def check_hardware(self, ray: Any, *, trains: bool) -> None:
        """Raise what is wrong with the resources asked for on the connected Ray, for training and voting alike.

        Raises:
            ResourceError: more than there is, or settings that have no effect there.
        """
        from patchcert.stages.cluster import worker_share

        for training in (True, False) if trains else (False,):
            worker_share(ray, self.options.resources, training=training, say=self.terminal.say)

    def _check_work_folder(self) -> None:
        """Once, and before any work: on a cluster, every node must see the work folder."""
        from patchcert.stages.sharing import check_work_folder, cluster_address

        if self._is_shared or cluster_address(self.options.resources) is None:
            return
        from patchcert.stages.cluster import connected

        with connected(self.options.resources, verbose=self.options.verbose) as ray:
            check_work_folder(ray, self.workspace.folder)
        self._is_shared = True

    def prepare(self, splits: list[str] | None = None) -> dict[str, PreparedDataset]:
        """Decodes and resizes the images of the dataset, once.

        Args:
            splits: names of splits; None: all the dataset has and the one that is trained on.
        """
        config, size = self.recipe.data, self.recipe.views.image_size
        available = dataset_spec(config.dataset).splits
        if splits is None:
            wanted = [name for name in available if name != "trainval"]
            if self.recipe.training.split in available and self.recipe.training.split not in wanted:
                wanted.append(self.recipe.training.split)
            splits = wanted
        for name in splits:
            check_split(self.recipe, name)
        self._check_work_folder()
        with self.terminal.progress(f"prepare {config.dataset}", "images") as bar:
            return prepare(
                config,
                size,
                self.workspace.data(config, size),
                splits=splits,
                on_progress=bar.update,
                on_warning=self.terminal.say,
                spread=self._preparing(),
            )

    def prepare_stages(self) -> None:
        """Prepare at once what training, voting and the study will read: images that are missing are missed now."""
        wanted = [*self._training_splits(), self.recipe.study.split]
        self.prepare(list(dict.fromkeys(wanted)))

    def _training_splits(self) -> list[str]:
        """The split that is learned from, and the one whose figures are shown meanwhile."""
        split = self.recipe.training.split
        has_validation = "validation" in dataset_spec(self.recipe.data.dataset).splits
        return [split, "validation"] if split == "train" and has_validation else [split]

    def _preparing(self) -> Spread:
        """Who decodes: the cluster that was joined, else processes of this machine."""
        resources = self.options.resources
        if resources.address or os.environ.get("RAY_ADDRESS"):
            from patchcert.stages.prepare import on_cluster

            return on_cluster(resources, verbose=self.options.verbose)
        return in_processes(resources.workers or available_cpus())

    def train(self, *, resume: bool = True) -> Folder:
        """Trains the base classifier, or finds it trained.

        Returns:
            The checkpoint.
        """
        from patchcert.tracking import training_run

        recipe = self.recipe
        datasets = self.prepare(self._training_splits())
        dataset = datasets[recipe.training.split]
        started = time.perf_counter()
        run = training_run(self.options.tracking, self.workspace, recipe, dataset, self.terminal.say)
        model = finished_model(recipe, dataset, self.workspace) if resume else None
        if model is None:
            if resume and (other := code_changed(recipe, dataset, self.workspace)) is not None:
                self.terminal.say(
                    f"{recipe.name}: the code of {recipe.classifier.network} changed since {other} was trained: "
                    "training another model"
                )
            self.workspace.folder.folder("training").check_writable()
            self._probe_start(dataset)
            model = self._train(datasets, run, resume=resume)
        run.finish("FINISHED", checkpoint=model)
        asked = self.options.resources.workers
        if model.reused and asked and model.workers not in (0, asked):
            self.terminal.say(
                f"{recipe.name}: {model.workers} workers trained the model that is there, {asked} are asked for: taken "
                f"as it is (--no-resume trains it anew)"
            )
        done = "was trained already" if model.reused else f"trained in {time.perf_counter() - started:.0f} s"
        self.terminal.say(f"{recipe.name}: {done}, {_named(model.folder, model.digest)}")
        return model.folder

    def _train(self, datasets: dict[str, PreparedDataset], run: "TrainingRun", *, resume: bool) -> TrainedModel:
        """Trains on Ray, figures going to the terminal and the tracker."""
        from patchcert.stages.cluster import connected

        recipe = self.recipe
        with (
            connected(self.options.resources, verbose=self.options.verbose),
            self.terminal.progress(f"train {recipe.name}", "epochs") as bar,
        ):
            from patchcert.stages.train import train

            def on_epoch(epoch: int, row: dict[str, float]) -> None:
                accuracy = row.get("validation_view_accuracy", row["view_accuracy"])
                bar.update(epoch, recipe.training.epochs, f"loss {row['loss']:.3f}, views right {accuracy:.1%}")
                run.log_epoch(epoch, row)

            try:
                return train(
                    recipe,
                    datasets,
                    self.workspace,
                    self.options.resources,
                    resume=resume,
                    on_epoch=on_epoch,
                    say=self.terminal.say,
                )
            except BaseException as error:
                run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise

    def _probe_start(self, dataset: PreparedDataset) -> None:
        """Raises ModelError where the network could not be trained, saved or certified, before any work is done."""
        from patchcert.models.checkpoint import initial_classifier
        from patchcert.prediction.probing import probe

        recipe = self.recipe
        classifier = initial_classifier(
            recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
        )
        probe(classifier, _few_images(dataset), trains=True)

    def trained_model(self) -> Folder:
        """Return the checkpoint that was trained with exactly these settings.

        Raises:
            CheckpointError: there is none; names the nearest, and what it differs in.
        """
        # Images are prepared only for a model that nothing else speaks against.
        dataset = prepared_training_split(self.recipe, self.workspace)
        if dataset is None and may_be_trained(self.recipe, self.workspace):
            dataset = self.prepare([self.recipe.training.split])[self.recipe.training.split]
        folder = None if dataset is None else find_model(self.recipe, dataset, self.workspace)
        if folder is None:
            raise no_such_model(self.recipe, dataset, self.workspace)
        return folder

    def start_untrained(self) -> Folder:
        """Write a checkpoint with the start weights, to try a pipeline or to time it.

        Returns:
            The checkpoint; only who names it gets it.
        """
        from patchcert.models.checkpoint import initial_classifier, save_checkpoint
        from patchcert.prediction.probing import probe

        recipe = self.recipe
        dataset = next(iter(self.prepare([recipe.study.split]).values()))
        classifier = initial_classifier(
            recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
        )
        probe(classifier, _few_images(dataset))
        folder = self.workspace.models(recipe.name).folder(f"untrained-{untrained_key(recipe, dataset)}")
        class_names = list(dataset.class_names)
        digest = save_checkpoint(
            classifier, folder, {"recipe": recipe.name, "trained": False, "class_names": class_names}
        )
        self.terminal.say(f"{recipe.name}: start weights written, nothing was trained: {_named(folder, digest)}")
        return folder

    def vote(self, checkpoint: str | None = None) -> VoteTable:
        """Scores all views of the study's split.

        Args:
            checkpoint: folder or URI; None: the model that was trained with exactly the recipe's settings.

        Raises:
            CheckpointError: there is no such model, or the checkpoint was made for something else.
        """
        from patchcert.models.checkpoint import load_checkpoint
        from patchcert.prediction.probing import probe
        from patchcert.stages.cluster import connected

        recipe = self.recipe
        folder = Folder(checkpoint) if checkpoint else self.trained_model()
        dataset = self.prepare([recipe.study.split])[recipe.study.split]
        # A checkpoint of another model is refused before Ray starts.
        classifier = load_checkpoint(
            folder,
            classifier=recipe.classifier,
            views=recipe.views,
            num_classes=dataset.num_classes,
            class_names=dataset.class_names,
        )
        self._say_model(folder)
        probe(classifier, _few_images(dataset))
        with connected(self.options.resources, verbose=self.options.verbose):
            from patchcert.stages.vote import vote

            started = time.perf_counter()
            images_before: list[int] = []
            with self.terminal.progress(f"vote {recipe.name}", "images") as bar:

                def on_part(_: "Receipt", state: "VoteProgress") -> None:
                    images_before.append(state.images_done)
                    bar.update(state.images_done, state.num_images, state.describe())

                table = vote(
                    recipe,
                    dataset,
                    folder,
                    self.workspace,
                    self.options.resources,
                    on_part=on_part,
                    say=self.terminal.say,
                )
        took = f"in {time.perf_counter() - started:.1f} s"
        if kept := images_before[0]:
            took = "were there already" if kept == dataset.num_rows else f"{took} ({kept} were there already)"
        self.terminal.say(
            f"{recipe.name}: {table.num_images} images x {table.num_views} views {took}, vote table {table.location}"
        )
        if table.num_unvoted:
            self.terminal.say(
                f"warning: {table.num_unvoted} images have no votes and count as wrong; their parts and the reasons:  "
                f"{table.location}/{QUARANTINE}"
            )
        return table

    def estimate_vote(self, checkpoint: str | None = None) -> "VoteEstimate":
        """What voting would cost, from a few images scored on the hardware it would run on; the work folder stays.

        Args:
            checkpoint: folder or URI; None: the model of the recipe's settings, or start weights, which are as fast.
        """
        from patchcert.models.checkpoint import initial_classifier, load_checkpoint, save_checkpoint
        from patchcert.prediction.probing import probe
        from patchcert.stages.cluster import connected

        recipe, split = self.recipe, self.recipe.study.split
        with tempfile.TemporaryDirectory() as scratch:
            config, size = recipe.data, recipe.views.image_size
            prepared = self.workspace.data(config, size).folder(split)
            note = ""
            if prepared.exists(DATASET_FILE):
                dataset = PreparedDataset.open(prepared)
                num_images = dataset.num_rows
            else:
                few = dataclasses.replace(config, limit=min(config.limit or _PROBE_IMAGES, _PROBE_IMAGES))
                dataset = prepare(few, size, scratch + "/data", splits=[split])[split]
                num_images = count_images(config, split)
                note = f"{recipe.data.dataset} is not prepared yet: bad images are counted as good ones"
            folder = Folder(checkpoint) if checkpoint else self._model_at_hand()
            if folder is None:
                folder = Folder(scratch + "/model")
                classifier = initial_classifier(
                    recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
                )
                save_checkpoint(classifier, folder, {})
                note += ("; " if note else "") + "no model of these settings is there: measured with start weights"
            probe(load_checkpoint(folder, classifier=recipe.classifier, views=recipe.views), _few_images(dataset))
            with connected(self.options.resources, verbose=self.options.verbose):
                from patchcert.stages.estimate import estimate_vote

                return estimate_vote(
                    recipe,
                    dataset,
                    folder,
                    self.workspace,
                    self.options.resources,
                    num_images=num_images,
                    note=note,
                    say=self.terminal.say,
                )

    def study(
        self, table: VoteTable | None = None, *, checkpoint: str | None = None, out: str | None = None
    ) -> StudyResult:
        """Answer the recipe's questions from a vote table, write report and figures, and publish them.

        Args:
            table: None: the table of the checkpoint.
            checkpoint: folder or URI; None: the model that was trained with exactly the recipe's settings.
            out: folder of the results; None: a folder of the study's own in the work folder.

        Raises:
            VoteTableError: the table is missing or was made from something else.
        """
        from patchcert.tracking import publish

        result = self.answer(self._asked_table(table, checkpoint), out=out)
        publish([result.folder], self.options.tracking, self.workspace, self.terminal.say)
        return result

    def answer(self, table: VoteTable, *, out: str | None = None, reuse: bool = False) -> StudyResult:
        """Answers the recipe's questions from a vote table and writes report and figures.

        Args:
            table: votes of the recipe's views.
            out: folder of the results; None: a folder of the study's own in the work folder.
            reuse: take a whole result of the same questions and votes that is there already.

        Raises:
            VoteTableError: the table was made from something else.
        """
        from patchcert.stages.cluster import connected
        from patchcert.studies.questions import questions

        self._check_views(table)
        if reuse and (found := self._find_study(table, out)) is not None:
            self.terminal.say(f"{self.recipe.name}: was answered already, study {found.folder}")
            return found
        asked = questions(self.recipe.study, table.views, table.score_floor, on_warning=self.terminal.say)
        Folder(out or self.workspace.study(self.recipe.name, self._study_identity(table))).check_writable()
        started = time.perf_counter()
        with connected(self.options.resources, verbose=self.options.verbose):
            from patchcert.stages.study import answer

            done = 0
            with self.terminal.progress(f"study {self.recipe.name}", "images") as bar:

                def on_part(num_images: int) -> None:
                    nonlocal done
                    done += num_images
                    bar.update(done, table.num_images)

                parts = answer(table, asked, on_part=on_part)
        return self._write_study(table, asked, parts, out, time.perf_counter() - started)

    def variance(
        self,
        config: VarianceConfig,
        table: VoteTable | None = None,
        *,
        checkpoint: str | None = None,
        out: str | None = None,
        reuse: bool = False,
    ) -> "VarianceResult":
        """Draw views again and again from a vote table, write how certificates scatter, and publish it.

        Args:
            config: what is drawn and certified; without patches those of the recipe's study are taken.
            table: None: the table of the checkpoint.
            checkpoint: folder or URI; None: the model that was trained with exactly the recipe's settings.
            out: folder of the results; None: a folder of the study's own in the work folder.
            reuse: take a whole result of the same draws and votes that is there already.

        Raises:
            VoteTableError: the table is missing or was made from something else.
            StudyError: nothing can be drawn from its views.
        """
        from patchcert.tracking import publish

        result = self.draw(config, self._asked_table(table, checkpoint), out=out, reuse=reuse)
        publish([result.folder], self.options.tracking, self.workspace, self.terminal.say)
        return result

    def draw(
        self, config: VarianceConfig, table: VoteTable, *, out: str | None = None, reuse: bool = False
    ) -> "VarianceResult":
        """Draws views again and again from a vote table and writes how certificates scatter.

        Args:
            config: what is drawn and certified; without patches those of the recipe's study are taken.
            table: votes of the recipe's views.
            out: folder of the results; None: a folder of the study's own in the work folder.
            reuse: take a whole result of the same draws and votes that is there already.

        Raises:
            VoteTableError: the table was made from something else.
            StudyError: nothing can be drawn from its views.
        """
        from patchcert.provenance import environment
        from patchcert.stages.cluster import connected
        from patchcert.studies.questions import headline_patch
        from patchcert.studies.subject import Subject
        from patchcert.studies.variance import draw_questions
        from patchcert.studies.variance_results import write_variance

        config = dataclasses.replace(config, patches=config.patches or self.recipe.study.patches)
        self._check_views(table)
        identity = self._variance_identity(config, table)
        if reuse and (found := self._find_variance(identity, out)) is not None:
            self.terminal.say(f"{self.recipe.name}: was drawn already, variance study {found.folder}")
            return found
        asked = draw_questions(config, table.views)
        Folder(out or self.workspace.variance(self.recipe.name, identity)).check_writable()
        started = time.perf_counter()
        with connected(self.options.resources, verbose=self.options.verbose):
            from patchcert.stages.variance import draw_repeatedly

            with self.terminal.progress(f"variance {self.recipe.name}", "images") as bar:
                done = 0

                def on_images(num_images: int) -> None:
                    nonlocal done
                    done += num_images
                    bar.update(done, table.num_images)

                drawn = draw_repeatedly(table, config, asked, on_images=on_images)
        seconds = time.perf_counter() - started
        subject = Subject.of_table(table, self.recipe.name)
        study = dataclasses.replace(self.recipe.study, patches=config.patches)
        return write_variance(
            out or self.workspace.variance(self.recipe.name, identity),
            subject=subject,
            headline_patch=headline_patch(study, subject.image_size),
            tables=drawn.tables(subject),
            identity=identity,
            run={
                "recipe": self.recipe.name,
                "vote_table": table.location,
                "draw_seconds": round(seconds, 3),
                "environment": environment(),
            },
        )

    def find_table(self, checkpoint: str | None = None) -> VoteTable:
        """Return the vote table of a model and the prepared split.

        Args:
            checkpoint: folder or URI; None: the model that was trained with exactly the recipe's settings.
        """
        from patchcert.votes.identity import vote_identity

        folder = Folder(checkpoint) if checkpoint else self.trained_model()
        dataset = self.prepare([self.recipe.study.split])[self.recipe.study.split]
        digest = self._say_model(folder)
        identity = vote_identity(
            self.recipe.voted_views,
            dataset,
            model_digest=digest,
            score_floor=self.recipe.prediction.score_floor,
            precision=self.recipe.prediction.precision,
        )
        return VoteTable.open(self.workspace.votes(self.recipe.name, identity), identity)

    def _asked_table(self, table: VoteTable | None, checkpoint: str | None) -> VoteTable:
        """The table that is given, or that of a model; tells the reader whose votes they are."""
        if table is None:
            return self.find_table(checkpoint)
        digest = str(table.identity["model"])
        self.terminal.say(f"{self.recipe.name}: votes of the model with digest {digest[:12]}, {table.location}")
        return table

    def _check_views(self, table: VoteTable) -> None:
        """Raises VoteTableError for a table of other views than the recipe's."""
        if table.views != self.recipe.voted_views:
            from patchcert.votes.table import check_identity

            asked_identity = table.identity | {"views": self.recipe.voted_views.identity()}
            check_identity(table.identity, asked_identity, table.location)

    def _write_study(
        self, table: VoteTable, asked: list[Any], parts: list[Any], out: str | None, seconds: float
    ) -> StudyResult:
        from patchcert.provenance import environment
        from patchcert.studies.subject import Subject
        from patchcert.studies.writing import write_study

        identity = self._study_identity(table)
        run: dict[str, Any] = {
            "recipe": self.recipe.name,
            "vote_table": table.location,
            "study_seconds": round(seconds, 3),
            "environment": environment(),
        }
        if (voting := table.measured()) is not None:
            run["voting"] = voting
        prepared = self.workspace.data(self.recipe.data, self.recipe.views.image_size).folder(self.recipe.study.split)
        return write_study(
            out or self.workspace.study(self.recipe.name, identity),
            subject=Subject.of_table(table, self.recipe.name),
            config=self.recipe.study,
            questions=asked,
            parts=parts,
            identity=identity,
            run=run,
            dataset=PreparedDataset.open(prepared) if prepared.exists("dataset.json") else None,
        )

    def _study_identity(self, table: VoteTable) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "version": __version__,
            "study": canonical_settings(self.recipe.study),
            "votes": table.identity,
        }
        if table.unvoted_rows:
            identity["unvoted_rows"] = [list(rows) for rows in table.unvoted_rows]
        return identity

    def _find_study(self, table: VoteTable, out: str | None) -> StudyResult | None:
        """The whole result of the same questions and votes, or None."""
        from patchcert.studies.result_folders import result_id

        identity = self._study_identity(table)
        try:
            found = StudyResult.open(out or self.workspace.study(self.recipe.name, identity))
        except StudyError:
            return None
        return found if found.result_id == result_id(identity) else None

    def _variance_identity(self, config: VarianceConfig, table: VoteTable) -> dict[str, Any]:
        import numpy as np

        identity: dict[str, Any] = {
            "version": __version__,
            # The streams of random numbers belong to the version of numpy that draws them.
            "numpy": np.__version__,
            "variance": canonical_settings(config),
            "votes": table.identity,
        }
        if table.unvoted_rows:
            identity["unvoted_rows"] = [list(rows) for rows in table.unvoted_rows]
        return identity

    def _find_variance(self, identity: dict[str, Any], out: str | None) -> "VarianceResult | None":
        """The whole result of the same draws and votes, or None."""
        from patchcert.studies.result_folders import result_id
        from patchcert.studies.variance_results import VarianceResult

        try:
            found = VarianceResult.open(out or self.workspace.variance(self.recipe.name, identity))
        except StudyError:
            return None
        return found if found.result_id == result_id(identity) else None

    def _model_at_hand(self) -> Folder | None:
        """The model of these settings, where that can be told without preparing any image."""
        dataset = prepared_training_split(self.recipe, self.workspace)
        return None if dataset is None else find_model(self.recipe, dataset, self.workspace)

    def _say_model(self, folder: Folder) -> str:
        """Tells the reader which model is used; returns its digest."""
        digest = str(read_checkpoint_config(folder)["digest"])
        self.terminal.say(f"{self.recipe.name}: {_named(folder, digest)}")
        return digest


def _named(folder: Folder, digest: str) -> str:
    return f"checkpoint {folder} (digest {digest[:12]})"


def _few_images(dataset: PreparedDataset) -> Any:
    """Two images to probe a network with, uint8 (N, H, W, C), or None where there are none."""
    return dataset.read(0, min(2, dataset.num_rows)).images_NHWC if dataset.num_rows else None
