"""Broken images through every stage: named, set apart, and counted against the accuracy."""

import json

import pyarrow.parquet as pq
import pytest

from .broken_images import BAD, UNUSUAL, write_broken_dataset

NUM_IMAGES = 60
SETTINGS = (
    "--data.dataset", "imagenet-sample", "--data.source", "images", "--views.image-size", "32", "32",
    "--classifier.width", "0.125", "--prediction.score-floor", "0", "--study.patches", "3x3",
    "--study.vote-thresholds", "--resources.images-per-part", "20",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_broken_images_are_named_and_then_counted_as_not_certified(patchcert):
    num_bad = write_broken_dataset(patchcert.folder / "images", NUM_IMAGES)
    error = patchcert.fails("prepare", "column4-digits", *SETTINGS)
    assert "1 images of the test split of imagenet-sample have no image_id of their own" in error
    assert "row 52: its image_id 'doubled.jpg' is that of row 48" in error
    assert not list((patchcert.folder / "work").rglob("dataset.json"))

    quarantine = (*SETTINGS, "--data.on-bad-image", "quarantine")
    patchcert("train", "column4-digits", "--untrained", *quarantine)
    (split,) = [path.parent for path in (patchcert.folder / "work").rglob("dataset.json")]
    listed = {row["image_id"]: row["reason"] for row in pq.read_table(split / "quarantine.parquet").to_pylist()}
    assert listed.keys() == {f"{name}.jpg" for name in [*BAD, "doubled"]}
    for name, (_, _, words) in BAD.items():
        assert words in listed[f"{name}.jpg"]
    converted = {row["image_id"]: row["conversion"] for row in pq.read_table(split / "converted.parquet").to_pylist()}
    assert converted == {f"{name}.jpg": words for name, (_, words) in UNUSUAL.items()}

    patchcert("vote", "column4-digits", *quarantine)
    patchcert("study", "column4-digits", *quarantine)
    (study,) = (patchcert.folder / "work" / "studies").iterdir()
    rows = pq.read_table(study / "answers.parquet").to_pylist()
    per_image = pq.read_table(study / "per_image.parquet")
    assert per_image.num_rows == NUM_IMAGES - num_bad
    for row in rows:
        assert row["num_images"] == NUM_IMAGES
        assert f"{num_bad} unreadable images count as wrong" in row["note"]
        assert row["certified_accuracy"] * NUM_IMAGES <= NUM_IMAGES - num_bad
    assert json.loads((split / "dataset.json").read_text())["num_quarantined"] == num_bad
    assert f"{num_bad} images could not be read" in (study / "report.md").read_text()
