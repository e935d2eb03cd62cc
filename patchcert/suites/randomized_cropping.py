"""The suites of the randomized-cropping paper (RC): Tables 1 to 6 and Figures 2 and 3 as data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from patchcert.errors import RecipeError
from patchcert.geometry import Patch
from patchcert.studies.config import StudyConfig
from patchcert.studies.paper import PaperFigure, PaperRow, PaperTable
from patchcert.suites.registry import Experiment, Networks, Suite, filed_as, suite

_SOURCE = "Randomized cropping (ICLR 2021 submission)"
_AREAS = ("0.4%", "1%", "2%", "2.4%", "3%")
_SHAPES = {
    "1:1": "5x5",
    "2.7:1": "8x3",
    "6:1": "12x2",
    "1:2.7": "3x8",
    "1:6": "2x12",
    "1:1 turned by 45°": "5x5@45deg",
}
_EXACT_FOOTPRINT = "5x5@45deg-exact"
_REPEATS = 200
_CONFIDENCES = (0.93, 0.95, 0.97, 0.99)
_COMPARED = {
    "PatchGuard on DRS": "patchguard_drs",
    "PatchGuard on BagNet": "patchguard_bagnet",
}
_LITERAL = (
    "p_c is the paper's formula as it is written, a heuristic; where no votes at all can reach it the line says "
    "infeasible. Placement over all crops is a theorem about the same votes."
)

Labels = Callable[[str], tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Paper:
    """What differs between the two halves of the paper, and between editions of a suite."""

    dataset: str
    """Of the published numbers."""
    image_size: tuple[int, int]
    """Of the images that are attacked."""
    crops: str
    """Defense that stands for the paper's, in names of recipes."""
    recipes: str
    """The dataset's word in names of recipes."""
    size: int
    """Side of the paper's crops."""
    sizes: tuple[int, ...]
    """Sides of Figure 2."""
    draws: tuple[int, ...]
    """Numbers of drawn crops; the paper's own first."""
    patch: str
    """Patch of all tables about one patch."""
    columns: str = ""
    """Recipe of the DRS lines; empty: published only."""
    quick: bool = False
    """Whether this is a quick edition."""

    def patches(self, *texts: str) -> tuple[str, ...]:
        """Those of the patches that differ in pixels: 2 % and 2.4 % of 32x32 pixels are both 5x5."""
        by_patch: dict[Patch, str] = {}
        for text in texts:
            by_patch.setdefault(Patch.parse(text, self.image_size), text)
        return tuple(by_patch.values())

    def reported(self, **values: Any) -> dict[str, Any]:
        """A question to the paper's p_c, at the paper's own setting where nothing else is said."""
        question = {"experiment": "crops", "certificate": "random_crops_reported", "patches": (self.patch,)}
        draw = {"num_draws": self.draws[0], "replacement": "with", "min_confidence": 0.95}
        return question | draw | values

    def sound(self, **values: Any) -> dict[str, Any]:
        """A question to placement over all crops."""
        return {"experiment": "crops", "certificate": "placement", "patches": (self.patch,)} | values


@suite("rc-cifar10")
def cropping_cifar10(name: str, networks: Networks, quick: bool) -> Suite:
    """Randomized cropping on CIFAR-10: Tables 1 to 6, Figures 2 and 3 (--quick: on the bundled digits)."""
    one_pass = networks == "one-pass"
    word = "digits" if quick else "cifar10" if one_pass else "cifar10-published"
    paper = _Paper(
        dataset="cifar10",
        image_size=(32, 32),
        crops="cropnet" if one_pass else "crop",
        recipes=word,
        size=10,
        sizes=(6, 8, 10) if quick else (6, 8, 10, 12, 14, 16),
        draws=(128, 64, 256, 512),
        patch="2.4%",
        columns=f"{'bandnet' if one_pass else 'column'}4-{word}",
        quick=quick,
    )
    tables = (
        _table_1(paper, shapes=True),
        _table_2(paper),
        _table_3(paper),
        _table_4(paper),
        _table_5(paper),
        _table_6(paper),
        _figure_2(paper),
        _figure_3(paper),
    )
    return _suite(paper, name, tables, (*_AREAS, *_SHAPES.values(), _EXACT_FOOTPRINT), one_pass)


