"""The kustomize tree: every overlay is rendered by kustomize, validated strictly, and agrees with itself."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from manifests import (
    K8S,
    ROOT,
    all_pods,
    cluster_spec,
    crd_validator,
    names,
    of_kind,
    ray_pods,
    render,
)

from lm_mixup.config import Config
from lm_mixup.config.load import load_config
from lm_mixup.distributed.labels import GAUGES

OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
IN_IMAGE = "/opt/lm_mixup/"
GUIDE = ROOT / "docs" / "cluster.md"
KUBERAY = {"RayJob", "RayCluster"}
OTHERS_CRDS = {"PodMonitor", "ResourceFlavor", "ClusterQueue", "LocalQueue"}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def _rendered(overlay):
    return render(K8S / "overlays" / overlay)


@pytest.fixture
def documents(overlay):
    return copy.deepcopy(_rendered(overlay))


def test_the_overlays_are_there():
    wanted = {"cpu-demo", "1x8", "4x8", "kueue", "gcs-ft", "network-policy", "judge"}
    assert set(OVERLAYS) >= wanted


@every_overlay
def test_kuberay_knows_every_field(documents):
    """And the validator would not let an unknown field, a wrong type or a value out of its range pass."""
    (document,) = [d for d in documents if d["kind"] in KUBERAY]
    assert document["apiVersion"] == "ray.io/v1"
    validator = crd_validator(document["kind"])
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)] == []
    spec = cluster_spec(documents)
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    faults = [
        (spec["authOptions"], "mode", "tokens"),
        (spec["workerGroupSpecs"][0], "replica", 2),
        (spec["workerGroupSpecs"][0], "replicas", "two"),
        (head["volumeMounts"][0], "mountpath", "/mnt"),
        (head, "secretRef", {"name": "lm-mixup-keys"}),
        (head["securityContext"], "runAsNonroot", True),
    ]
    for place, key, value in faults:
        before = dict(place)
        place[key] = value
        assert not validator.is_valid(document), key
        place.clear()
        place.update(before)
    assert validator.is_valid(document)


@every_overlay
def test_kubernetes_knows_every_field(documents):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install --editable '.[dev]'")
    for document in documents:
        if document["kind"] not in KUBERAY | OTHERS_CRDS:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    for pod in all_pods(documents):
        labels = dict(pod.labels)
        whole = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x", "labels": labels},
            "spec": pod.spec,
        }
        kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


@every_overlay
def test_what_pods_name_is_there(documents):
    """ConfigMaps, claims and accounts are in the overlay; secrets are made by the guide."""
    guide = GUIDE.read_text(encoding="utf-8")
    secrets = set(re.findall(r"kubectl create secret [\w-]+ ([\w-]+)", guide))
    for account in of_kind(documents, "ServiceAccount"):
        assert {secret["name"] for secret in account["imagePullSecrets"]} <= secrets
    for pod in all_pods(documents):
        claims = {v["persistentVolumeClaim"]["claimName"] for v in _volumes(pod, "persistentVolumeClaim")}
        assert claims <= names(documents, "PersistentVolumeClaim"), pod.role
        maps = {
            v["configMap"]["name"] for v in _volumes(pod, "configMap") if not v["configMap"].get("optional")
        }
        for container in pod.containers:
            for source in container.get("envFrom", []):
                maps |= {source["configMapRef"]["name"]} if "configMapRef" in source else set()
                assert source.get("secretRef", {"name": "lm-mixup-keys"})["name"] in secrets
            for variable in container.get("env", []):
                reference = variable["valueFrom"].get("secretKeyRef")
                assert reference is None or reference["name"] in secrets
        assert maps <= names(documents, "ConfigMap"), pod.role
        account = pod.spec.get("serviceAccountName")
        assert account is None or account in names(documents, "ServiceAccount"), pod.role


def _volumes(pod, kind):
    return [volume for volume in pod.spec.get("volumes", []) if kind in volume]


@every_overlay
def test_mounts_and_volumes_agree(documents):
    templates = {
        claim["metadata"]["name"]
        for each in of_kind(documents, "StatefulSet")
        for claim in each["spec"]["volumeClaimTemplates"]
    }
    for pod in all_pods(documents):
        mounted = {
            mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])
        }
        assert mounted - templates == {volume["name"] for volume in pod.spec.get("volumes", [])}, pod.role
    paths = {
        pod.role: {mount["name"]: mount["mountPath"] for mount in pod.main["volumeMounts"]}
        for pod in ray_pods(documents)
    }
    assert len({json.dumps(found, sort_keys=True) for found in paths.values()}) == 1
    assert {"/mnt/shared", "/etc/lm_mixup", "/mnt/spill", "/tmp/ray", "/dev/shm"} == set(
        paths["head"].values()
    )
    spec = cluster_spec(documents)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["rayStartParams"]["object-spilling-directory"] == paths["head"]["spill"]


@every_overlay
def test_logs_outlive_their_pod(documents):
    for pod in ray_pods(documents):
        (sidecar,) = pod.spec["initContainers"]
        assert sidecar["restartPolicy"] == "Always"  # a sidecar: it ends after the container it serves
        mounts = {mount["mountPath"]: mount["name"] for mount in sidecar["volumeMounts"]}
        script, ray, kept = sidecar["command"][1:]
        assert (ROOT / script.removeprefix(IN_IMAGE)).is_file()
        kinds = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert mounts[ray] == "ray"
        assert kinds[mounts[kept]]["persistentVolumeClaim"]["claimName"] == "lm-mixup-logs"


@every_overlay
def test_the_token_is_on_and_ray_is_the_pinned_one(documents):
    spec = cluster_spec(documents)
    assert spec["authOptions"] == {"mode": "token"}
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[data,default,train]=={spec['rayVersion']}" in requirements


@every_overlay
def test_pods_run_restricted(documents):
    """Kubernetes' `restricted` pod security standard, and no API token where none is needed."""
    for pod in all_pods(documents):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"], pod.role
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod.containers:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, (pod.role, container["name"])
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not container.get("privileged")
        accounts = {a["metadata"]["name"]: a for a in of_kind(documents, "ServiceAccount")}
        if pod.role != "head":
            account = accounts.get(pod.spec.get("serviceAccountName"), {})
            given = pod.spec.get(
                "automountServiceAccountToken", account.get("automountServiceAccountToken", True)
            )
            assert given is False, pod.role


