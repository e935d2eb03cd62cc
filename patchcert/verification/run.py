"""Checks everything in some folders: its bytes first, then what it claims of images, model and votes."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from patchcert.data.storage import Folder
from patchcert.errors import ContradictionError, PatchcertError, RecipeError, VoteTableError
from patchcert.verification.against import Against
from patchcert.verification.kinds import STUDY, TABLE, VARIANCE, Kind, things_in

_CLAIMS = (TABLE, STUDY, VARIANCE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """One folder that was checked.

    Attributes:
        kind: what it is.
        folder: where it lies.
        checked: in words what was compared; empty where something is wrong.
        problem: what is wrong, or None.
        contradicts: whether its bytes are what was written, but do not follow from images, model or votes.
    """

    kind: str
    folder: Folder
    checked: str = ""
    problem: str | None = None
    contradicts: bool = False


def verify(
    locations: Iterable[str],
    against: Against | None = None,
    *,
    device: str = "auto",
    say: Callable[[str], object] = lambda text: None,
) -> Iterator[Verified]:
    """Check everything of a known kind in some folders, at most three levels down.

    Args:
        locations: paths or URIs: of one thing, of a folder of several, or of a work folder.
        against: what vote tables and studies are compared with beside their digests; None: nothing.
        device: where images are scored again: ``auto``, ``cpu`` or ``cuda``.
        say: called with a line for the reader.

    Yields:
        What was found, one after the other, each as soon as it was checked.

    Raises:
        DatasetError: a folder is missing or unreadable, or holds nothing of a known kind.
        RecipeError: something to compare with is named, but nothing to be compared.
        PatchcertError: images or model to compare with are missing, damaged or cannot be used.
    """
    against = against or Against()
    things = things_in([*locations, *([against.votes] if against.votes else [])])
    comparing = _Comparing(against, things, device, say)
    for kind, folder in things:
        found = Verified(kind=kind.name, folder=folder)
        try:
            thing, checked = kind.check(folder)
        except PatchcertError as error:
            yield dataclasses.replace(found, problem=str(error))
            continue
        try:
            compared = comparing.compare(thing) if kind in _CLAIMS else []
            yield dataclasses.replace(found, checked="; ".join([checked, *compared]))
        except ContradictionError as error:
            yield dataclasses.replace(found, problem=str(error), contradicts=True)


class _Comparing:
    """What claims are compared with; opened once."""

    def __init__(
        self, against: Against, things: list[tuple[Kind, Folder]], device: str, say: Callable[[str], object]
    ) -> None:
        self._against = against
        kinds = {kind for kind, _ in things}
        for option, wanted in (("data", _CLAIMS), ("checkpoint", _CLAIMS), ("votes", (STUDY, VARIANCE))):
            if getattr(against, option) is not None and not kinds & set(wanted):
                names = " or ".join(kind.name for kind in wanted)
                raise RecipeError(
                    f"verify: --{option} {getattr(against, option)} has no effect, because no {names} is named.\n"
                    f"  Name one:  patchcert verify FOLDER --{option} {getattr(against, option)}"
                )
        self._tables = [folder for kind, folder in things if kind is TABLE] if kinds & {STUDY, VARIANCE} else []
        self._images: Any = None
        self._model: Any = None
        if against.data is not None:
            from patchcert.verification.images import Images

            self._images = Images(against.data)
        if against.checkpoint is not None:
            from patchcert.verification.rescoring import Model

            self._model = Model(against.checkpoint, against.classifier.network, device)
        if self._images and self._model:
            self._seed = secrets.randbelow(2**32) if against.seed is None else against.seed
            say(f"images to score again are drawn with --seed {self._seed}")

    def compare(self, thing: Any) -> list[str]:
        """Compare an open vote table or study with all that is there to compare it with, and say what was compared.

        Raises:
            ContradictionError: it does not follow from images, model or votes.
        """
        from patchcert.votes import VoteTable

        table = None if isinstance(thing, VoteTable) else self._table_of(thing)
        if not (self._images or self._model or table):
            return []
        from patchcert.verification.answers import compare_with_table
        from patchcert.verification.claims import StudyClaim, TableClaim

        claim: Any = TableClaim(thing) if isinstance(thing, VoteTable) else StudyClaim(thing)
        said = []
        if self._model:
            said.append(f"names the model {self._model.named_by(claim)}")
        split = self._images.compared(claim) if self._images else None
        if split is not None:
            said.append("names and labels are those of the images")
        if table is not None:
            try:
                said.append(compare_with_table(claim, TableClaim(table)))
            except VoteTableError:
                # The table has a line of its own.
                said.append(f"not answered again, because {table.location} is damaged")
        elif split is not None and self._model:
            said += self._scored_again(claim, split)
        return said

    def _scored_again(self, claim: Any, split: Any) -> list[str]:
        from patchcert.verification.answers import compare_with_scores
        from patchcert.verification.claims import TableClaim
        from patchcert.verification.rescoring import compare_votes
        from patchcert.verification.sample import reach_in_words, sampled

        rows = sampled(claim.rows_N, self._against.images, self._seed)
        rescored = self._model.scores(claim, split, rows)
        compare = compare_votes if isinstance(claim, TableClaim) else compare_with_scores
        return [f"{reach_in_words(len(claim.rows_N), len(rows))}; {compare(claim, rows, rescored)}"]

    def _table_of(self, study: Any) -> Any:
        """The vote table that a study was answered from, if it is among the folders; None: it is not.

        Raises:
            ContradictionError: the table that was named for it is another one.
        """
        from patchcert.votes import VoteTable
        from patchcert.votes.table import identity_differences

        said = {"votes": study.identity.get("votes"), "unvoted_rows": study.identity.get("unvoted_rows", [])}
        for folder in self._tables:
            # One that is damaged has a line of its own.
            with contextlib.suppress(VoteTableError):
                table = VoteTable.open(folder)
                found = {"votes": table.identity, "unvoted_rows": [list(rows) for rows in table.unvoted_rows]}
                differences = identity_differences(said, found)
                if not differences:
                    return table
                if self._against.votes is not None and str(Folder(self._against.votes)) == str(folder):
                    name, claimed, there = differences[0]
                    raise ContradictionError(
                        f"{study.folder}: {name} is {claimed!r}, but {there!r} in {folder}.\n"
                        "  Name the table that it was made from:  --votes FOLDER"
                    )
        return None
