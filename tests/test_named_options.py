"""Every option and command that a message, help text or docstring of the package names is one that the parser knows."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

from patchcert.cli import _COMMANDS, main

PACKAGE = Path(__file__).parents[1] / "patchcert"
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*)(?![\w{])")
COMMAND = re.compile(r"\bpatchcert ([a-z]+)\b")
# Commands whose help lists, all together, every option that there is.
HELPS = (
    "train column4-digits",
    "vote column4-digits",
    "study crop10-digits",
    "study rc-cifar10",
    "variance crop10-digits",
    "report",
    "verify",
    "ui",
    "doctor",
)
# Stands for any option, is another program's, or is the start of a name.
NO_OPTIONS = {"options", "overrides", "head", "variance", "force-reinstall", "editable", "shm-size"}
# What follows "patchcert" in running text, or in what is hashed.
NO_COMMANDS = {"knows", "validation", "images", "that", "needs", "processes"}


def texts():
    """(file, line, text) of every string and of the fixed parts of every f-string, and every Markdown template."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.lineno, node.value
            elif isinstance(node, ast.JoinedStr):
                # What is filled in may be a part of a name, as in "--{section}.epochs": left in, it matches nothing.
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield path.name, node.lineno, "".join(parts)
    for path in sorted(PACKAGE.rglob("*.md.j2")):
        yield path.name, 0, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def known_options():
    known = set()
    for words in HELPS:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            assert main([*words.split(), "--help"]) == 0
        known |= set(re.findall(r"--([a-z0-9.-]+[a-z0-9])", shown.getvalue()))
    return known | {"help", "version"}


def test_every_named_option_exists(known_options):
    assert {"training.epochs", "views.width", "port", "out", "variance.repeats", "resume", "no-resume"} <= known_options
    # A text that is nothing but an option is an argument of another program.
    wrong = [
        f"{name}:{line}: --{option}"
        for name, line, text in texts()
        if " " in text.strip()
        for option in OPTION.findall(text)
        if option not in known_options | NO_OPTIONS
    ]
    assert wrong == []


def test_every_named_command_exists():
    named = [(name, line, command) for name, line, text in texts() for command in COMMAND.findall(text)]
    assert len(named) > 50
    assert [entry for entry in named if entry[2] not in _COMMANDS and entry[2] not in NO_COMMANDS] == []
