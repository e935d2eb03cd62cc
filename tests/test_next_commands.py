"""Commands that the reader is shown can be pasted: they repeat the overrides that were given."""

import shlex

import pytest

from patchcert.cli import _own_options, main
from patchcert.next_commands import shared_words, with_recipe

TINY = ("--data.limit", "60", "--data.validation-size", "20", "--classifier.width", "0.125")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("r --training.epochs 5 --work w", "r --training.epochs 5 --work w"),
        ("r --checkpoint m --training.seed 1", "r --training.seed 1"),
        ("r --study.patches 1x1 2x2 --no-resume --verbose", "r --study.patches 1x1 2x2 --verbose"),
        ("r --dry_run --dry-run --untrained --views.width=5", "r --views.width=5"),
        ("r --variance.num-draws 16 32 --out=f --votes t --data.limit 3", "r --data.limit 3"),
    ],
)
def test_options_of_one_command_alone_are_not_repeated(words, kept):
    assert shared_words(words.split(), _own_options()) == kept.split()


def test_messages_name_the_recipe_with_its_overrides():
    message = "no model.\n  Train it first:  patchcert train RECIPE, with the same overrides"
    expected = "no model.\n  Train it first:  patchcert train r --work 'a b'"
    assert with_recipe(message, ["r", "--work", "a b"]) == expected
    assert with_recipe("patchcert ui", ["r"]) == "patchcert ui"


def pasted(text):
    (line,) = [line for line in text.splitlines() if "Next:  patchcert " in line]
    return shlex.split(line.partition("Next:  patchcert ")[2])


def test_next_commands_of_prepare_and_start_weights_can_be_pasted(tmp_path, capsys):
    work = ["--work", str(tmp_path / "my work")]
    assert main(["prepare", "column4-digits", *TINY, *work]) == 0
    assert pasted(capsys.readouterr().err) == ["train", "column4-digits", *TINY, *work]
    assert main(["train", "column4-digits", "--untrained", *TINY, *work]) == 0
    command = pasted(capsys.readouterr().err)
    assert command[:-1] == ["vote", "column4-digits", *TINY, *work, "--checkpoint"]
    assert (
        tmp_path / "my work" / "models" / "column4-digits" / command[-1].rpartition("/")[2] / "config.json"
    ).exists()


def test_refusal_names_a_command_that_can_be_pasted(tmp_path, capsys):
    work = ["--work", str(tmp_path / "work")]
    assert main(["vote", "column4-digits", "--training.seed", "0", "--prediction.score-floor", "0", *work]) == 2
    expected = f"patchcert train column4-digits --training.seed 0 --prediction.score-floor 0 --work {tmp_path}/work\n"
    assert expected in capsys.readouterr().err


def test_a_table_and_a_checkpoint_at_a_time_are_refused(tmp_path, capsys):
    work = ["--work", str(tmp_path / "work")]
    assert main(["study", "column4-digits", "--votes", "t", "--checkpoint", "m", *work]) == 2
    assert "--votes t names the vote table, so --checkpoint m has no effect" in capsys.readouterr().err
