"""Decides which images of a source belong to a split."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchcert.data.audit import held_classes
from patchcert.data.config import DataConfig, spec_of
from patchcert.data.registry import DatasetSpec, ExpectedImages
from patchcert.data.rows import RowReader, RowSource, Source, SourceRow
from patchcert.data.source_files import SourceFiles
from patchcert.data.sources import open_source
from patchcert.errors import DatasetError, ImageError

_MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The images of one split, in file order.

    Attributes:
        segments: for each part of the source its rows and the ascending positions taken from it, int64.
        problems: what is wrong with the names of images, by their position within the split.
    """

    segments: tuple[tuple[RowSource, np.ndarray], ...]
    problems: Mapping[int, str]

    @property
    def num_rows(self) -> int:
        """Number of images, >= 1."""
        return sum(len(rows) for _, rows in self.segments)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.segments[0][0].class_names

    def take(self, start: int, stop: int) -> TakenSplitRows:
        """The images ``start`` to ``stop`` (exclusive) alone, cheap to send to another process."""
        readers = []
        first = 0
        for source, positions in self.segments:
            low, high = max(start - first, 0), min(stop - first, len(positions))
            if low < high:
                readers.append((source.take(positions[low:high]), high - low))
            first += len(positions)
        problems = {row - start: problem for row, problem in self.problems.items() if start <= row < stop}
        return TakenSplitRows(readers=tuple(readers), problems=problems)


@dataclass(frozen=True, kw_only=True)
class TakenSplitRows:
    """Consecutive images of a split, picklable.

    Attributes:
        readers: for each part of the source the images taken from it, and how many they are.
        problems: what is wrong with the names of images, by their position among these.
    """

    readers: tuple[tuple[RowReader, int], ...]
    problems: Mapping[int, str]

    @property
    def num_rows(self) -> int:
        """Number of images, >= 1."""
        return sum(num_rows for _, num_rows in self.readers)

    def read(self) -> Iterator[SourceRow]:
        """All of them in order, in bounded memory."""
        rows = itertools.chain.from_iterable(reader.read(np.arange(num_rows)) for reader, num_rows in self.readers)
        for position, row in enumerate(rows):
            yield row._replace(problem=self.problems.get(position, row.problem))


