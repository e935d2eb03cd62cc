"""The KubeRay manifests and the CRDs in, JSON schemas that know no field but those of the CRDs out.

CRDs drop unknown fields in silence, so a typo passes there; the schemas here refuse it. `used_fields` keeps the part
of a schema that a manifest uses, small enough to lie beside the tests (kuberay_used_fields.json). To make it again
after a manifest uses a new field:  PATCHCERT_KUBERAY_CRDS=FOLDER python tests/cluster/kuberay_schemas.py
"""

import gzip
import json
import os
from pathlib import Path

import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
USED_FIELDS = Path(__file__).with_name("kuberay_used_fields.json")
SOURCE = "KubeRay v1.7.0 CRDs rayclusters.ray.io and rayjobs.ray.io, version v1, Apache-2.0; only the fields in use"
KINDS = {"RayCluster": "rayclusters.crd.yaml.gz", "RayJob": "rayjobs.crd.yaml.gz"}
_KEPT = ("type", "enum", "required", "pattern", "anyOf", "minimum", "maximum", "format")


def documents(name):
    """All documents of a manifest in cluster/."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def crd_folder():
    """Where the full CRDs lie, or None."""
    places = [os.environ.get("PATCHCERT_KUBERAY_CRDS")]
    if data := os.environ.get("PATCHCERT_DATA"):
        places.append(str(Path(data).parent / "kuberay"))
    return next((Path(place) for place in places if place and Path(place, KINDS["RayJob"]).is_file()), None)


def full_schema(folder, kind):
    """The schema of a CRD, with every object closed."""
    # A megabyte: the loader in C, where PyYAML was built with it, is eight times faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(gzip.decompress((folder / KINDS[kind]).read_bytes()), loader)
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "spec"})
    # The API server, not the CRD, knows what metadata holds.
    names = {"type": "object", "additionalProperties": {"type": "string"}}
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": names},
        "additionalProperties": False,
    }
    return schema


def _closed(schema):
    closed = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    return closed


def used_fields(schema, values):
    """The schema without the properties that none of the values has."""
    used = {key: value for key, value in schema.items() if key not in ("properties", "items")}
    if "properties" in schema:
        present = sorted({name for value in values for name in value} & schema["properties"].keys())
        used["properties"] = {
            name: used_fields(schema["properties"][name], [value[name] for value in values if name in value])
            for name in present
        }
    if "items" in schema:
        used["items"] = used_fields(schema["items"], [entry for value in values for entry in value])
    return used


def manifests(kind):
    """Name and document of every manifest of a kind."""
    files = sorted(CLUSTER.glob("kuberay-*.yaml"))
    return [(path.name, document) for path in files for document in documents(path.name) if document["kind"] == kind]


if __name__ == "__main__":
    schemas = {
        kind: used_fields(full_schema(crd_folder(), kind), [document for _, document in manifests(kind)])
        for kind in KINDS
    }
    USED_FIELDS.write_text(json.dumps({"source": SOURCE, "schemas": schemas}, indent=None, sort_keys=True) + "\n")
    print(f"{USED_FIELDS.stat().st_size:,} bytes")
