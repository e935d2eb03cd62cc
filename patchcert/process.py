"""How the command line gets along with the terminal, the pipe and the interpreter options that it was started with.

What an output cannot show is replaced, a reader that goes away ends the command quietly, and no warning of a library
becomes an error. None of this concerns a program that imports the package.
"""

import contextlib
import io
import os
import select
import stat
import sys
import warnings
from collections.abc import Callable
from typing import TextIO

from patchcert.errors import ResourceError

READER_GONE = 141
"""Exit code of a command whose reader went away: what a shell reports for a process that SIGPIPE ended."""


def adapt_to_process() -> None:
    """Prepare this process for any terminal, pipe and interpreter option; call it before anything is printed."""
    # A stream that was closed by whoever started this process is None.
    sys.stdout = sys.stdout or _discarding()
    sys.stderr = sys.stderr or _discarding()
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            # ASCII, code pages, and names of files that are no UTF-8: a question mark, never a traceback.
            stream.reconfigure(errors="replace")
    if any(action == "error" for action, *_ in warnings.filters):
        _print_warnings_only()


def with_readers(command: Callable[[], int]) -> int:
    """Run a command and flush what it printed.

    Returns:
        The command's exit code, or ``READER_GONE`` where whoever read standard output or standard error went away.

    Raises:
        ResourceError: the output cannot be written, for example to a full disk.
    """
    try:
        code = command()
        for stream in _streams():
            stream.flush()
        return code
    except OSError as error:
        is_pipe = isinstance(error, BrokenPipeError)
        broken = [stream for stream in _streams() if (_lost_reader if is_pipe else _is_full)(stream)]
        for stream in broken:
            _silence(stream)
        if broken and is_pipe:
            return READER_GONE
        if broken:
            raise ResourceError(
                f"the output of this command cannot be written: {error.strerror or error}\n"
                "  Free some space, or send it elsewhere; files of results are not affected."
            ) from None
        raise


def _streams() -> list[TextIO]:
    return [sys.stdout, sys.stderr]


def _discarding() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _print_warnings_only() -> None:
    """Python's own choice of warnings instead of ``-W error``: a library's deprecation must not end a training."""
    os.environ.pop("PYTHONWARNINGS", None)
    warnings.simplefilter("default")
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


def _lost_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_full(stream: TextIO) -> bool:
    """Whether a stream goes to a file that takes no further byte; what did not fit is gone from its buffer."""
    try:
        if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            return False
        os.write(stream.fileno(), b"\n")
    except (OSError, ValueError):
        return True
    return False


def _silence(stream: TextIO) -> None:
    """Sends the rest of a stream nowhere, so that the interpreter does not fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
