"""The command line: parses a command, runs it, and turns errors into messages and exit codes.

0 done; 2 an error the user can fix; 3 done, but with parts of the vote table set apart; 1 a defect; 130 interrupted;
141 whoever read the output went away. ``verify``: 1 something does not follow from the images or the model it names.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from patchcert import __version__
from patchcert.studies.config import VarianceConfig

_USAGE = """\
usage: patchcert COMMAND [RECIPE] [--options]

Train image classifiers and prove how many images no adversarial patch can flip.

commands
  demo                 the whole way on bundled digits: train, vote, certify, report (about 2 minutes)
  list                 recipes, suites, defenses and datasets
  show NAME|FOLDER     all settings of a recipe, what a suite runs, or what a result, vote table or other folder holds
  prepare RECIPE       decode and resize the images of a recipe's dataset, once
  train RECIPE         train the base classifier
  vote RECIPE          score all views of the test images
  study RECIPE|SUITE   answer all questions from the votes; of a suite (rc-cifar10, drs-mnist): recompute a whole paper
  variance RECIPE      draw random crops 200 times: how certified accuracy scatters between draws
  run RECIPE           prepare, train, vote and study in one go, skipping what is there
  report FOLDER ...    one report over several studies
  verify FOLDER ...    compare images, models, votes and studies with their digests, with each other and with the model
  publish FOLDER ...   send studies to the tracker (again); repeating is safe
  ui                   show the tracker's pages on this machine
  doctor               check the machine, the libraries and the folders, with advice