@every_overlay
def test_keys_reach_the_workers_alone_and_no_key_is_in_the_tree(documents):
    assert of_kind(documents, "Secret") == []
    holders = {
        pod.role
        for pod in all_pods(documents)
        for container in pod.containers
        for source in container.get("envFrom", [])
        if "secretRef" in source
    }
    assert holders <= {"cpu", "gpu"}


@every_overlay
def test_ray_pods_run_one_pinned_image(documents):
    ours = {c["image"] for pod in ray_pods(documents) for c in pod.containers}
    ours |= {pod.main["image"] for pod in all_pods(documents) if pod.role in ("submitter", "lm-mixup-judge")}
    (image,) = ours
    with_gpu = any(pod.requests("nvidia.com/gpu") for pod in ray_pods(documents))
    assert image == f"lm-mixup:{_version()}-{'gpu' if with_gpu else 'cpu'}"
    for pod in all_pods(documents):
        for container in pod.containers:
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


def _version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


# ---- what is run -------------------------------------------------------------------------------------------


def _command(job):
    words = shlex.split(job["spec"]["entrypoint"])
    for word in words:
        if word.startswith(IN_IMAGE):
            assert (ROOT / word.removeprefix(IN_IMAGE)).is_file(), word
    assert words[:2] == ["sh", f"{IN_IMAGE}cluster/retry.sh"]
    return words[words.index(f"{IN_IMAGE}jobs/pipeline.py") + 1 :]


def _config(documents, tmp_path) -> Config:
    """The config of the entrypoint: the image's, or that of the ConfigMap that is mounted where it says."""
    jobs = of_kind(documents, "RayJob")
    path = Path(_command(jobs[0])[1] if jobs else "/etc/lm_mixup/run.yaml")
    if str(path).startswith(IN_IMAGE):
        return load_config(ROOT / str(path).removeprefix(IN_IMAGE))
    pod = ray_pods(documents)[-1]
    (mount,) = [m for m in pod.main["volumeMounts"] if m["mountPath"] == str(path.parent)]
    (volume,) = [v for v in pod.spec["volumes"] if v["name"] == mount["name"]]
    (found,) = [
        d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"] == volume["configMap"]["name"]
    ]
    written = tmp_path / path.name
    written.write_text(found["data"][path.name])
    return load_config(written)


