import dataclasses
import json
from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from patchcert.data.sealed import sealed_bytes
from patchcert.data.storage import Folder
from patchcert.errors import VoteTableError
from patchcert.geometry import BandViews, CellViews, CropViews
from patchcert.votes import SCORE_SCALE, VotePart, VoteTable, rounded_score
from patchcert.votes.identity import vote_identity
from patchcert.votes.table import SCHEMA_VERSION, check_identity, fingerprint, finish_table, part_name, write_part

VIEWS = BandViews(image_size=(6, 8), width=3)


def identity_of(views, num_images, num_classes, score_floor):
    return {
        "schema_version": SCHEMA_VERSION,
        "views": views.identity(),
        "votes": {
            "rule": "threshold" if score_floor else "top_class",
            "score_floor": float(score_floor),
            "precision": "float32",
        },
        "model": "ab" * 32,
        "num_classes": num_classes,
        "dataset": {"name": "imagined", "split": "test", "num_images": num_images, "num_quarantined": 0},
        "preprocessing": {"resize": "none"},
    }


def imagined_scores(num_images, num_views, num_classes, seed, sharpness=1.0):
    """Stored scores of an imagined classifier, int64 (N, V, K), each view summing to about SCORE_SCALE."""
    rng = np.random.default_rng(seed)
    scores_NVK = rng.gamma(1 / sharpness, size=(num_images, num_views, num_classes)) + 1e-12
    return np.round(scores_NVK / scores_NVK.sum(axis=2, keepdims=True) * SCORE_SCALE).astype(np.int64)


def part_of(scores_NVK, score_floor, first_row=0):
    num_images, _, num_classes = scores_NVK.shape
    entries = {}
    if score_floor:
        is_stored_NVK = scores_NVK >= rounded_score(score_floor)
        entries = {
            "num_entries_NV": is_stored_NVK.sum(axis=2).astype(np.uint16),
            "entry_classes": np.nonzero(is_stored_NVK)[2].astype(np.uint16),
            "entry_scores": scores_NVK[is_stored_NVK].astype(np.uint16),
            "score_floor": score_floor,
        }
    return VotePart(
        image_ids=np.array([f"bild-{first_row + i}-ä" for i in range(num_images)]),
        labels_N=np.arange(first_row, first_row + num_images) % num_classes,
        top_classes_NV=scores_NVK.argmax(axis=2).astype(np.uint16),
        num_classes=num_classes,
        first_row=first_row,
        **entries,
    )


def make_table(folder, views, scores_NVK, score_floor, rows_per_part):
    num_images = len(scores_NVK)
    identity = identity_of(views, num_images, scores_NVK.shape[2], score_floor)
    borders = [(start, min(start + rows_per_part, num_images)) for start in range(0, num_images, rows_per_part)]
    for index, (start, stop) in enumerate(borders):
        part = part_of(scores_NVK[start:stop], score_floor, start)
        write_part(folder, part_name(index, len(borders)), identity, start, part)
    return finish_table(folder, identity, borders)


def assert_equal_parts(one, other):
    for field in dataclasses.fields(VotePart):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype or a.dtype.kind == b.dtype.kind == "U"
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "votes")


@pytest.fixture
def table(folder):
    """40 images, 5 classes, floor 0.1, parts of 15."""
    return make_table(folder, VIEWS, imagined_scores(40, 8, 5, seed=0), 0.1, 15)


@st.composite
def tables(draw):
    kind = draw(st.sampled_from(["band", "crop", "cell"]))
    views = {
        "band": VIEWS,
        "crop": CropViews(image_size=(5, 7), crop_size=(4, 6)),
        "cell": CellViews(image_size=(5, 7), pitch=3, num_cells=2),
    }[kind]
    num_images = draw(st.integers(1, 12))
    num_classes = draw(st.sampled_from([2, 3, 10, 257, 1000]))
    sharpness = draw(st.sampled_from([0.1, 1.0, 30.0]))
    scores_NVK = imagined_scores(num_images, views.num_views, num_classes, draw(st.integers(0, 99)), sharpness)
    score_floor = draw(st.sampled_from([0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 1.0]))
    return views, scores_NVK, score_floor, draw(st.integers(1, 13))


