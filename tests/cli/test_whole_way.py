"""The command line from outside: help, a whole run, its files, a kill and its repair."""

import subprocess
import sys


def test_help_answers_at_once_and_loads_nothing_heavy(patchcert):
    code = (
        "import sys; from patchcert.cli import main; main(['--help']); "
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("usage: patchcert COMMAND") and out.endswith("[]\n")


def test_every_command_of_the_help_exists_and_explains_itself(here):
    out, _ = here("--help")
    commands = [line.split()[0] for line in out.split("commands\n")[1].split("\n\n")[0].splitlines()]
    assert len(commands) == 14
    for command in commands:
        recipe = ["column4-digits"] if command in ("prepare", "train", "vote", "study", "variance", "run") else []
        if command not in ("list", "show"):
            assert "--work" in here(command, *recipe, "--help")[0]


def test_list_and_show_name_what_can_be_run_and_set(here):
    out, _ = here("list")
    assert "column4-digits" in out and "cifar10-jpeg" in out and "randomized cropping" in out
    out, _ = here("show", "column7-cifar10")
    assert "--views.width 7" in out and "--training.epochs" in out
