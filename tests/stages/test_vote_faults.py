"""Parts that fail: what is tried again, what is given up, and what a table without them says."""

import dataclasses
import errno
import json
import os
import signal

import pyarrow as pa
import pytest
from vote_jobs import digests, job_of

from patchcert.data import prepare
from patchcert.data.storage import Folder, write_error
from patchcert.errors import DatasetError, ResourceError, VoteTableError
from patchcert.stages.resources import Resources
from patchcert.votes import VoteTable

PARTS_OF_20 = Resources(images_per_part=20, workers=1, storage_retries=0)
QUARANTINE = dataclasses.replace(PARTS_OF_20, on_bad_part="quarantine")


@pytest.fixture
def damaged(tmp_path, small_recipe):
    """Damages rows of a copy of the test split, and mends them again."""
    config = dataclasses.replace(small_recipe.data, rows_per_group=20, rows_per_shard=20)
    dataset = prepare(config, small_recipe.views.image_size, str(tmp_path / "data"), splits=["test"])["test"]
    whole = {}

    def damage(*parts):
        for part in parts:
            path = dataset.folder.path(dataset.shards[part].file)
            with open(path, "rb") as shard:
                whole[path] = shard.read()
            with open(path, "r+b") as shard:
                shard.seek(-8, os.SEEK_END)
                shard.write(bytes(8))
        return dataset

    def mend():
        for path, data in whole.items():
            with open(path, "wb") as shard:
                shard.write(data)

    damage.mend = mend
    return damage


def test_bad_part_stops_the_run_and_is_named(reference, small_recipe, damaged, model_folder, workspace):
    from patchcert.stages.vote import vote

    with pytest.raises(DatasetError, match=r"is damaged: shard-00002.* cannot be read"):
        vote(small_recipe, damaged(2), model_folder, workspace, PARTS_OF_20)
    (table,) = (workspace.folder.folder("votes").path(name) for name in workspace.folder.folder("votes").folders())
    with pytest.raises(VoteTableError, match="is unfinished"):
        VoteTable.open(table)


def test_quarantined_part_is_listed_counted_and_can_be_mended(
    reference, small_recipe, damaged, model_folder, workspace
):
    from patchcert.stages.study import answer
    from patchcert.stages.vote import vote
    from patchcert.studies.answering import summarise
    from patchcert.studies.questions import questions
    from patchcert.studies.subject import Subject

    dataset = damaged(2)
    table = vote(small_recipe, dataset, model_folder, workspace, QUARANTINE)
    assert (table.num_images, table.num_unvoted, table.num_parts, table.unvoted_rows) == (100, 20, 5, [(40, 60)])
    with open(os.path.join(table.location, "quarantined_parts.json")) as file:
        (listed,) = json.load(file)
    assert (listed["name"], listed["start"], listed["stop"]) == ("part-00002-of-00006.parquet", 40, 60)
    assert "shard-00002" in listed["reason"] and len(listed["nodes"]) == 1
    kept = digests(table)
    assert {name: kept[name] for name in kept if name.startswith("part-")}.items() < digests(reference).items()

    asked = questions(small_recipe.study, table.views, table.score_floor)
    answers = summarise(answer(VoteTable.open(table.location), asked), asked, Subject.of_table(table, "x"))
    assert (answers["num_images"] == 120).all()
    assert answers["note"].str.contains("20 images of parts that failed count as wrong").all()
    assert answers["clean_accuracy"].max() <= 100 / 120

    damaged.mend()
    table = vote(small_recipe, dataset, model_folder, workspace, PARTS_OF_20)
    assert digests(table) == digests(reference)
    assert not os.path.exists(os.path.join(table.location, "quarantined_parts.json"))


def test_too_many_bad_parts_are_no_bad_parts(reference, small_recipe, damaged, model_folder, workspace):
    from patchcert.stages.vote import vote

    with pytest.raises(DatasetError, match="4 of 6 parts failed, too many to be bad parts"):
        vote(small_recipe, damaged(0, 1, 2, 3, 4), model_folder, workspace, QUARANTINE)


