"""What a later stage would refuse is refused before the first one; folders that cannot be written are one message."""

import os
import re

import pytest

from .conftest import SMALL

DRAWN = ("--study.certificates", "fresh_draw", "--study.num-draws")
CROPS = ("--study.certificates", "random_crops_reported", "--study.num-draws", "8")
REFUSED = [
    (("--study.vote-thresholds", "0.01"), "vote_threshold 0.01 lies below the vote table's score floor 0.1"),
    (("--study.score-tolerance", "0.25"), "reach below the vote table's score floor 0.1"),
    (("--study.vote-thresholds", "0.3", "--prediction.score-floor", "0"), "needs scores, the vote table stores top"),
    (("--study.split", "Test"), "digits has no Test split, only train, validation, test, trainval"),
    (("--study.headline-patch", "90x90"), "90x90, but the image is only 32x32"),
    (("--study.patches", "33x1"), "33x1, but the image is only 32x32"),
    (CROPS, "random_crops_reported certifies random crops, but the votes are those of"),
    ((*DRAWN, "999", "--study.replacement", "without"), "999 views cannot be drawn without replacement from 32"),
    (("--classifier.network", "resnet99"), "there is no network 'resnet99'"),
    (("--classifier.network", "no_such_module:make", "--classifier.width", "1"), "cannot build 'no_such_module:make'"),
    (("--classifier.network", "crop-network"), "ModelError"),
    (("--prediction.precision", "tf32", "--resources.device", "cpu"), "tf32 is arithmetic of NVIDIA GPUs"),
    (("--tracking.mode", "strict", "--tracking.uri", "http://127.0.0.1:1"), "127.0.0.1:1 does not answer"),
    (("--resources.wait-for-gpus", "nan"), "wait_for_gpus must be a finite number, not nan"),
    (("--resources.accelerator", "H100", "--resources.device", "cpu"), "accelerator is H100, but device is cpu"),
    (
        ("--resources.gpus-per-worker", "0.25", "--resources.device", "cpu"),
        "gpus_per_worker is 0.25, but device is cpu",
    ),
]


def files_in(folder):
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


@pytest.mark.parametrize(
    ("settings", "message"), REFUSED, ids=lambda value: value[0] if isinstance(value, tuple) else ""
)
def test_run_refuses_a_setting_of_any_stage_before_the_first(here, settings, message):
    error = here.fails("run", "column4-digits", *settings)
    assert message in error and len(re.findall(r"^\w+Error: ", error, re.MULTILINE)) == 1
    assert not (here.folder / "work").exists()


def test_study_asks_its_questions_before_it_looks_for_votes(here):
    error = here.fails("study", "column4-digits", "--study.vote-thresholds", "0.05")
    assert "lies below the vote table's score floor" in error
    error = here.fails("variance", "crop10-digits", "--variance.num-draws", "100000")
    assert "100000 views cannot be drawn without replacement" in error
    error = here.fails("variance", "column4-digits")
    assert "random crops are drawn, but the votes are those of" in error
    assert not (here.folder / "work").exists()


def test_a_suite_checks_all_experiments_before_the_first(here):
    error = here.fails("study", "drs-mnist", "--quick", "--prediction.score-floor", "0.9", "--data.source", "nowhere")
    assert "lies below the vote table's score floor 0.9" in error
    assert not (here.folder / "work").exists()


@pytest.mark.parametrize("command", ["prepare", "train", "run"])
def test_a_read_only_work_folder_is_one_message(here, read_only, command):
    (here.folder / "work").mkdir()
    read_only(here.folder / "work")
    error = here.fails(command, "column4-digits", *SMALL, "--tracking.mode", "off")
    assert error.count("Error: ") == 1 and "ResourceError: cannot write" in error and "Read-only file system" in error
