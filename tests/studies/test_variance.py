import dataclasses
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from studies import simulated

from patchcert.certificates import certify_random_crops_reported, predict
from patchcert.data.sealed import digest_of, sealed_bytes
from patchcert.errors import StudyError
from patchcert.geometry import BandViews, CropViews
from patchcert.studies.config import VarianceConfig
from patchcert.studies.result_folders import write_csv, write_frame, write_parquet
from patchcert.studies.results import PER_IMAGE
from patchcert.studies.variance import VarianceAccumulator, draw_part, draw_questions
from patchcert.studies.variance_results import RECORD, REPEATS, VARIANCE_CSV, VarianceResult, write_variance
from patchcert.votes import draw_tallies

VIEWS = CropViews(image_size=(12, 12), crop_size=4)
CONFIG = VarianceConfig(
    repeats=30,
    num_draws=(16, 48),
    patches=("1x1", "2x2"),
    certificates=("random_crops_reported", "random_crops_exact"),
    min_confidence=0.8,
)


@pytest.fixture(scope="module")
def part():
    return simulated.simulated_part(VIEWS, 40, num_classes=4, seed=5)


@pytest.fixture(scope="module")
def questions():
    return draw_questions(CONFIG, VIEWS)


def tables_of(part, config, asked, borders, **changes):
    accumulator = VarianceAccumulator(asked)
    for start, stop in reversed(list(itertools.pairwise(borders))):
        accumulator.add(draw_part(part.rows(start, stop), config, asked))
    return accumulator.tables(simulated.subject_of(VIEWS, part, defense="crop4-test", **changes))


@pytest.fixture(scope="module")
def tables(part, questions):
    return tables_of(part, CONFIG, questions, [0, 40])


def counts_of(part):
    return np.stack([np.bincount(classes, minlength=part.num_classes) for classes in part.top_classes_NV])


