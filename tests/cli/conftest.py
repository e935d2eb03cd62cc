import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from patchcert.cli import main


class CommandLine:
    """Runs ``patchcert`` as a user does: another process with a Ray of its own, its exit code, what it printed."""

    def __init__(self, folder, patience=500):
        self.folder, self.patience = folder, patience
        self.changes = {"PATCHCERT_WORK": str(folder / "work"), "COLUMNS": "160"}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PATCHCERT_")}
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.environment |= self.changes

    def here(self):
        """The same commands in this process, on the Ray to which it is connected if they need one."""
        return CommandLineHere(self.folder)

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


class CommandLineHere(CommandLine):
    """Runs ``patchcert`` in this process, which spares seconds of imports; all else is as on the command line."""

    def __call__(self, *arguments, code=0, env=None):
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
            for name in [name for name in os.environ if name.startswith("PATCHCERT_")]:
                patch.delenv(name)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            for name, value in (self.changes | (env or {})).items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                found = main([str(argument) for argument in arguments])
        assert found == code, f"exit {found}, not {code}\n{out.getvalue()}\n{err.getvalue()}"
        return out.getvalue(), err.getvalue()


def next_command(err):
    """Words of the command that a command says comes next, as a shell reads them when it is pasted."""
    (line,) = [line for line in err.splitlines() if "Next:  patchcert " in line]
    return shlex.split(line.partition("Next:  patchcert ")[2])


@pytest.fixture
def patchcert(tmp_path):
    """The command line in processes of their own."""
    return CommandLine(tmp_path)


@pytest.fixture
def here(tmp_path):
    """The command line in this process."""
    return CommandLineHere(tmp_path)


def unmount(folder):
    if any(line.split()[1] == str(folder) for line in open("/proc/self/mounts")):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only():
    """Makes folders read-only for everybody, the superuser too, until the test ends."""
    with contextlib.ExitStack() as mounts:

        def mount(folder):
            bind = ["mount", "--bind", str(folder), str(folder)]
            if subprocess.run(bind, capture_output=True, check=False).returncode:
                pytest.skip("this user may not mount a folder read-only")
            mounts.callback(unmount, folder)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)

        yield mount


@pytest.fixture(scope="session")
def finished(tmp_path_factory, empty_store):
    """The command line in this process; its work folder holds a small run of column4-digits from outside.

    What that printed is its ``output``.
    """
    command = CommandLine(tmp_path_factory.mktemp("finished"))
    (command.folder / "work").mkdir()
    shutil.copy(empty_store, command.folder / "work" / "mlflow.db")
    output = command("run", "column4-digits", *SMALL)
    command = command.here()
    command.output = output
    return command


SMALL = (
    "--data.limit", "150", "--data.validation-size", "30", "--classifier.width", "0.125", "--training.epochs", "2",
    "--training.batch-size", "30", "--resources.images-per-part", "10", "--study.patches", "1x1", "3x3", "5x5",
)  # fmt: skip
