import errno

import pytest

from patchcert.errors import DatasetError, ResourceError
from patchcert.stages.retries import is_lasting, is_passing, with_retries


def failing(errors, result="done"):
    """An operation that raises these errors, one a call, and then returns."""
    left = iter(errors)

    def operation():
        for error in left:
            raise error
        return result

    return operation


def test_passing_failures_are_tried_again_with_longer_and_longer_waits():
    waits = []
    operation = failing([OSError(errno.ETIMEDOUT, "slow"), OSError("AWS Error SLOW_DOWN"), OSError(errno.EIO, "x")])
    assert with_retries(operation, 5, waits.append) == "done"
    assert waits == [1, 2, 4]


def test_retries_have_an_end_and_say_how_often(tmp_path):
    waits = []
    with pytest.raises(ResourceError, match=r"Stale file handle\n  It failed 4 times within 7 s\. Repeat"):
        with_retries(failing([OSError(errno.ESTALE, "Stale file handle")] * 9), 3, waits.append)
    assert waits == [1, 2, 4]
    with pytest.raises(ResourceError, match="It failed once"):
        with_retries(failing([OSError(errno.EIO, "x")]), 0, waits.append)


@pytest.mark.parametrize(
    ("error", "passing", "lasting"),
    [
        (OSError(errno.ENOSPC, "full"), False, True),
        (OSError(errno.EFBIG, "File too large"), False, True),
        (PermissionError(errno.EACCES, "denied"), False, True),
        (FileNotFoundError(errno.ENOENT, "gone"), False, False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True, False),
        (ValueError("no storage at all"), False, False),
        (DatasetError("told in plain words"), False, False),
    ],
)
def test_kinds_of_failures(error, passing, lasting):
    assert (is_passing(error), is_lasting(error)) == (passing, lasting)
    if not passing:
        with pytest.raises(type(error)):
            with_retries(failing([error]), 5, lambda seconds: pytest.fail("waited"))


def test_the_storage_failure_behind_an_error_counts():
    error = DatasetError("the shard cannot be read")
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    waits = []
    assert with_retries(failing([error]), 1, waits.append) == "done" and waits == [1]
    with pytest.raises(DatasetError, match=r"the shard cannot be read\n  It failed 2 times within 1 s"):
        with_retries(failing([error, error]), 1, waits.append)
