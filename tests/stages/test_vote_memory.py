import dataclasses
import json
import os
import pickle
import subprocess
import sys

import pytest
from vote_jobs import job_of

from patchcert.data import prepare
from patchcert.data.storage import Folder
from patchcert.geometry import CropViews
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.recipes import find_recipe

SIZE, ROWS = (320, 320), 20
FEW_PARTS = 5
# Computes all parts one after the other and says what it held at most, in MiB, after each.
WORKER = """
import json, pickle, sys
from pathlib import Path
from patchcert.stages.vote_worker import VoteWorker
job, rows = pickle.load(sys.stdin.buffer)
worker, peaks = VoteWorker(job), []
for row in rows:
    receipt = worker.compute(row)
    assert not receipt.error, receipt.error
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that a process held is read from /proc")
def test_memory_of_an_actor_does_not_depend_on_the_number_of_images(tmp_path):
    recipe = find_recipe("crop16-digits")
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, resize="stretch", rows_per_group=ROWS, limit=500),
        views=CropViews(image_size=SIZE, crop_size=(16, 16), stride=(152, 152)),
        classifier=dataclasses.replace(recipe.classifier, width=0.0625),
        study=dataclasses.replace(recipe.study, patches=("5x5",)),
    )
    splits = prepare(recipe.data, SIZE, str(tmp_path / "data"), splits=["test"])
    dataset = splits["test"]
    classifier = initial_classifier(recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, 0)
    model = Folder(str(tmp_path / "model"))
    save_checkpoint(classifier, model, {})
    job = job_of(recipe, splits, model, tmp_path / "table")
    rows = [{"part": part, "start": start, "stop": stop} for part, (start, stop) in enumerate(dataset.parts(ROWS))]

    # With an arena for each thread, glibc's peak moves in steps of 6 MiB with which thread happens to read what.
    one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], input=pickle.dumps((job, rows)), capture_output=True, env=one_arena
    )

    assert done.returncode == 0, done.stderr.decode()
    peaks = json.loads(done.stdout)
    assert len(peaks) == len(rows) == 25
    later_images = (dataset.num_rows - FEW_PARTS * ROWS) * dataset.num_bytes / dataset.num_rows / 2**20
    assert later_images > 38
    assert peaks[-1] - peaks[FEW_PARTS - 1] < later_images / 4
