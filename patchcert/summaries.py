"""One-line summaries of functions, for lists, also where Python was told to drop docstrings (``-OO``)."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def summary_of(function: Callable[..., Any]) -> str:
    """Return the first line of a function's docstring, from its source where Python dropped it; else its name."""
    text = function.__doc__ or _docstring_in_source(function) or function.__name__.replace("_", " ")
    return text.strip().splitlines()[0]


def _docstring_in_source(function: Callable[..., Any]) -> str | None:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError, ValueError, TypeError):
        return None
    return ast.get_docstring(definition) if isinstance(definition, ast.FunctionDef) else None
