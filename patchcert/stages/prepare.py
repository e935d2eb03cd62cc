"""Missing shards of a dataset in, shards made by the CPUs of a Ray cluster out."""

import concurrent.futures
from collections.abc import Iterator
from typing import Any

from patchcert.data.parallel import ordered_map
from patchcert.data.prepared import available_cpus
from patchcert.data.shards import ShardTask, Spread, in_threads, make_shard
from patchcert.errors import PatchcertError, ResourceError
from patchcert.stages.cluster import connected
from patchcert.stages.resources import Resources

_TASKS_PER_CPU = 2
# A node that is lost costs its shards a second try, elsewhere.
_MAX_RETRIES = 3


def on_cluster(resources: Resources, *, verbose: bool = False) -> Spread:
    """Make shards on the CPUs of a cluster, one shard a core; all nodes have to see the source and the output folder.

    A single shard is made by the threads of this process.

    Args:
        resources: which cluster.
        verbose: leave Ray's messages on.

    Raises:
        ResourceError: (by the spread) the cluster cannot be reached, or a shard failed on several nodes.
    """

    def spread(tasks: Iterator[ShardTask], num_tasks: int) -> Iterator[int]:
        if num_tasks <= 1:
            yield from in_threads(available_cpus())(tasks, num_tasks)
            return
        with connected(resources, verbose=verbose) as ray:
            num_cpus = int(ray.cluster_resources().get("CPU", 1))
            pool = _Cluster(ray)
            try:
                yield from ordered_map(pool, make_shard, tasks, _TASKS_PER_CPU * max(1, num_cpus))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PatchcertError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise ResourceError(
                    f"a shard could not be made in {_MAX_RETRIES + 1} tries: {str(error).splitlines()[0]}\n"
                    "  The same command continues where it stopped."
                ) from error
            finally:
                pool.shutdown()

    return spread


class _Cluster(concurrent.futures.Executor):
    """Ray tasks of one CPU each, as futures."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._started: list[Any] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Starts a task."""
        remote = self._ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(function)
        reference = remote.remote(*args, **kwargs)
        self._started.append(reference)
        future: concurrent.futures.Future[Any] = reference.future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancels what still runs: tasks would go on when another one has failed."""
        for reference in self._started:
            self._ray.cancel(reference)
