"""The tools that start a Ray of this machine write to private folders only and end nothing but their own processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
TOOLS = ("local.sh", "several_nodes.py")
STATES = {"local.sh": "state", "several_nodes.py": "cluster.json"}


def run(tool, command, folder, **variables):
    """Exit code and output of a tool; a folder of None is the tool's own choice."""
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"} | variables
    arguments = [str(CLUSTER / tool), command]
    if tool == "several_nodes.py":
        arguments = [sys.executable, *arguments, *(["--folder", str(folder)] if folder else [])]
    elif folder:
        environment["PATCHCERT_RAY_FOLDER"] = str(folder)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def write_state(tool, folder, process, ray_folder):
    """What the tool would have written about a cluster of this process number."""
    kind = "patchcert-ray" if tool == "local.sh" else "patchcert-nodes"
    ray_folder = ray_folder or f"/tmp/{kind}.AAAAAA"
    if tool == "local.sh":
        text = f"{process}\n{ray_folder}\n"
    else:
        text = json.dumps({"process": process, "ray_folder": ray_folder, "address": "http://127.0.0.1:1", "nodes": []})
    path = folder / STATES[tool]
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder as the tools make it."""
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def bystander():
    """A process of this user, leader of its group, that no tool has started."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def open_to_others(folder):
    folder.chmod(0o777)
    return folder


def a_link(folder):
    link = folder.with_name("link")
    link.symlink_to(folder)
    return link


@pytest.mark.parametrize("planted", [open_to_others, a_link])
@pytest.mark.parametrize("command", ["start", "variables", "stop"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_folder_that_others_may_have_prepared_is_refused(tool, command, planted, folder, bystander):
    write_state(tool, folder, bystander.pid, None)
    code, output = run(tool, command, planted(folder))
    assert code == 2 and "has to be a folder of yours that nobody else may enter" in output and "ls -ld" in output
    assert {path.name for path in folder.iterdir()} == {STATES[tool]} and bystander.poll() is None


@pytest.mark.parametrize("content", ["", "-1", "0", "1", "12; touch FOLDER/ran", "$(touch FOLDER/ran)", "[]"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_state_that_the_tool_has_not_written_ends_nothing(tool, content, folder):
    path = folder / STATES[tool]
    path.write_text(f"{content.replace('FOLDER', str(folder))}\n")
    path.chmod(0o600)
    code, output = run(tool, "stop", folder)
    assert code == 2 and "nothing was ended" in output
    assert not (folder / "ran").exists() and path.exists()


@pytest.mark.parametrize("ray_folder", ["/", "/tmp", "relative", "/tmp/patchcert-ray./../..", "/etc/patchcert"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_state_that_names_a_folder_of_another_kind_ends_nothing(tool, ray_folder, folder, bystander):
    write_state(tool, folder, bystander.pid, ray_folder)
    code, output = run(tool, "stop", folder)
    assert code == 2 and "nothing was ended" in output and bystander.poll() is None


@pytest.mark.parametrize("tool", TOOLS)
def test_a_state_that_others_may_write_ends_nothing(tool, folder, bystander):
    write_state(tool, folder, bystander.pid, None).chmod(0o666)
    code, output = run(tool, "stop", folder)
    assert code == 2 and "nothing was ended" in output and bystander.poll() is None


@pytest.mark.parametrize("tool", TOOLS)
def test_a_process_that_got_the_number_of_an_ended_cluster_lives_on(tool, folder, bystander):
    write_state(tool, folder, bystander.pid, None)
    code, output = run(tool, "stop", folder)
    assert code == 0 and "not running" in output and bystander.poll() is None
    assert run(tool, "variables", folder)[0] == 2


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_kept_at_a_guessable_name_that_everybody_may_write_to(tool, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for runtime, expected in ((None, home / ".local" / "state"), (tmp_path / "runtime", tmp_path / "runtime")):
        variables = {"HOME": str(home), "XDG_STATE_HOME": ""}
        if runtime:
            runtime.mkdir(mode=0o700)
            variables["XDG_RUNTIME_DIR"] = str(runtime)
        own = expected / ("patchcert-ray" if tool == "local.sh" else "patchcert-nodes")
        own.mkdir(parents=True)
        own.chmod(0o755)
        code, output = run(tool, "stop", None, **variables)
        assert code == 2 and str(own) in output
