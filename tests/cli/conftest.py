import os
import shlex
import subprocess
import sys

import pytest


class CommandLine:
    """Runs ``patchcert`` as a user does: another process, its exit code, what it printed."""

    def __init__(self, folder, patience=500):
        self.folder, self.patience = folder, patience
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PATCHCERT_")}
        self.environment |= {"PATCHCERT_WORK": str(folder / "work"), "MLFLOW_TRACKING_URI": "", "COLUMNS": "160"}
        del self.environment["MLFLOW_TRACKING_URI"]

    def start(self, *arguments, **options):
        """A running command."""
        return subprocess.Popen(
            [sys.executable, "-m", "patchcert", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment | options.pop("env", {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, *arguments, code=0, **options):
        """What a command printed: (standard output, standard error); checks its exit code."""
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=self.patience)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == code, f"exit {process.returncode}, not {code}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return out, err

    def fails(self, *arguments, **options):
        """The message of a command that ends with exit code 2."""
        return self(*arguments, code=2, **options)[1]


def next_command(err):
    """Words of the command that a command says comes next, as a shell reads them when it is pasted."""
    (line,) = [line for line in err.splitlines() if "Next:  patchcert " in line]
    return shlex.split(line.partition("Next:  patchcert ")[2])


@pytest.fixture
def patchcert(tmp_path):
    return CommandLine(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A command line whose work folder holds a small finished run of column4-digits, and that run's output."""
    command = CommandLine(tmp_path_factory.mktemp("finished"))
    command.output = command("run", "column4-digits", *SMALL)
    return command


SMALL = (
    "--data.limit", "150", "--data.validation-size", "30", "--classifier.width", "0.125", "--training.epochs", "2",
    "--training.batch-size", "30", "--resources.images-per-part", "10", "--study.patches", "1x1", "3x3", "5x5",
)  # fmt: skip
