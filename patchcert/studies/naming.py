"""Names that tell the studies of one report apart, made of what differs between them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from patchcert.studies.results import StudyResult

_DIGEST = re.compile(r"[0-9a-f]{16,}")
_MOST_SETTINGS, _LONGEST, _DIGITS = 2, 48, 8


def unique_studies(results: Sequence[StudyResult]) -> tuple[list[StudyResult], list[str]]:
    """Keep every study once, in the order given.

    Returns:
        (studies, one line for each that was left out because another folder holds the same).
    """
    kept: list[StudyResult] = []
    said = []
    for result in results:
        same = [one for one in kept if (one.result_id, one.subject) == (result.result_id, result.subject)]
        if same:
            said.append(f"{result.folder} is shown once: it is the same study as {same[0].folder}")
        else:
            kept.append(result)
    return kept, said


def distinctly_named(results: Sequence[StudyResult]) -> list[StudyResult]:
    """Give studies of one name further words: the settings that differ, else the start of a digest.

    Args:
        results: different studies; names that are distinct already stay.
    """
    groups: dict[str, list[StudyResult]] = {}
    for result in results:
        groups.setdefault(result.subject.defense, []).append(result)
    words = {
        id(result): text
        for group in groups.values()
        if len(group) > 1
        for result, text in zip(group, _difference(group), strict=True)
    }
    return [_renamed(result, words[id(result)]) if id(result) in words else result for result in results]


def _renamed(result: StudyResult, words: str) -> StudyResult:
    name = f"{result.subject.defense} ({words})"
    subject = dataclasses.replace(result.subject, defense=name)
    return dataclasses.replace(result, subject=subject, answers=result.answers.assign(defense=name))


def _difference(group: Sequence[StudyResult]) -> list[str]:
    """One text for each study of a group; no two are equal."""
    settings = [_flat(result.identity | {"about": dataclasses.asdict(result.subject)}) for result in group]
    names = list(dict.fromkeys(name for values in settings for name in values))
    # What a person chose says more than the digest of something.
    names.sort(key=lambda name: any(_DIGEST.fullmatch(str(values.get(name))) for values in settings))
    chosen: list[str] = []
    for name in names:
        if len(_texts(settings, [*chosen, name], whole=True)) > len(_texts(settings, chosen, whole=True)):
            chosen.append(name)
    texts = [_text(values, chosen) for values in settings]
    readable = len(chosen) <= _MOST_SETTINGS and max(map(len, texts)) <= _LONGEST
    if readable and len(set(texts)) == len(group):
        return texts
    digits = range(_DIGITS, 1 + max(len(result.result_id) for result in group))
    for num_digits in digits:
        texts = [f"result {result.result_id[:num_digits]}" for result in group]
        if len(set(texts)) == len(group):
            return texts
    return [f"study {number}" for number in range(1, 1 + len(group))]


def _texts(settings: list[dict[str, Any]], names: list[str], *, whole: bool) -> set[str]:
    return {_text(values, names, whole=whole) for values in settings}


def _text(values: dict[str, Any], names: list[str], *, whole: bool = False) -> str:
    return ", ".join(f"{_words(name)} {_value(values.get(name), whole)}" for name in names)


def _words(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _value(value: Any, whole: bool) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if whole or not _DIGEST.fullmatch(text) else text[:_DIGITS]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
