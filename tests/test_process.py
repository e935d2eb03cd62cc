"""The command line as a process: streams that cannot show a character, are closed, full or left by their reader."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from studies import simulated

from patchcert.cli import main


def start(*arguments, variables=(), options=(), **streams):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONIO", "LC_", "LANG"))}
    command = [sys.executable, *options, "-m", "patchcert", *map(str, arguments)]
    return subprocess.Popen(command, env=plain | dict(variables), stdin=subprocess.DEVNULL, **streams)


def run(*arguments, **settings):
    """(exit code, standard output, standard error), both as bytes."""
    process = start(*arguments, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study in a folder whose name is not ASCII."""
    folder = tmp_path_factory.mktemp("studies") / "größe_研究"
    simulated.write(simulated.column_study(), folder)
    return folder


@pytest.fixture
def shown(monkeypatch):
    """Runs a command on streams of an encoding that take nothing else: (exit code, output, errors), as bytes."""

    def show(encoding, *arguments):
        streams = []
        for name in ("stdout", "stderr"):
            streams.append(io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict"))
            monkeypatch.setattr(sys, name, streams[-1])
        code = main([str(argument) for argument in arguments])
        monkeypatch.undo()
        return code, *(stream.buffer.getvalue() for stream in streams)

    return show


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_the_output_cannot_show_is_replaced(study, tmp_path, shown, encoding):
    with simulated.blank_figures():
        code, out, err = shown(encoding, "report", study, "--out", tmp_path / "größe_研究")
    assert code == 0 and b"placement" in out
    assert "größe_研究/report.html".encode(encoding, "replace") in err
    assert "score ≥ 0.3" in next(tmp_path.glob("*/report.html")).read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["list"], ["show", "crop10-cifar10"], ["train", "column4-digits", "--help"]])
def test_every_listing_is_shown_in_ascii(shown, arguments):
    code, out, err = shown("ascii", *arguments)
    assert code == 0 and len(out) > 100 and b"Traceback" not in err


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "größe"), ("utf-8", os.fsdecode(b"gr\xf6\xdfe"))])
def test_a_message_about_a_name_that_cannot_be_shown_is_still_a_message(shown, encoding, name):
    code, _, err = shown(encoding, name)
    assert code == 2 and b"Traceback" not in err
    assert err.startswith(b"RecipeError: there is no command 'gr")


def test_a_process_in_the_c_locale_ends_with_its_message():
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, _, err = run("show", "größe", variables=variables)
    assert code == 2 and err.startswith(b"RecipeError: ") and b"Traceback" not in err


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["nonsense"]], ids=" ".join)
@pytest.mark.parametrize("both", [False, True], ids=["output", "output and errors"])
def test_a_reader_that_goes_away_ends_a_command_quietly(arguments, both, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(tmp_path / "errors", "wb") as errors:
        code = start(*arguments, stdout=writing, stderr=writing if both else errors).wait(120)
    os.close(writing)
    printed = (tmp_path / "errors").read_bytes()
    if arguments == ["nonsense"] and not both:
        assert code == 2 and printed.startswith(b"RecipeError: ")
    else:
        assert (code, printed) == (141, b"")


def test_a_broken_connection_of_something_else_is_not_taken_for_a_reader():
    program = """
from patchcert.process import with_readers
def command():
    raise BrokenPipeError(32, "a socket of a library")
with_readers(command)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "a socket of a library" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["list"], ["--help"]], ids=" ".join)
def test_output_that_cannot_be_written_is_one_message(arguments):
    with open("/dev/full", "wb") as full:
        code, _, err = run(*arguments, stdout=full)
    assert code == 2 and err.startswith(b"ResourceError: the output of this command cannot be written: No space left")
    assert b"Traceback" not in err and b"Exception" not in err


def test_closed_streams_end_no_command():
    for arguments, expected in ((["list"], 0), (["nonsense"], 2)):
        closing = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-m", "patchcert", *arguments]
        assert subprocess.run(closing, check=False).returncode == expected


def test_a_warning_of_a_library_is_no_error():
    program = "import warnings\nfrom patchcert.cli import main\nmain(['--version'])\nwarnings.warn('small')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "small" in done.stderr


def test_the_commit_of_a_result_is_that_of_the_package_whatever_git_is_told(tmp_path, monkeypatch):
    from patchcert.provenance import code_version

    expected = code_version()
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert code_version() == expected
