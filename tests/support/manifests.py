"""Kustomize's own rendering, strict validation, and a view of the pods in what was rendered."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "cluster" / "k8s"
CRDS = ROOT.parent / "shared" / "kuberay"

Document = dict[str, Any]


def tool(name: str) -> str:
    """A program of the extra `dev`, beside this interpreter or on PATH; without it the test is skipped."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --editable '.[dev]'")
    return found


def render(folder: Path) -> list[Document]:
    """The documents that `kubectl apply -k` would send."""
    command = [tool("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr  # deprecations
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def crd_validator(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's schema of a kind, made strict: a field that it does not know is refused.

    The API server drops such fields without a word, and with them what they were to do.
    """
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's CRDs not found at {CRDS}")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    open_ended = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    return made


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """The documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def names(documents: list[Document], kind: str) -> set[str]:
    """The names of the documents of a kind."""
    return {document["metadata"]["name"] for document in of_kind(documents, kind)}


@dataclass(frozen=True)
class Pod:
    """A pod template: whose it is, how many there are at most, its labels and its spec."""

    role: str
    replicas: int
    labels: dict[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        """All containers, sidecars included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Document:
        """The container that does the work."""
        container: Document = self.spec["containers"][0]
        return container

    def requests(self, resource: str) -> float:
        """What the pod asks for, sidecars included; bytes, cores, or pieces."""
        asked = (c["resources"]["requests"].get(resource, 0) for c in self.containers)
        return sum(quantity(value) for value in asked)


def cluster_spec(documents: list[Document]) -> Document:
    """The Ray cluster's spec, of its own or inside a job."""
    clusters = [d["spec"] for d in of_kind(documents, "RayCluster")]
    clusters += [d["spec"]["rayClusterSpec"] for d in of_kind(documents, "RayJob")]
    (spec,) = clusters
    return spec


def ray_pods(documents: list[Document]) -> list[Pod]:
    """The pods that are Ray nodes: head first."""
    spec = cluster_spec(documents)
    head = _pod("head", 1, spec["headGroupSpec"]["template"])
    groups = spec["workerGroupSpecs"]
    return [head, *(_pod(group["groupName"], group["maxReplicas"], group["template"]) for group in groups)]


def all_pods(documents: list[Document]) -> list[Pod]:
    """Ray's pods, the submitter, and those of Deployments and StatefulSets."""
    return [*ray_pods(documents), *_other_pods(documents)]


def _other_pods(documents: list[Document]) -> Iterator[Pod]:
    for job in of_kind(documents, "RayJob"):
        yield _pod("submitter", 1, job["spec"]["submitterPodTemplate"])
    for kind in ("Deployment", "StatefulSet"):
        for document in of_kind(documents, kind):
            yield _pod(
                document["metadata"]["name"], document["spec"]["replicas"], document["spec"]["template"]
            )


def _pod(role: str, replicas: int, template: Document) -> Pod:
    return Pod(role, replicas, template["metadata"]["labels"], template["spec"])


_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}


def quantity(value: str | int | float) -> float:
    """A Kubernetes quantity as a number: 500m, 16Gi, 8."""
    text = str(value)
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