@every_overlay
def test_the_command_parses_and_its_paths_are_on_the_shared_volume(documents, tmp_path):
    import typer.main

    from lm_mixup.cli import app

    for job in of_kind(documents, "RayJob"):
        arguments = _command(job)
        group = typer.main.get_command(app)
        context = group.make_context("lm-mixup", list(arguments))
        name, command, rest = group.resolve_command(context, list(arguments))
        parsed = command.make_context(name, rest, parent=context).params
        assert parsed["run_dir"].startswith("/mnt/shared/")
    config = _config(documents, tmp_path)
    assert config.augment.pool == "world" or config.augment.pool.startswith("/mnt/shared/")
    environment = {d["metadata"]["name"]: d for d in of_kind(documents, "ConfigMap")}["lm-mixup-env"]["data"]
    assert environment["HF_HOME"].startswith("/mnt/shared/")


@every_overlay
def test_what_models_run_on_is_said_and_not_guessed(documents, tmp_path):
    """A group of GPU nodes that is scaled to 0, or late, must not look like a cluster without GPUs."""
    accelerator = _config(documents, tmp_path).ray.accelerator
    for job in of_kind(documents, "RayJob"):
        words = _command(job)
        given = [word for option, word in itertools.pairwise(words) if option == "--set"]
        accelerator = dict(word.split("=") for word in given).get("ray.accelerator", accelerator)
    with_gpu = any(pod.requests("nvidia.com/gpu") for pod in ray_pods(documents))
    assert accelerator == ("gpu" if with_gpu else "cpu")


@every_overlay
def test_keys_that_the_config_names_are_given(documents, tmp_path):
    """A config that names a key must not start without the secret; one that names none must start without."""
    config = _config(documents, tmp_path)
    keys = {chat.api_key_env for chat in (config.rate, config.teacher) if chat.backend == "openai"} - {None}
    guide = GUIDE.read_text(encoding="utf-8")
    assert all(f"--from-literal={key}=" in guide for key in keys)
    for pod in ray_pods(documents)[1:]:
        (secret,) = [s["secretRef"] for s in pod.main["envFrom"] if "secretRef" in s]
        assert not (keys and secret.get("optional")), pod.role


