"""Opens Parquet and JSON files that others may have made: expected types only, bounded, and nothing in them runs.

Arrow's extension types can carry pickled objects, and a few kilobytes can stand for gigabytes of repeated values. So
the description of the columns is looked at before Arrow builds its types from it, the sizes in the footer are compared
with what such a file can hold before anything is decoded, and repeated values are counted before they are written out.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchcert.data.parquet_footer import ParquetFooter, footer_length, parsed_footer
from patchcert.data.storage import Folder

_MOST_JSON_BYTES = 64 * 2**20
_MOST_FOOTER_BYTES = 16 * 2**20
_NUM_FIRST_BYTES = 4
_MOST_COLUMNS = 1_000
# The names, labels and votes of a row cannot be had for less than a sixteenth of a byte.
_MOST_ROWS_PER_BYTE = 16
# What a file may decode to: so many bytes whatever its size, and so many more for each byte of it.
_DECODED_FLOOR, _DECODED_RATIO = 64 * 2**20, 1_000
_BATCH_ROWS, _BATCH_ROWS_OF_A_TABLE = 32, 1_000
# Encodings in which every value stands whole where it belongs.
_WRITTEN_OUT = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}
_SCHEMA_KEY = b"ARROW:schema"
_EXTENSION, _DISARMED = b"ARROW:extension:name", b"-----:extension:name"
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}

TypeCheck = Callable[[pa.DataType], bool]


class FileProblem(ValueError):
    """Why a file is not read; whoever asked for it says its name and what to do."""


class ParquetReader:
    """A Parquet file whose types and sizes have been looked at; made by :func:`opened_parquet`.

    Attributes:
        num_bytes: size of the file.
        num_rows: number of rows.
        group_rows: rows of each row group.
        key_values: what the footer holds beside the description of the columns.
        schema: of the columns; a dictionary of values counts as the values.
        frame_sha256: digest of what encloses the values, the file's first bytes and its footer, hex.
    """

    def __init__(self, stream: pa.NativeFile) -> None:
        self.num_bytes: int = stream.size()
        footer_bytes = _footer_bytes(stream, self.num_bytes)
        first_bytes = bytes(stream.read_at(_NUM_FIRST_BYTES, 0))
        self.frame_sha256 = hashlib.sha256(first_bytes + footer_bytes).hexdigest()
        footer = parsed_footer(footer_bytes)
        self.key_values: dict[bytes, bytes] = dict(footer.key_values)
        _refuse_extension_types(self.key_values.pop(_SCHEMA_KEY, None))
        self.num_rows, self.group_rows = footer.num_rows, footer.group_rows
        self._most_decoded = _DECODED_FLOOR + _DECODED_RATIO * self.num_bytes
        self._check_counts(footer)
        repeating, self._batch_rows = self._check_columns(footer)
        self._is_modest = not repeating and self._batch_rows == _BATCH_ROWS_OF_A_TABLE
        self._file = _open(stream, repeating)
        if repeating and self._largest_repeated(repeating) <= _DECODED_FLOOR:
            self._is_modest = self._batch_rows == _BATCH_ROWS_OF_A_TABLE
            self._file = _open(stream, set())
        self.schema: pa.Schema = pa.schema([_plain_field(field) for field in self._file.schema_arrow])

    def require(self, types: Mapping[str, TypeCheck | pa.DataType]) -> None:
        """Refuse a file unless it has these columns with these types.

        Args:
            types: column -> its type, or a function that says whether a type will do.

        Raises:
            FileProblem: names the column and the type found.
        """
        for name, wanted in types.items():
            if self.schema.names.count(name) != 1:
                raise FileProblem(f"it has {self.schema.names.count(name)} columns {name}, 1 is needed")
            found = self.schema.field(name).type
            if not (found == wanted if isinstance(wanted, pa.DataType) else wanted(found)):
                expected = f", not {wanted}" if isinstance(wanted, pa.DataType) else ", which is not expected there"
                raise FileProblem(f"its column {name} holds {found}{expected}")

    def batches(
        self, columns: Sequence[str], *, groups: Sequence[int] | None = None, batch_rows: int = _BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The rows of some columns in order, a few at a time.

        Args:
            columns: names of columns, or dotted paths of columns inside structs.
            groups: row groups to read; None: all.
            batch_rows: rows of a batch at most, >= 1.

        Yields:
            Batches of at most ``batch_rows`` rows. Binary values inside structs may still be dictionaries: take them
            one by one.

        Raises:
            FileProblem: the values of a batch are too large for the file they come from.
            pyarrow.ArrowException: the file is damaged.
        """
        chosen = range(len(self.group_rows)) if groups is None else groups
        rows = min(batch_rows, self._batch_rows)
        for batch in self._file.iter_batches(rows, row_groups=list(chosen), columns=list(columns)):
            written_out = []
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                is_dictionary = pa.types.is_dictionary(column.type)
                if is_dictionary and (num_bytes := _written_bytes(column)) > self._most_decoded:
                    raise self._too_large(f"its column {name}", num_bytes)
                written_out.append(column.dictionary_decode() if is_dictionary else column)
            yield pa.RecordBatch.from_arrays(written_out, names=batch.schema.names)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of some columns; None: of all. The result has ``schema`` without any metadata.

        Raises:
            FileProblem: they are too large for the file they come from.
            pyarrow.ArrowException: the file is damaged.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        if self._is_modest:
            return self._file.read(columns=schema.names).cast(schema)
        return pa.Table.from_batches(self._few(schema, None), schema)

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """One row group of some columns; threads of its own would only pass one large column around."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        if self._is_modest:
            return self._file.read_row_group(group, columns=schema.names, use_threads=False).cast(schema)
        return pa.Table.from_batches(self._few(schema, [group]), schema)

    def _few(self, schema: pa.Schema, groups: Sequence[int] | None) -> list[pa.RecordBatch]:
        """Batches of a file whose values may repeat, counted as they come."""
        batches, num_bytes = [], 0
        for batch in self.batches(schema.names, groups=groups, batch_rows=_BATCH_ROWS_OF_A_TABLE):
            num_bytes += sum(map(_written_bytes, batch.columns))
            if num_bytes > self._most_decoded:
                raise self._too_large("its columns together", num_bytes)
            batches.append(batch.cast(schema))
        return batches

    def _check_counts(self, footer: ParquetFooter) -> None:
        if sum(self.group_rows) != self.num_rows:
            raise FileProblem(f"its row groups hold {sum(self.group_rows)} rows, its footer says {self.num_rows}")
        if self.num_rows > _MOST_ROWS_PER_BYTE * self.num_bytes:
            raise FileProblem(f"its {self.num_bytes:,} bytes cannot hold the {self.num_rows:,} rows it claims to have")
        num_columns = max(map(len, footer.columns), default=0)
        if num_columns > _MOST_COLUMNS:
            raise FileProblem(f"it has {num_columns:,} columns, more than the {_MOST_COLUMNS:,} that are read")

    def _check_columns(self, footer: ParquetFooter) -> tuple[set[str], int]:
        """Looks at what each column would take.

        Returns:
            Dotted paths of the columns to be read as dictionaries, because their values may repeat beyond measure; and
            how many rows to read at a time where values are built from those before them.
        """
        decoded: dict[str, int] = {}
        repeating: set[str] = set()
        batch_rows = _BATCH_ROWS_OF_A_TABLE
        for chunk in (chunk for columns in footer.columns for chunk in columns):
            width = chunk.type_length or _WIDTHS.get(chunk.physical_type, 0)
            size = max(chunk.num_values * width, chunk.stored_bytes)
            decoded[chunk.path] = decoded.get(chunk.path, 0) + size
            # Each value may be as large as the whole chunk, and be named by every row.
            worst = chunk.num_values * chunk.stored_bytes if not width else 0
            if worst > _DECODED_FLOOR and not chunk.encodings <= _WRITTEN_OUT:
                if "DELTA_BYTE_ARRAY" in chunk.encodings:
                    batch_rows = max(1, min(batch_rows, _DECODED_FLOOR // chunk.stored_bytes))
                else:
                    repeating.add(chunk.path)
        for path, size in decoded.items():
            if size > self._most_decoded:
                raise self._too_large(f"its column {path}", size)
        return repeating, batch_rows

    def _largest_repeated(self, columns: set[str]) -> int:
        """The most bytes that a row group's column takes if each of its rows names the largest value there is."""
        most = 0
        for group, num_rows in enumerate(self.group_rows):
            for path in columns if num_rows else ():
                batch = next(self._file.iter_batches(1, row_groups=[group], columns=[path]))
                most = max(most, num_rows * max(map(_longest_value, batch.columns)))
        return most

    def _too_large(self, what: str, num_bytes: int) -> FileProblem:
        return FileProblem(
            f"{what} would take {num_bytes / 2**20:,.0f} MiB of memory, far more than its {self.num_bytes:,} bytes can "
            "honestly hold"
        )