@dataclass(frozen=True, kw_only=True)
class SplitSources:
    """The parts of a source that a split is taken from; nothing but file names and sizes has been read yet.

    Attributes:
        dataset: its name.
        split: train, validation, test or trainval.
        sources: one or two parts of the source.
        validation_size: training images held out, or None if this split does not depend on that.
        validation_seed: chooses which ones, or None.
        limit: take only so many images, or None.
        source_split: "train" or "test": what the first part is in the source.
        expected: how many images the first part has to hold, or None.
        allow_subset: whether fewer are a warning instead of an error.
        uri: where the source lies, for messages.
    """

    dataset: str
    split: str
    sources: tuple[RowSource, ...]
    validation_size: int | None
    validation_seed: int | None
    limit: int | None
    source_split: str
    expected: ExpectedImages | None
    allow_subset: bool
    uri: str

    @property
    def fingerprint(self) -> str:
        """Digest of the names and sizes of the files behind this split."""
        return "+".join(source.fingerprint for source in self.sources)

    def files(self) -> list[SourceFiles]:
        """The files behind this split; empty where images come with a package or are still to be downloaded."""
        return [files for source in self.sources if (files := source.files()) is not None]

    def select(
        self,
        on_warning: Callable[[str], object] = warnings.warn,
        *,
        on_bad_name: Literal["error", "quarantine"] = "error",
    ) -> SplitRows:
        """Decide which images belong to the split.

        Held out for validation are the training images whose names hash lowest under ``validation_seed``: a choice
        that no order of files changes, and that grows with ``validation_size`` without exchanging images.

        Args:
            on_warning: called when the source holds another number of images than the dataset, and may.
            on_bad_name: quarantine: images without a name, and all but the first that share one, are read with a
                problem.

        Raises:
            DatasetError: the split is empty, more is held out than there is, or the source is incomplete.
            ImageError: images of the split have no name or share one, unless they are to be quarantined.
        """
        if self.expected is not None:
            self._check_counts(self.sources[0], self.expected, on_warning)
        segments = [(source, np.arange(source.num_rows)) for source in self.sources]
        if self.validation_size:
            held_out = self._held_out(self.sources[0])
            segments = [(self.sources[0], np.flatnonzero(held_out if self.split == "validation" else ~held_out))]
        if sum(len(rows) for _, rows in segments) == 0:
            raise DatasetError(f"the {self.split} split of {self.dataset} has no images\n  Check the source.")
        num_whole = sum(len(rows) for _, rows in segments)
        if self.limit is not None:
            segments = _first(segments, self.limit)
        self._say_classes(segments, num_whole, on_warning)
        problems = _name_problems(segments)
        if problems and on_bad_name == "error":
            named = [f"row {row}: {problem}" for row, problem in list(problems.items())[:_MOST_NAMED]]
            more = f"\n  and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
            raise ImageError(
                f"{len(problems)} images of the {self.split} split of {self.dataset} have no image_id of their own\n  "
                + "\n  ".join(named)
                + f"{more}\n  Give every image its own image_id or drop that column, or set data.on_bad_image to "
                "quarantine: the first image of a name is then kept."
            )
        return SplitRows(segments=tuple(segments), problems=problems)

    def _say_classes(
        self, segments: list[tuple[RowSource, np.ndarray]], num_whole: int, on_warning: Callable[[str], object]
    ) -> None:
        """How many classes a split holds that is a part of its source: the first images may be all of one class."""
        num_rows = sum(len(rows) for _, rows in segments)
        if num_rows == sum(source.num_rows for source in self.sources):
            return
        num_classes = len(segments[0][0].class_names)
        num_held = np.count_nonzero(sum(held_classes(source, rows) for source, rows in segments))
        name = f"the {self.split} split of {self.dataset}"
        if num_rows < num_whole:
            on_warning(
                f"{name} is limited to its first {num_rows:,} of {num_whole:,} images, which hold {num_held} of "
                f"{num_classes} classes"
            )
        elif self.split == "train" and num_held < np.count_nonzero(
            sum(held_classes(source) for source in self.sources)
        ):
            on_warning(f"{name} holds {num_held} of {num_classes} classes: all images of the rest are held out")

    def _check_counts(self, source: RowSource, expected: ExpectedImages, on_warning: Callable[[str], object]) -> None:
        labels_N = source.labels()
        num_classes = len(source.class_names)
        counts_K = np.bincount(labels_N[(labels_N >= 0) & (labels_N < num_classes)], minlength=num_classes)
        wrong = np.flatnonzero((counts_K < expected.fewest) | (counts_K > expected.most))
        if source.num_rows == expected.total and not len(wrong):
            return
        problem = (
            f"{self.dataset} is not complete for its {self.source_split} images: {expected.total:,} expected, found "
            f"{source.num_rows:,} in {self.uri}"
        )
        if len(wrong):
            span = f"{expected.fewest:,}" + (f" to {expected.most:,}" if expected.most > expected.fewest else "")
            named = ", ".join(f"{source.class_names[label]} ({label}) {counts_K[label]:,}" for label in wrong[:5])
            problem += f"; {len(wrong)} of {num_classes} classes have not {span}: {named}" + ", ..." * (len(wrong) > 5)
        if not self.allow_subset:
            raise DatasetError(f"{problem}\n  Add what is missing, or go on with this part: --data.allow-subset.")
        on_warning(problem)

    def _held_out(self, train: RowSource) -> np.ndarray:
        size = self.validation_size or 0
        if size >= train.num_rows:
            raise DatasetError(
                f"{size} validation images cannot be held out of the {train.num_rows} training images of "
                f"{self.dataset}\n  Set a smaller data.validation_size."
            )
        salt = f"patchcert validation {self.validation_seed}\0".encode()
        ranks = [hashlib.sha256(salt + str(name).encode()).digest() for name in train.image_ids().to_pylist()]
        held_out = np.zeros(train.num_rows, bool)
        held_out[sorted(range(len(ranks)), key=ranks.__getitem__)[:size]] = True
        return held_out