@given(tables())
@examples(60)
def test_tables_survive_the_round_trip(tmp_path_factory, case):
    views, scores_NVK, score_floor, rows_per_part = case
    folder = Folder(tmp_path_factory.mktemp("votes"))
    made = make_table(folder, views, scores_NVK, score_floor, rows_per_part)

    table = VoteTable.open(str(folder), made.identity)

    num_images, num_views, num_classes = scores_NVK.shape
    assert (table.num_images, table.num_views, table.num_classes) == (num_images, num_views, num_classes)
    assert table.views == views
    assert table.score_floor == (score_floor or None)
    assert table.num_parts == -(-num_images // rows_per_part)
    for index, (start, stop) in enumerate(table.part_rows):
        assert_equal_parts(table.read_part(index), part_of(scores_NVK[start:stop], score_floor, start))
    assert table.part_rows[-1][1] == num_images


@given(tables(), st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0])))
@examples(150)
def test_thresholds_are_answered_exactly_or_refused(case, threshold):
    _, scores_NVK, score_floor, _ = case
    part = part_of(scores_NVK, score_floor)
    if not score_floor:
        with pytest.raises(VoteTableError, match=r"stores top classes only; vote_threshold .* needs scores"):
            part.votes(vote_threshold=threshold)
    elif rounded_score(threshold) < rounded_score(score_floor):
        with pytest.raises(VoteTableError, match=f"vote_threshold .* lies below the table's score floor {score_floor}"):
            part.votes(vote_threshold=threshold)
    else:
        exact = Fraction(repr(threshold))
        votes_NVK = part.votes(vote_threshold=threshold)
        assert votes_NVK.dtype == bool
        expected = scores_NVK.astype(object) * exact.denominator >= exact.numerator * SCORE_SCALE
        np.testing.assert_array_equal(votes_NVK, expected.astype(bool))


@given(tables())
@examples(50)
def test_scores_are_given_back_as_stored_and_none_below_the_floor(case):
    _, scores_NVK, score_floor, _ = case
    part = part_of(scores_NVK, score_floor)
    if not score_floor:
        with pytest.raises(VoteTableError, match="stores top classes only, but its scores are asked for"):
            part.stored_scores()
    else:
        expected = np.where(scores_NVK >= rounded_score(score_floor), scores_NVK, 0)
        np.testing.assert_array_equal(part.stored_scores(), expected)
        assert part.stored_scores().dtype == np.uint16


def test_top_class_votes_are_the_stored_classes(table):
    part = table.read_part(1)
    votes_NV = part.votes("top_class")
    assert votes_NV.dtype == np.int64
    np.testing.assert_array_equal(votes_NV, part.top_classes_NV)