@suite("rc-imagenet")
def cropping_imagenet(name: str, networks: Networks, quick: bool) -> Suite:
    """Randomized cropping on ImageNet: Tables 1 to 3, Figures 2 and 3, with the published network; needs GPUs."""
    if quick:
        raise RecipeError(
            f"{name} has no quick edition: nothing can be learnt of ImageNet in minutes.\n"
            "  Try the same tables on digits:  patchcert study rc-cifar10 --quick"
        )
    if networks == "one-pass":
        raise RecipeError(
            f"{name} has no one-pass networks; the paper's own need GPUs.\n"
            "  Say so:  --networks published, or run  patchcert study rc-cifar10"
        )
    paper = _Paper(
        dataset="imagenet",
        image_size=(224, 224),
        crops="crop",
        recipes="imagenet",
        size=80,
        sizes=(48, 64, 80, 96),
        draws=(256, 64, 128, 512),
        patch="2%",
    )
    tables = (_table_1(paper, shapes=False), _table_2(paper), _table_3(paper), _figure_2(paper), _figure_3(paper))
    return _suite(paper, name, tables, _AREAS, one_pass=False)


def _suite(paper: _Paper, name: str, tables: tuple[PaperTable, ...], asked: tuple[str, ...], one_pass: bool) -> Suite:
    notes = []
    if paper.quick:
        notes.append(
            "Quick edition: 1,797 bundled handwritten digits and small networks, to see that everything works. Its "
            f"accuracies say nothing about {paper.dataset}, so no differences are formed."
        )
    if one_pass:
        notes.append(
            "The networks are not the paper's: one-pass networks score all views of an image at once and train on "
            "CPUs; --networks published trains the paper's own."
        )
    patches = paper.patches(paper.patch, *asked)
    experiments = [*_experiments(paper, patches)]
    pixels = Patch.parse(paper.patch, paper.image_size).label
    return Suite(
        name=name,
        title=f"Randomized cropping on {'digits' if paper.quick else paper.dataset}: reported and measured",
        source=_SOURCE,
        headline=(
            ("crops", pixels, f"All crops of {paper.size}x{paper.size} pixels vote"),
            *([("columns", pixels, "All columns of 4 pixels vote")] if paper.columns else []),
        ),
        experiments=tuple(experiments),
        tables=tables,
        figures=_figures(paper),
        notes=tuple(notes),
    )


def _experiments(paper: _Paper, patches: tuple[str, ...]) -> list[Experiment]:
    # Randomized cropping counts top classes: without scores the votes are small.
    settings: dict[str, Any] = {"prediction": {"score_floor": 0.0}}
    if paper.quick:
        settings["training"] = {"epochs": 8}
    unplaced = {"positional_bound": 0.0} if paper.crops == "crop" else {"coordinates": False}

    def crops(name: str, size: int, *, places: bool = True, repeats: int = 0, **study: Any) -> Experiment:
        recipe = f"{paper.crops}{size}-{paper.recipes}"
        encoding = {} if places else {"classifier": {"encoding": unplaced}}
        return Experiment(
            name=name,
            recipe=recipe,
            study=StudyConfig(headline_patch=paper.patch, **study),
            filed_as=filed_as(recipe, "" if places else "no-position", quick=paper.quick),
            changes=settings | encoding,
            repeats=repeats,
        )

    every = ("counting", "placement", "random_crops_reported")
    drawn = ("placement", "random_crops_reported", "random_crops_exact")
    one_patch = {"patches": (paper.patch,)}
    experiments = [
        crops("crops", paper.size, patches=patches, certificates=every, num_draws=paper.draws[:1]),
        crops(
            "draws",
            paper.size,
            certificates=drawn,
            num_draws=paper.draws,
            replacement=("with", "without"),
            min_confidences=(0.95, *(value for value in _CONFIDENCES if value != 0.95)),
            repeats=_REPEATS,
            **one_patch,
        ),
    ]
    for size in paper.sizes:
        for places in (True, False):
            if (name := _sized(paper, size, places)) != "crops":
                more = {"certificates": every, "num_draws": paper.draws[:1], **one_patch}
                experiments.append(crops(name, size, places=places, **more))
    if paper.columns:
        experiments.append(
            Experiment(
                name="columns",
                recipe=paper.columns,
                study=StudyConfig(
                    patches=patches,
                    headline_patch=paper.patch,
                    vote_thresholds=(0.3,),
                    top_class=False,
                    score_margins=False,
                ),
                filed_as=filed_as(paper.columns, quick=paper.quick),
                changes={"training": {"epochs": 8}} if paper.quick else {},
            )
        )
    return experiments


