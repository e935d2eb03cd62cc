"""What runs on the servers of the repository's host is pinned to a commit, and may read the repository and no more."""

import re
from pathlib import Path

import pytest
import yaml

FILES = sorted((Path(__file__).parents[1] / ".github" / "workflows").glob("*.y*ml"))


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def text(request):
    return request.param.read_text()


def steps(text):
    return [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]


def test_there_are_workflows():
    assert FILES


def test_every_action_is_a_commit_with_its_version_beside_it(text):
    used = re.findall(r"uses: *(.*)", text)
    assert len(used) == sum("uses" in step for step in steps(text)) > 0
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+){2}", one), one


def test_a_workflow_may_read_the_repository_and_no_more(text):
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert not [name for name, job in workflow["jobs"].items() if "permissions" in job]
    # Runs with the rights and secrets of this repository, on what somebody else proposes.
    assert "pull_request_target" not in text and "secrets." not in text


def test_no_step_leaves_credentials_behind(text):
    checkouts = [step for step in steps(text) if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(yaml.safe_load(text)["jobs"])
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_no_command_is_made_of_what_a_stranger_writes(text):
    """A title or branch name in `${{ }}` becomes part of the command."""
    assert not [step["run"] for step in steps(text) if "${{" in step.get("run", "")]


def test_the_lock_files_are_made_anew_and_compared(text):
    commands = [step["run"] for step in steps(text) if "run" in step]
    assert "make lock" in commands
    assert commands[commands.index("make lock") + 1].startswith("git diff --exit-code -- requirements.lock")
