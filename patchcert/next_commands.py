"""Writes commands that can be pasted: the recipe with every override that the user gave, quoted for a shell."""

import re
import shlex
from collections.abc import Collection, Sequence

_WITHOUT_RECIPE = re.compile(
    r"(patchcert (?:prepare|train|vote|study|variance|run)) RECIPE(?:, with the same overrides)?"
)


def command_line(*words: object) -> str:
    """Return ``patchcert`` and its words, quoted for a shell."""
    return shlex.join(["patchcert", *map(str, words)])


def shared_words(words: Sequence[str], own_options: Collection[str]) -> list[str]:
    """Return the words of a command that every other command of the same recipe takes, too.

    Args:
        words: recipe and options, as they were typed.
        own_options: options that only some commands have: ``dry-run``, or ``variance`` for all ``--variance.*``.
    """
    kept, is_kept = [], True
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            is_kept = not {name, name.removeprefix("no-"), name.partition(".")[0]} & set(own_options)
        if is_kept:
            kept.append(word)
    return kept


def with_recipe(message: str, words: Sequence[str]) -> str:
    """Return a message with the recipe and overrides of a command in place of the word RECIPE in its commands."""
    return _WITHOUT_RECIPE.sub(lambda match: f"{match[1]} {shlex.join(words)}", message)
