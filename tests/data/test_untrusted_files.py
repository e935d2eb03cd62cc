"""Parquet and JSON files that were made to run code, to fill the memory or to end the process."""

import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcert.data.parquet_footer import parsed_footer
from patchcert.data.storage import Folder
from patchcert.data.untrusted import FileProblem, ParquetReader, opened_parquet, parsed_json, read_json


class LeavesAMark(pa.ExtensionType):
    """An extension type that notes when Arrow builds it: code that a file asked for would run there."""

    built = 0

    def __init__(self):
        super().__init__(pa.binary(), "patchcert.tests.leaves_a_mark")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.built += 1
        return cls()


@pytest.fixture(scope="module", autouse=True)
def registered():
    pa.register_extension_type(LeavesAMark())
    yield
    pa.unregister_extension_type("patchcert.tests.leaves_a_mark")


def parquet(table, **settings):
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", **settings})
    return sink.getvalue()


def reader(data):
    return ParquetReader(pa.BufferReader(data))


def marked(values):
    return pa.ExtensionArray.from_storage(LeavesAMark(), pa.array(values, pa.binary()))


def nested():
    inner = marked([b"a", b"b"])
    offsets = pa.array([0, 1, 2], pa.int32())
    return {
        "column": inner,
        "in a struct": pa.StructArray.from_arrays([inner, pa.array([1, 2])], ["x", "y"]),
        "in a list": pa.ListArray.from_arrays(offsets, inner),
        "in a map": pa.MapArray.from_arrays(offsets, pa.array(["k", "l"]), inner),
        "in a list of structs": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([inner], ["x"])),
    }


class TestExtensionTypes:
    @pytest.mark.parametrize("where", nested())
    def test_they_are_refused_by_name_before_arrow_builds_them(self, where):
        data = parquet(pa.table({"label": [1, 2], "image_id": nested()[where]}))
        before = LeavesAMark.built
        with pytest.raises(FileProblem, match=r"column image_id holds the extension type patchcert.tests"):
            reader(data)
        assert LeavesAMark.built == before

    def test_those_of_arrow_itself_are_refused_too(self):
        values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
        with pytest.raises(FileProblem, match=r"column u holds the extension type arrow.uuid"):
            reader(parquet(pa.table({"u": values})))

    def test_a_description_of_the_columns_that_is_no_schema_is_refused(self):
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, pa.schema([("a", pa.int64())]), store_schema=False) as writer:
            writer.write_table(pa.table({"a": [1]}))
            writer.add_key_value_metadata({"ARROW:schema": "not base64!"})
        data = sink.getvalue()
        with pytest.raises(FileProblem, match="description of the columns is damaged"):
            reader(data)


