"""What commands print: lines, progress bars and tables, for a screen, a log or a pipe."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from patchcert.addresses import masked

_PLAIN_STEPS, _PLAIN_SECONDS = 10, 60.0


# Escape sequences move the cursor, rename the window or hide text; marks of direction reorder what is read.
_CONTROLS = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
)


def printable(text: str) -> str:
    """A text as it may reach a terminal: no control characters, of which names may be full, and no passwords."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], masked(text))


class _Console(Console):
    """rich's console for text that others wrote: no markup, no control characters.

    A reader that went away is the caller's business: rich would exit with code 1.
    """

    def render_str(self, text: str, **settings: Any) -> Text:
        """Turns any text, also those in cells and titles of tables, into what is printed."""
        return super().render_str(printable(text), **{**settings, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        """Lets the error of the broken pipe pass."""
        raise


class Terminal:
    """Results go to standard output, everything else to standard error."""

    def __init__(self, *, live: bool = True) -> None:
        """Finds out how wide the terminal is; logs and pipes get plain lines.

        Args:
            live: whether progress bars may move; several at a time would overwrite each other.
        """
        self._live = live
        self.out = _Console(file=sys.stdout, highlight=False, soft_wrap=False)
        self.log = _Console(file=sys.stderr, highlight=False)
        if not self.out.is_terminal:
            # Tables in logs should not be squeezed to 80 columns.
            self.out = _Console(file=sys.stdout, highlight=False, width=140)

    def say(self, text: str) -> None:
        """One line for the reader on standard error."""
        self.log.print(text, soft_wrap=True)

    def result(self, renderable: Any) -> None:
        """A table or text that is the result of the command, on standard output."""
        if isinstance(renderable, str):
            self.out.print(renderable, soft_wrap=True)
        else:
            self.out.print(renderable)

    @contextlib.contextmanager
    def progress(self, title: str, unit: str) -> Iterator["_Bar"]:
        """A progress bar; in a log or a pipe, a line at every tenth of the work and once a minute between them.

        Args:
            title: what is being done.
            unit: what is counted, e.g. "images".
        """
        # Variables such as FORCE_COLOR let rich take a log file for a screen; a redrawn bar is unreadable there.
        if self.log.is_terminal and self._live and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.log) as bars:
                yield _RichBar(bars, bars.add_task(title, total=None, note=""))
        else:
            yield _PlainBar(self, title, unit)


class _Bar:
    """Progress of one piece of work."""

    def update(self, done: float, total: float, note: str = "") -> None:
        """Shows how far the work is, and a short note beside it."""
        raise AssertionError("a bar is one of the two below")


class _RichBar(_Bar):
    def __init__(self, bars: Progress, task: Any) -> None:
        self._bars, self._task = bars, task

    def update(self, done: float, total: float, note: str = "") -> None:
        """Moves the bar."""
        self._bars.update(self._task, completed=done, total=total, note=note)


class _PlainBar(_Bar):
    def __init__(self, terminal: Terminal, title: str, unit: str) -> None:
        self._terminal, self._title, self._unit = terminal, title, unit
        self._shown, self._said = 0, time.monotonic()
        self._started: tuple[float, float] | None = None

    def update(self, done: float, total: float, note: str = "") -> None:
        """Prints a line for every further tenth of the work, or after a minute without one."""
        now, step = time.monotonic(), int(_PLAIN_STEPS * done / max(total, 1))
        # What a resumed run finds done says nothing about its speed.
        began, done_before = self._started = self._started or (now, done)
        if step <= self._shown and (now - self._said < _PLAIN_SECONDS or done <= done_before):
            return
        self._shown, self._said = step, now
        text = f"{self._title}: {done:g}/{total:g} {self._unit}"
        if done_before < done < total:
            text += f", {_duration((now - began) * (total - done) / (done - done_before))} left"
        self._terminal.say(text + (f"  {note}" if note else ""))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
