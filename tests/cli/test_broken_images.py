"""Broken images through every stage: named, set apart, and counted against the accuracy."""

import json

import pyarrow.parquet as pq
import pytest

from .broken_images import BAD, UNUSUAL, write_broken_dataset
from .conftest import CommandLine, next_command

NUM_IMAGES = 10_000
SETTINGS = (
    "--data.dataset", "imagenet-sample", "--data.source", "images",
    "--data.rows-per-shard", "1024", "--data.rows-per-group", "128", "--views.image-size", "32", "32",
    "--classifier.width", "0.125", "--prediction.score-floor", "0", "--study.patches", "3x3",
    "--study.vote-thresholds", "--resources.images-per-part", "500",
)  # fmt: skip
NUM_BAD = len(BAD) + 1

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def patient(tmp_path):
    return CommandLine(tmp_path, patience=600)


def test_strict_preparation_stops_at_the_first_broken_images_and_names_them(patient):
    rows = write_broken_dataset(patient.folder / "images", NUM_IMAGES, doubled=False)
    error = patient.fails("prepare", "column4-digits", *SETTINGS)
    # The first shard that has a bad image ends it; bad images of later shards are not looked for.
    assert f"ImageError: 1 bad image in the test split of imagenet-sample, {patient.folder}/images:" in error
    (row,) = rows["truncated.jpg"]
    assert f"\n  truncated.jpg (test-00000-of-00001.parquet row {row}): " in error and "it cannot be decoded" in error
    assert "\n  Mend or remove them at the source, or set data.on_bad_image to quarantine" in error
    shards = list((patient.folder / "work").rglob("shard-*"))
    assert len(shards) < NUM_IMAGES // 1024 and "shard-00000-of-00010.parquet" not in [path.name for path in shards]
    assert not list((patient.folder / "work").rglob("dataset.json"))


def test_broken_images_are_named_and_then_counted_as_not_certified(patient):
    rows = write_broken_dataset(patient.folder / "images", NUM_IMAGES)
    error = patient.fails("prepare", "column4-digits", *SETTINGS)
    first, second = rows["doubled.jpg"]
    assert "1 images of the test split of imagenet-sample have no image_id of their own" in error
    assert f"row {second}: its image_id 'doubled.jpg' is that of row {first}" in error
    assert not list((patient.folder / "work").rglob("dataset.json"))

    quarantine = (*SETTINGS, "--data.on-bad-image", "quarantine")
    _, err = patient("train", "column4-digits", "--untrained", *quarantine)
    (split,) = [path.parent for path in (patient.folder / "work").rglob("dataset.json")]
    listed = {row["image_id"]: row["reason"] for row in pq.read_table(split / "quarantine.parquet").to_pylist()}
    assert listed.keys() == {f"{name}.jpg" for name in [*BAD, "doubled"]}
    for name, (_, _, words) in BAD.items():
        assert words in listed[f"{name}.jpg"]
    converted = {row["image_id"]: row["conversion"] for row in pq.read_table(split / "converted.parquet").to_pylist()}
    assert converted == {f"{name}.jpg": words for name, (_, words) in UNUSUAL.items()}

    _, err = patient(*next_command(err))
    patient(*next_command(err))
    (study,) = (patient.folder / "work" / "studies").iterdir()
    answers = pq.read_table(study / "answers.parquet").to_pylist()
    per_image = pq.read_table(study / "per_image.parquet")
    assert per_image.num_rows == NUM_IMAGES - NUM_BAD
    assert not set(per_image["image_id"].to_pylist()) & {f"{name}.jpg" for name in BAD}
    for answer in answers:
        assert answer["num_images"] == NUM_IMAGES
        assert f"{NUM_BAD} unreadable images count as wrong" in answer["note"]
        assert answer["certified_accuracy"] * NUM_IMAGES <= NUM_IMAGES - NUM_BAD
    assert json.loads((split / "dataset.json").read_text())["num_quarantined"] == NUM_BAD
    assert f"{NUM_BAD} images could not be read" in (study / "report.md").read_text()