def _sized(paper: _Paper, size: int, places: bool) -> str:
    if not places:
        return f"crops{size}-no-position"
    return "crops" if size == paper.size else f"crops{size}"


def _compared(paper: _Paper, labels: Labels, where: Mapping[str, Any], **columns: Any) -> list[PaperRow]:
    """Lines of the defenses that the paper compares with: DRS measured where the suite has it, the others as published.

    Args:
        paper: whose tables.
        labels: title of a defense -> labels of its line.
        where: fields that find the published numbers.
        columns: the question to DRS columns; none leaves that line as published.
    """
    measured = {"experiment": "columns", "certificate": "counting", "vote_threshold": 0.3} | columns
    drs = measured if paper.columns and columns else {}
    return [
        PaperRow(labels=labels("DRS columns"), published={"defense": "drs_measured_by_rc", **where}, **drs),
        *(PaperRow(labels=labels(title), published={"defense": name, **where}) for title, name in _COMPARED.items()),
    ]


def _table(paper: _Paper, name: str, number: str, **values: Any) -> PaperTable:
    return PaperTable(name=name, number=number, source=_SOURCE, dataset=paper.dataset, **values)


def _table_1(paper: _Paper, *, shapes: bool) -> PaperTable:
    own = {"defense": "crop"}
    rows = [
        PaperRow(labels=(f"crops, p_c, n = {paper.draws[0]}",), published=own, **paper.reported()),
        PaperRow(labels=("crops, all of them",), **paper.sound()),
    ]
    if shapes:
        worst = paper.patches(*_SHAPES.values())
        rows.append(
            PaperRow(
                labels=("crops, all of them, every shape of Table 4",), **paper.sound(patches=worst, worst="union")
            )
        )
    rows += _compared(paper, lambda title: (title,), {}, patches=(paper.patch,))
    return _table(
        paper,
        "table_1",
        "Table 1",
        title=f"clean and certified accuracy against a {paper.patch[:-1]} % patch, and time",
        row_names=("defense",),
        metrics=("certified", "clean", "milliseconds"),
        rows=tuple(rows),
        note=(
            f"{_LITERAL} Times: measured on one worker of this run, reading and writing included; published on one "
            "2080 Ti. Networks that score all crops in one pass take the same time however few are drawn."
        ),
    )


def _table_2(paper: _Paper) -> PaperTable:
    rows: list[PaperRow] = []
    for area in _AREAS:
        where = {"patch_fraction": float(area[:-1]) / 100}
        words = f"{area[:-1]} %"
        rows += [
            PaperRow(
                labels=(words, f"crops, p_c, n = {paper.draws[0]}"),
                published={"defense": "crop", **where},
                **paper.reported(patches=(area,)),
            ),
            PaperRow(labels=(words, "crops, all of them"), **paper.sound(patches=(area,))),
            *_compared(paper, lambda title, words=words: (words, title), where, patches=(area,)),
        ]
    return _table(
        paper,
        "table_2",
        "Table 2",
        title="certified accuracy by patch area",
        row_names=("patch area", "defense"),
        metrics=("certified",),
        rows=tuple(rows),
        note=f"Squares of whole pixels nearest to the area. {_LITERAL}",
    )


