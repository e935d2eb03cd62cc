"""Reads the footer of a Parquet file in plain Python: what it claims about rows and columns, before Arrow sees it.

pyarrow ends the whole process when it is asked about the columns of a damaged footer, so what is to be known before a
file is trusted is read here. Only the numbers that size checks need are kept.

Source: Apache Parquet format, ``parquet.thrift``, in Thrift's compact protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MAGIC = b"PAR1"
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_ENCODINGS = {
    0: "PLAIN",
    2: "PLAIN_DICTIONARY",
    3: "RLE",
    4: "BIT_PACKED",
    5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY",
    7: "DELTA_BYTE_ARRAY",
    8: "RLE_DICTIONARY",
    9: "BYTE_STREAM_SPLIT",
}
_DEEPEST = 32

Struct = dict[int, Any]


@dataclass(frozen=True)
class ColumnChunk:
    """One column of one row group.

    Attributes:
        path: names from the top column to the leaf, joined by dots.
        physical_type: as the Parquet format names it.
        type_length: bytes of a FIXED_LEN_BYTE_ARRAY value, else 0.
        encodings: as the format names them.
        num_values: values in it, nulls included.
        stored_bytes: bytes of its pages before compression, >= 0.
    """

    path: str
    physical_type: str
    type_length: int
    encodings: frozenset[str]
    num_values: int
    stored_bytes: int


@dataclass(frozen=True)
class ParquetFooter:
    """What a file claims to hold.

    Attributes:
        num_rows: rows of the file.
        group_rows: rows of each row group.
        columns: its leaf columns, for each row group.
        key_values: metadata of the file.
    """

    num_rows: int
    group_rows: tuple[int, ...]
    columns: tuple[tuple[ColumnChunk, ...], ...]
    key_values: dict[bytes, bytes]


def footer_length(tail: bytes) -> int | None:
    """Bytes of the footer by the last eight bytes of a file; None where those are not the end of a Parquet file."""
    return int.from_bytes(tail[:4], "little") if len(tail) == 8 and tail[4:] == _MAGIC else None


def parsed_footer(data: bytes) -> ParquetFooter:
    """The claims of a footer.

    Args:
        data: the footer without the eight bytes behind it.

    Raises:
        ValueError: it is damaged.
    """
    try:
        footer = _Compact(data).struct()
        # The root of the schema has no type; the leaves are those without children.
        leaves = [element for element in footer[2][1:] if not element.get(5)]
        groups = footer[4]
        return ParquetFooter(
            num_rows=_count(footer[3]),
            group_rows=tuple(_count(group[3]) for group in groups),
            columns=tuple(_columns(group[1], leaves) for group in groups),
            key_values={pair[1]: pair.get(2, b"") for pair in footer.get(5, [])},
        )
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its footer is damaged: {type(error).__name__}: {error}") from None


def _columns(chunks: list[Struct], leaves: list[Struct]) -> tuple[ColumnChunk, ...]:
    if len(chunks) != len(leaves):
        raise ValueError(f"its footer is damaged: {len(chunks)} columns in a row group, {len(leaves)} in the schema")
    columns = []
    for chunk, leaf in zip(chunks, leaves, strict=True):
        about = chunk[3]
        columns.append(
            ColumnChunk(
                path=b".".join(about[3]).decode(errors="backslashreplace"),
                physical_type=_TYPES[_count(about[1])],
                type_length=max(leaf.get(2, 0), 0),
                encodings=frozenset(_ENCODINGS.get(number, f"encoding {number}") for number in about[2]),
                num_values=_count(about[5]),
                stored_bytes=_count(about[6]),
            )
        )
    return tuple(columns)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"its footer is damaged: it counts {value!r} rows, values or bytes")
    return value


class _Compact:
    """A reader of Thrift's compact protocol: structs become dicts from field number to value."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> Struct:
        """The struct that begins here."""
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deeply")
        fields: Struct = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._signed()
            kind = header & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # an element of a list: a byte of its own
            return self._byte() == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (9, 10):
            header = self._byte()
            count = header >> 4 if header >> 4 != 15 else self._unsigned()
            self._check_count(count)
            return [self._value(header & 15, depth + 1) for _ in range(count)]
        if kind == 11:
            count = self._unsigned()
            self._check_count(count)
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"its footer is damaged: there is no type {kind}")

    def _check_count(self, count: int) -> None:
        if count > len(self._data) - self._at:
            raise ValueError(f"its footer is damaged: a list of {count:,} values in {len(self._data):,} bytes")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("its footer is cut off")
        return self._data[self._at - count : self._at]

    def _unsigned(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("its footer is damaged: a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
