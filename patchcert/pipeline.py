"""A recipe in; prepared images, a trained model, a vote table and a study with its report out, one method each."""

import dataclasses
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from patchcert import __version__
from patchcert.console import Terminal
from patchcert.data import PreparedDataset, prepare
from patchcert.data.prepared import DATASET_FILE, available_cpus
from patchcert.data.registry import dataset_spec
from patchcert.data.shards import Spread, in_processes
from patchcert.data.splits import count_images
from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, RecipeError, StudyError
from patchcert.recipes import Recipe
from patchcert.stages.resources import Resources
from patchcert.studies.config import VarianceConfig
from patchcert.studies.results import StudyResult
from patchcert.tracking import TrackingConfig
from patchcert.votes import VoteTable
from patchcert.votes.table import QUARANTINE
from patchcert.workspace import Workspace, canonical_settings

if TYPE_CHECKING:
    from patchcert.stages.estimate import VoteEstimate
    from patchcert.stages.vote import VoteProgress
    from patchcert.stages.vote_worker import Receipt
    from patchcert.studies.variance_results import VarianceResult

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

    def __init__(self, recipe: Recipe, options: RunOptions, terminal: Terminal) -> None:
        """Prepares nothing yet; Ray starts with the first stage that needs it."""
        self.recipe, self.options, self.terminal = recipe, options, terminal
        self.workspace = Workspace(options.work)
        self._is_shared = False

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
            if name not in available:
                raise RecipeError(
                    f"{self.recipe.name}: {config.dataset} has no {name} split, only {', '.join(available)}.\n"
                    "  Choose another dataset with --data.dataset, or one of its splits."
                )
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
        from patchcert.stages.cluster import connected
        from patchcert.tracking import training_run

        recipe = self.recipe
        splits = [recipe.training.split]
        if recipe.training.split == "train" and "validation" in dataset_spec(recipe.data.dataset).splits:
            splits.append("validation")
        datasets = self.prepare(splits)
        with connected(self.options.resources, verbose=self.options.verbose):
            from patchcert.stages.train import train

            started = time.perf_counter()
            run = training_run(
                self.options.tracking, self.workspace, recipe, datasets[recipe.training.split], self.terminal.say
            )
            with self.terminal.progress(f"train {recipe.name}", "epochs") as bar:

                def on_epoch(epoch: int, row: dict[str, float]) -> None:
                    accuracy = row.get("validation_view_accuracy", row["view_accuracy"])
                    bar.update(epoch, recipe.training.epochs, f"loss {row['loss']:.3f}, views right {accuracy:.1%}")
                    run.log_epoch(epoch, row)

                try:
                    model = train(
                        recipe, datasets, self.workspace, self.options.resources, resume=resume, on_epoch=on_epoch
                    )
                except BaseException:
                    run.finish("FAILED")
                    raise
            run.finish("FINISHED", checkpoint=model)
        seconds = time.perf_counter() - started
        done = "was trained already" if model.reused else f"trained in {seconds:.0f} s"
        self.terminal.say(f"{recipe.name}: {done}, checkpoint {model.folder} (digest {model.digest[:12]})")
        return model.folder

    def find_model(self) -> Folder | None:
        """The checkpoint that ``train`` would find trained on the connected Ray, or None."""
        from patchcert.stages.train import find_model

        split = self.recipe.training.split
        return find_model(self.recipe, self.prepare([split])[split], self.workspace, self.options.resources)

    def start_untrained(self) -> Folder:
        """Writes a checkpoint with the start weights, to try a pipeline or to time it.

        Returns:
            The checkpoint.
        """
        from patchcert.models.checkpoint import initial_classifier, save_checkpoint

        recipe = self.recipe
        dataset = next(iter(self.prepare([recipe.study.split]).values()))
        classifier = initial_classifier(
            recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
        )
        folder = self.workspace.models(recipe.name).folder("untrained")
        save_checkpoint(classifier, folder, {"recipe": recipe.name, "trained": False})
        self.workspace.name_latest_model(recipe.name, "untrained")
        self.terminal.say(f"{recipe.name}: start weights written, nothing was trained: {folder}")
        return folder

    def vote(self, checkpoint: str | None = None) -> VoteTable:
        """Scores all views of the study's split.

        Args:
            checkpoint: folder or URI; None: the recipe's newest model.

        Raises:
            CheckpointError: nothing is trained yet, or the checkpoint was made for something else.
        """
        from patchcert.models.checkpoint import load_checkpoint
        from patchcert.stages.cluster import connected

        recipe = self.recipe
        folder = Folder(checkpoint) if checkpoint else self._latest_model()
        dataset = self.prepare([recipe.study.split])[recipe.study.split]
        # A checkpoint of another model is refused before Ray starts.
        load_checkpoint(folder, classifier=recipe.classifier, views=recipe.views, num_classes=dataset.num_classes)
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
            checkpoint: folder or URI; None: the recipe's newest model, or start weights, which are as fast.
        """
        from patchcert.models.checkpoint import initial_classifier, save_checkpoint
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
            folder = Folder(checkpoint) if checkpoint else self.workspace.latest_model(recipe.name)
            if folder is None:
                folder = Folder(scratch + "/model")
                classifier = initial_classifier(
                    recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
                )
                save_checkpoint(classifier, folder, {})
                note += ("; " if note else "") + "nothing is trained yet: measured with start weights"
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

    def study(self, table: VoteTable | None = None, *, out: str | None = None) -> StudyResult:
        """Answers the recipe's questions from a vote table, writes report and figures, and publishes them.

        Args:
            table: None: the table of the recipe's newest model.
            out: folder of the results; None: a folder of the study's own in the work folder.

        Raises:
            VoteTableError: the table is missing or was made from something else.
        """
        from patchcert.tracking import publish

        result = self.answer(self.find_table() if table is None else table, out=out)
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
        self, config: VarianceConfig, table: VoteTable | None = None, *, out: str | None = None, reuse: bool = False
    ) -> "VarianceResult":
        """Draws views again and again from a vote table, writes how certificates scatter, and publishes it.

        Args:
            config: what is drawn and certified; without patches those of the recipe's study are taken.
            table: None: the table of the recipe's newest model.
            out: folder of the results; None: a folder of the study's own in the work folder.
            reuse: take a whole result of the same draws and votes that is there already.

        Raises:
            VoteTableError: the table is missing or was made from something else.
            StudyError: nothing can be drawn from its views.
        """
        from patchcert.tracking import publish

        result = self.draw(config, self.find_table() if table is None else table, out=out, reuse=reuse)
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

    def find_table(self) -> VoteTable:
        """The vote table of the recipe's newest model and prepared split."""
        from patchcert.models.checkpoint import read_checkpoint_config
        from patchcert.votes.identity import vote_identity

        dataset = self.prepare([self.recipe.study.split])[self.recipe.study.split]
        digest = read_checkpoint_config(self._latest_model())["digest"]
        identity = vote_identity(
            self.recipe.voted_views,
            dataset,
            model_digest=digest,
            score_floor=self.recipe.prediction.score_floor,
            precision=self.recipe.prediction.precision,
        )
        return VoteTable.open(self.workspace.votes(self.recipe.name, identity), identity)

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
        from patchcert.studies.results import result_id

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
        from patchcert.studies.results import result_id
        from patchcert.studies.variance_results import VarianceResult

        try:
            found = VarianceResult.open(out or self.workspace.variance(self.recipe.name, identity))
        except StudyError:
            return None
        return found if found.result_id == result_id(identity) else None

    def _latest_model(self) -> Folder:
        folder = self.workspace.latest_model(self.recipe.name)
        if folder is None:
            raise CheckpointError(
                f"{self.recipe.name} has no trained model in {self.workspace.folder}.\n"
                f"  Train it first:  patchcert train {self.recipe.name}"
            )
        return folder