Options of a command: patchcert COMMAND RECIPE --help.  First steps: patchcert demo.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: what stands behind ``patchcert``; None: the process's own.

    Returns:
        The exit code.
    """
    # Imported late: help answers at once.
    from patchcert import interruption
    from patchcert.console import printable
    from patchcert.errors import PatchcertError
    from patchcert.process import adapt_to_process, with_readers

    words = list(sys.argv[1:] if arguments is None else arguments)
    adapt_to_process()

    def command() -> int:
        with interruption.interruptible(until_exit=arguments is None):
            try:
                return _exit_code_of(words)
            except KeyboardInterrupt:
                pass
            except Exception:
                # What a library makes of an interruption is no failure of its own.
                if not interruption.was_interrupted():
                    raise
            print(interruption.MESSAGE, file=sys.stderr)
            return interruption.EXIT_CODE

    try:
        return with_readers(command)
    except PatchcertError as error:
        print(printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2


def _exit_code_of(words: list[str]) -> int:
    from patchcert.console import printable
    from patchcert.errors import PatchcertError
    from patchcert.interruption import was_interrupted

    try:
        return _run_command(words)
    except PatchcertError as error:
        if was_interrupted():
            raise
        print(printable(f"{type(error).__name__}: {_pasteable(str(error), words)}"), file=sys.stderr)
        return 2
    except SystemExit as error:
        if was_interrupted():
            raise KeyboardInterrupt from None
        if isinstance(error.code, str):
            print(printable(error.code), file=sys.stderr)
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2


def _run_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    if words[0] == "--version":
        print(f"patchcert {__version__}")
        return 0
    from patchcert.errors import RecipeError

    command = _COMMANDS.get(words[0])
    if command is None:
        near = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RecipeError(f"there is no command {words[0]!r}.{hint}\n  See:  patchcert --help")
    return command(words[1:]) or 0


def _parsed(settings: Any, prog: str, words: list[str], description: str | None = None) -> Any:
    """Parses options into a dataclass; what is said about a mistake holds no password."""
    import tyro

    from patchcert.addresses import masked

    def parse(words: list[str]) -> Any:
        return tyro.cli(settings, prog=prog, description=description, args=words, config=(tyro.conf.AvoidSubcommands,))

    shown = [masked(word) for word in words]
    if shown == words:
        return parse(words)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return parse(words)
    except SystemExit:
        # The parser repeats words in boxes of several lines: the same once more, with words that may be shown.
        parse(shown)
        raise


def _recipe_command(name: str, extra: type | None = None) -> Callable[[list[str]], tuple[Any, Any, Any]]:
    """A parser of ``RECIPE [--overrides]``: words -> (recipe, run options, the command's own options)."""

    def parse(words: list[str]) -> tuple[Any, Any, Any]:
        import tyro

        from patchcert.errors import RecipeError
        from patchcert.pipeline import RunOptions
        from patchcert.recipes import find_recipe

        if not words or words[0] in ("-h", "--help"):
            print(f"usage: patchcert {name} RECIPE [--options]\n\nOptions: patchcert {name} RECIPE --help.")
            print("Recipes: patchcert list")
            raise SystemExit(0 if words else 2)
        if words[0].startswith("-"):
            raise RecipeError(
                f"patchcert {name} starts with a recipe, not with {words[0]!r}.\n"
                f"  For example:  patchcert {name} column4-digits"
            )
        recipe = find_recipe(words[0])
        fields: list[Any] = [
            ("recipe", Annotated[type(recipe), tyro.conf.arg(name="")], dataclasses.field(default=recipe)),
            ("options", Annotated[RunOptions, tyro.conf.arg(name="")], dataclasses.field(default_factory=RunOptions)),
        ]
        if extra is not None:
            fields.append(("extra", Annotated[extra, tyro.conf.arg(name="")], dataclasses.field(default_factory=extra)))
        settings = dataclasses.make_dataclass("Settings", fields, frozen=True, kw_only=True)
        parsed = _parsed(
            settings,
            f"patchcert {name} {words[0]}",
            words[1:],
            f"Settings of {words[0]}; what is not given stays as the recipe says.",
        )
        return parsed.recipe, parsed.options, getattr(parsed, "extra", None)

    return parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of ``patchcert train``."""

    resume: bool = True
    """Continue an interrupted run, or take the finished model; --no-resume starts over."""
    untrained: bool = False
    """Write the start weights without training, to try or to time a pipeline."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteOptions:
    """Options of ``patchcert vote``."""

    checkpoint: str | None = None
    """Folder or URI of a checkpoint; unset: the model that was trained with exactly these settings."""
    dry_run: bool = False
    """Say what voting would cost, measured on a few images on the hardware it would run on, and write nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of ``patchcert study``."""

    votes: str | None = None
    """Folder or URI of a vote table; unset: the one of the checkpoint."""
    checkpoint: str | None = None
    """Folder or URI of the checkpoint that voted; unset: the model that was trained with exactly these settings."""
    out: str | None = None
    """Folder for the results; unset: one of its own in the work folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceOptions(StudyOptions):
    """Options of ``patchcert variance``."""

    variance: VarianceConfig = dataclasses.field(default_factory=VarianceConfig)
    """What is drawn and certified."""
    resume: bool = True
    """Take the finished result of the same draws and votes; --no-resume draws again."""


def _prepare(words: list[str]) -> None:
    recipe, options, _ = _recipe_command("prepare")(words)
    pipeline = _pipeline(recipe, options, words)
    from rich.table import Table

    table = Table("split", "images", "size", "classes", "bad images", "digest", "folder")
    for name, dataset in pipeline.prepare().items():
        height, width = dataset.image_size
        table.add_row(
            name,
            f"{dataset.num_rows:,}",
            f"{height}x{width}x{dataset.num_channels}",
            str(dataset.num_classes),
            str(dataset.num_quarantined),
            dataset.digest[:12],
            str(dataset.folder),
        )
    pipeline.terminal.result(table)
    pipeline.terminal.say(f"Next:  {pipeline.command('train')}")


def _train(words: list[str]) -> None:
    recipe, options, extra = _recipe_command("train", TrainOptions)(words)
    pipeline = _pipeline(recipe, options, words)
    if extra.untrained:
        # Nothing but its name leads to a model that nobody trained.
        named = ("--checkpoint", pipeline.start_untrained())
    else:
        named = ()
        pipeline.train(resume=extra.resume)
    pipeline.terminal.say(f"Next:  {pipeline.command('vote', *named)}")


def _vote(words: list[str]) -> int:
    recipe, options, extra = _recipe_command("vote", VoteOptions)(words)
    pipeline = _pipeline(recipe, options, words)
    named = ("--checkpoint", extra.checkpoint) if extra.checkpoint else ()
    if extra.dry_run:
        pipeline.terminal.result(pipeline.estimate_vote(extra.checkpoint).describe())
        pipeline.terminal.say(f"Nothing was written. Next:  {pipeline.command('vote', *named)}")
        return 0
    pipeline.check(("vote",))
    table = pipeline.vote(extra.checkpoint)
    pipeline.terminal.say(f"Next:  {pipeline.command('study', *named)}")
    return _exit_code(table)


def _study(words: list[str]) -> None:
    from patchcert.suites import names_suite

    if words and names_suite(words[0]):
        _study_suite(words)
        return
    recipe, options, extra = _recipe_command("study", StudyOptions)(words)
    pipeline = _pipeline(recipe, options, words)
    from patchcert.votes import VoteTable

    _check_one_source(extra)
    table = VoteTable.open(extra.votes) if extra.votes else None
    # A table that was named may have been made with another score floor: it is asked itself.
    pipeline.check(() if table else ("study",), out=extra.out)
    result = pipeline.study(table, checkpoint=extra.checkpoint, out=extra.out)
    _show_study(pipeline, result)


def _study_suite(words: list[str]) -> None:
    from patchcert.errors import StudyError
    from patchcert.studies.paper_writing import console_tables
    from patchcert.studies.suite_networks import networks_table
    from patchcert.suite_run import SuiteRun, named_models

    suite, recipes, options, extra = _parsed_suite(words)
    terminal = _terminal()
    outcome = SuiteRun(suite, recipes, options, terminal, named_models(suite, extra.models)).run(extra.out)
    for table in console_tables(outcome.tables):
        terminal.result(table)
    terminal.result(networks_table(outcome.networks))
    terminal.say(f"Report: {outcome.folder.folder('report.html').uri}   (tables and figures lie beside it)")
    terminal.say("Compare runs:  patchcert ui")
    if outcome.missing:
        failures = "\n".join(f"  {name}: {reason}" for name, reason in outcome.missing.items())
        raise StudyError(
            f"{suite.name}: {len(outcome.missing)} of {len(recipes)} experiments were not measured.\n{failures}\n"
            "  Mend what they name and repeat the command: what is there is kept."
        )


def _parsed_suite(words: list[str]) -> tuple[Any, dict[str, Any], Any, Any]:
    """Parses ``SUITE [--overrides]``: words -> (suite, recipe of each experiment, run options, the suite's options)."""
    import tyro

    from patchcert.pipeline import RunOptions
    from patchcert.suite_run import SuiteOptions, chosen_recipes
    from patchcert.suites import find_suite

    spec = find_suite(words[0])

    def parse(recipe: Any) -> Any:
        sections = {name: getattr(recipe, name) for name in _SUITE_SECTIONS}
        fields: list[Any] = [
            ("suite", Annotated[SuiteOptions, tyro.conf.arg(name="")], dataclasses.field(default=SuiteOptions())),
            ("options", Annotated[RunOptions, tyro.conf.arg(name="")], dataclasses.field(default_factory=RunOptions)),
            *((name, type(value), dataclasses.field(default=value)) for name, value in sections.items()),
        ]
        settings = dataclasses.make_dataclass("Settings", fields, frozen=True, kw_only=True)
        return _parsed(
            settings,
            f"patchcert study {words[0]}",
            words[1:],
            f"{spec.summary} Settings of recipes are those of the first, and change all experiments.",
        )

    # Which edition is meant is known after a first look, with any edition's settings as defaults.
    first = parse(spec.build("published", False).experiments[0].build())
    suite = spec.build(first.suite.chosen_networks(first.options.resources.device), first.suite.quick)

    def override(recipe: Any) -> Any:
        if not any(word.startswith(tuple(f"--{name}." for name in _SUITE_SECTIONS)) for word in words):
            return recipe
        parsed = parse(recipe)
        return dataclasses.replace(recipe, **{name: getattr(parsed, name) for name in _SUITE_SECTIONS})

    return suite, chosen_recipes(suite, first.suite.only, override), first.options, first.suite


def _variance(words: list[str]) -> None:
    recipe, options, extra = _recipe_command("variance", VarianceOptions)(words)
    pipeline = _pipeline(recipe, options, words)
    from patchcert.studies.console import variance_table
    from patchcert.votes import VoteTable

    _check_one_source(extra)
    table = VoteTable.open(extra.votes) if extra.votes else None
    pipeline.check((), out=extra.out)
    pipeline.check_draws(extra.variance, table)
    result = pipeline.variance(extra.variance, table, checkpoint=extra.checkpoint, out=extra.out, reuse=extra.resume)
    pipeline.terminal.result(variance_table(result.summary))
    pipeline.terminal.say(f"Raw repeats, figures of each image, summary and figure: {result.folder}")


def _check_one_source(extra: StudyOptions) -> None:
    """Raises RecipeError for a vote table and a checkpoint at a time: one of them would have no effect."""
    from patchcert.errors import RecipeError

    if extra.votes and extra.checkpoint:
        raise RecipeError(
            f"--votes {extra.votes} names the vote table, so --checkpoint {extra.checkpoint} has no effect.\n"
            "  Leave one of them out."
        )


def _exit_code(table: Any) -> int:
    """Parts set apart must not look like a whole table to whatever started this command."""
    return 3 if table.num_unvoted else 0


def _run(words: list[str]) -> int:
    recipe, options, _ = _recipe_command("run")(words)
    pipeline = _pipeline(recipe, options, words)
    from patchcert.stages.cluster import connected

    pipeline.check(("train", "vote", "study"))
    with connected(options.resources, verbose=options.verbose) as ray:
        pipeline.check_hardware(ray, trains=True)
        pipeline.prepare_stages()
        pipeline.train()
        table = pipeline.vote()
        result = pipeline.study(table)
    _show_study(pipeline, result)
    return _exit_code(table)


def _demo(words: list[str]) -> None:
    options = _folder_options("demo", [], words)[1]
    from patchcert.pipeline import Pipeline
    from patchcert.recipes import find_recipe
    from patchcert.stages.cluster import connected
    from patchcert.studies.console import console_table
    from patchcert.studies.writing import write_report

    terminal = _terminal()
    results = []
    pipelines = [Pipeline(find_recipe(name), options, terminal) for name in _DEMO_RECIPES]
    for pipeline in pipelines:
        pipeline.check(("train", "vote", "study"))
    with connected(options.resources, verbose=options.verbose) as ray:
        for pipeline in pipelines:
            pipeline.check_hardware(ray, trains=True)
            pipeline.train()
            results.append(pipeline.study(pipeline.vote()))
    report = write_report(pipeline.workspace.folder.folder("reports/demo"), results)
    for result in results:
        terminal.result(console_table(result.answers))
    terminal.say(f"Report over both defenses: {report}   (open it in a browser)")
    terminal.say("Compare both in the tracker:  patchcert ui")
    terminal.say("On your own images:  patchcert list,  patchcert run RECIPE --help")


def _report(words: list[str]) -> None:
    folders, options, extra = _folder_options("report", ["FOLDER", "..."], words, ReportOptions)
    from patchcert.studies.console import console_table
    from patchcert.studies.naming import distinctly_named, unique_studies
    from patchcert.studies.results import StudyResult
    from patchcert.studies.writing import write_report
    from patchcert.workspace import Workspace

    terminal = _terminal()
    opened, left_out = unique_studies([StudyResult.open(folder) for folder in folders])
    for line in left_out:
        terminal.say(line)
    results = distinctly_named(opened)
    report = write_report(extra.out or Workspace(options.work).folder.folder("reports/latest"), results)
    for result in results:
        terminal.result(console_table(result.answers))
    terminal.say(f"Report: {report}")


def _verify(words: list[str]) -> int:
    from patchcert.verification import Against, verify

    folders, options, against = _folder_options("verify", ["FOLDER", "..."], words, Against)
    from rich.table import Table

    from patchcert.errors import DatasetError

    terminal = _terminal()
    table = Table("folder", "what it is", "checked")
    damages: list[str] = []
    contradictions: list[str] = []
    for found in verify(folders, against, device=options.resources.device, say=terminal.say):
        bad = "CONTRADICTED" if found.contradicts else "DAMAGED"
        table.add_row(str(found.folder), found.kind, found.checked if found.problem is None else bad)
        if found.problem is not None:
            (contradictions if found.contradicts else damages).append(found.problem)
    terminal.result(table)
    if contradictions:
        lines = [
            f"{len(contradictions)} of {table.row_count} folders do not follow from what they name",
            *contradictions,
        ]
        terminal.say("\n  ".join([*lines, *damages]))
        return 1
    if damages:
        raise DatasetError(f"{len(damages)} of {table.row_count} folders are damaged\n  " + "\n  ".join(damages))
    return 0


def _publish(words: list[str]) -> None:
    folders, options, _ = _folder_options("publish", ["FOLDER", "..."], words)
    from patchcert.tracking import publish
    from patchcert.workspace import Workspace

    terminal = _terminal()
    # The only purpose of this command: a tracker that fails is an error here, in both modes that record.
    tracking = options.tracking
    if tracking.mode == "on":
        tracking = dataclasses.replace(tracking, mode="strict")
    published = publish(folders, tracking, Workspace(options.work), terminal.say)
    if tracking.mode == "off":
        terminal.say("nothing was recorded, as --tracking.mode off asks")
    else:
        terminal.say(f"published {len(published)} studies; repeating this changes nothing")


def _ui(words: list[str]) -> int:
    options, extra = _folder_options("ui", [], words, UiOptions)[1:]
    from patchcert.tracking import serve_pages, tracking_uri
    from patchcert.workspace import Workspace

    uri = tracking_uri(options.tracking.uri, Workspace(options.work).folder)
    return serve_pages(uri, extra.port, _terminal().say)


def _doctor(words: list[str]) -> int:
    options, extra = _folder_options("doctor", [], words, DoctorOptions)[1:]
    from patchcert.doctor import as_text, examine
    from patchcert.workspace import Workspace

    terminal = _terminal()
    findings = examine(lambda: Workspace(options.work), options.resources, options.tracking, start_ray=extra.start_ray)
    terminal.result(as_text(findings))
    states = [finding.state for finding in findings]
    terminal.say(f"{states.count('problem')} problems, {states.count('warning')} warnings")
    return 2 if "problem" in states else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of ``patchcert doctor``."""

    start_ray: bool = False
    """Also start a Ray, or join the cluster, and run a task on it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Options of ``patchcert ui``."""

    port: int = 5000
    """Port on this machine; nothing outside it can connect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of ``patchcert report``."""

    out: str | None = None
    """Folder for the report; unset: reports/latest in the work folder."""


def _folder_options(name: str, words_wanted: list[str], words: list[str], extra: type | None = None) -> Any:
    """Parses ``FOLDER ... [--options]``: words -> (folders, run options, the command's own options)."""
    import tyro

    from patchcert.errors import RecipeError
    from patchcert.pipeline import RunOptions

    split = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    folders = words[:split]
    asks_help = bool({"-h", "--help"} & set(words[split:]))
    if bool(words_wanted) != bool(folders) and not asks_help:
        what = "at least one folder of results" if words_wanted else f"no arguments, but got {' '.join(folders)!r}"
        raise RecipeError(f"patchcert {name} takes {what}.\n  See:  patchcert {name} --help")
    fields: list[Any] = [
        ("options", Annotated[RunOptions, tyro.conf.arg(name="")], dataclasses.field(default_factory=RunOptions))
    ]
    if extra is not None:
        fields.append(("extra", Annotated[extra, tyro.conf.arg(name="")], dataclasses.field(default_factory=extra)))
    settings = dataclasses.make_dataclass("Settings", fields, frozen=True, kw_only=True)
    prog = " ".join(["patchcert", name, *words_wanted])
    parsed = _parsed(settings, prog, words[split:])
    return folders, parsed.options, getattr(parsed, "extra", None)


def _terminal() -> Any:
    from patchcert.console import Terminal

    return Terminal()


def _pipeline(recipe: Any, options: Any, words: list[str]) -> Any:
    from patchcert.next_commands import shared_words
    from patchcert.pipeline import Pipeline

    return Pipeline(recipe, options, _terminal(), shared_words(words, _own_options()))


def _own_options() -> set[str]:
    """Options that only some of the commands of a recipe take."""
    own = (TrainOptions, VoteOptions, StudyOptions, VarianceOptions)
    return {field.name.replace("_", "-") for options in own for field in dataclasses.fields(options)}


def _pasteable(message: str, words: list[str]) -> str:
    """A message whose commands name the recipe of this command, with its overrides."""
    from patchcert.next_commands import shared_words, with_recipe
    from patchcert.suites import names_suite

    if words[0] not in _RECIPE_COMMANDS or len(words) < 2 or words[1].startswith("-") or names_suite(words[1]):
        return message
    return with_recipe(message, shared_words(words[1:], _own_options()))


def _show_study(pipeline: Any, result: Any) -> None:
    from patchcert.studies.console import console_table

    pipeline.terminal.result(console_table(result.answers))
    pipeline.terminal.say(f"Report: {result.folder.folder('report.html')}   (tables and figures lie beside it)")
    pipeline.terminal.say("Compare runs:  patchcert ui")


def _list(words: list[str]) -> None:
    _no_arguments("list", words)
    from rich.table import Table

    from patchcert.console import Terminal
    from patchcert.data.registry import dataset_names, dataset_spec
    from patchcert.defenses import DEFENSES
    from patchcert.recipes import recipe_families, recipe_name, size_words
    from patchcert.suites import SUITES

    terminal = Terminal()
    recipes = Table(
        "recipes", "what they are", title="Recipes (any size works in place of the number)", show_lines=True
    )
    by_summary: dict[str, list[str]] = {}
    for family in recipe_families():
        sizes = ", ".join(size_words(size) for size in family.sizes[1:])
        name = recipe_name(family, family.sizes[0]) + (f"  (also {sizes})" if sizes else "")
        by_summary.setdefault(family.summary, []).insert(0, name)
    for summary, names in by_summary.items():
        recipes.add_row("\n".join(names), summary)
    terminal.result(recipes)
    defenses = Table("defense", "what it is", "the number", "source", title="Defenses")
    for defense in DEFENSES.values():
        defenses.add_row(defense.name, defense.title, defense.size_means, defense.source)
    terminal.result(defenses)
    suites = Table("suite", "what it recomputes", title="Suites (patchcert study SUITE)")
    for suite in SUITES.values():
        suites.add_row(suite.name, suite.summary)
    terminal.result(suites)
    datasets = Table("dataset", "images", "sources", title="Datasets (--data.dataset)")
    for name in dataset_names():
        spec = dataset_spec(name)
        datasets.add_row(name, spec.description, ", ".join(spec.sources))
    terminal.result(datasets)
    terminal.say("Next:  patchcert show RECIPE, patchcert run RECIPE, patchcert study SUITE --quick")


def _show(words: list[str]) -> None:
    import os

    from patchcert.errors import RecipeError
    from patchcert.suites import names_suite

    if words and names_suite(words[0]):
        _show_suite(words)
        return
    if len(words) != 1 or words[0].startswith("-"):
        raise RecipeError(
            "patchcert show takes one recipe or one folder, or one suite.\n  For example:  patchcert show rc-cifar10"
        )
    if os.path.isdir(words[0]) or "://" in words[0]:
        _show_folder(words[0])
        return
    from patchcert.recipes import find_recipe
    from patchcert.workspace import canonical_settings

    recipe = find_recipe(words[0])
    settings = canonical_settings(recipe)
    print(f"{recipe.name}: {recipe.views.describe()}\n")
    for section, values in settings.items():
        if isinstance(values, dict):
            for line in _flat(section, values):
                print(line)
    print(f"\nOverride any of them:  patchcert run {recipe.name} --training.epochs 5")


def _show_suite(words: list[str]) -> None:
    from rich.table import Table

    from patchcert.suite_run import SuiteRun, named_models

    suite, recipes, options, extra = _parsed_suite(words)
    terminal = _terminal()
    run = SuiteRun(suite, recipes, options, terminal, named_models(suite, extra.models))
    shown = Table(title=suite.title)
    for heading in ("experiment", "results filed as", "views", "epochs", "questions", "there already"):
        shown.add_column(heading, overflow="fold", no_wrap=heading in ("results filed as", "there already"))
    for name, filed_as, there in run.plan():
        recipe = recipes[name]
        study = recipe.study
        patches = ", ".join(study.patches[:4]) + (
            f" and {len(study.patches) - 4} more" if len(study.patches) > 4 else ""
        )
        asked = f"{', '.join(study.certificates)} against {patches}"
        shown.add_row(name, filed_as, recipe.views.describe(), str(recipe.training.epochs), asked, there)
    terminal.result(shown)
    terminal.result("Tables and figures: " + ", ".join(dict.fromkeys(table.number for table in suite.tables)))
    for note in suite.notes:
        terminal.say(note)
    terminal.say(f"Report: {run.folder()}")
    terminal.say(f"Run it:  patchcert study {' '.join(words)}")


def _flat(path: str, values: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in values.items():
        name = f"{path}.{key}".replace("_", "-")
        if isinstance(value, dict):
            lines += _flat(name, value)
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append(f"--{name} {text}")
    return lines


def _show_folder(location: str) -> None:
    from patchcert.data.storage import Folder
    from patchcert.data.untrusted import read_json
    from patchcert.errors import RecipeError

    folder = Folder(location)
    for name in ("summary.json", "_SUCCESS.json", "config.json", "dataset.json", "layout.json"):
        if folder.exists(name):
            print(f"{folder}/{name}")
            print(json.dumps(read_json(folder, name), indent=1, sort_keys=True))
            return
    raise RecipeError(f"{folder} is no study, vote table, checkpoint or prepared dataset of patchcert.")


def _no_arguments(command: str, words: list[str]) -> None:
    from patchcert.errors import RecipeError

    if words and words[0] in ("-h", "--help"):
        print(f"usage: patchcert {command}")
        raise SystemExit(0)
    if words:
        raise RecipeError(f"patchcert {command} takes no arguments, but got {' '.join(words)!r}.")


# What a suite's tables do not fix themselves.
_SUITE_SECTIONS = ("data", "classifier", "training", "prediction")

_RECIPE_COMMANDS = ("prepare", "train", "vote", "study", "variance", "run")

_DEMO_RECIPES = ("column4-digits", "crop10-digits")

_COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": _demo,
    "list": _list,
    "show": _show,
    "prepare": _prepare,
    "train": _train,
    "vote": _vote,
    "study": _study,
    "variance": _variance,
    "run": _run,
    "report": _report,
    "verify": _verify,
    "publish": _publish,
    "ui": _ui,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
