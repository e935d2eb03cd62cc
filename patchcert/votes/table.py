"""Writes and reads vote tables: the votes of all views of all images, as Parquet parts that say what made them."""

import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchcert.data.sealed import digest_of, read_sealed, sealed_bytes
from patchcert.data.storage import Folder
from patchcert.data.untrusted import ParquetReader, opened_parquet, read_json
from patchcert.errors import VoteTableError
from patchcert.geometry import view_set_from_identity
from patchcert.votes.part import VotePart

SCHEMA_VERSION = 1
RUN = "run.json"
SUCCESS = "_SUCCESS.json"
QUARANTINE = "quarantined_parts.json"
_IDENTITY_KEY = b"patchcert.identity"
_ROWS_KEY = b"patchcert.rows"
_LOOKS_AT_A_TIME = 8
_KEYS = ("identity", "fingerprint", "parts", "quarantined")

Identity = dict[str, Any]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(identity: Identity) -> str:
    """First 16 hexadecimal digits of the sha256 of an identity."""
    return digest_of(canonical_json(identity).encode())[:16]


class VoteTable:
    """A finished vote table, open for reading."""

    def __init__(self, folder: Folder, success: dict[str, Any]) -> None:
        """Use ``VoteTable.open``."""
        self._folder = folder
        self._success = success
        self.identity: Identity = success["identity"]

    @classmethod
    def open(cls, path: Any, expected_identity: Identity | None = None) -> "VoteTable":
        """Opens a table.

        Args:
            path: folder or URI.
            expected_identity: what the table must have been made from; every difference is refused.

        Raises:
            VoteTableError: missing, unfinished, damaged, or made from something else.
        """
        folder = Folder(path)
        if not folder.exists(SUCCESS):
            parts = [] if folder.is_file() else [name for name in folder.files() if name.startswith("part-")]
            state = f"is unfinished: {len(parts)} parts and no {SUCCESS}" if parts else "holds no vote table"
            raise VoteTableError(f"{folder} {state}.\n  Run or repeat:  patchcert vote RECIPE")
        try:
            success, is_whole = read_sealed(folder, SUCCESS, unsealed=_KEYS)
            identity = success["identity"]
            version = identity["schema_version"]
            is_whole = is_whole and fingerprint(identity) == success["fingerprint"]
            ranges = sorted((part["start"], part["stop"]) for part in success["parts"] + success.get("quarantined", []))
            borders = [0, *(stop for _, stop in ranges)]
            in_a_row = [start for start, _ in ranges] == borders[:-1]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VoteTableError(
                f"{folder}/{SUCCESS} is damaged ({type(error).__name__}: {error}).\n  Repeat:  patchcert vote RECIPE"
            ) from None
        if version != SCHEMA_VERSION:
            raise VoteTableError(
                f"{folder} has vote table version {version}, this version reads {SCHEMA_VERSION}.\n"
                "  Use the version of patchcert that wrote it, or vote again."
            )
        if not is_whole or not in_a_row or borders[-1] != identity["dataset"]["num_images"]:
            raise VoteTableError(
                f"{folder}/{SUCCESS} was changed after it was written.\n  Repeat:  patchcert vote RECIPE"
            )
        if expected_identity is not None:
            check_identity(identity, expected_identity, str(folder))
        return cls(folder, success)

    @property
    def location(self) -> str:
        """Path or URI of the folder."""
        return str(self._folder)

    @property
    def num_images(self) -> int:
        """Images in the table: those that have votes."""
        return int(self.identity["dataset"]["num_images"]) - self.num_unvoted

    @property
    def unvoted_rows(self) -> list[tuple[int, int]]:
        """Row ranges (start, stop) of the parts that could not be computed; their reasons stand in QUARANTINE."""
        return [(part["start"], part["stop"]) for part in self._success.get("quarantined", [])]

    @property
    def num_unvoted(self) -> int:
        """Images of the parts that could not be computed; they count as not certified."""
        return sum(stop - start for start, stop in self.unvoted_rows)

    @property
    def num_quarantined(self) -> int:
        """Images of the split that could not be read; they have no votes and count as not certified."""
        return int(self.identity["dataset"]["num_quarantined"])

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.identity["num_classes"])

    @functools.cached_property
    def views(self) -> Any:
        """The view set the table was made with."""
        return view_set_from_identity(self.identity["views"])

    @property
    def num_views(self) -> int:
        """Views of an image, V."""
        return int(self.views.num_views)

    @property
    def score_floor(self) -> float | None:
        """Lowest answerable vote_threshold; None when only top classes are stored."""
        floor = self.identity["votes"]["score_floor"]
        return float(floor) if floor else None

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return len(self._success["parts"])

    @property
    def part_rows(self) -> list[tuple[int, int]]:
        """Row range (start, stop) of each part."""
        return [(part["start"], part["stop"]) for part in self._success["parts"]]

    def measured(self) -> dict[str, Any] | None:
        """What was measured while the table was made (hardware, rates), or None; no part of its identity."""
        if not self._folder.exists(RUN):
            return None
        try:
            record: dict[str, Any] = read_json(self._folder, RUN)
        except ValueError as error:
            raise VoteTableError(f"{self._folder}/{RUN} is damaged: {error}.\n  Delete this file.") from None
        return record

    def read_part(self, index: int) -> VotePart:
        """Reads one part.

        Raises:
            VoteTableError: the part is missing, damaged or of another table.
        """
        part = self._success["parts"][index]
        name, rows = part["name"], (part["start"], part["stop"])
        path = f"{self._folder}/{name}"
        if not self._folder.exists(name):
            raise VoteTableError(f"{path} is missing.\n  Compute it again:  patchcert vote RECIPE")
        try:
            data = self._folder.read(name)
            reader = ParquetReader(pa.BufferReader(data))
            if problem := _foreign(reader, self.identity, rows):
                raise VoteTableError(f"{path} {problem}.\n  Compute it again:  patchcert vote RECIPE")
            # Tables of versions that noted no digests are guarded by the checksums of their pages alone.
            if (noted := part.get("sha256")) is not None and (found := digest_of(data)) != noted:
                raise ValueError(f"its sha256 is {found[:12]}, {SUCCESS} says {str(noted)[:12]}")
            schema = _schema(self.num_views, self.score_floor is not None)
            reader.require({field.name: field.type for field in schema})
            return _from_arrow(reader.read(schema.names), self, part["start"])
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise VoteTableError(
                f"{path} is damaged ({str(error).partition(chr(10))[0]}).\n"
                "  Delete it and repeat:  patchcert vote RECIPE"
            ) from None


