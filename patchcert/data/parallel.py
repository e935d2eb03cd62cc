"""A stream of tasks in, their results in the same order out: worked on by threads, a bounded number ahead."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_map(
    pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], num_ahead: int
) -> Generator[Result, None, None]:
    """Like ``pool.map``, but it never takes more than ``num_ahead`` tasks from the stream before they are wanted.

    Args:
        pool: runs the tasks.
        function: what is done to each.
        tasks: read on the calling thread.
        num_ahead: tasks running or waiting at a time, >= 1.
    """
    running: collections.deque[Future[Result]] = collections.deque()
    try:
        for task in tasks:
            running.append(pool.submit(function, task))
            if len(running) >= num_ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