def find_split(spec: DatasetSpec, config: DataConfig, source: Source, split: str) -> SplitSources:
    """Find the parts of a source that a split is taken from.

    The validation split is the source's own if it has one, else held out of the training images. "trainval" is the
    training and the validation images together.

    Raises:
        DatasetError: no such split, the source lacks it, or the settings contradict the source.
    """
    if split not in spec.splits:
        raise DatasetError(f"{spec.name} has no split {split!r}\n  Choose from: {', '.join(spec.splits)}.")
    own_names = spec.source_splits.get("validation", ())
    own_validation = source.find(own_names) if own_names and split != "test" else None
    if own_validation is not None and config.validation_size is not None:
        raise DatasetError(
            f"data.validation_size is {config.validation_size}, but {source.uri} has a validation split of its own\n"
            "  Leave data.validation_size out."
        )
    size = None
    sources: tuple[RowSource, ...]
    if split == "validation" and own_validation is not None:
        sources = (own_validation,)
    elif split == "trainval" and own_validation is not None:
        sources = (_found(spec, source, "train"), own_validation)
    else:
        sources = (_found(spec, source, "test" if split == "test" else "train"),)
        if split in ("train", "validation") and own_validation is None:
            size = config.validation_size if config.validation_size is not None else spec.validation_size or 0
    if size == 0 and split == "validation":
        raise DatasetError(
            f"{spec.name} has no validation images: validation_size is 0 and the source has no validation split\n"
            "  Set data.validation_size, or ask for other splits."
        )
    source_split = "test" if split == "test" else "train"
    return SplitSources(
        dataset=spec.name,
        split=split,
        sources=sources,
        validation_size=size,
        validation_seed=None if size is None else config.validation_seed,
        limit=config.limit,
        source_split=source_split,
        expected=spec.expected.get(source_split) if own_validation is None else None,
        allow_subset=config.allow_subset or config.limit is not None,
        uri=source.uri,
    )


def count_images(config: DataConfig, split: str) -> int:
    """Images of a split, good and bad, from file names and footers alone.

    Raises:
        DatasetError: the source is missing, or lacks the split.
    """
    spec = spec_of(config)
    return find_split(spec, config, open_source(spec, config.source), split).select(on_bad_name="quarantine").num_rows


def _found(spec: DatasetSpec, source: Source, split: str) -> RowSource:
    rows = source.find(spec.source_splits[split])
    if rows is None:
        raise DatasetError(
            f"the {split} images of {spec.name} are missing: {source.uri} has "
            f"{', '.join(source.available()) or 'nothing'}, but {' or '.join(spec.source_splits[split])} is needed\n"
            "  Add them, or ask for other splits."
        )
    return rows


def _first(segments: list[tuple[RowSource, np.ndarray]], limit: int) -> list[tuple[RowSource, np.ndarray]]:
    kept = []
    for source, rows in segments:
        kept.append((source, rows[:limit]))
        limit -= len(kept[-1][1])
    return [segment for segment in kept if len(segment[1])]


def _name_problems(segments: list[tuple[RowSource, np.ndarray]]) -> dict[int, str]:
    """What is wrong with the names of images, by their position in the split."""
    if all(source.has_generated_ids for source, _ in segments) and len(segments) == 1:
        return {}
    names = pa.concat_arrays([source.image_ids().take(pa.array(rows)) for source, rows in segments])
    problems = {row: "it has no image_id" for row in np.flatnonzero(names.is_null()).tolist()}
    first_rows: dict[str, int] = {}
    # Only names that come more than once are looked at one by one: there are millions of others.
    counts = pc.value_counts(names.drop_null())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    for row in np.flatnonzero(pc.is_in(names, doubled)).tolist():
        name = names[row].as_py()
        if name is None:
            continue
        if name in first_rows:
            problems[row] = f"its image_id {name!r} is that of row {first_rows[name]}"
        else:
            first_rows[name] = row
    return dict(sorted(problems.items()))