class TestSmallFilesThatStandForMuch:
    """A few kilobytes each, which stand for 90 megabytes or more."""

    ROWS, BYTES = 1_000, 100_000

    def repeated(self, kind):
        """One value that all rows name."""
        values = pa.array(["x" * self.BYTES], pa.string()).cast(kind)
        return pa.DictionaryArray.from_arrays(np.zeros(self.ROWS, np.int32), values)

    def a_name_for_all_rows(self):
        return {"image_id": self.repeated(pa.string())}, {"store_schema": False}

    def an_image_for_all_rows(self):
        return {"image": pa.StructArray.from_arrays([self.repeated(pa.binary())], ["bytes"])}, {"store_schema": False}

    def names_built_from_the_one_before(self):
        encoding = {"use_dictionary": False, "column_encoding": {"image_id": "DELTA_BYTE_ARRAY"}}
        return {"image_id": self.repeated(pa.string()).dictionary_decode()}, encoding

    def lists_of_zeros(self):
        return {"label": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(25_000_000, np.uint16)), 25_000)}, {}

    def one_value_of_zeros(self):
        return {"image": pa.array([bytes(90_000_000)])}, {"use_dictionary": False}

    def rows_without_end(self):
        return {"label": pa.array(np.zeros(3_000_000, np.int8))}, {}

    @pytest.mark.parametrize(
        "bomb",
        [
            a_name_for_all_rows,
            an_image_for_all_rows,
            names_built_from_the_one_before,
            lists_of_zeros,
            one_value_of_zeros,
            rows_without_end,
        ],
        ids=lambda bomb: bomb.__name__,
    )
    def test_they_are_refused_before_they_are_written_out(self, bomb):
        columns, settings = bomb(self)
        data = parquet(pa.table(columns), **settings)
        assert len(data) < 30_000
        with pytest.raises(FileProblem, match=r"honestly hold|cannot hold"):
            reader(data).read()

    def test_rows_of_a_repeated_image_can_be_had_one_by_one(self):
        columns, settings = self.an_image_for_all_rows()
        opened = reader(parquet(pa.table(columns), **settings))
        sizes = [
            len(pa.compute.struct_field(batch.column(0), "bytes")[0].as_py())
            for batch in opened.batches(["image.bytes"], batch_rows=250)
        ]
        assert sizes == [self.BYTES] * 4

    def test_honest_files_are_read_whole(self):
        count = 30_000
        table = pa.table(
            {
                "image_id": [f"photos/test/{row:09d}.jpeg" for row in range(count)],
                "label": pa.array(np.arange(count) % 10),
                "kind": pa.array(["cat", "dog"] * (count // 2)).dictionary_encode(),
                "votes": pa.array(np.zeros((count, 8), np.uint16).tolist(), pa.list_(pa.uint16(), 8)),
            }
        )
        for settings in ({}, {"use_dictionary": False}, {"column_encoding": {"image_id": "DELTA_BYTE_ARRAY"}}):
            if "column_encoding" in settings:
                settings = {**settings, "use_dictionary": ["label", "kind"]}
            opened = reader(parquet(table, row_group_size=7_000, **settings))
            assert opened.num_rows == count and opened.group_rows == (7_000,) * 4 + (2_000,)
            found = opened.read()
            assert found.equals(table.cast(opened.schema)) and found.schema.field("kind").type == pa.string()
            assert opened.read(["label"]).column("label").equals(table.column("label"))
            assert opened.read_group(1, ["image_id"]).column(0).to_pylist() == table.column(0)[7_000:14_000].to_pylist()


class TestDamagedFiles:
    DATA = parquet(
        pa.table({"image_id": ["a", "b"] * 50, "top": pa.array([[1, 2]] * 100, pa.list_(pa.uint16(), 2))}),
        write_page_checksum=True,
    )

    @given(st.integers(0, 10**6), st.integers(1, 255))
    def test_a_changed_byte_ends_in_an_error_or_in_the_same_rows(self, position, change):
        data = bytearray(self.DATA)
        data[position % len(data)] ^= change
        try:
            found = reader(bytes(data)).read()
        except (FileProblem, ValueError, OSError, pa.ArrowException):
            return
        assert found.num_rows == 100

    @pytest.mark.parametrize("cut", [0, 3, 8, 11, 100, 400])
    def test_a_file_that_is_cut_off_is_refused(self, cut):
        with pytest.raises(ValueError, match="do not end as a Parquet file"):
            reader(self.DATA[:cut])

    def test_a_footer_that_claims_to_be_longer_than_the_file_is_refused(self):
        with pytest.raises(FileProblem, match="do not end as a Parquet file"):
            reader(self.DATA[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_footer_or_a_value_error(self, data):
        try:
            parsed_footer(data)
        except ValueError:
            pass

    def test_a_footer_of_lists_in_lists_takes_no_memory(self):
        tracemalloc.start()
        with pytest.raises(ValueError, match="footer"):
            parsed_footer(b"\x19" + b"\xf9\xff\xff\xff\x0f" * 50)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()

    def test_what_a_footer_claims_is_what_arrow_reads(self):
        footer = parsed_footer(self.DATA[-8 - int.from_bytes(self.DATA[-8:-4], "little") : -8])
        arrow = pq.read_metadata(pa.BufferReader(self.DATA))
        assert footer.num_rows == arrow.num_rows == 100
        assert footer.key_values == arrow.metadata
        for index, chunk in enumerate(footer.columns[0]):
            theirs = arrow.row_group(0).column(index)
            assert (chunk.path, chunk.physical_type, chunk.num_values, chunk.stored_bytes) == (
                theirs.path_in_schema, theirs.physical_type, theirs.num_values, theirs.total_uncompressed_size,
            )  # fmt: skip
            assert chunk.encodings == set(theirs.encodings)


class TestExpectedColumns:
    TABLE = pa.table({"label": pa.array([1], pa.int32()), "name": ["a"]})

    def test_other_types_and_missing_columns_are_named(self):
        opened = reader(parquet(self.TABLE))
        opened.require({"label": pa.types.is_integer, "name": pa.string()})
        with pytest.raises(FileProblem, match="column label holds int32, not int64"):
            opened.require({"label": pa.int64()})
        with pytest.raises(FileProblem, match="column name holds string, which is not expected"):
            opened.require({"name": pa.types.is_integer})
        with pytest.raises(FileProblem, match="0 columns image"):
            opened.require({"image": pa.binary()})

    def test_a_file_on_a_disk_is_opened_alike(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(parquet(self.TABLE))
        with opened_parquet(Folder(tmp_path), "a.parquet") as opened:
            assert opened.read().to_pydict() == {"label": [1], "name": ["a"]}
        with pytest.raises(FileNotFoundError), opened_parquet(Folder(tmp_path), "b.parquet"):
            pass


class TestJson:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[" * 100_000, "nested too deeply"),
            ('{"a":' * 100_000, "nested too deeply"),
            ("1" * 5_000, "digit"),
            ("{", "."),
            ("", "."),
            (b"\xff\xfe\x00", "."),
        ],
    )
    def test_what_is_none_is_a_value_error(self, text, words):
        with pytest.raises(ValueError, match=words):
            parsed_json(text)

    def test_a_file_is_read_if_it_is_not_too_large(self, tmp_path):
        folder = Folder(tmp_path)
        folder.write("a.json", json.dumps({"a": [1, 2]}).encode())
        assert read_json(folder, "a.json") == {"a": [1, 2]}
        with open(tmp_path / "b.json", "wb") as file:
            file.truncate(65 * 2**20)
        with pytest.raises(FileProblem, match="more than the 67,108,864"):
            read_json(folder, "b.json")