def test_views_without_any_vote_are_kept(folder):
    scores_NVK = np.full((3, 8, 10), SCORE_SCALE // 10)
    scores_NVK[1, 4, 7] = SCORE_SCALE
    part = make_table(folder, VIEWS, scores_NVK, 0.2, 3).read_part(0)
    assert part.num_entries_NV.sum() == 1
    votes_NVK = part.votes(vote_threshold=0.5)
    assert votes_NVK.shape == (3, 8, 10)
    assert np.argwhere(votes_NVK).tolist() == [[1, 4, 7]]


def test_parts_of_several_row_groups(folder):
    scores_NVK = imagined_scores(2300, 8, 3, seed=1)
    part = make_table(folder, VIEWS, scores_NVK, 0.1, 2300).read_part(0)
    assert pq.ParquetFile(folder.path(part_name(0, 1))).num_row_groups == 3
    assert_equal_parts(part, part_of(scores_NVK, 0.1))


@pytest.mark.parametrize(
    "arguments", [{}, {"rule": "threshold"}, {"rule": "top_class", "vote_threshold": 0.3}, {"rule": "majority"}]
)
def test_votes_are_asked_for_by_one_rule(table, arguments):
    with pytest.raises(VoteTableError, match="votes are asked for by rule 'top_class' or by a vote_threshold"):
        table.read_part(0).votes(**arguments)


def test_the_same_votes_are_the_same_bytes(tmp_path):
    scores_NVK = imagined_scores(30, 8, 5, seed=2)
    contents = []
    for name, order in (("one", "C"), ("two", "F")):
        folder = Folder(tmp_path / name)
        identity = identity_of(VIEWS, 30, 5, 0.1)
        if order == "F":
            identity = dict(reversed(identity.items()))
        part = part_of(np.asarray(scores_NVK, order=order), 0.1)
        write_part(folder, part_name(0, 1), identity, 0, part)
        finish_table(folder, identity, [(0, 30)])
        contents.append({file: folder.read(file) for file in folder.files()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["_SUCCESS.json", "part-00000-of-00001.parquet"]


USUAL = {"model_digest": "ab" * 32, "score_floor": 0.1, "precision": "float32"}


class TestIdentity:
    def test_holds_everything_that_changes_a_vote(self, prepared_digits):
        views = BandViews(image_size=(32, 32), width=4)
        test = prepared_digits["test"]
        identities = [
            vote_identity(views, test, **USUAL),
            vote_identity(BandViews(image_size=(32, 32), width=5), test, **USUAL),
            vote_identity(BandViews(image_size=(32, 32), width=4, axis="row"), test, **USUAL),
            vote_identity(BandViews(image_size=(32, 32), width=4, stride=2), test, **USUAL),
            vote_identity(views, prepared_digits["validation"], **USUAL),
            vote_identity(views, dataclasses.replace(test, digest="0" * 64), **USUAL),
            vote_identity(views, dataclasses.replace(test, preprocessing={"resize": "pad"}), **USUAL),
            vote_identity(views, dataclasses.replace(test, num_quarantined=1), **USUAL),
            vote_identity(views, test, **USUAL | {"model_digest": "cd" * 32}),
            vote_identity(views, test, **USUAL | {"score_floor": 0.2}),
            vote_identity(views, test, **USUAL | {"score_floor": 0.0}),
            vote_identity(views, test, **USUAL | {"precision": "bfloat16"}),
        ]
        assert len({fingerprint(identity) for identity in identities}) == len(identities)
        for identity in identities:
            assert json.loads(json.dumps(identity)) == identity

    def test_is_the_same_for_an_integer_floor(self, prepared_digits):
        views = BandViews(image_size=(32, 32), width=4)
        one, other = (vote_identity(views, prepared_digits["test"], **USUAL | {"score_floor": f}) for f in (0, 0.0))
        assert fingerprint(one) == fingerprint(other)

    def test_another_view_set_is_refused_with_both(self, table):
        asked = table.identity | {"views": BandViews(image_size=(6, 8), width=4).identity()}
        words = (
            r"votes was made with column bands of width 3, 8 views of 6x8, "
            r"but column bands of width 4, 8 views of 6x8 are asked for.\n  Build that table first:  patchcert vote"
        )
        with pytest.raises(VoteTableError, match=words):
            VoteTable.open(table.location, asked)

    def test_every_other_difference_is_named_with_both_values(self, table):
        asked = table.identity | {
            "model": "cd" * 32,
            "dataset": table.identity["dataset"] | {"split": "validation"},
            "extra": 1,
        }
        with pytest.raises(VoteTableError, match="was made from something else") as error:
            VoteTable.open(table.location, asked)
        lines = [line.strip() for line in str(error.value).splitlines()[1:]]
        assert lines == [
            "dataset.split: 'test' in the table, 'validation' asked for",
            "extra: None in the table, 1 asked for",
            f"model: {'ab' * 32!r} in the table, {'cd' * 32!r} asked for",
            "Build the table asked for:  patchcert vote RECIPE",
        ]

    def test_tuples_and_integers_that_json_cannot_tell_are_no_difference(self, table):
        asked = dict(table.identity)
        asked["views"] = asked["views"] | {"image_size": tuple(asked["views"]["image_size"])}
        asked["votes"] = asked["votes"] | {"score_floor": np.float64(asked["votes"]["score_floor"])}
        check_identity(table.identity, asked, "here")
        VoteTable.open(table.location, asked)


class TestUnfinished:
    @pytest.mark.parametrize("name", ["nowhere", "file"])
    def test_nothing_there(self, tmp_path, name):
        (tmp_path / "file").write_text("x")
        with pytest.raises(VoteTableError, match=f"{name} holds no vote table.\n  Run or repeat:  patchcert vote"):
            VoteTable.open(tmp_path / name)

    def test_parts_without_an_end(self, table):
        Folder(table.location).remove("_SUCCESS.json")
        with pytest.raises(VoteTableError, match=r"votes is unfinished: 3 parts and no _SUCCESS.json"):
            VoteTable.open(table.location)

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda folder, name: folder.remove(name), "is missing"),
            (lambda folder, name: folder.write(name, folder.read(name)[:-9]), "is damaged"),
            (lambda folder, name: folder.write(name, b""), "is damaged"),
            (
                lambda folder, name: write_part(
                    folder, name, {"another": "table"}, 15, part_of(imagined_scores(15, 8, 5, seed=0), 0.1)
                ),
                "belongs to another vote table",
            ),
            (
                lambda folder, name: folder.write(name, folder.read(part_name(0, 3))),
                r"holds rows 0-15 \(15\), not 15-30",
            ),
        ],
        ids=["missing", "truncated", "empty", "foreign", "other rows"],
    )
    def test_a_table_with_a_bad_part_is_neither_finished_nor_read(self, table, spoil, words):
        folder, name = Folder(table.location), part_name(1, 3)
        folder.remove("_SUCCESS.json")
        spoil(folder, name)
        with pytest.raises(VoteTableError, match=rf"{name} {words}.*\n  Repeat the same command"):
            finish_table(folder, table.identity, table.part_rows)
        assert not folder.exists("_SUCCESS.json")
        # The same happens to a table that was spoilt after it was finished.
        with pytest.raises(
            VoteTableError, match=rf"{name} {words}.*\n  (Compute it again|Delete it and repeat):  patchcert vote"
        ):
            table.read_part(1)
        table.read_part(0)
        table.read_part(2)