def test_killed_actor_costs_one_part_and_changes_nothing(
    reference, small_recipe, prepared, model_folder, workspace, tmp_path, monkeypatch
):
    from patchcert.stages import vote as stage

    has_died, receipts = tmp_path / "has died", []

    # Local, so that it travels to the actor by value.
    class VoteWorker(stage.VoteWorker):
        def _votes(self, start, stop):
            if start == 40 and not has_died.exists():
                has_died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._votes(start, stop)

    monkeypatch.setattr(stage, "VoteWorker", VoteWorker)
    table = stage.vote(
        small_recipe,
        prepared["test"],
        model_folder,
        workspace,
        PARTS_OF_20,
        on_part=lambda receipt, progress: receipts.append(receipt),
    )
    assert has_died.exists()
    assert sorted(receipt.part for receipt in receipts) == [-1, 0, 1, 2, 3, 4, 5]
    assert sum(receipt.attempts - 1 for receipt in receipts if receipt.attempts) == 1
    assert digests(table) == digests(reference)
    assert table.measured()["lost_attempts"] == 1


class Storage:
    """Makes the next calls of ``Folder.writer`` fail; counts the waits between."""

    def __init__(self, monkeypatch, error, times):
        self.waits, self.left = [], times
        original = Folder.writer

        def writer(folder, name):
            if name.startswith("part-") and self.left:
                self.left -= 1
                raise write_error(f"{folder}/{name}", error) from error
            return original(folder, name)

        monkeypatch.setattr(Folder, "writer", writer)
        monkeypatch.setattr("patchcert.stages.vote_worker.time.sleep", self.waits.append)


def computed(job):
    from patchcert.stages.vote_worker import VoteWorker

    return VoteWorker(job)(pa.table({"part": [2], "start": [40], "stop": [60]})).to_pylist()[0]


def test_storage_that_fails_for_a_while_is_waited_for(small_recipe, prepared, model_folder, tmp_path, monkeypatch):
    job = job_of(small_recipe, prepared, model_folder, tmp_path)
    name = "part-00002-of-00006.parquet"
    computed(job)
    undisturbed = (tmp_path / name).read_bytes()
    os.unlink(tmp_path / name)
    storage = Storage(monkeypatch, OSError(errno.ESTALE, "Stale file handle"), 3)
    receipt = computed(job)
    assert (receipt["error"], receipt["retries"], storage.waits) == ("", 3, [1, 2, 4])
    assert (tmp_path / name).read_bytes() == undisturbed

    os.unlink(tmp_path / name)
    storage.left = 99
    receipt = computed(dataclasses.replace(job, storage_retries=2))
    assert receipt["remedy"] == "elsewhere" and "It failed 3 times within 3 s" in receipt["error"]


def test_full_disk_stops_the_run_whatever_the_part(small_recipe, prepared, model_folder, tmp_path, monkeypatch):
    storage = Storage(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), 1)
    receipt = computed(job_of(small_recipe, prepared, model_folder, tmp_path))
    assert (receipt["remedy"], receipt["error_kind"], storage.waits) == ("stop", "ResourceError", [])
    assert "No space left" in receipt["error"] and "the same command then continues" in receipt["error"]


def test_process_whose_gpu_is_lost_leaves_word_and_ends(small_recipe, prepared, model_folder, tmp_path, monkeypatch):
    """No GPU here: the driver's answers are played, everything else is real."""
    import torch

    from patchcert.stages.vote_worker import VoteWorker

    class Ended(BaseException):
        pass

    def fails(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    def end(code):
        raise Ended(code)

    worker = VoteWorker(job_of(small_recipe, prepared, model_folder, tmp_path))
    monkeypatch.setattr("patchcert.prediction.scoring.ViewScorer.score", fails)
    row = {"part": 2, "start": 40, "stop": 60}
    receipt = worker.compute(row)
    assert receipt.remedy == "elsewhere" and "device-side assert" in receipt.error
    worker._device = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.synchronize", fails)
    monkeypatch.setattr("os._exit", end)
    for _ in range(2):
        with pytest.raises(Ended):
            worker.compute(row)
    # The marks of three attempts are there now, and tell why.
    receipt = worker.compute(row)
    assert "ended its worker process 3 times" in receipt.error and receipt.remedy == "elsewhere"
    assert "the GPU was lost: RuntimeError: CUDA error: device-side assert triggered" in receipt.error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part_attempts": 0}, "part_attempts must be >= 1, not 0"),
        ({"part_timeout": 0}, "part_timeout must be a positive number of seconds"),
        ({"gpus_per_worker": 2}, "gpus_per_worker must be above 0 and at most 1, not 2"),
        ({"wait_for_gpus": -1}, "wait_for_gpus must be >= 0"),
        ({"wait_for_gpus": 5, "device": "cpu"}, "wait_for_gpus is 5, but device is cpu"),
        ({"storage_retries": -1}, "storage_retries must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ResourceError, match=message):
        Resources(**settings)
