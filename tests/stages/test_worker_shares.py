"""What each worker gets, on clusters that Ray describes; the waiting for GPUs on a real one that grows."""

import threading
import time

import pytest

from patchcert.errors import ResourceError
from patchcert.stages.cluster import worker_share
from patchcert.stages.resources import Resources


class Nodes:
    """What Ray says about a cluster: the two calls that the division reads."""

    def __init__(self, *nodes):
        self._nodes = nodes

    def nodes(self):
        return [{"Alive": True, "Resources": node} for node in self._nodes]

    def cluster_resources(self):
        total = {}
        for node in self._nodes:
            for name, amount in node.items():
                total[name] = total.get(name, 0) + amount
        return total


H100 = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:H100": 1.0}
A10 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A10G": 1.0}
HEAD = {"CPU": 4.0}


def test_every_gpu_gets_an_actor_or_several():
    share = worker_share(Nodes(HEAD, H100), Resources(), training=False)
    assert (share.num_workers, share.num_gpus, share.num_cpus) == (2, 1, 1)
    share = worker_share(Nodes(HEAD, H100), Resources(gpus_per_worker=0.25), training=False)
    assert (share.num_workers, share.num_gpus) == (8, 0.25)
    assert share.ray_options()["num_gpus"] == 0.25
    share = worker_share(Nodes(HEAD, H100), Resources(gpus_per_worker=0.25), training=True)
    assert (share.num_workers, share.num_gpus, share.num_cpus) == (2, 1, 10)
    with pytest.raises(ResourceError, match=r"9 workers with 1 CPUs and 0.25 GPUs .* has 20 CPUs and 2 GPUs"):
        worker_share(Nodes(HEAD, H100), Resources(gpus_per_worker=0.25, workers=9), training=False)


def test_gpus_of_several_types_are_chosen_from_or_mixed_on_request():
    cluster = Nodes(HEAD, H100, A10)
    with pytest.raises(ResourceError, match=r"GPUs of 2 types \(A10G, H100\)"):
        worker_share(cluster, Resources(), training=False)
    share = worker_share(cluster, Resources(accelerator="H100"), training=False)
    assert (share.num_workers, share.accelerator) == (2, "H100")
    assert share.ray_options()["accelerator_type"] == "H100"
    share = worker_share(cluster, Resources(accelerator="any"), training=False)
    assert (share.num_workers, share.accelerator) == (3, None)
    with pytest.raises(ResourceError, match="type L4 were asked for, but the cluster has 2 H100, 1 A10G"):
        worker_share(cluster, Resources(accelerator="L4"), training=False)
    assert worker_share(cluster, Resources(device="cpu"), training=False).num_workers == 28


def test_gpu_that_does_not_come_is_waited_for_only_so_long(ray_cluster):
    said = []
    with pytest.raises(ResourceError, match="no GPU has come within 1 s"):
        worker_share(ray_cluster, Resources(device="cuda", wait_for_gpus=1), training=False, say=said.append)
    assert said == ["the cluster has no GPU yet: asking for 1 (any type) and waiting up to 1 s"]


def test_first_gpu_of_a_growing_cluster_is_enough(ray_cluster):
    class Growing(Nodes):
        """A node group that brings its first machine after a second; asking for it goes to the real Ray."""

        def __init__(self):
            super().__init__(HEAD)
            threading.Timer(1.0, lambda: setattr(self, "_nodes", (HEAD, H100))).start()

    started = time.monotonic()
    resources = Resources(device="cuda", wait_for_gpus=60, workers=8)
    share = worker_share(Growing(), resources, training=False)
    assert (share.num_workers, share.num_gpus) == (8, 1) and time.monotonic() - started < 30
