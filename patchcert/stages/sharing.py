"""A connected cluster and a work folder in, a refusal out where some node cannot see what another one wrote."""

import os
import uuid
from typing import Any

from patchcert.data.storage import Folder
from patchcert.errors import ResourceError
from patchcert.stages.resources import Resources

_SECONDS = 60.0
_MOST_NAMED = 5
_UPLOADED_CODE = f"{os.sep}runtime_resources{os.sep}working_dir_files{os.sep}"


def cluster_address(resources: Resources) -> str | None:
    """The cluster that a run joins: what is asked for, else RAY_ADDRESS; None: a Ray of its own on this machine."""
    address = resources.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def check_work_folder(ray: Any, folder: Folder) -> None:
    """Makes sure that the work folder outlives the job and that every node of the cluster reads the same one.

    Nodes that do not answer within a minute, or that are lost meanwhile, are not held against the folder.

    Args:
        ray: the connected module.
        folder: the work folder.

    Raises:
        ResourceError: the folder goes away with the job's uploaded code, cannot be written, or some node does not see
            what was written into it; names the nodes.
    """
    mend = "  Name storage that all nodes share: --work s3://bucket/folder, gs://bucket/folder or a shared file system."
    if folder.is_local and _UPLOADED_CODE in folder.path():
        raise ResourceError(
            f"the work folder {folder} lies among the uploaded code of this job, which Ray deletes with it.\n{mend}"
        )
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    probe = f".seen-by-all-nodes-{uuid.uuid4().hex}"
    folder.write(probe, b"")
    try:
        # No CPU asked for: nodes that are busy, and heads that take no work, answer too.
        sees = ray.remote(num_cpus=0, max_retries=0)(_sees)
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {
            sees.options(scheduling_strategy=strategy(node_id=node, soft=False)).remote(folder, probe): node
            for node in nodes
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS)
        blind = []
        for answer in answered:
            try:
                problem = ray.get(answer)
            except ray.exceptions.RayError:
                continue
            if problem:
                blind.append(f"{nodes[asked[answer]]} ({problem})")
    finally:
        folder.remove(probe)
    if blind:
        more = f" and {len(blind) - _MOST_NAMED} more" if len(blind) > _MOST_NAMED else ""
        raise ResourceError(
            f"{len(blind)} of {len(nodes)} nodes do not see the work folder {folder}: "
            f"{', '.join(sorted(blind)[:_MOST_NAMED])}{more}.\n{mend}"
        )


def _sees(folder: Folder, name: str) -> str:
    """Runs on every node: what keeps it from seeing the file, or an empty string."""
    try:
        return "" if folder.exists(name) else "it is empty there"
    except OSError as error:
        return str(error).partition("\n")[0]
