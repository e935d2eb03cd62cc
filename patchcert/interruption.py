"""Ends a command that is interrupted, by Ctrl-C or by SIGTERM, in one way: once, after cleaning up, with one line.

The first signal raises KeyboardInterrupt. Later ones change nothing while the command cleans up; if that takes too
long, the next one ends the command and every process it started.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_CODE = 130
MESSAGE = "interrupted; the same command continues where it stopped"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_TO_CLEAN_UP = 10.0


class _Watch:
    """What has come so far, and what to do about it."""

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}
        self.first: float | None = None
        self.num_deferring = 0
        self.is_waiting = False

    def handle(self, _: int, __: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            self.is_waiting = self.num_deferring > 0
            if not self.is_waiting:
                raise KeyboardInterrupt
        elif now - self.first > _SECONDS_TO_CLEAN_UP:
            _leave()


_watch: _Watch | None = None
_messages_to = 2


@contextlib.contextmanager
def interruptible(*, until_exit: bool = False) -> Iterator[None]:
    """Make both signals raise KeyboardInterrupt inside the block; only the main thread can.

    A signal that the process was started to ignore stays ignored.

    Args:
        until_exit: the process ends after the block: once interrupted, it is not to be disturbed while it exits.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread() or _watch is not None:
        yield
        return
    watch = _watch = _Watch()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            watch.previous[number] = signal.getsignal(number) or signal.SIG_DFL
    keep_handlers()
    try:
        yield
    finally:
        _watch = None
        for watched, handler in watch.previous.items():
            signal.signal(watched, signal.SIG_IGN if until_exit and watch.first is not None else handler)


def keep_handlers() -> None:
    """Install the handlers again: Ray puts its own in their place, Python's and native ones, while it starts."""
    if _watch is not None and threading.current_thread() is threading.main_thread():
        for number in _watch.previous:
            signal.signal(number, _watch.handle)


def was_interrupted() -> bool:
    """Whether a signal has come since the outermost ``interruptible`` began."""
    return _watch is not None and _watch.first is not None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Keep a signal that comes inside the block until its end, for what must not be left half-done."""
    watch = _watch
    if watch is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch.num_deferring += 1
    try:
        yield
    finally:
        watch.num_deferring -= 1
    if watch.is_waiting and not watch.num_deferring:
        watch.is_waiting = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Keep both signals from this thread, and for good from the processes that it starts inside the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def quiet_stderr(quiet: bool) -> Iterator[None]:
    """Send file descriptor 2 to nowhere inside the block: native code writes there around Python."""
    global _messages_to
    if not quiet:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    _messages_to, before = saved, _messages_to
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        _messages_to = before
        os.close(saved)
        os.close(nowhere)


def _leave() -> None:
    """Ends this process and all that it started, at once."""
    with contextlib.suppress(OSError):
        os.write(_messages_to, f"{MESSAGE}\n".encode())
    for process in _descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    os._exit(EXIT_CODE)


def _descendants(process: int) -> list[int]:
    """Process ids of everything that a process started, as far as the system lists them."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [process]
    while todo:
        started = children.get(todo.pop(), [])
        found += started
        todo += started
    return found
