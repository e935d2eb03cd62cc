"""What may reach the pods, and what they may reach: each other, the tracker, storage, and no more."""

import ipaddress

import pytest
from cluster.cluster_files import ALL_PODS, KUBERNETES_FILES
from cluster.kuberay_schemas import documents


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_nothing_is_reachable_from_outside(name):
    kinds = [document["kind"] for document in documents(name)]
    assert "NetworkPolicy" in kinds and "Ingress" not in kinds
    for document in documents(name):
        if document["kind"] == "Service":
            assert document["spec"]["type"] == "ClusterIP"
        if document["kind"] == "NetworkPolicy":
            assert document["spec"]["podSelector"]["matchLabels"]
            assert all(rule["from"] for rule in document["spec"].get("ingress", ()))


def policies(name):
    return [document["spec"] for document in documents(name) if document["kind"] == "NetworkPolicy"]


def policies_of(name, labels):
    """The policies that hold for a pod with these labels."""
    return [spec for spec in policies(name) if spec["podSelector"]["matchLabels"].items() <= labels.items()]


def labels_of_pods(name):
    """Labels of every pod that a file makes, with those that KubeRay adds."""
    found = []
    for document in documents(name):
        spec = document["spec"] if "spec" in document else {}
        spec = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in spec:
            found.append(spec["headGroupSpec"]["template"]["metadata"]["labels"] | {"ray.io/node-type": "head"})
            for group in spec["workerGroupSpecs"]:
                found.append(group["template"]["metadata"]["labels"] | {"ray.io/node-type": "worker"})
        elif "template" in spec:
            found.append(spec["template"]["metadata"]["labels"])
        if "submitterPodTemplate" in document.get("spec", {}):
            found.append(document["spec"]["submitterPodTemplate"]["metadata"]["labels"])
    return found


def outward(name, labels):
    """(peer, ports) of everything that a pod with these labels may reach."""
    rules = [rule for spec in policies_of(name, labels) for rule in spec.get("egress", ())]
    assert all(rule["to"] for rule in rules), "a rule without addresses lets everything through"
    return [(peer, {(port["protocol"], port["port"]) for port in rule["ports"]} if "ports" in rule else None)
            for rule in rules for peer in rule["to"]]  # fmt: skip


def allows(block, address):
    address = ipaddress.ip_address(address)
    inside = address in ipaddress.ip_network(block["cidr"])
    return inside and not any(address in ipaddress.ip_network(part) for part in block.get("except", ()))


# Where clouds hand out the rights of a machine to whoever asks.
METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
            "fe80::a9fe:a9fe", "100.100.100.200", "168.63.129.16", "192.0.0.192", "64:ff9b::a9fe:a9fe")  # fmt: skip


PRIVATE = ("10.0.0.1", "10.96.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12::1")


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_pods_reach_storage_and_names_and_no_other_address(name):
    pods = labels_of_pods(name)
    assert len(pods) == len([pod for one, pod in ALL_PODS if one.startswith(f"{name}-")])
    for labels in pods:
        found = policies_of(name, labels)
        assert {kind for spec in found for kind in spec["policyTypes"]} == {"Ingress", "Egress"}, labels
        # With the type and no rule list a pod reaches nothing; without the type, everything.
        assert all("egress" in spec for spec in found if "Egress" in spec["policyTypes"])
        reached = outward(name, labels)
        blocks = [(peer["ipBlock"], ports) for peer, ports in reached if "ipBlock" in peer]
        if labels.get("app.kubernetes.io/name") == "mlflow-postgres":
            assert reached == []
            continue
        for block, ports in blocks:
            assert ports and ports <= {("TCP", 443), ("TCP", 6443)}
            assert not [address for address in (*METADATA, *PRIVATE) if allows(block, address)], block
        anywhere = [
            (block, ports) for block, ports in blocks if allows(block, "52.216.0.1") or allows(block, "2600::1")
        ]
        assert len(anywhere) == 2 and all(ports == {("TCP", 443)} for _, ports in anywhere)
        others = [one for one in blocks if one not in anywhere]
        kubernetes = [({"cidr": "192.0.2.1/32"}, {("TCP", 443), ("TCP", 6443)})]
        assert others == (kubernetes if labels.get("ray.io/node-type") == "head" else [])
        names = [ports for peer, ports in reached if peer.get("podSelector", {}).get("matchLabels") == KUBE_DNS]
        assert names == [{("UDP", 53), ("TCP", 53)}]


KUBE_DNS = {"k8s-app": "kube-dns"}


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_pods_reach_the_pods_they_work_with_and_no_others(name):
    ray = {"app.kubernetes.io/part-of": "patchcert"}
    tracker, database = {"app.kubernetes.io/name": "mlflow"}, {"app.kubernetes.io/name": "mlflow-postgres"}
    expected = {
        "patchcert": [(ray, None), (tracker, {("TCP", 5000)})],
        "mlflow": [(database, {("TCP", 5432)})],
        "mlflow-postgres": [],
    }
    for labels in labels_of_pods(name):
        pods = [
            (peer["podSelector"]["matchLabels"], ports, peer)
            for peer, ports in outward(name, labels)
            if "podSelector" in peer
        ]
        kind = labels.get("app.kubernetes.io/name") or labels["app.kubernetes.io/part-of"]
        assert [(found, ports) for found, ports, _ in pods if found != KUBE_DNS] == expected[kind]
        # Names of pods elsewhere are looked up in one namespace; all others are in this one.
        for found, _, peer in pods:
            spaces = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}} if found == KUBE_DNS else None
            assert peer.get("namespaceSelector") == spaces


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_pods_are_reached_by_the_pods_they_work_with_and_no_others(name):
    ray = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "patchcert"}}}
    tracker = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}}
    # The operator lives in a namespace of its own.
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    expected = {
        "patchcert": [
            {"from": [ray]},
            {"from": [operator], "ports": [{"protocol": "TCP", "port": 8265}]},
        ],
        "mlflow": [{"from": [ray], "ports": [{"protocol": "TCP", "port": 5000}]}],
        "mlflow-postgres": [{"from": [tracker], "ports": [{"protocol": "TCP", "port": 5432}]}],
    }
    for labels in labels_of_pods(name):
        kind = labels.get("app.kubernetes.io/name") or labels["app.kubernetes.io/part-of"]
        found = [rule for spec in policies_of(name, labels) for rule in spec.get("ingress", ())]
        assert found == expected[kind]
