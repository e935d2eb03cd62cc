"""Every file of cluster/ that a cloud or a cluster would read, checked offline."""

import importlib.metadata
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from cluster.cluster_files import (
    ALL_FILES,
    LAUNCHER_FILES,
    RAY_FILES,
    ROOT,
    UNFILLED,
    pins,
    pod_specs,
    ray_clusters,
    start_command,
)
from cluster.kuberay_schemas import (
    CLUSTER,
    KINDS,
    USED_FIELDS,
    crd_folder,
    documents,
    full_schema,
    manifests,
    used_fields,
)
from packaging.requirements import Requirement

import patchcert


@pytest.fixture(scope="module")
def schemas():
    return json.loads(USED_FIELDS.read_text())["schemas"]


@pytest.mark.parametrize("kind", KINDS)
def test_ray_manifests_fit_the_fields_of_kuberay(schemas, kind):
    assert manifests(kind)
    for _, document in manifests(kind):
        jsonschema.validate(document, schemas[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_ray_manifests_fit_the_whole_definitions_of_kuberay(schemas, kind):
    folder = crd_folder()
    if folder is None:
        pytest.skip("no KubeRay CRDs: set PATCHCERT_KUBERAY_CRDS")
    schema = full_schema(folder, kind)
    for _, document in manifests(kind):
        # Not validate(), which would first check the schema itself, for a minute.
        jsonschema.Draft202012Validator(schema).validate(document)
    used = used_fields(schema, [document for _, document in manifests(kind)])
    assert used == schemas[kind], "make kuberay_used_fields.json again, as kuberay_schemas.py says"


def test_the_schema_refuses_a_misspelt_field_and_a_wrong_type(schemas):
    ((_, document),) = manifests("RayCluster")
    misspelt = json.loads(json.dumps(document).replace("minReplicas", "minReplica"))
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(misspelt, schemas["RayCluster"])
    document["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'string'"):
        jsonschema.validate(document, schemas["RayCluster"])


def test_a_job_that_makes_its_cluster_may_be_repeated_on_a_new_one():
    """KubeRay rejects backoffLimit > 0 for a cluster that is selected; the schema does not know."""
    for _, document in manifests("RayJob"):
        spec = document["spec"]
        assert spec["backoffLimit"] > 0 and "clusterSelector" not in spec and "rayClusterSpec" in spec
        assert spec["shutdownAfterJobFinishes"] is True and spec["activeDeadlineSeconds"] > 0
        assert yaml.safe_load(spec["runtimeEnvYAML"]).keys() == {"env_vars"}


@pytest.mark.parametrize(("name", "spec"), ray_clusters(), ids=lambda value: value if isinstance(value, str) else "")
def test_ray_clusters_scale_from_zero_and_are_guarded(name, spec):
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert 0 < spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0" and head["serviceType"] == "ClusterIP"
    assert not head.get("enableIngress") and "ingressOptions" not in head
    # Autoscaler v2 replaces pods itself: KubeRay wants restartPolicy Never, or none.
    for group in (head, *workers):
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"
    for group in workers:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert has_gpu == (group["groupName"] == "gpu")
        tolerated = [entry["key"] for entry in group["template"]["spec"].get("tolerations", ())]
        assert tolerated == ["nvidia.com/gpu"] * has_gpu
    for pod in pod_specs(spec):
        (container,) = pod["containers"]
        (memory,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert memory["medium"] == "Memory" and {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def images(text):
    return re.findall(r"^ *(?:- )?image: *(\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("name", ALL_FILES)
def test_images_are_named_by_digest(name):
    text = (CLUSTER / name).read_text()
    assert images(text)
    for image in images(text):
        assert re.fullmatch(r"[\w./-]+(:\d[\w.-]*)?@sha256:[0-9a-f]{64}", image), image
        assert image.endswith(UNFILLED) == image.startswith("registry.example.com/")


@pytest.mark.parametrize("name", ALL_FILES)
def test_the_documented_command_fills_in_every_digest_and_address(name):
    variables = {"image": f"registry.of.a.company:5000/team/patchcert@sha256:{'c' * 64}", "api": "10.96.0.1"}
    command = start_command(name)
    done = subprocess.run(
        ["bash", "-euc", command], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    filled = [image for image in images(done.stdout) if not image.startswith("postgres:")]
    assert set(filled) == {variables["image"]} and len(images(done.stdout)) == len(images((CLUSTER / name).read_text()))
    changed = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("#"))
    assert "registry.example.com" not in changed and UNFILLED not in changed and "192.0.2." not in changed
    assert ("10.96.0.1/32" in changed) == (name in RAY_FILES)


def test_the_tracker_asks_for_a_login_and_a_known_host():
    deployment = next(document for document in documents("mlflow.yaml") if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    arguments = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"][2:])
    assert arguments["app-name"] == "basic-auth" and "*" not in arguments["allowed-hosts"]
    assert all(host.endswith(":5000") for host in arguments["allowed-hosts"].split(","))
    from_secrets = {entry["name"] for entry in container["env"] if "valueFrom" in entry}
    assert from_secrets == {
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_AUTH_ADMIN_USERNAME",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
    }


def test_the_tracker_server_knows_every_option_it_is_given():
    """The options are those of the pinned mlflow, which is the installed one."""
    from mlflow.cli import server
    from mlflow.environment_variables import MLFLOW_AUTH_CONFIG_PATH

    deployment = next(document for document in documents("mlflow.yaml") if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    known = {option for parameter in server.params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in container["args"][2:]} <= known
    assert MLFLOW_AUTH_CONFIG_PATH.name in {entry["name"] for entry in container["env"]}


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_vm_launcher_files_pass_the_schema_of_ray(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / name).read_text()))
    validate_config(config)
    head = config["available_node_types"][config["head_node_type"]]
    gpu = config["available_node_types"]["gpu"]
    assert head["resources"]["CPU"] == 0 and gpu["resources"]["GPU"] == 1
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= config["max_workers"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    options = config["docker"]["run_options"]
    assert {"-e RAY_AUTH_MODE=token", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(options)
    assert any(target.endswith(".ray/auth_token") for target in config["file_mounts"])
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "max_worker": 3})


def test_only_ssh_from_named_addresses_reaches_machines_of_aws():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    (rule,) = config["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert "0.0.0.0/0" not in json.dumps(config)


def test_workers_of_the_clouds_have_the_rights_of_storage_only():
    """The head starts machines; whatever a worker runs may read and write the bucket."""
    aws, gcp = (yaml.safe_load((CLUSTER / name).read_text())["available_node_types"] for name in LAUNCHER_FILES)
    head, worker = (aws[name]["node_config"] for name in ("head", "gpu"))
    assert head["IamInstanceProfile"] == {"Name": "patchcert-head"}
    assert worker["IamInstanceProfile"] == {"Name": "patchcert-worker"}
    for machine in (head, worker):
        assert machine["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    (head,), (worker,) = (gcp[name]["node_config"]["serviceAccounts"] for name in ("head", "gpu"))
    assert head["email"].startswith("patchcert-head@") and worker["email"].startswith("patchcert-worker@")
    assert worker["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]


def test_image_tags_ray_versions_and_pins_are_one():
    pinned = pins()
    for name, spec in ray_clusters():
        assert spec["rayVersion"] == pinned["ray"], name
    tags = {
        f"/patchcert:{patchcert.__version__}-ray{pinned['ray']}": (*RAY_FILES[:1], *LAUNCHER_FILES, "Dockerfile"),
        f"/patchcert-mlflow:{pins('cluster/mlflow.lock')['mlflow']}": ("mlflow.yaml", "Dockerfile"),
    }
    for tag, names in tags.items():
        kind = tag.partition(":")[0]
        for name in names:
            assert set(re.findall(rf"REGISTRY({kind}:[\w.-]+)", (CLUSTER / name).read_text())) == {tag}, name


def test_the_pinned_ray_is_the_tested_one():
    if importlib.metadata.version("ray") != pins()["ray"]:
        pytest.skip(f"ray {importlib.metadata.version('ray')} is installed, the image has {pins()['ray']}")
    assert pins()["ray"] in documents("kuberay-cluster.yaml")[0]["spec"]["rayVersion"]


class TestDockerfile:
    @pytest.fixture(scope="class")
    def stages(self):
        """Instructions of each stage, continued lines joined."""
        text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
        stages, shared = {}, []
        for instruction, rest in lines:
            if instruction == "FROM":
                stages[rest.split()[-1]] = current = []
            (current if stages else shared).append((instruction, rest))
        return {"": shared, **stages}

    def test_the_base_is_an_exact_build_of_a_supported_python(self, stages):
        """A base that is given by tag, or by nothing, is no name of an image: the build does not begin."""
        (argument,) = [rest for instruction, rest in stages[""] if instruction == "ARG"]
        assert re.fullmatch(r"BASE_DIGEST=sha256:[0-9a-f]{64}", argument)
        bases = re.findall(r"^FROM (\S+)", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
        assert len(bases) == 2 and len(set(bases)) == 1
        version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+@\$\{BASE_DIGEST\}", bases[0])[1]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert Requirement(f"python{project['requires-python']}").specifier.contains(version)
        assert stages.keys() == {"", "node", "mlflow"}

    def test_images_end_as_a_user_and_hold_no_secret(self, stages):
        for name in ("node", "mlflow"):
            users = [rest for instruction, rest in stages[name] if instruction == "USER"]
            assert users == ["1000:1000"], name
            for instruction, rest in stages[name]:
                assert instruction != "ADD", rest
                assert instruction not in ("ENV", "ARG") or not re.search("PASSWORD|SECRET|TOKEN|KEY", rest), rest
                assert "curl" not in rest and "sudo" not in rest

    def test_everything_that_is_installed_is_locked(self, stages):
        expected = {"node": ["requirements.lock", None], "mlflow": ["/mlflow.lock"]}
        for name, locks in expected.items():
            commands = [rest.split(" && ")[0] for instruction, rest in stages[name] if instruction == "RUN"]
            commands = [command.split() for command in commands if "pip install" in command]
            assert len(commands) == len(locks)
            for command, lock in zip(commands, locks, strict=True):
                if lock:
                    assert command[2:] == ["--require-hashes", "--only-binary", ":all:", "--requirement", lock]
                else:
                    assert command[2:] == ["--no-index", "--no-deps", "--no-build-isolation", "."]

    def test_no_other_command_fetches_anything(self, stages):
        commands = " ".join(rest for stage in stages.values() for instruction, rest in stage if instruction == "RUN")
        assert commands.count("pip install") == 3
        assert not re.search(r"\b(apt|apt-get|curl|wget|git|uv|conda|npm)\b|https?:", commands)

    def test_the_context_holds_what_is_copied_and_nothing_else(self, stages):
        sources = [
            rest.split()[:-1] for stage in stages.values() for instruction, rest in stage if instruction == "COPY"
        ]
        copied = {path for paths in sources for path in paths}
        rules = (ROOT / ".dockerignore").read_text().splitlines()
        assert rules[1] == "*"
        assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
        assert all((ROOT / path).exists() for path in copied)


@pytest.mark.parametrize(
    "path", [path for path in CLUSTER.iterdir() if path.suffix in (".yaml", ".sh", ".py")], ids=lambda path: path.name
)
def test_every_file_says_what_for_how_to_start_how_to_stop_and_what_it_costs(path: Path):
    head = path.read_text()[:3500]
    assert all(word in head for word in ("Start:", "Stop:", "Left running it costs")), path.name


def test_the_index_names_every_file():
    index = (CLUSTER / "README.md").read_text()
    files = [path.name for path in CLUSTER.iterdir() if path.is_file() and path.name != "README.md"]
    assert not [name for name in files if f"({name})" not in index]
    for path in re.findall(r"`(tests/[\w/.]+)`", index):
        assert (ROOT / path).exists(), path