def part_name(index: int, num_parts: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}-of-{num_parts:05d}.parquet"


def write_part(folder: Folder, name: str, identity: Identity, first_row: int, part: VotePart) -> None:
    """Writes one part atomically; its bytes depend on the votes and the identity only.

    Raises:
        ResourceError: full disk, read-only folder or storage that refuses.
    """
    num_views = part.top_classes_NV.shape[1]
    columns: dict[str, pa.Array] = {
        "image_id": pa.array([str(name) for name in part.image_ids], pa.string()),
        "label": pa.array(part.labels_N, pa.int64()),
        "top_class": _fixed_list(part.top_classes_NV, num_views),
    }
    if part.num_entries_NV is not None:
        per_image = part.num_entries_NV.sum(axis=1, dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(per_image)]).astype(np.int32), pa.int32())
        columns["num_entries"] = _fixed_list(part.num_entries_NV, num_views)
        columns["entry_class"] = pa.ListArray.from_arrays(offsets, pa.array(part.entry_classes, pa.uint16()))
        columns["entry_score"] = pa.ListArray.from_arrays(offsets, pa.array(part.entry_scores, pa.uint16()))
    metadata = {
        _IDENTITY_KEY: canonical_json(identity).encode(),
        _ROWS_KEY: f"{first_row}-{first_row + len(part.labels_N)}".encode(),
    }
    schema = _schema(num_views, part.num_entries_NV is not None).with_metadata(metadata)
    table = pa.table(columns, schema=schema)
    with folder.writer(name) as sink:
        pq.write_table(table, sink, compression="zstd", row_group_size=1000, write_page_checksum=True)


