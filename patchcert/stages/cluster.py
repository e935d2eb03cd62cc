"""Resources in, a connected Ray and the share each worker gets out; quiet unless told otherwise."""

import contextlib
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from patchcert.errors import ResourceError
from patchcert.stages.resources import Resources

_OBJECT_STORE_BYTES = 300 * 2**20

# Set before the first import of ray: it reads them once. Users' own settings win.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_worker_niceness": "0",
}
_QUIET_ENVIRONMENT = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """What every worker of a stage gets.

    Attributes:
        num_workers: processes or actors.
        num_cpus: CPU cores of each.
        num_gpus: GPUs of each, 0 or 1.
    """

    num_workers: int
    num_cpus: int
    num_gpus: int


def set_environment(*, embedded: bool, verbose: bool) -> None:
    """Sets the defaults that Ray reads when it is imported; what the user has set stays.

    Args:
        embedded: Ray will run inside this process tree, where token authentication has no use.
        verbose: leave Ray's messages on.
    """
    for name, value in (_ENVIRONMENT | ({} if verbose else _QUIET_ENVIRONMENT)).items():
        if name != "RAY_AUTH_MODE" or embedded:
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def connected(resources: Resources, *, verbose: bool = False) -> Iterator[Any]:
    """Connects to a cluster or starts an embedded Ray, which ends with the block.

    An already connected process is used as it is and stays connected.

    Yields:
        The ``ray`` module.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    set_environment(embedded=address == "local", verbose=verbose)
    import ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}
    if not verbose:
        # Ray passes its own chatter on to the driver; the package's records of the workers stay in their log files.
        options["configure_logging"] = True
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        with _quiet_stderr(not verbose), warnings.catch_warnings():
            warnings.simplefilter("ignore" if not verbose else "default")
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"cannot connect to Ray at {address}: {str(error).splitlines()[0]}\n"
            "  Start a cluster (ray start --head), or leave --resources.address and RAY_ADDRESS unset."
        ) from None
    _calm_ray_data(verbose)
    try:
        yield ray
    finally:
        with _quiet_stderr(not verbose):
            ray.shutdown()


def worker_share(ray: Any, resources: Resources, *, training: bool) -> WorkerShare:
    """Divides the cluster's CPUs and GPUs among the workers of a stage.

    Args:
        ray: the connected module.
        resources: what the user asked for.
        training: one process takes all CPUs by default; actors take one each.

    Raises:
        ResourceError: more than the cluster has; names both numbers.
    """
    total = ray.cluster_resources()
    num_cpus, num_gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if resources.device == "cuda" and num_gpus < 1:
        raise ResourceError(
            "a GPU was asked for (--resources.device cuda), but the cluster has 0 GPUs.\n"
            "  Use --resources.device cpu, or join a cluster with GPUs: --resources.address ADDRESS"
        )
    use_gpu = num_gpus > 0 and resources.device != "cpu"
    if use_gpu:
        workers = resources.workers or num_gpus
        cpus = resources.cpus_per_worker or max(1, num_cpus // num_gpus if training else 1)
    else:
        cpus = resources.cpus_per_worker or (num_cpus // max(1, resources.workers) if training else 1)
        workers = resources.workers or (1 if training else max(1, num_cpus // cpus))
    share = WorkerShare(num_workers=workers, num_cpus=max(1, cpus), num_gpus=int(use_gpu))
    if share.num_workers * share.num_cpus > num_cpus or (use_gpu and share.num_workers > num_gpus):
        raise ResourceError(
            f"{share.num_workers} workers with {share.num_cpus} CPUs and {share.num_gpus} GPUs each were asked for, "
            f"but the cluster has {num_cpus} CPUs and {num_gpus} GPUs.\n"
            "  Lower --resources.workers or --resources.cpus-per-worker, or join a larger cluster."
        )
    return share


def thread_variables(share: WorkerShare) -> dict[str, str]:
    """Environment of a worker process: its number of threads, and threads that sleep while they wait.

    Waiting threads spin by default, which on a machine that does anything else makes small networks up to six times
    slower.
    """
    return {"OMP_NUM_THREADS": str(share.num_cpus), "OMP_WAIT_POLICY": "PASSIVE"}


def _calm_ray_data(verbose: bool) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = verbose
    context.enable_progress_bars = verbose
    if not verbose:
        for name, level in (("ray.data", logging.WARNING), ("ray.data._internal.progress", logging.ERROR)):
            logging.getLogger(name).setLevel(level)
        logging.getLogger("ray.train").setLevel(logging.ERROR)


@contextlib.contextmanager
def _quiet_stderr(quiet: bool) -> Iterator[None]:
    """Sends file descriptor 2 to nowhere: Ray's native code writes there around Python."""
    if not quiet:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
