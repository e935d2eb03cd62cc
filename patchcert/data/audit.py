"""Judges what was listed of a source before any image is decoded: classes, links, leftovers, doubles.

Every reader lists its splits (:class:`patchcert.data.rows.RowSource`); this is the one place that decides which of the
things found are errors, which are worth a word, and which are neither.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from patchcert.data.class_names import check_class_names, folded_form, look_alikes, shown
from patchcert.data.config import DataConfig, spec_of
from patchcert.data.listings import printable
from patchcert.data.registry import DatasetSpec, dataset_spec
from patchcert.data.rows import RowSource, Source
from patchcert.errors import DatasetError

_MOST_NAMED = 10
_MOST_CLASSES = 5


def audit_source(
    config: DataConfig, source: Source, splits: Iterable[str], on_warning: Callable[[str], object]
) -> None:
    """Check the listing of a source: what is wrong with it is an error, what is odd is said.

    All splits of the source are compared, whichever are asked for: a class that only the test images have cannot be
    right, and the training images alone do not show that. Where the dataset says how many images each split holds,
    whole splits have all classes, and only the ones asked for are listed.

    Args:
        config: the settings of the data.
        source: where the images lie.
        splits: the ones that are to be prepared.
        on_warning: called with one text for each thing that is odd.

    Raises:
        DatasetError: files or folders cannot be followed, two splits read one folder, class names are doubled, or one
            split alone has a class.
    """
    spec = spec_of(config)
    may_lack = config.allow_subset or config.limit is not None
    asked = {"train" if split in ("train", "trainval") else split for split in splits}
    is_counted = bool(spec.expected) and not may_lack
    parts = {}
    for split, names in spec.source_splits.items():
        if is_counted and split not in asked:
            continue
        try:
            rows = source.find(names)
        except DatasetError as error:
            if split in asked:
                raise
            on_warning(f"the {split} images were not compared with the others: {str(error).partition(chr(10))[0]}")
            continue
        if rows is not None:
            parts[split] = rows
    for split, rows in parts.items():
        _refuse_problems(spec, source, split, rows)
    _refuse_shared_folders(spec, source, parts)
    for text in _oddities(spec, parts):
        on_warning(text)
    for rows in parts.values():
        check_class_names(rows.class_names, source.uri)
        for pair in look_alikes(rows.class_names) if spec.class_names is None else ():
            on_warning(
                f"two classes look alike: {shown(pair[0])} and {shown(pair[1])}; each counts as a class of its own"
            )
        break  # all splits of a source have one list
    if not is_counted:  # else the count of every class says more
        _compare_classes(config, source, parts, on_warning)


def held_classes(rows: RowSource, positions: np.ndarray | None = None) -> np.ndarray:
    """Images of each class, int64 of shape (num_classes,), of all rows or of those at some positions."""
    labels_N = rows.labels()
    if positions is not None:
        labels_N = labels_N[positions]
    num_classes = len(rows.class_names)
    return np.bincount(labels_N[(labels_N >= 0) & (labels_N < num_classes)], minlength=num_classes)


def _refuse_problems(spec: DatasetSpec, source: Source, split: str, rows: RowSource) -> None:
    problems = rows.findings.problems
    if not problems:
        return
    lines = [f"{printable(name)}: {problem}" for name, problem in list(problems.items())[:_MOST_NAMED]]
    lines += [f"and {len(problems) - _MOST_NAMED} more"] * (len(problems) > _MOST_NAMED)
    raise DatasetError(
        f"{len(problems)} of the {split} files and folders of {spec.name} in {source.uri} cannot be read:\n  "
        + "\n  ".join(lines)
        + "\n  Mend or remove them: what is left out without a word would change every number."
    )


def _refuse_shared_folders(spec: DatasetSpec, source: Source, parts: Mapping[str, RowSource]) -> None:
    first: dict[tuple[int, int], str] = {}
    for split, rows in parts.items():
        for place in rows.findings.places:
            other = first.setdefault(place, split)
            if other != split:
                raise DatasetError(
                    f"the {other} and the {split} images of {spec.name} in {source.uri} are read from one folder\n"
                    "  A link leads from one to the other: give each split its own images."
                )


def _oddities(spec: DatasetSpec, parts: Mapping[str, RowSource]) -> Iterable[str]:
    seen: list[np.ndarray] = []
    for split, rows in parts.items():
        for name, reason in rows.findings.left_out.items():
            yield f"left out: {printable(name)} ({reason})"
        if empty := rows.findings.empty_classes:
            yield f"{len(empty)} class folders of the {split} images of {spec.name} are empty: {_named(empty)}"
        if rows.findings.files_N2 is not None:
            seen.append(rows.findings.files_N2)
    if seen:
        num_names = sum(map(len, seen))
        num_files = len(np.unique(np.concatenate(seen), axis=0))
        if num_files < num_names:
            yield (
                f"{num_names - num_files} images of {spec.name} are read more than once: their names lead to "
                "files that have another name, too"
            )


def _compare_classes(
    config: DataConfig, source: Source, parts: Mapping[str, RowSource], on_warning: Callable[[str], object]
) -> None:
    """A class that one split alone has is a mistake, unless the source is known to be a part of the dataset."""
    if "train" not in parts or len(parts) < 2:
        return
    is_own = dataset_spec(config.dataset).class_names is None
    names = parts["train"].class_names
    counts = {split: held_classes(rows) for split, rows in parts.items()}
    trained = counts["train"] > 0
    tested = np.sum([counts[split] for split in parts if split != "train"], axis=0) > 0
    for split in parts:
        lacking = [names[label] for label in np.flatnonzero((counts[split] > 0) & ~trained)]
        if split == "train" or not lacking:
            continue
        may_lack = not is_own and (config.allow_subset or config.limit is not None)
        problem = (
            f"{len(lacking)} classes have {split} images in {source.uri}, but no training images: "
            f"{_named(lacking, [names[label] for label in np.flatnonzero(trained)])}; their images can never be right"
        )
        if not may_lack:
            mend = "Give both splits the same class folders, or labels of the same classes."
            raise DatasetError(f"{problem}\n  {mend}" + ("" if is_own else " Or go on with them: --data.allow-subset."))
        on_warning(problem)
    untested = [names[label] for label in np.flatnonzero(trained & ~tested)]
    if untested:
        others = " and ".join(split for split in parts if split != "train")
        problem = (
            f"{len(untested)} classes have training images in {source.uri}, but no {others} images: "
            f"{_named(untested, [names[label] for label in np.flatnonzero(tested)])}"
        )
        if is_own and not config.allow_subset:
            raise DatasetError(
                f"{problem}\n  Give both splits the same classes, or go on without images of these: "
                "--data.allow-subset."
            )
        on_warning(problem)


def _named(names: Iterable[str], others: Iterable[str] = ()) -> str:
    """Some class names, each with the other name that it may have been meant to be."""
    names = list(names)
    by_form = {folded_form(name): name for name in others}
    words = []
    for name in names[:_MOST_CLASSES]:
        near = difflib.get_close_matches(folded_form(name), by_form, n=1, cutoff=0.8)
        words.append(shown(name) + (f" (perhaps {shown(by_form[near[0]])})" if near else ""))
    more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
    return ", ".join(words) + more
