"""What a suite is: the experiments, tables and figures of a paper, found by name. No torch, no pandas."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from patchcert.errors import RecipeError
from patchcert.recipes import Recipe, find_recipe
from patchcert.studies.config import StudyConfig
from patchcert.studies.paper import PaperFigure, PaperTable
from patchcert.summaries import summary_of

Networks = Literal["published", "one-pass"]
Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe with the questions that a suite asks of its votes."""

    name: str
    """As the suite's tables call it."""
    recipe: str
    """Name of the recipe."""
    study: StudyConfig
    """Questions, in place of the recipe's own."""
    filed_as: str = ""
    """Name of results where the changes make another defense of the recipe; unset: the recipe's own."""
    repeats: int = 0
    """Repetitions of every draw of the study, whose scatter is tabulated; 0: none."""
    changes: Changes = dataclasses.field(default_factory=dict)
    """Settings of the recipe that differ, section by section, such as {"training": {"epochs": 3}}."""

    def build(self) -> Recipe:
        """The whole recipe."""
        recipe: Recipe = _changed(find_recipe(self.recipe), self.changes)
        return dataclasses.replace(recipe, study=self.study, name=self.filed_as or recipe.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Everything that recomputes a paper."""

    name: str
    """As on the command line."""
    title: str
    """Heading of the report."""
    source: str
    """The paper, as ``published.csv`` names it."""
    headline: tuple[tuple[str, str, str], ...]
    """(experiment, patch in pixels, defense in words) of the report's first screen."""
    experiments: tuple[Experiment, ...]
    """What is trained, voted and asked; those of equal model share it."""
    tables: tuple[PaperTable, ...]
    """What the paper tabulates."""
    figures: tuple[PaperFigure, ...]
    """What it draws."""
    notes: tuple[str, ...] = ()
    """What a reader must know before any number."""

    def experiment(self, name: str) -> Experiment:
        """The experiment of a name that the suite has."""
        return next(experiment for experiment in self.experiments if experiment.name == name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """A suite before its edition is chosen.

    Attributes:
        name: as on the command line.
        summary: one line for lists.
        build: (networks, quick) -> suite.
    """

    name: str
    summary: str
    build: Callable[[Networks, bool], Suite]


SUITES: dict[str, SuiteSpec] = {}


def suite(name: str) -> Callable[[Callable[[str, Networks, bool], Suite]], Callable[[str, Networks, bool], Suite]]:
    """Registers a function (name, networks, quick) -> suite; the first line of its docstring is for lists."""

    def register(build: Callable[[str, Networks, bool], Suite]) -> Callable[[str, Networks, bool], Suite]:
        summary = summary_of(build)
        SUITES[name] = SuiteSpec(name=name, summary=summary, build=lambda networks, quick: build(name, networks, quick))
        return build

    return register


def find_suite(name: str) -> SuiteSpec:
    """Finds a suite by name.

    Raises:
        RecipeError: no such suite; names the nearest.
    """
    if name in SUITES:
        return SUITES[name]
    near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(f"there is no suite {name!r}.{hint}\n  Known: {', '.join(SUITES)}.")


def names_suite(name: str) -> bool:
    """Whether a word names a suite, or is so close to one that a recipe can hardly be meant."""
    is_like_recipe = name.partition("-")[0][-1:].isdigit()
    return name in SUITES or (not is_like_recipe and bool(difflib.get_close_matches(name, SUITES, n=1, cutoff=0.75)))


def _changed(settings: Any, changes: Changes) -> Any:
    values = {
        name: _changed(getattr(settings, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def filed_as(recipe: str, what: str = "", *, quick: bool) -> str:
    """Name of the results of a recipe that was changed: quick editions never stand in for the whole."""
    return "-".join(part for part in (recipe, what, "quick" if quick else "") if part)