def _table_3(paper: _Paper) -> PaperTable:
    return _table(
        paper,
        "table_3",
        "Table 3",
        title=f"certified accuracy by the confidence asked for, {paper.patch[:-1]} % patch, n = {paper.draws[0]}",
        row_names=("min. confidence",),
        metrics=("certified",),
        rows=tuple(
            PaperRow(
                labels=(f"{confidence:g}",),
                published={"defense": "crop", "min_confidence": confidence},
                **paper.reported(experiment="draws", min_confidence=confidence),
            )
            for confidence in _CONFIDENCES
        ),
        note=_LITERAL,
    )


def _table_4(paper: _Paper) -> PaperTable:
    shapes = dict(_SHAPES)
    worst = paper.patches(*shapes.values())
    rows: list[PaperRow] = []

    def lines(shape: str, patches: tuple[str, ...], published: dict[str, Any] | None, **more: Any) -> None:
        def own(**values: Any) -> dict[str, Any]:
            return {"patches": patches, **more, **values}

        crops = None if published is None else {"defense": "crop", **published}
        rows.append(
            PaperRow(labels=(shape, f"crops, p_c, n = {paper.draws[0]}"), published=crops, **paper.reported(**own()))
        )
        rows.append(PaperRow(labels=(shape, "crops, all of them"), **paper.sound(**own())))
        if published is not None:
            rows.extend(_compared(paper, lambda title: (shape, title), published, **own()))
        else:
            columns = {"experiment": "columns", "certificate": "counting", "vote_threshold": 0.3}
            rows.append(PaperRow(labels=(shape, "DRS columns"), **columns, **own()))

    for shape, text in shapes.items():
        lines(shape, (text,), {"patch": Patch.parse(text, paper.image_size).label})
    lines("45°, exact footprint", (_EXACT_FOOTPRINT,), None)
    lines("worst: lowest line above", worst, {"patch": ""}, worst="minimum")
    lines("worst: image by image", worst, None, worst="union")
    return _table(
        paper,
        "table_4",
        "Table 4",
        title="certified accuracy by shape of a 2.4 % patch (height:width)",
        row_names=("shape", "defense"),
        metrics=("certified",),
        rows=tuple(rows),
        note=(
            "The turned square is its bounding box of 7x7 pixels, as published; its exact footprint covers fewer. The "
            "paper's worst case is the lowest line; an attacker who may choose the shape for each image is met only by "
            f"images certified against every shape (bounding box for the turned one). {_LITERAL}"
        ),
    )


def _table_5(paper: _Paper) -> PaperTable:
    rows: list[PaperRow] = []
    for num_draws in sorted(paper.draws):
        for replacement in ("with", "without"):
            own = paper.reported(experiment="draws", num_draws=num_draws, replacement=replacement)
            where = {"defense": "crop", "num_draws": num_draws, "replacement": replacement}
            labels = (str(num_draws), f"{replacement} replacement")
            rows.append(PaperRow(labels=(*labels, "as reported"), published=where, **own))
            if replacement == "without":
                exact = own | {"certificate": "random_crops_exact"}
                rows.append(PaperRow(labels=(*labels, "exact law"), **exact))
    return _table(
        paper,
        "table_5",
        "Table 5",
        title=f"accuracy by number of drawn crops, {paper.patch[:-1]} % patch",
        row_names=("drawn crops", "draw", "p_c"),
        metrics=("certified", "clean"),
        rows=tuple(rows),
        note=(
            f"{_LITERAL} Without replacement the paper sums chances that are clipped at 1; the exact law is "
            "hypergeometric."
        ),
    )


