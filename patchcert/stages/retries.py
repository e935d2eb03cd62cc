"""An operation on storage in, its result out, after as many repetitions as a passing failure deserves."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from patchcert.errors import PatchcertError, ResourceError

Result = TypeVar("Result")

_PASSING = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "EIO", "EMFILE", "ENFILE", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"),
    )
    if hasattr(errno, name)
}
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def is_passing(error: BaseException) -> bool:
    """Whether storage failed in a way that may be over in a while.

    Object stores report most failures without a number; those count as passing too.
    """
    cause = _storage_error(error)
    return cause is not None and (cause.errno is None or cause.errno in _PASSING)


def is_lasting(error: BaseException) -> bool:
    """Whether storage refuses whatever part is written: a full disk, a read-only or forbidden folder."""
    cause = _storage_error(error)
    return cause is not None and cause.errno in _LASTING


def with_retries(
    operation: Callable[[], Result], num_retries: int, wait: Callable[[float], object] = time.sleep
) -> Result:
    """Repeats an operation while storage fails for a while, after 1, 2, 4, 8 ... seconds.

    Args:
        operation: may be begun again.
        num_retries: how often at most, >= 0.
        wait: sleeps for a number of seconds.

    Returns:
        What the operation returned.

    Raises:
        PatchcertError: the last failure, with the number of attempts; every other error passes untouched.
    """
    for attempt in range(num_retries + 1):
        try:
            return operation()
        except (OSError, PatchcertError) as error:
            if not is_passing(error):
                raise
            if attempt == num_retries:
                raise _exhausted(error, num_retries) from _storage_error(error)
        wait(2**attempt)
    raise ValueError(f"num_retries is {num_retries}, but must be >= 0")


def _exhausted(error: OSError | PatchcertError, num_retries: int) -> PatchcertError:
    kind = type(error) if isinstance(error, PatchcertError) else ResourceError
    count = f"It failed {num_retries + 1} times within {2**num_retries - 1} s." if num_retries else "It failed once."
    return kind(f"{error}\n  {count} Repeat the same command when the storage is back.")


def _storage_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        # Messages for users hide what they were made from, but keep it.
        error = error.__cause__ or error.__context__
    return error
