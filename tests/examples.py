"""How many examples the tests of properties try: a quarter in ``make test``, all of them in ``make test-slow``."""

import os

from hypothesis import settings

_SHARE = 1 if os.environ.get("PATCHCERT_EXAMPLES") == "all" else 4


def examples(number):
    """Settings of a test that tries so many examples where time is no matter."""
    return settings(max_examples=max(25, number // _SHARE))
