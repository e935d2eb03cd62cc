"""Compares the class names of files, splits and datasets, so that a label means the same class everywhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from patchcert.data.listings import is_text, printable
from patchcert.errors import DatasetError

_MOST_LETTERS = 60


def shown(name: str) -> str:
    """A class name in quotes, so that names that look alike can be told apart; very long ones are cut."""
    name = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 3] + "..."
    decomposed = unicodedata.normalize("NFC", name) != name
    return ascii(name) if decomposed else f"'{printable(name)}'"


def plain_form(name: str) -> str:
    """What is left of a name without the differences that nobody sees: white space, normal form, a last separator."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).rstrip("/\\_-. ")


def folded_form(name: str) -> str:
    """The plain form without letter case, and with spaces for underscores: equal for names that look alike."""
    return plain_form(name).casefold().replace("_", " ")


def check_class_names(names: Sequence[str], place: str) -> None:
    """Make sure that every class has a name of its own.

    Raises:
        DatasetError: fewer than two names, an empty one, one that is no text, two that are equal, or two that differ
            by white space, Unicode normal form or a trailing separator only.
    """
    if len(names) < 2:
        raise DatasetError(f"{place} names {len(names)} classes, but at least 2 are needed\n  Name every class.")
    first: dict[str, int] = {}
    for label, name in enumerate(names):
        if not name.strip() or not is_text(name):
            raise DatasetError(f"{place} names class {label} {shown(name)}, which is no name\n  Give it another name.")
        other = first.setdefault(plain_form(name), label)
        if other == label:
            continue
        if names[other] == name:
            raise DatasetError(
                f"{place} names two classes {shown(name)}: {other} and {label}\n  Give every class its own name."
            )
        raise DatasetError(
            f"{place} has the classes {shown(names[other])} and {shown(name)}, which differ by white space, Unicode "
            "normal form or a trailing separator only\n  Join them, or give one another name."
        )


def look_alikes(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ by letter case or underscores only."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        other = first.setdefault(folded_form(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def label_map(
    found: Sequence[str], wanted: Sequence[str], place: str, wanted_place: str, other_names: Sequence[str] | None = None
) -> np.ndarray | None:
    """Translate labels that count one list of names into labels that count another list of the same names.

    Args:
        found: names of the labels at hand.
        wanted: names of the labels asked for.
        place: what holds ``found``, for messages.
        wanted_place: what holds ``wanted``, for messages.
        other_names: a second name of each wanted class, such as WordNet ids. Names of such datasets are prose with
            several spellings; then the ones that are known decide, and the rest is taken to be in the same order.

    Returns:
        For each label at hand the label asked for, int64; None when the lists agree.

    Raises:
        DatasetError: a name is missing, new or doubled.
    """
    check_class_names(found, place)
    positions: dict[str, int] = {}
    ambiguous = set()
    for label, name in enumerate(wanted):
        spellings = {folded_form(name)}
        if other_names is not None:
            spellings |= {folded_form(other_names[label]), *map(folded_form, name.split(","))}
        for spelling in spellings:
            if positions.setdefault(spelling, label) != label:
                ambiguous.add(spelling)
    exact = {name: label for label, name in enumerate(wanted)}
    labels = [exact.get(name) for name in found]
    if None in labels:
        labels = [_position(name, positions, ambiguous, other_names is not None) for name in found]
    known = [(label, target) for label, target in enumerate(labels) if target is not None]
    in_place = all(label == target for label, target in known)
    if len(found) == len(wanted):
        if other_names is not None and in_place and 2 * len(known) >= len(wanted):
            return None
        if len({target for _, target in known}) == len(wanted):
            return None if in_place else np.array(labels, np.int64)
    raise _different(found, wanted, place, wanted_place)


def _position(name: str, positions: dict[str, int], ambiguous: set[str], has_synonyms: bool) -> int | None:
    spellings = [name, *name.split(",")] if has_synonyms else [name]
    for spelling in map(folded_form, spellings):
        if spelling in positions and spelling not in ambiguous:
            return positions[spelling]
    return None


def _different(found: Sequence[str], wanted: Sequence[str], place: str, wanted_place: str) -> DatasetError:
    new = [name for name in found if folded_form(name) not in set(map(folded_form, wanted))]
    missing = [name for name in wanted if folded_form(name) not in set(map(folded_form, found))]
    differs = next(
        (label for label, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(wanted)),
    )
    words = [
        f"{what} {', '.join(map(shown, names[:5]))}" + ", ..." * (len(names) > 5)
        for what, names in (("only there", new), ("missing there", missing))
        if names
    ]

    def named(names: Sequence[str]) -> str:
        return shown(names[differs]) if differs < len(names) else "nothing"

    return DatasetError(
        f"the classes of {place} are not those of {wanted_place}: {len(found)} there, {len(wanted)} expected; class "
        f"{differs} is {named(found)} there, {named(wanted)} expected"
        + "".join(f"; {text}" for text in words)
        + "\n  Give all files the same names, in any order; or take the names out of the files and give them with "
        "--data.class-names, in the order of the labels."
    )