@contextlib.contextmanager
def opened_parquet(folder: Folder, name: str, *, mapped: bool = True) -> Iterator[ParquetReader]:
    """Open a Parquet file after looking at its types and sizes.

    Args:
        folder: where it lies.
        name: of the file.
        mapped: map local files into memory.

    Raises:
        FileProblem: an extension type, or sizes that the file cannot honestly hold; names the column.
        pyarrow.ArrowException: the file is no Parquet file, or damaged.
        OSError: it is missing or cannot be read.
    """
    with folder.open(name, mapped=mapped) as stream:
        yield ParquetReader(stream)


def read_json(folder: Folder, name: str) -> Any:
    """The contents of a JSON file.

    Raises:
        ValueError: it is too large, no JSON, nested too deeply, or holds a number of thousands of digits.
        OSError: it is missing or cannot be read.
    """
    with folder.open(name, mapped=False) as stream:
        size = stream.size()
        if size > _MOST_JSON_BYTES:
            raise FileProblem(f"it has {size:,} bytes, more than the {_MOST_JSON_BYTES:,} of any such file")
        data = bytes(stream.read())
    return parsed_json(data)


def parsed_json(data: bytes | str) -> Any:
    """JSON text as plain values.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise FileProblem("its values are nested too deeply") from None


def _footer_bytes(stream: pa.NativeFile, num_bytes: int) -> bytes:
    """The footer, which is read as a whole: the last bytes of the file say how long it is."""
    length = footer_length(bytes(stream.read_at(8, max(num_bytes - 8, 0))))
    if length is None or length > num_bytes - 8:
        raise FileProblem(f"its {num_bytes:,} bytes do not end as a Parquet file does")
    if length > _MOST_FOOTER_BYTES:
        raise FileProblem(f"its footer has {length:,} bytes, more than the {_MOST_FOOTER_BYTES:,} that are read")
    return bytes(stream.read_at(length, num_bytes - 8 - length))


def _refuse_extension_types(schema: bytes | None) -> None:
    """Raises for a description of columns that would make Arrow build extension types, without letting it do so."""
    if schema is None:
        return
    try:
        message = base64.b64decode(schema, validate=True)
    except binascii.Error as error:
        raise FileProblem(f"its description of the columns is damaged: {error}") from None
    if _EXTENSION not in message:
        return
    try:
        fields = pa.ipc.read_schema(pa.py_buffer(message.replace(_EXTENSION, _DISARMED)))
    except (pa.ArrowException, OSError, ValueError):
        fields = []
    for field in fields:
        if (kind := _extension_of(field)) is not None:
            raise FileProblem(f"its column {field.name} holds the extension type {kind}, which is not read")
    raise FileProblem("a column holds an extension type, which is not read")


def _extension_of(field: pa.Field) -> str | None:
    """Name of the extension type that a disarmed field, or one inside it, would have had."""
    if (name := (field.metadata or {}).get(_DISARMED)) is not None:
        return name.decode(errors="backslashreplace")
    return next((kind for inner in _inner_fields(field.type) if (kind := _extension_of(inner)) is not None), None)


def _inner_fields(data_type: pa.DataType) -> list[pa.Field]:
    if pa.types.is_dictionary(data_type):
        return _inner_fields(data_type.value_type)
    return [data_type.field(index) for index in range(data_type.num_fields)] if data_type.num_fields else []


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, _plain_type(field.type), nullable=field.nullable)


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type without dictionaries, which only say how values are stored."""
    if isinstance(data_type, pa.BaseExtensionType):
        raise FileProblem(f"a column holds the extension type {data_type}, which is not read")
    if pa.types.is_dictionary(data_type):
        return _plain_type(data_type.value_type)
    if pa.types.is_struct(data_type):
        return pa.struct([_plain_field(field) for field in data_type])
    return data_type


def _open(stream: pa.NativeFile, repeating: set[str]) -> pq.ParquetFile:
    """Columns whose values may repeat are read as dictionaries: each value once, and its number in every row."""
    stream.seek(0)
    return pq.ParquetFile(stream, read_dictionary=sorted(repeating), page_checksum_verification=True)


def _longest_value(array: pa.Array) -> int:
    """Bytes of the longest value in the dictionaries of an array."""
    if pa.types.is_struct(array.type):
        return max(map(_longest_value, (pc.struct_field(array, index) for index in range(array.type.num_fields))))
    return int(pc.max(_value_bytes(array.dictionary)).as_py() or 0) if pa.types.is_dictionary(array.type) else 0


def _value_bytes(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        return pc.binary_length(values).cast(pa.int64())
    return pa.array([values.nbytes // max(len(values), 1)] * len(values), pa.int64())


def _written_bytes(array: pa.Array) -> int:
    """Bytes of an array once every dictionary in it is written out."""
    if pa.types.is_struct(array.type):
        return sum(_written_bytes(pc.struct_field(array, index)) for index in range(array.type.num_fields))
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    return int(pc.sum(_value_bytes(array.dictionary).take(array.indices)).as_py() or 0)
