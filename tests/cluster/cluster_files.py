"""The files of cluster/: their names, what is in them, and the versions in their images."""

import re

from cluster.kuberay_schemas import CLUSTER, documents, manifests
from locked_versions import MACHINES, locked

ROOT = CLUSTER.parent
RAY_FILES = ("kuberay-cluster.yaml", "kuberay-job.yaml")
LAUNCHER_FILES = ("aws.yaml", "gcp.yaml")
KUBERNETES_FILES = (*RAY_FILES, "mlflow.yaml")
# The images of cluster/Dockerfile lie in no registry that everybody can read: their digest is filled in.
UNFILLED = "@sha256:" + "0" * 64


def pins(name="requirements.lock"):
    """Version of every package in the images."""
    return locked(name, MACHINES[0])


def start_command(name):
    """The command with which the head of a file says that it is started: what fills in digests and addresses."""
    head = "".join(re.findall(r"^# ?(.*\n)", (CLUSTER / name).read_text(), re.MULTILINE)).replace("\\\n", " ")
    (command,) = re.findall(r"^ *(sed .*?) *(?:\| kubectl|>my-)", head, re.MULTILINE)
    return command


def ray_clusters():
    """Every RayCluster specification with the name of its file."""
    stored = [(name, document["spec"]) for name, document in manifests("RayCluster")]
    return stored + [(name, document["spec"]["rayClusterSpec"]) for name, document in manifests("RayJob")]


def pod_specs(document):
    """Every pod specification inside a document, wherever it is."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pod_specs(value)
    elif isinstance(document, list):
        for value in document:
            yield from pod_specs(value)


ALL_PODS = [
    (f"{name}-{index}", pod)
    for name in KUBERNETES_FILES
    for index, pod in enumerate(pod for document in documents(name) for pod in pod_specs(document))
]


ALL_FILES = (*KUBERNETES_FILES, *LAUNCHER_FILES)
