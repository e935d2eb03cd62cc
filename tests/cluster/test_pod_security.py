"""Containers run without rights, on what they cannot change, with the secrets that they need and no others."""

import json
import re

import pytest
from cluster.cluster_files import ALL_PODS, KUBERNETES_FILES, ray_clusters
from cluster.kuberay_schemas import CLUSTER, documents


@pytest.mark.parametrize(("name", "pod"), ALL_PODS, ids=[name for name, _ in ALL_PODS])
def test_containers_run_as_users_within_limits_on_what_they_cannot_change(name, pod):
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in pod["containers"]:
        check_security(container["securityContext"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def check_security(security):
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0 and security["runAsGroup"] > 0
    assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"} and "privileged" not in security


@pytest.mark.parametrize(("name", "pod"), ALL_PODS, ids=[name for name, _ in ALL_PODS])
def test_containers_have_the_writable_folders_they_need_and_no_others(name, pod):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert pod["securityContext"]["fsGroup"] > 0, "volumes belong to the users of the containers"
    for container in pod["containers"]:
        mounts = container["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        expected = {
            "ray-head": {"/dev/shm", "/tmp", "/home/ray"},
            "ray-worker": {"/dev/shm", "/tmp", "/home/ray"},
            "submitter": {"/tmp", "/home/ray"},
            "mlflow": {"/tmp", "/home/mlflow"},
            "postgres": {"/tmp", "/var/run/postgresql", "/var/lib/postgresql/data"},
        }
        assert writable == expected[container["name"]]
        read_only = {"mlflow": {"/etc/mlflow"}, "postgres": {"/docker-entrypoint-initdb.d"}}
        assert {mount["mountPath"] for mount in mounts} - writable == read_only.get(container["name"], set())
        for mount in mounts:
            if mount["mountPath"] != "/var/lib/postgresql/data":  # a claim of the stateful set
                volume = volumes[mount["name"]]
                assert len(volume) == 2 and volume.keys() & {"emptyDir", "secret", "configMap"}
                assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]
                assert mount.get("readOnly") or "emptyDir" in volume


@pytest.mark.parametrize(("name", "pod"), ALL_PODS, ids=[name for name, _ in ALL_PODS])
def test_containers_hold_no_token_of_kubernetes(name, pod):
    assert pod["automountServiceAccountToken"] is False and "serviceAccountName" not in pod
    tokens = {volume["name"] for volume in pod["volumes"] if "serviceAccountToken" in json.dumps(volume)}
    for container in pod["containers"]:
        assert not tokens & {mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(("name", "spec"), ray_clusters(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_autoscaler_alone_talks_to_kubernetes(name, spec):
    """Drivers run in the head's container: with the token beside them they could start any pod."""
    autoscaler, head = spec["autoscalerOptions"], spec["headGroupSpec"]["template"]["spec"]
    check_security(autoscaler["securityContext"])
    mounts = {mount["mountPath"]: mount for mount in autoscaler["volumeMounts"]}
    assert mounts.keys() == {"/tmp", "/var/run/secrets/kubernetes.io/serviceaccount"}
    assert {"name": "HOME", "value": "/tmp"} in autoscaler["env"]
    token = mounts["/var/run/secrets/kubernetes.io/serviceaccount"]
    assert token["readOnly"] is True
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert "sizeLimit" in volumes[mounts["/tmp"]["name"]]["emptyDir"]
    assert mounts["/tmp"]["name"] not in {mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    sources = volumes[token["name"]]["projected"]["sources"]
    assert [source["serviceAccountToken"]["path"] for source in sources if "serviceAccountToken" in source] == ["token"]
    assert [source["configMap"]["name"] for source in sources if "configMap" in source] == ["kube-root-ca.crt"]
    # These are the files that Ray's autoscaler reads.
    from ray.autoscaler._private.kuberay import node_provider

    for path in (node_provider.IN_CLUSTER_TOKEN_PATH, node_provider.IN_CLUSTER_CA_CERT_PATH):
        folder, _, file = path.rpartition("/")
        assert folder == token["mountPath"] and file in ("token", "ca.crt")
    for group in spec["workerGroupSpecs"]:
        assert "serviceAccountToken" not in json.dumps(group)


def secrets_of(document):
    """Names of all secrets that variables of a part of a manifest come from."""
    return set(re.findall(r'"secret(?:KeyRef|Ref)": {[^}]*"name": "([^"]+)"', json.dumps(document)))


def test_ray_and_the_tracker_have_storage_keys_of_their_own():
    tracker = {
        name for pod in (pod for one, pod in ALL_PODS if one.startswith("mlflow.yaml")) for name in secrets_of(pod)
    }
    assert tracker == {"mlflow", "mlflow-storage"}
    for name, spec in ray_clusters():
        head = secrets_of(spec["headGroupSpec"])
        assert head == {"patchcert-storage"} | ({"patchcert-tracker"} if name == "kuberay-job.yaml" else set())
        # Drivers record in the tracker; workers read and write storage only.
        assert all(secrets_of(group) == {"patchcert-storage"} for group in spec["workerGroupSpecs"])
        assert not secrets_of(spec["autoscalerOptions"]) and not tracker & head
    for name, secret, folder in (
        ("kuberay-cluster.yaml", "patchcert-storage", "BUCKET/patchcert"),
        ("mlflow.yaml", "mlflow-storage", "BUCKET/mlflow"),
    ):
        head = (CLUSTER / name).read_text()[:3500]
        assert f"create secret generic {secret} " in head and f"may read and write {folder} and nothing else" in head


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_secrets_come_from_kubernetes_secrets_only(name):
    def values(document):
        if isinstance(document, dict):
            if "name" in document and "value" in document:
                yield document["name"], str(document["value"])
            for value in document.values():
                yield from values(value)
        elif isinstance(document, list):
            for value in document:
                yield from values(value)

    found = dict(values(documents(name)))
    assert not [key for key in found if re.search("PASSWORD|SECRET|TOKEN|KEY|URI", key)]
    text = json.dumps(documents(name))
    assert not re.search(r"://[^/\s\"]*:[^/\s\"]*@", text), "credentials in an address"
