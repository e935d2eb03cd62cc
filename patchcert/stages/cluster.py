"""Connects to a Ray cluster, or starts one, and divides its CPUs and GPUs among workers."""

import contextlib
import dataclasses
import ipaddress
import logging
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from patchcert.addresses import masked, masked_address
from patchcert.errors import ResourceError
from patchcert.interruption import deferred, keep_handlers, quiet_stderr, was_interrupted
from patchcert.stages.ray_folder import RayFolder
from patchcert.stages.resources import Resources

_OBJECT_STORE_BYTES = 300 * 2**20
_SAY_SECONDS = 30.0
_LARGEST_PORT = 65535
_ANSWER_SECONDS, _JOIN_SECONDS, _SECONDS_BETWEEN_LOOKS = 5.0, 30.0, 0.02
_TYPE = "accelerator_type:"

# Set before the first import of ray: it reads them once. Users' own settings win.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_worker_niceness": "0",
}
# Meant for machines whose firewall asks about every open port; it is the only variable that keeps all of Ray on the
# loopback address. Ray reads it when it is imported.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_QUIET_ENVIRONMENT = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """What every worker of a stage gets.

    Attributes:
        num_workers: processes or actors.
        num_cpus: CPU cores of each.
        num_gpus: GPUs of each, in [0, 1].
        accelerator: type of GPU that workers are bound to, as Ray names it, or None.
    """

    num_workers: int
    num_cpus: int
    num_gpus: float
    accelerator: str | None = None

    def ray_options(self) -> dict[str, Any]:
        """What a task or actor of the stage asks Ray for."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "runtime_env": {"env_vars": thread_variables(self)}}
        if self.num_gpus:
            options["num_gpus"] = self.num_gpus
        if self.accelerator:
            options["accelerator_type"] = self.accelerator
        return options


def set_environment(*, embedded: bool, verbose: bool) -> None:
    """Sets the defaults that Ray reads when it is imported; what the user has set stays.

    Args:
        embedded: Ray will run inside this process tree: on the loopback address, behind a random token that only this
            process and those it starts know. Without it any user of the machine could run tasks as this one.
        verbose: leave Ray's messages on.
    """
    defaults = _ENVIRONMENT | ({} if verbose else _QUIET_ENVIRONMENT)
    if embedded:
        defaults[_LOOPBACK] = "0"
        if "ray" not in sys.modules:
            # A Ray that has been imported has decided already, for tokens as well, and would not hear of it.
            defaults["RAY_AUTH_MODE"] = "token"
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            defaults["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def check_docstrings(optimize: int) -> None:
    """Raise ResourceError where Python drops docstrings, which Ray Data reads while it is imported.

    Args:
        optimize: how often Python was given ``-O``, ``sys.flags.optimize``.
    """
    if optimize >= 2:
        raise ResourceError(
            "this Python drops docstrings (-OO, or PYTHONOPTIMIZE=2), and Ray Data cannot be imported without them.\n"
            "  Start the command without that option:  env -u PYTHONOPTIMIZE patchcert ..."
        )


@contextlib.contextmanager
def connected(resources: Resources, *, verbose: bool = False) -> Iterator[Any]:
    """Connects to a cluster or starts an embedded Ray, which ends with the block.

    An already connected process is used as it is and stays connected.

    Yields:
        The ``ray`` module.

    Raises:
        ResourceError: the cluster cannot be reached, or a Ray of our own does not start (in time).
    """
    check_docstrings(sys.flags.optimize)
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
        if os.environ.get(_LOOPBACK) == "0":
            # Whoever imported ray before, as in a notebook, had it read the variable too early.
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    over = threading.Event()
    folder: RayFolder | None = None
    try:
        with deferred():
            if address == "local":
                folder = _private_folder()
                options["_temp_dir"] = str(folder.for_ray)
            try:
                _start(ray, address, options, verbose, over)
            except ResourceError as error:
                if folder is None or (logs := folder.logs()) is None:
                    raise
                folder, kept = None, folder
                kept.release()
                raise ResourceError(f"{error}\n  Ray's own words, until the next start: {logs}") from None
        yield ray
    finally:
        with deferred(), quiet_stderr(not verbose):
            ray.shutdown()
            over.set()
            if folder is not None:
                folder.remove()


def _private_folder() -> RayFolder:
    try:
        return RayFolder()
    except OSError as error:
        raise _start_error("local", error) from None


def _start(ray: Any, address: str, options: dict[str, Any], verbose: bool, over: threading.Event) -> None:
    """Starts or joins Ray from a thread of its own, so that this one stays in charge of signals and of time.

    The thread lives until ``over`` is set: the system ends Ray's processes with the thread that started them.

    Raises:
        ResourceError: it did not start, or nobody answers at the address.
    """
    is_remote = address != "local"
    failures: list[BaseException] = []
    started = threading.Event()

    def start() -> None:
        try:
            if is_remote:
                check_answers(address)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if not verbose else "default")
                ray.init(address=address, **options)
        except BaseException as error:
            failures.append(error)
        started.set()
        over.wait()

    thread = threading.Thread(target=start, name="patchcert-ray-start", daemon=True)
    deadline = time.monotonic() + _JOIN_SECONDS
    with quiet_stderr(not verbose):
        thread.start()
        while not started.wait(_SECONDS_BETWEEN_LOOKS):
            keep_handlers()
            # A cluster that is joined has nothing of ours to end; a Ray of our own is ended when it has started.
            if is_remote and was_interrupted():
                return
            if is_remote and time.monotonic() > deadline:
                raise _start_error(address, TimeoutError(f"it did not answer as Ray within {_JOIN_SECONDS:g} s"))
        keep_handlers()
    if failures:
        if not _is_failed_start(failures[0], ray):
            raise failures[0]
        raise _start_error(address, failures[0]) from None
    if not is_remote and not is_on_loopback(gcs := ray.get_runtime_context().gcs_address):
        ray.shutdown()
        raise ResourceError(
            f"Ray listens on {gcs}, where other machines can reach it.\n  Set {_LOOPBACK}=0 before Python starts."
        )
    _calm_ray_data(verbose)


