"""The commands and numbers of docs/verification.md."""

import math
import os
import re
import shutil
from pathlib import Path

import pytest

from patchcert.cli import main
from patchcert.verification.against import Against
from patchcert.verification.rescoring import TOLERANCES
from patchcert.verification.sample import chance_to_see, reach_in_words

PAGE = (Path(__file__).parents[2] / "docs" / "verification.md").read_text()
COMMANDS = re.findall(r"^    patchcert (verify .*)$", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def work(honest, tmp_path_factory):
    """A work folder as the stages leave it; returns the folder around it."""
    root = tmp_path_factory.mktemp("page")
    for source, place in (
        (honest.data, "data/digits-32x32/test"),
        (honest.model, "models/column4-digits/key"),
        (honest.table.location, "votes/column4-digits-1"),
        (honest.plain.location, "votes/column4-digits-2"),
        (honest.plain_study.folder.path(), "studies/column4-digits-1"),
    ):
        shutil.copytree(source, root / "patchcert-work" / place)
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(work, command, monkeypatch, capsys):
    monkeypatch.chdir(work)
    assert main(command.split()) == 0
    compared = "scored again" if "--checkpoint" in command else "answered again"
    assert compared in " ".join(capsys.readouterr().out.split()) or command == COMMANDS[0]


def test_there_are_commands():
    assert len(COMMANDS) == 4 and os.path.basename(COMMANDS[0]) == "verify patchcert-work"


def test_numbers_are_those_of_the_program():
    rows = re.findall(r"^\| (\d+)(?: \(default\))? \| (\d+) % \| (\d+) % \| (\d+) % \|$", PAGE, flags=re.MULTILINE)
    assert [int(row[0]) for row in rows] == [Against().images, 200, 500]
    for num_sampled, *percents in rows:
        chances = [chance_to_see(num_forged, 10_000, int(num_sampled)) for num_forged in (100, 500, 1_000)]
        assert [int(percent) for percent in percents] == [min(99, math.floor(100 * chance)) for chance in chances]
    assert reach_in_words(10_000, 64) in PAGE
    assert f"{100 * chance_to_see(1, 10_000, 64):.1f} % in a sample of 64" in PAGE
    for precision, tolerance in TOLERANCES.items():
        assert re.search(rf"{tolerance:g} in\s+{precision}", PAGE)