def test_every_number_follows_from_the_drawn_tallies_by_the_certificate_itself(part, questions, tables):
    """The whole study again, draw by draw, through the public certificate and the definitions of the docstring."""
    counts_NK, repeats = counts_of(part), CONFIG.repeats
    for question in questions:
        draw = question.draw
        tallies_NRK = np.zeros((40, repeats, 4), dtype=np.int64)
        for row, counts_K in enumerate(counts_NK):
            order = np.argsort(-counts_K, kind="stable")[: (counts_K > 0).sum()]
            tallies_NRK[row][:, order] = draw_tallies(
                counts_K[order], draw.num_draws, row, replacement=draw.replacement, seed=0, num_repeats=repeats
            )
        tallies_MK = tallies_NRK.reshape(-1, 4)
        outcome = certify_random_crops_reported(
            tallies_MK,
            num_draws=draw.num_draws,
            affected=VIEWS.affected(question.patch),
            num_views=81,
            min_confidence=0.8,
            replacement=draw.replacement,
            law="exact" if question.certificate == "random_crops_exact" else "reported",
        )
        correct_NR = predict(tallies_MK).reshape(40, repeats) == part.labels_N[:, None]
        certified_NR = outcome.certified_N.reshape(40, repeats) & correct_NR
        p_c_NR = outcome.confidence_N.reshape(40, repeats)
        two_largest = np.sort(tallies_NRK, axis=2)[:, :, -2:]
        flip_votes_NR = ((two_largest[:, :, 1] - two_largest[:, :, 0]) // 2 + 1) / draw.num_draws

        wanted = {"certificate": question.certificate, "patch": question.patch.label}
        wanted |= {"draws": draw.words, "num_draws": draw.num_draws}
        rows = tables.repeats[(tables.repeats[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        np.testing.assert_array_equal(rows["repeat"], np.arange(repeats))
        np.testing.assert_allclose(rows["clean_accuracy"], correct_NR.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(rows["certified_accuracy"], certified_NR.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(rows["confidence"], p_c_NR.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(rows["flip_votes"], flip_votes_NR.mean(axis=0), rtol=1e-12)

        per_image = tables.per_image
        for name, key, values_NR in (("confidence", question.key, p_c_NR), ("flip_votes", draw.key, flip_votes_NR)):
            variance_N = values_NR.var(axis=1, ddof=1)
            np.testing.assert_allclose(per_image[f"{name}_mean/{key}"], values_NR.mean(axis=1), rtol=1e-6)
            np.testing.assert_allclose(per_image[f"{name}_variance/{key}"], variance_N, rtol=1e-6, atol=1e-12)
            low, high = np.sort(values_NR)[:, 0], np.sort(values_NR)[:, 29]
            np.testing.assert_allclose(per_image[f"{name}_spread/{key}"], high - low, rtol=1e-6)
            (row,) = tables.summary[(tables.summary[list(wanted)] == pd.Series(wanted)).all(axis=1)].to_dict("records")
            assert row[f"{name}_variance"] == pytest.approx(variance_N.mean(), rel=1e-6)
            assert row[f"{name}_interval"] == pytest.approx(np.mean(1.959964 * np.sqrt(variance_N / repeats)), rel=1e-6)
        np.testing.assert_allclose(per_image[f"certified_correct/{question.key}"], certified_NR.mean(axis=1), rtol=1e-6)
        assert row["certified_accuracy"] == pytest.approx(certified_NR.mean())
        assert row["certified_accuracy_std"] == pytest.approx(certified_NR.mean(axis=0).std(ddof=1))
    assert 0 < tables.summary["certified_accuracy"].max() < 1


@pytest.mark.parametrize("borders", [[0, 13, 14, 40], [0, 1, 2, 39, 40]])
def test_part_borders_and_their_order_do_not_matter(part, questions, tables, borders):
    others = tables_of(part, CONFIG, questions, borders)
    pd.testing.assert_frame_equal(others.repeats, tables.repeats, check_exact=True)
    pd.testing.assert_frame_equal(others.summary, tables.summary, check_exact=True)
    assert others.per_image.equals(tables.per_image)


def test_small_chunks_change_nothing(part, questions, tables, monkeypatch):
    monkeypatch.setattr("patchcert.studies.variance._CHUNK_BYTES", 1)
    assert tables_of(part, CONFIG, questions, [0, 40]).per_image.equals(tables.per_image)


def test_other_patches_numbers_and_ways_do_not_move_a_draw(part, tables):
    alone = dataclasses.replace(
        CONFIG, num_draws=(48,), replacement=("without",), patches=("2x2",), certificates=("random_crops_reported",)
    )
    asked = draw_questions(alone, VIEWS)
    rows = tables_of(part, alone, asked, [0, 40]).repeats
    same = tables.repeats.merge(rows, on=list(rows.columns))
    assert len(asked) == 1 and len(same) == len(rows) == 30


def test_unanimous_images_do_not_scatter(part, questions):
    unanimous = dataclasses.replace(part, top_classes_NV=np.full_like(part.top_classes_NV, 2))
    tables = tables_of(unanimous, CONFIG, questions, [0, 40])
    for name in ("flip_votes_interval", "flip_votes_variance", "confidence_variance", "certified_accuracy_std"):
        np.testing.assert_allclose(tables.summary[name], 0, atol=1e-15)
    assert set(tables.repeats["clean_accuracy"]) == {(part.labels_N == 2).mean()}


def test_unreadable_images_count_as_wrong(part, questions, tables):
    quarantined = tables_of(part, CONFIG, questions, [0, 40], num_quarantined=10)
    np.testing.assert_allclose(quarantined.repeats["clean_accuracy"], 0.8 * tables.repeats["clean_accuracy"])
    np.testing.assert_array_equal(quarantined.repeats["confidence"], tables.repeats["confidence"])


def test_missing_images_are_refused(part, questions):
    accumulator = VarianceAccumulator(questions)
    accumulator.add(draw_part(part.rows(0, 20), CONFIG, questions))
    with pytest.raises(StudyError, match="20 different images were drawn for, the split cifar10/test has 40"):
        accumulator.tables(simulated.subject_of(VIEWS, part))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 1}, "repeats is 1; a spread needs at least 2"),
        ({"num_draws": ()}, "num_draws is empty"),
        ({"num_draws": (64, 64)}, "num_draws names 64 twice"),
        ({"num_draws": (0,)}, "num_draws holds 0"),
        ({"replacement": ("without", "without")}, "replacement names without twice"),
        ({"replacement": ("never",)}, "Use 'with', 'without' or both"),
        ({"certificates": ("placement",)}, "'placement' certifies no random crops"),
        (
            {"certificates": ("random_crops_exact",), "replacement": ("with",)},
            "differs from random_crops_reported only",
        ),
        ({"min_confidence": 1.0}, "min_confidence is 1.0, outside"),
        ({"seed": -1}, "seed must be >= 0, not -1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(StudyError, match=message):
        VarianceConfig(**changes)


@pytest.mark.parametrize(
    ("views", "changes", "message"),
    [
        (
            BandViews(image_size=(12, 12), width=4),
            {},
            "random crops are drawn, but the votes are those of column bands",
        ),
        (VIEWS, {"num_draws": (512,)}, "512 views cannot be drawn without replacement from 81"),
        (VIEWS, {"patches": ()}, "no patch is named"),
    ],
    ids=["bands", "draws", "patches"],
)
def test_what_cannot_be_drawn_is_refused(views, changes, message):
    with pytest.raises(StudyError, match=message):
        draw_questions(dataclasses.replace(CONFIG, **changes), views)


def test_infeasible_questions_say_so():
    (question,) = draw_questions(
        VarianceConfig(num_draws=(512,), replacement=("without",), patches=("5x5",)),
        CropViews(image_size=(32, 32), crop_size=10),
    )
    assert not question.feasible and "infeasible: needs a lead of" in question.note


def written(folder, part, tables, **changes):
    values = {
        "subject": simulated.subject_of(VIEWS, part, defense="crop4-test"),
        "headline_patch": "1x1",
        "tables": tables,
        "identity": {"variance": dataclasses.asdict(CONFIG)},
        "run": {"draw_seconds": 1.0},
    }
    return write_variance(folder, **values | changes)


def test_result_folder_comes_back_as_it_was_written(tmp_path, part, tables):
    result = written(tmp_path / "study", part, tables)
    assert result == dataclasses.replace(VarianceResult.open(tmp_path / "study"), **frames(result))
    pd.testing.assert_frame_equal(result.repeats, tables.repeats)
    pd.testing.assert_frame_equal(result.summary, tables.summary, check_dtype=False, check_exact=True)
    assert result.per_image().equals(tables.per_image)
    assert {path.name for path in (tmp_path / "study" / "figures").iterdir()} == {"variance.png", "variance.svg"}


def frames(result):
    return {"repeats": result.repeats, "summary": result.summary}


def test_writing_again_gives_the_same_bytes(tmp_path, part, tables):
    for name in ("one", "two"):
        written(tmp_path / name, part, tables)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_damaged_and_foreign_folders_are_refused(tmp_path, part, tables):
    with pytest.raises(StudyError, match="holds no variance study"):
        VarianceResult.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="was not written by patchcert"):
        written(tmp_path, part, tables)
    written(tmp_path / "study", part, tables)
    (tmp_path / "study" / REPEATS).write_bytes(b"")
    with pytest.raises(StudyError, match="is damaged"):
        VarianceResult.open(tmp_path / "study")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, part, tables):
    return written(tmp_path_factory.mktemp("whole") / "study", part, tables).folder.path()


def forged(whole, folder, *, summary=None, repeats=None, per_image=None):
    """The study with other tables, and with a record whose digests fit them."""
    shutil.copytree(whole, folder)
    if summary is not None:
        write_csv(folder / VARIANCE_CSV, summary)
    if repeats is not None:
        write_frame(folder / REPEATS, repeats)
    if per_image is not None:
        write_parquet(folder / PER_IMAGE, per_image)
    record = json.loads((folder / RECORD).read_text())
    del record["sha256"]
    files = {name: digest_of((folder / name).read_bytes()) for name in record["files"]}
    (folder / RECORD).write_bytes(sealed_bytes(record | {"files": files}))
    return folder


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("certified_accuracy", 1.0),
        ("certified_accuracy_p05", 0.99),
        ("confidence_mean", 1.0),
        ("flip_votes_spread", 0.0),
        ("guarantee", "deterministic"),
        ("feasible", "perhaps"),
        ("num_images", 10_000),
    ],
)
def test_a_summary_that_does_not_follow_is_refused(tmp_path, whole, tables, column, value):
    folder = forged(whole, tmp_path / "study", summary=tables.summary.assign(**{column: value}))
    with pytest.raises(StudyError, match=f"column {column} of variance.csv does not follow from repeats.parquet"):
        VarianceResult.open(folder)


def test_what_a_summary_says_in_words_is_written_anew(tmp_path, whole, tables):
    folder = forged(whole, tmp_path / "study", summary=tables.summary.assign(note="a theorem"))
    assert VarianceResult.open(folder).summary["note"].tolist() == tables.summary["note"].tolist()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("clean_accuracy", "clean_accuracy of .* is 1.000000 over the repeats, but .* over the images"),
        ("certified_accuracy", "certified_accuracy of .* is 1.000000 over the repeats"),
        ("confidence", "confidence of .* is 1.000000 over the repeats"),
        ("repeat", "the repeats of .* are missing or mixed up"),
        ("min_confidence", "the repeats of .* are missing or mixed up"),
    ],
)
def test_repeats_that_do_not_follow_from_the_images_are_refused(tmp_path, whole, tables, column, message):
    repeats = tables.repeats.assign(**{column: 1 if column == "repeat" else 1.0})
    folder = forged(whole, tmp_path / "study", repeats=repeats)
    with pytest.raises(StudyError, match=message):
        VarianceResult.open(folder)


def test_images_that_are_missing_are_refused(tmp_path, whole, tables):
    folder = forged(whole, tmp_path / "study", per_image=tables.per_image.slice(0, 39))
    with pytest.raises(StudyError, match=r"per_image\.parquet holds 39 images, its record says 40"):
        VarianceResult.open(folder)
    folder = forged(whole, tmp_path / "other", repeats=tables.repeats.iloc[:-1])
    with pytest.raises(StudyError, match="missing or mixed up"):
        VarianceResult.open(folder)
