"""The package where Python drops docstrings and assertions (``-OO``, PYTHONOPTIMIZE=2)."""

import os
import subprocess
import sys

import pytest

from patchcert.cli import main
from patchcert.errors import ResourceError
from patchcert.stages.cluster import check_docstrings

ONE_PROCESS = """
from patchcert.cli import main
assert False, "assertions are dropped"
for words in {commands!r}:
    print("##", main(words))
"""


def test_commands_answer_and_list_the_same_without_docstrings(capsys):
    commands = [["list"], ["show", "column4-digits"], ["--help"], ["report", "--help"]]
    program = ONE_PROCESS.format(commands=commands)
    environment = os.environ | {"PYTHONOPTIMIZE": "2", "COLUMNS": "140"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## 0\n") == len(commands)
    assert main(["list"]) == 0
    assert done.stdout.startswith(capsys.readouterr().out)


def test_a_stage_that_needs_ray_says_what_to_leave_out():
    check_docstrings(1)
    with pytest.raises(ResourceError, match="PYTHONOPTIMIZE=2"):
        check_docstrings(2)