class TestDamage:
    def test_no_changed_byte_passes_unseen(self, folder):
        table = make_table(folder, VIEWS, imagined_scores(20, 8, 5, seed=3), 0.1, 20)
        for name in (part_name(0, 1), "_SUCCESS.json"):
            whole = folder.read(name)
            for position in range(0, len(whole), 7):
                spoilt = bytearray(whole)
                spoilt[position] ^= 0x01 if position % 2 else 0x80
                folder.write(name, bytes(spoilt))
                with pytest.raises(VoteTableError, match=name):
                    VoteTable.open(table.location).read_part(0)
            folder.write(name, whole)
        VoteTable.open(table.location).read_part(0)

    def test_a_table_of_a_version_without_digests_is_read(self, table):
        folder = Folder(table.location)
        success = json.loads(folder.read("_SUCCESS.json"))
        del success["sha256"]
        for part in success["parts"]:
            del part["sha256"]
        folder.write("_SUCCESS.json", json.dumps(success).encode())
        VoteTable.open(table.location).read_part(0)

    def test_damage_done_since_a_table_was_finished_is_not_taken_for_what_was_written(self, table):
        folder, name = Folder(table.location), part_name(0, 3)
        whole = folder.read(name)
        folder.write(name, whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        with pytest.raises(VoteTableError, match=f"{name} is damaged"):
            finish_table(folder, table.identity, table.part_rows).read_part(0)
        folder.write(name, whole)
        finish_table(folder, table.identity, table.part_rows, computed=[0]).read_part(0)

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"{}", b'{"identity": {}}', b"\xff"])
    def test_the_success_file_is_no_success_file(self, table, content):
        Folder(table.location).write("_SUCCESS.json", content)
        with pytest.raises(VoteTableError, match=r"_SUCCESS.json is damaged \(.*\).\n  Repeat:  patchcert vote"):
            VoteTable.open(table.location)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda success: success["identity"]["dataset"].update(split="train"),
            lambda success: success["identity"]["votes"].update(score_floor=0.01),
            lambda success: success["parts"].pop(),
            lambda success: success["parts"].pop(1),
            lambda success: success["parts"].clear(),
            lambda success: success["parts"][0].update(start=1),
            lambda success: success["parts"].append({"name": "x", "start": 40, "stop": 50}),
        ],
    )
    @pytest.mark.parametrize("written", [sealed_bytes, lambda success: json.dumps(success).encode()])
    def test_the_success_file_was_edited(self, table, edit, written):
        folder = Folder(table.location)
        success = json.loads(folder.read("_SUCCESS.json"))
        del success["sha256"]
        edit(success)
        folder.write("_SUCCESS.json", written(success))
        with pytest.raises(VoteTableError, match=r"_SUCCESS.json was changed after it was written.\n  Repeat"):
            VoteTable.open(table.location)

    def test_a_table_of_another_version(self, table):
        folder = Folder(table.location)
        success = json.loads(folder.read("_SUCCESS.json"))
        success["identity"]["schema_version"] = 99
        folder.write("_SUCCESS.json", json.dumps(success).encode())
        with pytest.raises(VoteTableError, match=f"has vote table version 99, this version reads {SCHEMA_VERSION}"):
            VoteTable.open(table.location)