def _table_6(paper: _Paper) -> PaperTable:
    rows: list[PaperRow] = []
    for num_draws in sorted(paper.draws):
        for replacement in ("with", "without"):
            own = paper.reported(experiment="draws", num_draws=num_draws, replacement=replacement)
            # The paper does not say how it drew; with replacement is what its other tables do.
            where = {"defense": "crop", "num_draws": num_draws} if replacement == "with" else None
            rows.append(PaperRow(labels=(str(num_draws), f"{replacement} replacement"), published=where, **own))
    return _table(
        paper,
        "table_6",
        "Table 6",
        title=f"scatter of {_REPEATS} repeated draws, {paper.patch[:-1]} % patch",
        row_names=("drawn crops", "draw"),
        metrics=("n_2to1_interval", "n_2to1_variance", "p_c_interval", "p_c_variance"),
        rows=tuple(rows),
        note=(
            "Means over images of the scatter of each; interval: half the width of the 95 % interval of the mean over "
            "repeats, variance: of a single draw. The paper states neither how it scaled n_2to1 nor how it took either."
        ),
    )


def _figure_2(paper: _Paper) -> PaperTable:
    rows = []
    for size in paper.sizes:
        for places, words in ((True, "with"), (False, "without")):
            experiment = _sized(paper, size, places)
            labels = (str(size), f"{words} position")
            rows += [
                PaperRow(labels=(*labels, "p_c"), **paper.reported(experiment=experiment)),
                PaperRow(labels=(*labels, "placement"), **paper.sound(experiment=experiment)),
            ]
    return _table(
        paper,
        "figure_2",
        "Figure 2",
        title="accuracy by side of the crops, with and without the crops' positions as input",
        row_names=("side", "input", "certified by"),
        metrics=("certified", "clean"),
        rows=tuple(rows),
        note=f"The figure's values are not printed in the paper. {_LITERAL}",
    )


def _figure_3(paper: _Paper) -> PaperTable:
    rows = [
        PaperRow(
            labels=(str(num_draws), "p_c"),
            published={"table": "Table 5", "defense": "crop", "num_draws": num_draws, "replacement": "with"},
            **paper.reported(experiment="draws", num_draws=num_draws),
        )
        for num_draws in sorted(paper.draws)
    ]
    rows.append(PaperRow(labels=("all crops", "placement"), **paper.sound(experiment="draws")))
    return _table(
        paper,
        "figure_3",
        "Figure 3",
        title=f"certified accuracy and time by number of drawn crops, {paper.patch[:-1]} % patch",
        row_names=("drawn crops", "certified by"),
        metrics=("certified", "milliseconds"),
        rows=tuple(rows),
        note=(
            "Times: one worker of this run; networks that score all crops in one pass take the same time however few "
            "are drawn."
        ),
    )


def _figures(paper: _Paper) -> tuple[PaperFigure, ...]:
    patch = f"{paper.patch[:-1]} %"
    return (
        PaperFigure(
            name="figure_2_certified",
            number="Figure 2",
            table="figure_2",
            caption=f"Certified accuracy against a {patch} patch by side of the crops; bands are 95 % intervals.",
            x="side",
            x_label="side of the crops (pixels)",
            metrics=("certified",),
        ),
        PaperFigure(
            name="figure_2_clean",
            number="Figure 2",
            table="figure_2",
            caption="Clean accuracy by side of the crops, prediction by all of them; bands are 95 % intervals.",
            x="side",
            x_label="side of the crops (pixels)",
            metrics=("clean",),
            where={"certified by": ("placement",)},
        ),
        PaperFigure(
            name="figure_3_certified",
            number="Figure 3",
            table="figure_3",
            caption=(
                f"Certified accuracy against a {patch} patch by number of drawn crops (p_c, a heuristic), what was "
                "published, and the theorem over all crops."
            ),
            x="drawn crops",
            x_label="drawn crops per image",
            metrics=("certified",),
            log2=True,
        ),
        PaperFigure(
            name="figure_3_time",
            number="Figure 3",
            table="figure_3",
            caption="Time of scoring the drawn crops of an image on one worker; the line is that of all crops.",
            x="drawn crops",
            x_label="drawn crops per image",
            metrics=("milliseconds",),
            log2=True,
        ),
    )