def part_problem(folder: Folder, name: str, identity: Identity, rows: tuple[int, int]) -> str | None:
    """Why a part cannot be used, or None when it is whole and belongs to the table."""
    if not folder.exists(name):
        return "is missing"
    try:
        with opened_parquet(folder, name) as reader:
            return _foreign(reader, identity, rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"is damaged ({str(error).partition(chr(10))[0]})"


def _foreign(reader: ParquetReader, identity: Identity, rows: tuple[int, int]) -> str | None:
    """Why a readable part is not the part of this table with these rows, or None."""
    if reader.key_values.get(_IDENTITY_KEY) != canonical_json(identity).encode():
        return "belongs to another vote table"
    noted = reader.key_values.get(_ROWS_KEY, b"?").decode(errors="replace")
    if noted != f"{rows[0]}-{rows[1]}" or reader.num_rows != rows[1] - rows[0]:
        return f"holds rows {noted} ({reader.num_rows}), not {rows[0]}-{rows[1]}"
    return None


def missing_parts(folder: Folder, identity: Identity, rows_of_parts: list[tuple[int, int]]) -> dict[int, str]:
    """Which parts of a table cannot be used, by their number, and why.

    Parts are looked at several at a time: on an object store each look is a round trip.
    """
    there = folder.files() if folder.exists() else {}

    def problem(index: int) -> str | None:
        name = part_name(index, len(rows_of_parts))
        return part_problem(folder, name, identity, rows_of_parts[index]) if name in there else "is missing"

    with concurrent.futures.ThreadPoolExecutor(_LOOKS_AT_A_TIME) as pool:
        problems = pool.map(problem, range(len(rows_of_parts)))
    return {index: text for index, text in enumerate(problems) if text is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarantinedPart:
    """A part that failed wherever it was tried.

    Attributes:
        part: its number.
        reason: what the last attempt ended with.
        nodes: machines that tried it.
    """

    part: int
    reason: str
    nodes: tuple[str, ...] = ()


def finish_table(
    folder: Folder,
    identity: Identity,
    rows_of_parts: list[tuple[int, int]],
    quarantined: Sequence[QuarantinedPart] = (),
    *,
    computed: Collection[int] = (),
) -> VoteTable:
    """Verifies all parts and marks the table as finished.

    The record notes the digest of each part. A part that an earlier record names keeps the digest noted there, so that
    damage done since is not taken for what was written.

    Args:
        folder: of the table.
        identity: what it was made from.
        rows_of_parts: rows (start, stop) of every part.
        quarantined: parts that the table goes without; listed with their reasons in QUARANTINE.
        computed: numbers of the parts that were computed since an earlier record was written, if there is one.

    Raises:
        VoteTableError: another part is missing, damaged or foreign, or none is left; nothing is marked.
    """
    excused = {part.part: part for part in quarantined}
    problems = missing_parts(folder, identity, rows_of_parts)
    for index, problem in problems.items():
        if index not in excused:
            name = part_name(index, len(rows_of_parts))
            raise VoteTableError(f"{folder}/{name} {problem}.\n  Repeat the same command: it computes what is missing.")
    if len(problems) == len(rows_of_parts):
        raise VoteTableError(
            f"all {len(rows_of_parts)} parts of {folder} failed, the first: {quarantined[0].reason}\n"
            "  Mend that, then repeat the same command."
        )

    def listed(index: int) -> dict[str, Any]:
        start, stop = rows_of_parts[index]
        return {"name": part_name(index, len(rows_of_parts)), "start": start, "stop": stop}

    noted = _noted_digests(folder, identity)

    def digested(index: int) -> dict[str, Any]:
        row = listed(index)
        digest = noted.get(row["name"]) if index not in computed else None
        return {**row, "sha256": digest or digest_of(folder.read(row["name"]))}

    with concurrent.futures.ThreadPoolExecutor(_LOOKS_AT_A_TIME) as pool:
        parts = list(pool.map(digested, (index for index in range(len(rows_of_parts)) if index not in problems)))

    success: dict[str, Any] = {
        "identity": identity,
        "fingerprint": fingerprint(identity),
        "parts": parts,
    }
    if problems:
        success["quarantined"] = [listed(index) for index in problems]
        reasons = [
            {**row, "reason": excused[index].reason, "nodes": list(excused[index].nodes)}
            for index, row in zip(problems, success["quarantined"], strict=True)
        ]
        folder.write(QUARANTINE, json.dumps(reasons, indent=1, sort_keys=True, ensure_ascii=False).encode())
    elif folder.exists(QUARANTINE):
        folder.remove(QUARANTINE)
    mark = sealed_bytes(success)
    # A finished table may lie where nothing can be written any more.
    if not (folder.exists(SUCCESS) and folder.read(SUCCESS) == mark):
        folder.write(SUCCESS, mark)
    return VoteTable(folder, success)


def _noted_digests(folder: Folder, identity: Identity) -> dict[str, str]:
    """Digests of parts by their names, from an earlier record of the same table; empty where there is none."""
    try:
        table = VoteTable.open(folder, identity)
    except VoteTableError:
        return {}
    return {part["name"]: part["sha256"] for part in table._success["parts"] if "sha256" in part}


def check_identity(found: Identity, expected: Identity, location: str) -> None:
    """Refuses a table that was made from something else.

    Raises:
        VoteTableError: names every difference with both values.
    """
    expected = json.loads(canonical_json(expected))
    if found == expected:
        return
    if found.get("views") != expected.get("views"):
        made, asked = (view_set_from_identity(identity["views"]).describe() for identity in (found, expected))
        raise VoteTableError(
            f"{location} was made with {made}, but {asked} are asked for.\n"
            "  Build that table first:  patchcert vote RECIPE"
        )
    differences = [
        f"{path}: {there!r} in the table, {asked!r} asked for"
        for path, there, asked in identity_differences(found, expected)
    ]
    raise VoteTableError(
        f"{location} was made from something else.\n  " + "\n  ".join(differences) + "\n  Build the table asked for:  "
        "patchcert vote RECIPE"
    )


def identity_differences(found: Any, expected: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Every place where two identities differ: its name, such as ``dataset.digest``, and both values."""
    if isinstance(found, dict) and isinstance(expected, dict):
        rows = []
        for key in sorted(found.keys() | expected.keys()):
            rows += identity_differences(found.get(key), expected.get(key), f"{path}.{key}" if path else key)
        return rows
    return [] if found == expected else [(path, found, expected)]


def _schema(num_views: int, has_scores: bool) -> pa.Schema:
    fields = [
        ("image_id", pa.string()),
        ("label", pa.int64()),
        ("top_class", pa.list_(pa.uint16(), num_views)),
    ]
    if has_scores:
        fields += [
            ("num_entries", pa.list_(pa.uint16(), num_views)),
            ("entry_class", pa.list_(pa.uint16())),
            ("entry_score", pa.list_(pa.uint16())),
        ]
    return pa.schema(fields)


def _fixed_list(values_NV: np.ndarray, num_views: int) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values_NV, dtype=np.uint16).ravel(), pa.uint16())
    return pa.FixedSizeListArray.from_arrays(flat, num_views)


def _from_arrow(table: pa.Table, opened: VoteTable, first_row: int) -> VotePart:
    num_images, num_views = table.num_rows, opened.num_views

    def flat(column: str) -> np.ndarray:
        array = table[column].combine_chunks()
        return np.asarray(array.flatten())

    entries: dict[str, Any] = {}
    if opened.score_floor is not None:
        entries = {
            "num_entries_NV": flat("num_entries").reshape(num_images, num_views),
            "entry_classes": flat("entry_class"),
            "entry_scores": flat("entry_score"),
        }
    top_classes_NV = flat("top_class").reshape(num_images, num_views)
    for classes in (top_classes_NV, entries.get("entry_classes", np.empty(0))):
        if classes.size and classes.max() >= opened.num_classes:
            raise ValueError(f"a view votes for class {classes.max()} of {opened.num_classes}")
    if entries and not entries["num_entries_NV"].sum(dtype=np.int64) == len(entries["entry_classes"]) == len(
        entries["entry_scores"]
    ):
        raise ValueError("it holds another number of scores than it says")
    return VotePart(
        image_ids=np.asarray(table["image_id"].to_pylist(), dtype=str),
        labels_N=np.asarray(table["label"]),
        top_classes_NV=top_classes_NV,
        num_classes=opened.num_classes,
        score_floor=opened.score_floor,
        first_row=first_row,
        **entries,
    )
