"""Runs a function on many arguments as Ray tasks of one CPU each, a bounded number at a time.

Nothing here cancels a task. Ray ends the whole process when a task is cancelled at the moment it finishes, and the
tasks under way are few and short: where their results are not wanted any more, they end unseen.
"""

import collections
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from patchcert.errors import PatchcertError, ResourceError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_TASKS_PER_CPU = 2
# A node that is lost costs its tasks another try elsewhere.
_MAX_RETRIES = 3
# Nodes may join a cluster while its tasks run.
_SECONDS_BETWEEN_COUNTS = 5.0


def results_in_order(
    ray: Any, function: Callable[[Argument], Result], arguments: Iterable[Argument], what: str
) -> Iterator[Result]:
    """Run one task for each argument on the CPUs of the connected cluster.

    Args:
        ray: the connected module.
        function: picklable; sent to the cluster once.
        arguments: taken from the stream only when a CPU will soon be free for them.
        what: what one task makes, for messages: "a shard".

    Yields:
        Results in the order of the arguments.

    Raises:
        PatchcertError: what the first failing task raised.
        ResourceError: a task was lost with its process or node in every try.
    """
    name = getattr(function, "__name__", type(function).__name__)
    task = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_call).options(name=name)
    sent = ray.put(function)
    running: collections.deque[Any] = collections.deque()
    counted, num_ahead = float("-inf"), 0
    try:
        for argument in arguments:
            running.append(task.remote(sent, argument))
            if (now := time.monotonic()) - counted > _SECONDS_BETWEEN_COUNTS:
                counted, num_ahead = now, _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
            if len(running) >= num_ahead:
                yield _loaded(ray.get(running.popleft()))
        while running:
            yield _loaded(ray.get(running.popleft()))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PatchcertError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"{what} could not be made in {_MAX_RETRIES + 1} tries: {str(error).strip().partition(chr(10))[0]}\n"
            "  What is finished is kept: repeat the same command; --verbose shows the workers' output."
        ) from error


def _call(function: Callable[[Argument], Result], argument: Argument) -> bytes:
    """Runs in each task.

    Bytes, because arrays would stay in Ray's object store for as long as somebody holds them, and fill it.
    """
    return pickle.dumps(function(argument))


def _loaded(result: bytes) -> Any:
    # The bytes come from this cluster's own tasks, never from storage.
    return pickle.loads(result)