def test_the_judge_is_the_one_that_the_config_asks(tmp_path):
    documents = _rendered("judge")
    config = _config(documents, tmp_path)
    (service,) = of_kind(documents, "Service")
    (server,) = of_kind(documents, "Deployment")
    (port,) = service["spec"]["ports"]
    assert config.rate.base_url == f"http://{service['metadata']['name']}:{port['port']}/v1"
    container = server["spec"]["template"]["spec"]["containers"][0]
    words = container["args"]
    assert words[words.index("--model") + 1] == config.rate.model
    assert int(words[words.index("--port") + 1]) == container["ports"][0]["containerPort"]
    assert port["targetPort"] == container["ports"][0]["name"]
    assert service["spec"]["selector"].items() <= server["spec"]["template"]["metadata"]["labels"].items()
    (key,) = [v for v in container["env"] if v["name"] == "VLLM_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "lm-mixup-keys", "key": config.rate.api_key_env}


# ---- room --------------------------------------------------------------------------------------------------


def _stages(config: Config, on_gpu: bool):
    """What each stage holds at a time: bundles of (CPUs, GPUs)."""
    from lm_mixup.grpo.placement import plan_bundles

    bundles, _ = plan_bundles(config.grpo, config.rewards, on_gpu=on_gpu)
    gpu = 1.0 if on_gpu else 0.0
    yield "grpo", [(bundle["CPU"], bundle.get("GPU", 0.0)) for bundle in bundles]
    yield "sft", [(config.sft.cpus_per_worker, gpu)] * config.sft.num_workers
    yield "embed", [(config.embedder.num_cpus, config.embedder.num_gpus)] * config.embedder.num_actors
    yield "neighbors", [(config.neighbors.num_cpus, config.neighbors.num_gpus)] * config.neighbors.num_actors
    engines = gpu * config.distill.tensor_parallel_size
    yield "distill", [(config.distill.num_cpus, engines)] * config.distill.num_actors
    if config.rate.backend == "vllm":
        yield (
            "rate",
            [(config.rate.num_cpus, gpu * config.rate.tensor_parallel_size)] * config.rate.num_actors,
        )


def _fits(bundles, nodes) -> bool:
    """First fit, the largest first; GPU bundles onto GPU nodes, others onto CPU nodes where there is room."""
    free = sorted(([cpus, gpus] for cpus, gpus in nodes), key=lambda node: node[1])
    for cpus, gpus in sorted(bundles, key=lambda bundle: (-bundle[1], -bundle[0])):
        for node in free:
            if node[0] >= cpus and node[1] >= gpus and (gpus == 0 or node[1] > 0):
                node[0] -= cpus
                node[1] -= gpus
                break
        else:
            return False
    return True


def _nodes(documents):
    """CPUs and GPUs of the workers, what the driver holds taken off."""
    pods = ray_pods(documents)[1:]
    rooms = [
        [float(pod.main["resources"]["limits"]["cpu"]), pod.requests("nvidia.com/gpu")]
        for pod in pods
        for _ in range(pod.replicas)
    ]
    for job in of_kind(documents, "RayJob"):
        rooms[0][0] -= job["spec"]["entrypointNumCpus"]  # the first group is the driver's
    return rooms


def test_first_fit_knows_what_does_not_fit():
    assert _fits([(4, 1)] * 8 + [(1, 0)] * 8, [(16, 0), (32, 8)])
    assert not _fits([(4, 1)] * 9, [(16, 0), (64, 8)])
    assert not _fits([(5, 1)] * 8, [(64, 0), (32, 8)])
    assert not _fits([(1, 2)], [(4, 1), (4, 1)])


@every_overlay
def test_every_stage_fits_and_all_gpus_are_used(documents, tmp_path):
    """A config that asks for more than there is would wait in vain; one that asks for less lets GPUs idle."""
    config, nodes = _config(documents, tmp_path), _nodes(documents)
    gpus = sum(node[1] for node in nodes)
    most = 0.0
    for stage, bundles in _stages(config, on_gpu=gpus > 0):
        assert _fits(bundles, nodes), (stage, bundles, nodes)
        asked = sum(bundle[1] for bundle in bundles)
        most = max(most, asked)
        if stage in ("sft", "grpo"):
            assert asked == gpus, stage
    assert most == gpus


@every_overlay
def test_runs_wait_long_enough_for_gpu_nodes(documents, tmp_path):
    config = _config(documents, tmp_path)
    if any(pod.role == "gpu" for pod in ray_pods(documents)):
        assert min(config.sft.placement_timeout_s, config.grpo.placement_timeout_s) >= 1800


def test_the_recipe_for_clusters_waits_for_nodes_too():
    config = load_config(ROOT / "configs" / "cluster-gpu.yaml")
    assert min(config.sft.placement_timeout_s, config.grpo.placement_timeout_s) >= 1800


@every_overlay
def test_the_driver_runs_in_the_cpu_group(documents):
    spec = cluster_spec(documents)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    offered = {
        group["groupName"]: json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        for group in spec["workerGroupSpecs"]
    }
    assert {name for name, resources in offered.items() if resources.get("driver")} == {"cpu"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        if group["groupName"] == "cpu":
            assert group["minReplicas"] >= 1
    for job in of_kind(documents, "RayJob"):
        assert json.loads(job["spec"]["entrypointResources"]) == {"driver": 1}
        assert (
            0
            < job["spec"]["entrypointNumCpus"]
            < float(ray_pods(documents)[1].main["resources"]["limits"]["cpu"])
        )


@every_overlay
def test_memory_is_requested_as_it_is_limited(documents):
    """Ray takes the limit for its own; a node that was filled by requests below it would kill pods."""
    for pod in ray_pods(documents):
        resources = pod.main["resources"]
        assert resources["requests"] == resources["limits"], pod.role


@every_overlay
def test_a_bad_config_is_not_tried_again_by_kuberay(documents):
    for job in of_kind(documents, "RayJob"):
        assert job["spec"]["backoffLimit"] == 0
        assert job["spec"]["shutdownAfterJobFinishes"]


# ---- options -----------------------------------------------------------------------------------------------


def test_kueue_admits_the_whole_job_or_nothing():
    documents = _rendered("kueue")
    (job,) = of_kind(documents, "RayJob")
    (local,) = of_kind(documents, "LocalQueue")
    (queue,) = of_kind(documents, "ClusterQueue")
    (flavor,) = of_kind(documents, "ResourceFlavor")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert job["spec"]["suspend"]
    assert not job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling")
    (resources,) = queue["spec"]["resourceGroups"]
    (quota,) = resources["flavors"]
    assert quota["name"] == flavor["metadata"]["name"]
    limits = {each["name"]: _number(each["nominalQuota"]) for each in quota["resources"]}
    assert set(limits) == set(resources["coveredResources"])
    pods = [pod for pod in all_pods(documents) if pod.role in ("head", "cpu", "gpu", "submitter")]
    asked = {name for pod in pods for c in pod.containers for name in c["resources"]["requests"]}
    assert asked == set(limits)
    for name, limit in limits.items():
        assert sum(pod.replicas * pod.requests(name) for pod in pods) <= limit, name


def _number(value):
    from manifests import quantity

    return quantity(value)


def test_the_heads_state_lies_in_redis():
    documents = _rendered("gcs-ft")
    (service,) = of_kind(documents, "Service")
    (redis,) = of_kind(documents, "StatefulSet")
    options = cluster_spec(documents)["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (password,) = redis["spec"]["template"]["spec"]["containers"][0]["env"]
    assert options["redisPassword"]["valueFrom"] == password["valueFrom"]
    assert service["spec"]["selector"].items() <= redis["spec"]["template"]["metadata"]["labels"].items()


@every_overlay
def test_the_network_policy_covers_every_pod(documents):
    (policy,) = of_kind(_rendered("network-policy"), "NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for pod in all_pods(documents):
        assert selected <= pod.labels.items(), pod.role
    ports = {port["containerPort"] for port in ray_pods(documents)[0].main["ports"]}
    opened = {p["port"] for rule in policy["spec"]["ingress"] for p in rule.get("ports", [])}
    assert opened <= ports
    assert all("from" in rule for rule in policy["spec"]["ingress"])
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert all("169.254.169.254/32" in block["except"] for block in blocks)


def test_prometheus_finds_the_pods_and_grafana_the_dashboard():
    documents = _rendered("monitoring")
    (monitor,) = of_kind(documents, "PodMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    pods = ray_pods(documents)
    ports = {port["name"] for pod in pods for port in pod.main["ports"]}
    assert all(selector <= pod.labels.items() for pod in pods)
    assert all("metrics" in {port["name"] for port in pod.main["ports"]} for pod in pods)
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    (dashboard,) = [
        d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"] == "lm-mixup-dashboard"
    ]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["lm-mixup.json"])["title"]


def test_the_dashboard_shows_every_metric_that_the_run_sets_and_no_other():
    """Ray puts `ray_` before the names of `ray.util.metrics`."""
    text = (K8S / "components" / "monitoring" / "lm-mixup.json").read_text()
    panels = json.loads(text)["panels"]
    shown = set(re.findall(r"\bray_(lm_mixup_\w+)", text))
    documented = set(re.findall(r"^\| `(lm_mixup_\w+)` \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown == documented == set(GAUGES)
    assert len({panel["id"] for panel in panels}) == len(panels)
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert all(
        query.count("(") == query.count(")") and query.count("{") == query.count("}") for query in queries
    )
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels]
    assert all(x + w <= 24 for x, _, w, _ in places)


def test_a_standing_cluster_has_the_jobs_groups_and_grows_with_the_work():
    standing, job = _rendered("standing"), cluster_spec(_rendered("4x8"))
    assert names(standing, "RayCluster") == {"lm-mixup"}
    assert of_kind(standing, "RayJob") == []
    spec = copy.deepcopy(cluster_spec(standing))
    assert spec["enableInTreeAutoscaling"]
    gpu = spec["workerGroupSpecs"][1]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 4)
    gpu["minReplicas"] = 4
    assert spec["headGroupSpec"] == job["headGroupSpec"]
    assert spec["workerGroupSpecs"] == job["workerGroupSpecs"]


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "judge"])
def test_a_component_joins_an_overlay_of_the_users_own(component, tmp_path):
    """As the guide says to: a folder of one's own, anywhere, with a size and the options one wants."""
    relative = Path(*[".."] * len(tmp_path.resolve().parts[1:]), *K8S.parts[1:])
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [str(relative / "overlays" / "1x8")],
                "components": [str(relative / "components" / component)],
                "images": [
                    {
                        "name": "lm-mixup",
                        "newName": "registry.example.com/lm-mixup",
                        "digest": f"sha256:{'0' * 64}",
                    }
                ],
            }
        )
    )
    documents = render(tmp_path)
    (document,) = [d for d in documents if d["kind"] in KUBERAY]
    validator = crd_validator(document["kind"])
    assert [error.message for error in validator.iter_errors(document)] == []
    assert {c["image"] for pod in ray_pods(documents) for c in pod.containers} == {
        f"registry.example.com/lm-mixup@sha256:{'0' * 64}"
    }


@pytest.mark.parametrize("path", sorted(K8S.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_every_kustomization_says_when_to_use_it(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 40