def is_on_loopback(address: str) -> bool:
    """Whether an address, host:port, can be reached from its own machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_answers(address: str) -> None:
    """Raise OSError within seconds where nobody listens; Ray itself would try for many minutes."""
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not (colon and port.isdigit()):
        return
    if int(port) > _LARGEST_PORT:
        raise OSError(f"there is no port {port}; the largest is {_LARGEST_PORT}")
    with contextlib.suppress(UnicodeError):
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()


def _is_failed_start(error: BaseException, ray: Any) -> bool:
    """Whether Ray found no cluster or could not start one; a node that starts too slowly is a bare ``Exception``."""
    expected = (OSError, RuntimeError, ValueError, AssertionError, SystemExit, ray.exceptions.RayError)
    return isinstance(error, expected) or type(error) is Exception


def _start_error(address: str, error: BaseException) -> ResourceError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    shown = masked_address(address)
    reason = masked(reason.replace(address, shown))
    if address == "local":
        return ResourceError(
            f"cannot start Ray on this machine: {reason}\n"
            "  It may be too busy, or short of memory or of disk space for RAY_TMPDIR (unset: /tmp). Fix that and "
            "repeat the same command, which keeps what is there; or join a running cluster: --resources.address ADDRESS"
        )
    return ResourceError(
        f"cannot connect to Ray at {shown}: {reason}\n"
        "  Start a cluster there (ray start --head), or leave --resources.address and RAY_ADDRESS unset to use this "
        "machine."
    )


def worker_share(
    ray: Any, resources: Resources, *, training: bool, say: Callable[[str], object] | None = None
) -> WorkerShare:
    """Divides the cluster's CPUs and GPUs among the workers of a stage.

    Where GPUs are waited for, the first one is enough: actors that find no place yet join when their nodes have come.

    Args:
        ray: the connected module.
        resources: what the user asked for.
        training: one process takes all CPUs by default; actors take one each.
        say: takes a line for the reader while GPUs are waited for.

    Raises:
        ResourceError: more than the cluster has; names both numbers. Or GPUs of several types and no word which to use.
    """
    gpus_each = 1.0 if training else resources.gpus_per_worker
    if resources.wait_for_gpus:
        _wait_for_gpus(ray, resources, gpus_each, say)
    total = ray.cluster_resources()
    num_cpus, num_gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if resources.device == "cuda" and num_gpus < 1:
        raise ResourceError(
            "a GPU was asked for (--resources.device cuda), but the cluster has 0 GPUs.\n"
            "  Use --resources.device cpu, join a cluster with GPUs (--resources.address ADDRESS), or wait for nodes "
            "that start on demand: --resources.wait-for-gpus SECONDS"
        )
    use_gpu = num_gpus > 0 and resources.device != "cpu"
    if not use_gpu and (idle := resources.gpu_settings()):
        settings = ", ".join(f"{name} {value}" for name, value in idle.items())
        raise ResourceError(
            f"resources: {settings} would have no effect: the cluster has 0 GPUs, so CPUs would be used.\n"
            "  Leave it out, or join a cluster with GPUs: --resources.address ADDRESS"
        )
    accelerator = None
    if use_gpu:
        accelerator, num_gpus = _accelerator(ray, resources, num_gpus)
        places = int(num_gpus / gpus_each + 1e-9)
        workers = resources.workers or places
        cpus = resources.cpus_per_worker or max(1, num_cpus // num_gpus if training else 1)
    else:
        places = num_cpus
        cpus = resources.cpus_per_worker or (num_cpus // max(1, resources.workers) if training else 1)
        workers = resources.workers or (1 if training else max(1, num_cpus // cpus))
    share = WorkerShare(
        num_workers=workers,
        num_cpus=max(1, cpus),
        num_gpus=gpus_each if use_gpu else 0,
        accelerator=accelerator,
    )
    is_too_much = share.num_workers * share.num_cpus > num_cpus or share.num_workers > places
    if is_too_much and not (use_gpu and resources.wait_for_gpus):
        raise ResourceError(
            f"{share.num_workers} workers with {share.num_cpus} CPUs and {share.num_gpus:g} GPUs each were asked for, "
            f"but the cluster has {num_cpus} CPUs and {num_gpus} GPUs.\n"
            "  Lower --resources.workers or --resources.cpus-per-worker, or join a larger cluster."
        )
    return share


def _wait_for_gpus(ray: Any, resources: Resources, gpus_each: float, say: Callable[[str], object] | None) -> None:
    """Asks the autoscaler for GPUs and returns when the first is there; the wait for it has an end."""
    if ray.cluster_resources().get("GPU", 0) > 0:
        return
    from ray.autoscaler.sdk import request_resources

    wanted = max(1, resources.workers)
    kind = resources.accelerator or "any"
    if say is not None:
        say(
            f"the cluster has no GPU yet: asking for {wanted * gpus_each:g} ({kind} type) and waiting up to "
            f"{resources.wait_for_gpus:g} s"
        )
    bundle = {"CPU": max(1, resources.cpus_per_worker), "GPU": gpus_each}
    if kind != "any":
        bundle[f"accelerator_type:{kind}"] = 0.001
    request_resources(bundles=[bundle] * wanted)
    started = said = time.monotonic()
    try:
        while ray.cluster_resources().get("GPU", 0) < gpus_each:
            now = time.monotonic()
            if now - started > resources.wait_for_gpus:
                raise ResourceError(
                    f"no GPU has come within {resources.wait_for_gpus:g} s (--resources.wait-for-gpus); the cluster "
                    "has 0 GPUs.\n  Check its GPU node group and quota (ray status), or wait longer."
                )
            if say is not None and now - said > _SAY_SECONDS:
                said = now
                say(f"still waiting for the first GPU, {now - started:.0f} s")
            time.sleep(1)
    finally:
        # The actors themselves are the demand from here on; a standing request would keep idle nodes alive.
        request_resources(bundles=[])


def _accelerator(ray: Any, resources: Resources, num_gpus: int) -> tuple[str | None, int]:
    """The type of GPU to use, None for whatever comes, and how many of it there are."""
    by_type: dict[str, int] = {}
    for node in ray.nodes():
        amounts = node["Resources"] if node["Alive"] else {}
        for name in amounts:
            if name.startswith(_TYPE) and amounts.get("GPU"):
                kind = name.removeprefix(_TYPE)
                by_type[kind] = by_type.get(kind, 0) + int(amounts["GPU"])
    if resources.accelerator and resources.accelerator != "any":
        if resources.accelerator not in by_type and not resources.wait_for_gpus:
            raise ResourceError(
                f"GPUs of type {resources.accelerator} were asked for, but the cluster has "
                f"{', '.join(f'{count} {kind}' for kind, count in by_type.items()) or f'{num_gpus} of no type'}.\n"
                "  Choose one of those with --resources.accelerator."
            )
        return resources.accelerator, by_type.get(resources.accelerator, num_gpus)
    if len(by_type) > 1 and not resources.accelerator:
        raise ResourceError(
            f"the cluster has GPUs of {len(by_type)} types ({', '.join(sorted(by_type))}), whose scores may differ in "
            "the last digits.\n  Choose one with --resources.accelerator TYPE, or mix them: --resources.accelerator any"
        )
    return None, num_gpus


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
