"""The variance study from outside: digits voted on by a network as it starts, drawn, written, published, repeated."""

import json
import sqlite3

import pyarrow.parquet as pq
import pytest

from .conftest import CommandLineHere, next_command

# A dozen commands.
pytestmark = pytest.mark.slow

TINY = ("--data.limit", "60", "--data.validation-size", "20", "--classifier.width", "0.125", "--views.stride", "3")
DRAWS = ("--variance.repeats", "20", "--variance.num-draws", "16", "32", "--variance.patches", "1x1", "2x2")


@pytest.fixture(scope="module")
def voted(ray_cluster, tmp_path_factory):
    command = CommandLineHere(tmp_path_factory.mktemp("variance"))
    _, err = command("train", "cropnet12-digits", "--untrained", *TINY)
    vote = next_command(err)
    command(*vote)
    command.checkpoint = vote[-2:]
    return command


def lasting(folder):
    """Contents of all files but run.json, which holds times, and without the digests in the record that follow it."""
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.json"}
    record = json.loads(found.pop("variance.json"))
    assert record["files"].pop("run.json") and record.pop("sha256")
    return found | {"variance.json": record}


def test_variance_writes_repeats_and_summary_and_repeating_changes_nothing(voted):
    out, err = voted("variance", "cropnet12-digits", *TINY, *DRAWS, *voted.checkpoint)
    assert "without repl." in out and "2x2" in out and "60 test images of digits, 20 draws of each" in out
    assert "Raw repeats, figures of each image" in err and "tracker: " in err
    (folder,) = (voted.folder / "work" / "variance").iterdir()
    repeats = pq.read_table(folder / "repeats.parquet")
    assert repeats.num_rows == 2 * 2 * 2 * 20
    assert pq.read_table(folder / "per_image.parquet").num_rows == 60
    assert json.loads((folder / "run.json").read_text())["recipe"] == "cropnet12-digits"

    before = lasting(folder)
    _, err = voted("publish", folder)
    _, err = voted("variance", "cropnet12-digits", *TINY, *DRAWS, *voted.checkpoint)
    assert "was drawn already" in err
    made = (folder / "variance.json").stat().st_mtime_ns
    _, err = voted("variance", "cropnet12-digits", *TINY, *DRAWS, *voted.checkpoint, "--no-resume")
    assert "was drawn already" not in err and (folder / "variance.json").stat().st_mtime_ns > made
    assert lasting(folder) == before
    with sqlite3.connect(voted.folder / "work" / "mlflow.db") as store:
        runs = store.execute(
            "select runs.name from runs join experiments using (experiment_id) where experiments.name like '%/variance'"
        ).fetchall()
        metrics = store.execute("select distinct key, step from metrics where key like 'variance_n_crops/%'").fetchall()
    assert len(runs) == 1
    assert {("variance_n_crops/cert_prob_mean", 16), ("variance_n_crops/interval_mean", 32)} <= set(metrics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cropnet12-digits", *TINY, "--variance.num-draws", "512"], "512 views cannot be drawn without replacement"),
        (["cropnet12-digits", *TINY, "--variance.repeats", "1"], "a spread needs at least 2"),
        (["cropnet12-digits", *TINY, *DRAWS[:-2], "40x40"], "40x40, but the image is only 32x32"),
        (["cropnet12-digits", *TINY[:-2], *DRAWS], "12x12 crops"),
    ],
    ids=["draws", "repeats", "patch", "views"],
)
def test_mistakes_are_named_and_leave_nothing_behind(voted, arguments, message):
    before = sorted((voted.folder / "work").glob("variance/*"))
    table = next((voted.folder / "work" / "votes").iterdir())
    assert message in voted.fails("variance", *arguments, "--votes", table)
    assert sorted((voted.folder / "work").glob("variance/*")) == before
