"""Makes the missing shards of a dataset on the CPUs of a Ray cluster."""

from collections.abc import Iterator

from patchcert.data.prepared import available_cpus
from patchcert.data.shards import ShardTask, Spread, in_threads, make_shard
from patchcert.stages.cluster import connected
from patchcert.stages.resources import Resources
from patchcert.stages.tasks import results_in_order


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
            yield from results_in_order(ray, make_shard, tasks, "a shard")

    return spread
