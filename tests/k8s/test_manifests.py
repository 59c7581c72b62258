"""The manifests, rendered as a user renders them: refused by nobody, and what they promise."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import load_config, parse_overrides
from tests.k8s.crds import crd_problems, load_schema
from tests.k8s.kuberay_rules import cluster_problems, job_problems
from tests.k8s.manifests import (
    K8S,
    NAMESPACE,
    OVERLAYS,
    by_kind,
    containers,
    parse_quantity,
    ray_pods,
    ray_specs,
    render,
    render_with,
    settings,
)
from tests.k8s.pod_security import pod_problems
from tune_spaces.config import TuneConfig
from xdist_train.config import Config, narrow, read_recipe, resolve_config

kubernetes_validate = pytest.importorskip("kubernetes_validate")

Object = dict[str, Any]
# The oldest that has every field used here (a budget's unhealthyPodEvictionPolicy), and the newest with schemas.
_KUBERNETES = ("1.31", "1.37")
_WITHOUT_SCHEMA = {"ClusterQueue", "LocalQueue", "ResourceFlavor", "PodMonitor"}
_RAY_KINDS = {"RayCluster", "RayJob"}
# What a node that was told to end may need beside Ray's drain: the driver's last words and Ray's own processes.
_AFTER_DRAIN_S = 60

everywhere = pytest.mark.parametrize("overlay", OVERLAYS)


def _first(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [item for item in by_kind(objects, kind) if item["metadata"]["name"] == name]
    return found


def _change(item: Object, path: str, value: Any) -> Object:
    """A copy with one field set; `path` is dotted, numbers are places in a list."""
    changed = copy.deepcopy(item)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = changed
    for step in steps:
        place = place[step]
    place[last] = value
    return changed


# ---- what the API server and KubeRay would say -----------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("version", _KUBERNETES)
def test_core_objects_are_valid_and_have_no_unknown_field(overlay: str, version: str) -> None:
    """Every object of Kubernetes' own passes its schema strictly."""
    own = [item for item in render(overlay) if item["kind"] not in _RAY_KINDS | _WITHOUT_SCHEMA]
    assert len(own) > 10
    for item in own:
        kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelt_core_field_is_refused() -> None:
    """The strict schemas are not blind: a typo in a NetworkPolicy is an error."""
    policy = by_kind(render("gpu"), "NetworkPolicy")[0]
    policy["spec"]["podSelektor"] = policy["spec"].pop("podSelector")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, _KUBERNETES[-1], strict=True)


@everywhere
@pytest.mark.parametrize("kind", sorted(_RAY_KINDS))
def test_ray_objects_pass_their_crd_and_have_no_unknown_field(overlay: str, kind: str) -> None:
    """Every Ray object passes KubeRay's schema, closed against unknown fields."""
    schema = load_schema(kind)
    found = by_kind(render(overlay), kind)
    assert len(found) == {"RayJob": 3, "RayCluster": 0 if overlay == "kueue" else 1}[kind]
    assert [] == [problem for item in found for problem in crd_problems(item, schema)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofLimit", 3),
        ("spec.rayClusterSpec.authOption", {"mode": "token"}),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 4),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "4"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.serviceAcountName", "x"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.livenesProbe", {}),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limit", {"cpu": "1"}),
        ("metadata.label", {"a": "b"}),
    ],
)
def test_a_misspelt_ray_field_is_refused(path: str, value: Any) -> None:
    """The closed schema is not blind at any depth: a typo or a wrong type is an error."""
    job = _first(render("gpu"), "RayJob", "xdist-train")
    schema = load_schema("RayJob")
    assert [] == crd_problems(job, schema)
    assert len(crd_problems(_change(job, path, value), schema)) == 1


@everywhere
def test_kuberay_accepts_every_cluster_and_job(overlay: str) -> None:
    """What KubeRay's operator refuses beyond its CRDs is not there."""
    objects = render(overlay)
    clusters = {item["metadata"]["name"]: item["spec"] for item in by_kind(objects, "RayCluster")}
    jobs = {item["metadata"]["name"]: item["spec"] for item in by_kind(objects, "RayJob")}
    assert [] == [problem for name, spec in clusters.items() for problem in cluster_problems(name, spec)]
    assert [] == [problem for name, spec in jobs.items() for problem in job_problems(name, spec)]


_HEAD, _WORKER = "rayClusterSpec.headGroupSpec", "rayClusterSpec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("shutdownAfterJobFinishes", False),
        ("deletionStrategy", {"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}]}),
        ("submitterPodTemplate", {}),
        ("clusterSelector", {"ray.io/cluster": "x"}),
        ("runtimeEnvYAML", "env_vars: {RAY_JOB_STOP_WAIT_TIME_S: 300}"),
        ("activeDeadlineSeconds", 0),
        ("rayClusterSpec.rayVersion", "2.51.0"),
        ("rayClusterSpec.enableInTreeAutoscaling", False),
        (f"{_HEAD}.template.spec.restartPolicy", "Always"),
        (f"{_WORKER}.template.spec.restartPolicy", "OnFailure"),
        (f"{_WORKER}.rayStartParams.labels", "a=b"),
        (f"{_WORKER}.replicas", 9),
        (f"{_HEAD}.resources", {"CPU": "1"}),
        (f"{_HEAD}.rayStartParams.redis-password", "x"),
    ],
)
def test_kuberays_rules_are_not_blind(path: str, value: Any) -> None:
    """Each rule finds the one thing that was broken for it."""
    spec = _first(render("gpu"), "RayJob", "xdist-train")["spec"]
    assert len(job_problems("xdist-train", _change(spec, path, value))) == 1


@pytest.mark.parametrize("name", ["1-xdist", "Xdist", "xdist_train", "x" * 48])
def test_a_name_that_kuberay_refuses_is_found(name: str) -> None:
    """Names are DNS-1035 and leave room for what KubeRay appends."""
    assert len(job_problems(name, _first(render("gpu"), "RayJob", "xdist-train")["spec"])) == 1


# ---- pods ------------------------------------------------------------------------------------------------------------


@everywhere
def test_pods_as_kuberay_makes_them_are_valid(overlay: str) -> None:
    """Head and worker pods, with KubeRay's containers in them, are valid pods."""
    for pod in ray_pods(render(overlay)):
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": pod.labels}, "spec": pod.spec}
        kubernetes_validate.validate(item, _KUBERNETES[-1], strict=True)


@everywhere
def test_every_container_is_restricted(overlay: str) -> None:
    """A namespace that enforces `restricted` takes every pod, also KubeRay's containers in it."""
    objects = render(overlay)
    labels = by_kind(objects, "Namespace")[0]["metadata"]["labels"]
    assert {"restricted"} == {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")}
    assert {} == {pod.name: found for pod in ray_pods(objects) if (found := pod_problems(pod.spec))}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostNetwork", True),
        ("volumes.1", {"name": "cache", "hostPath": {"path": "/"}}),
        ("securityContext.runAsUser", 0),
        ("containers.0.securityContext.allowPrivilegeEscalation", True),
        ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
        ("containers.0.securityContext.readOnlyRootFilesystem", False),
        ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("containers.0.resources.requests", {"cpu": "1"}),
    ],
)
def test_the_rules_of_pod_security_are_not_blind(path: str, value: Any) -> None:
    """Each rule finds what was broken for it."""
    head = next(pod for pod in ray_pods(render("gpu")) if pod.name == "xdist-train/head")
    assert pod_problems(_change(head.spec, path, value))


@everywhere
def test_what_is_written_has_a_volume_with_a_size(overlay: str) -> None:
    """Every place that Ray and the program write to is an emptyDir of limited size, together within the pod's disk."""
    for pod in ray_pods(render(overlay)):
        mounted = {mount["mountPath"]: mount["name"] for mount in pod.ray["volumeMounts"]}
        assert {"/dev/shm", "/cache", "/tmp", "/tmp/ray", "/home/xdist"} <= set(mounted), pod.name
        names = {mount["name"] for item in containers(pod.spec) for mount in item.get("volumeMounts", [])}
        assert names == {volume["name"] for volume in pod.spec["volumes"]}, pod.name
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod.spec["volumes"] if "emptyDir" in volume}
        assert set(mounted.values()) == set(volumes), pod.name
        disk = [item["sizeLimit"] for item in volumes.values() if item.get("medium") != "Memory"]
        limits = pod.ray["resources"]["limits"]
        assert sum(map(parse_quantity, disk)) <= parse_quantity(limits["ephemeral-storage"]), pod.name


@everywhere
def test_shared_memory_holds_rays_object_store(overlay: str) -> None:
    """/dev/shm is memory, at least the 30 % that Ray takes of it and at most half of the pod's."""
    for pod in ray_pods(render(overlay)):
        (name,) = [mount["name"] for mount in pod.ray["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        (shared,) = [volume["emptyDir"] for volume in pod.spec["volumes"] if volume["name"] == name]
        share = parse_quantity(shared["sizeLimit"]) / parse_quantity(pod.ray["resources"]["limits"]["memory"])
        assert shared["medium"] == "Memory"
        assert 0.3 <= share <= 0.5, pod.name


@everywhere
def test_the_cache_stays_below_its_volume(overlay: str) -> None:
    """The program's own limit of the cache is reached before Kubernetes evicts the pod for it."""
    objects = render(overlay)
    limit = float(settings(objects)["XDIST_CACHE_LIMIT_GIB"]) * 2**30
    for pod in ray_pods(objects):
        (cache,) = [volume["emptyDir"] for volume in pod.spec["volumes"] if volume["name"] == "cache"]
        assert limit < parse_quantity(cache["sizeLimit"]), pod.name
        assert pod.environment["XDIST_CACHE_DIR"].startswith("/cache/")


@everywhere
def test_a_pod_may_take_longer_to_end_than_its_drain(overlay: str) -> None:
    """The grace period is longer than Ray's drain and what follows it; the drain than the driver's time to stop."""
    objects = render(overlay)
    for pod in ray_pods(objects):
        drain_s = float(pod.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod.spec["terminationGracePeriodSeconds"] >= drain_s + _AFTER_DRAIN_S, pod.name
        for job in by_kind(objects, "RayJob"):
            variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
            assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"
            assert 60 <= float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) <= drain_s


@everywhere
def test_probes_ask_what_needs_no_token(overlay: str) -> None:
    """Readiness and liveness ask the agent's health path, which Ray leaves open under token authentication."""
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    for pod in ray_pods(render(overlay)):
        for probe in ("readinessProbe", "livenessProbe"):
            assert pod.ray[probe]["httpGet"]["port"] == 52365
            assert pod.ray[probe]["httpGet"]["path"] in PUBLIC_EXACT_PATHS
        patience_s = pod.ray["livenessProbe"]["failureThreshold"] * pod.ray["livenessProbe"]["periodSeconds"]
        assert patience_s > 300, "a rank that stands still is the program's to find (failure.hang_s)"


@everywhere
def test_one_image_by_version(overlay: str) -> None:
    """All containers run one image, which has a version or a digest that is not `latest`."""
    images = {item["image"] for pod in ray_pods(render(overlay)) for item in containers(pod.spec)}
    assert len(images) == 1
    tag = re.fullmatch(r"[^:@]+(?::([^:@]+))?(@sha256:[0-9a-f]{64})?", images.pop())
    assert tag
    assert tag[2] or (tag[1] and tag[1] != "latest")


@everywhere
def test_the_autoscaler_alone_has_a_kubernetes_token(overlay: str) -> None:
    """No container in which Ray runs has a token of Kubernetes; the autoscaler's has, where there is one."""
    objects = render(overlay)
    accounts = {item["metadata"]["name"]: item for item in by_kind(objects, "ServiceAccount")}
    assert not any(item["automountServiceAccountToken"] for item in accounts.values())
    for pod in ray_pods(objects):
        assert pod.spec["serviceAccountName"] in accounts
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        tokens = {volume["name"] for volume in pod.spec["volumes"] if "projected" in volume}
        for container in containers(pod.spec):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert (container["name"] == "autoscaler") is bool(tokens & mounted), (pod.name, container["name"])


@everywhere
def test_tokens_guard_every_cluster(overlay: str) -> None:
    """Every Ray cluster asks for the token of one named secret, and no environment switches that off."""
    objects = render(overlay)
    for spec in ray_specs(objects).values():
        assert {"mode": "token", "secretName": "xdist-ray-token"} == spec["authOptions"]
    assert not any("RAY_AUTH_MODE" in pod.environment for pod in ray_pods(objects))


@everywhere
def test_no_secret_is_written_down(overlay: str) -> None:
    """Secrets are named, never contained."""
    objects = render(overlay)
    assert [] == by_kind(objects, "Secret")
    secret = re.compile(r"secret|token|password|access_key|credential", re.IGNORECASE)
    literals = [name for pod in ray_pods(objects) for item in containers(pod.spec) for name in _literals(item)]
    assert [] == [name for name in [*literals, *settings(objects)] if secret.search(name)]
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", yaml.safe_dump_all(objects))


def _literals(container: Object) -> list[str]:
    return [item["name"] for item in container.get("env", []) if "value" in item]


@everywhere
def test_a_budget_keeps_each_head(overlay: str) -> None:
    """Each budget selects the head of one cluster and nothing else, and no head is without."""
    objects = render(overlay)
    kept = []
    for budget in by_kind(objects, "PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"]
        kept.append([pod.name for pod in ray_pods(objects) if wanted.items() <= pod.labels.items()])
        assert budget["spec"]["minAvailable"] == 1
    assert sorted([f"{name}/head"] for name in ray_specs(objects)) == sorted(kept)


@everywhere
def test_the_head_takes_no_work(overlay: str) -> None:
    """Training lands on workers only: the head offers no CPU and has no GPU."""
    for pod in ray_pods(render(overlay)):
        if pod.role == "head":
            assert pod.group["rayStartParams"]["num-cpus"] == "0"
            assert not any("gpu" in name for name in pod.ray["resources"]["limits"])


# ---- jobs ------------------------------------------------------------------------------------------------------------


@everywhere
def test_a_jobs_pods_are_the_clusters(overlay: str) -> None:
    """The pods of all jobs are those of the one RayCluster but for their label: nothing is written twice."""
    specs = [copy.deepcopy(spec) for spec in ray_specs(render(overlay)).values()]
    for spec in specs:
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            del group["template"]["metadata"]["labels"]["xdist.io/part"]
    assert all(spec == specs[0] for spec in specs)


@everywhere
def test_a_job_is_tried_again_and_ends(overlay: str) -> None:
    """A job submits over HTTP, begins again after a lost head, says when it does not start, and leaves nothing."""
    for job in by_kind(render(overlay), "RayJob"):
        spec = job["spec"]
        assert spec["submissionMode"] == "HTTPMode"
        assert spec["backoffLimit"] >= 1
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] > 0
        assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
        # An apply of the manifests would otherwise stop a job that was begun.
        assert "suspend" not in spec


@everywhere
def test_parts_can_be_applied_alone(overlay: str) -> None:
    """Every object has the label by which it is applied, and lies in the namespace if it lies in any."""
    objects = render(overlay)
    parts = {"platform", "train", "tune", "cam"} | (set() if overlay == "kueue" else {"cluster"})
    assert parts == {item["metadata"]["labels"]["xdist.io/part"] for item in objects}
    wide = {"Namespace", "ClusterQueue", "ResourceFlavor"}
    for item in objects:
        where = None if item["kind"] in wide else NAMESPACE
        assert where == item["metadata"].get("namespace"), item["metadata"]["name"]


def _arguments(objects: list[Object], part: str, folder: Path, **changed: str) -> list[str]:
    """What the program is called with: the entrypoint, run by bash as Ray's job supervisor does it."""
    program = folder / "xdist-train"
    program.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)
    head = next(pod for pod in ray_pods(objects) if pod.name == f"xdist-{part}/head")
    variables = head.environment | settings(objects) | changed | {"PATH": f"{folder}:/usr/bin:/bin"}
    entrypoint = _first(objects, "RayJob", f"xdist-{part}")["spec"]["entrypoint"]
    done = subprocess.run(
        entrypoint, shell=True, executable="/bin/bash", env=variables, capture_output=True, check=True
    )
    return done.stdout.decode().split("\0")[:-1]


@everywhere
def test_what_the_train_job_says_is_a_valid_run(overlay: str, tmp_path: Path) -> None:
    """The program's own schema takes the entrypoint's arguments; the run has a fixed name and goes on with it."""
    objects = render(overlay)
    verb, recipe, *overrides = _arguments(objects, "train", tmp_path)
    config = resolve_config(recipe, overrides)
    assert ("train", "first", "auto") == (verb, config.run.name, config.run.resume)
    assert settings(objects)["XDIST_DATA_URI"] == config.data.uri
    assert settings(objects)["XDIST_STORAGE_URI"] == config.storage.uri
    assert "/cache/xdist-train" == config.loader.cache_dir
    _fits(objects, config)


def _fits(objects: list[Object], config: Config) -> None:
    """A run's workers fit into a worker group at its largest, one a pod."""
    for pod in ray_pods(objects):
        if pod.role == "worker":
            limits = pod.ray["resources"]["limits"]
            assert config.scale.cpus_per_worker <= parse_quantity(limits["cpu"])
            assert (config.scale.use_gpu == "yes") is ("nvidia.com/gpu" in limits)
            assert config.scale.most <= pod.group["maxReplicas"]


@everywhere
def test_what_the_tune_job_says_is_a_valid_search(overlay: str, tmp_path: Path) -> None:
    """The program's own schema takes the entrypoint's arguments; the search has a fixed name and goes on with it."""
    objects = render(overlay)
    verb, recipe, *overrides = _arguments(objects, "tune", tmp_path)
    config = load_config(TuneConfig, [read_recipe(recipe), *parse_overrides(overrides)])
    assert ("tune", "oct", "first-search", "auto") == (verb, config.space, config.run.name, config.run.resume)
    _fits(objects, narrow(config))


@everywhere
def test_what_the_cam_job_says_is_valid(overlay: str, tmp_path: Path) -> None:
    """Maps are made of the run that the train job makes."""
    objects = render(overlay)
    verb, run, *overrides = _arguments(objects, "cam", tmp_path)
    config = load_config(Config, parse_overrides(overrides))
    assert ("cam", f"{settings(objects)['XDIST_STORAGE_URI']}/first") == (verb, run)
    assert settings(objects)["XDIST_USE_GPU"] == config.cam.use_gpu
    assert all(override.startswith("cam.") for override in overrides)


def test_more_settings_come_last_and_are_split_at_blanks(tmp_path: Path) -> None:
    """Sizes and anything else are set by environment, over what the entrypoint says itself."""
    more = {"XDIST_WORKERS": "[1,2]", "XDIST_TRAIN_OPTIONS": "train.epochs=1  optim.lr=1e-4 scale.use_gpu=no"}
    _, recipe, *overrides = _arguments(render("gpu"), "train", tmp_path, **more)
    config = resolve_config(recipe, overrides)
    assert ([1, 2], 1, 1e-4, "no") == (
        list(config.scale.num_workers),
        config.train.epochs,
        config.optim.lr,
        config.scale.use_gpu,
    )


# ---- hardware, queue and components ----------------------------------------------------------------------------------


def test_gpus_are_asked_for_where_the_overlay_says_so() -> None:
    """Workers of `gpu` and `kueue` have a GPU each and may go where GPUs are; those of `cpu` have none."""
    for overlay, num_gpus in {"gpu": 1, "kueue": 1, "cpu": 0}.items():
        for pod in [pod for pod in ray_pods(render(overlay)) if pod.role == "worker"]:
            assert num_gpus == int(pod.ray["resources"]["limits"].get("nvidia.com/gpu", 0))
            tolerated = [item["key"] for item in pod.spec.get("tolerations", [])]
            assert ["nvidia.com/gpu"] * num_gpus == tolerated
            assert bool(num_gpus) is ("nodeSelector" in pod.spec)


@pytest.mark.parametrize("overlay", ["gpu", "cpu"])
def test_workers_come_and_go(overlay: str) -> None:
    """Autoscaler v2 holds no worker that nobody needs."""
    for spec in ray_specs(render(overlay)).values():
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert [0] == [group["minReplicas"] for group in spec["workerGroupSpecs"]]


def test_a_queued_job_is_a_gang() -> None:
    """Under Kueue a job has as many pods as its run has workers, no autoscaler, and its queue's name."""
    objects = render("kueue")
    for job in by_kind(objects, "RayJob"):
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "xdist"
        spec = job["spec"]["rayClusterSpec"]
        assert spec["enableInTreeAutoscaling"] is False
        (group,) = spec["workerGroupSpecs"]
        sizes = {group["minReplicas"], group["replicas"], group["maxReplicas"]}
        assert {int(settings(objects)["XDIST_WORKERS"])} == sizes


def test_the_queue_can_admit_a_job() -> None:
    """Queues name each other, cover every resource that a pod asks for, and hold at least one whole job.

    Kueue's CRDs are not at hand: names and figures are checked, not the schema.
    """
    objects = render("kueue")
    (cluster,), (local,) = by_kind(objects, "ClusterQueue"), by_kind(objects, "LocalQueue")
    assert cluster["metadata"]["name"] == local["spec"]["clusterQueue"]
    assert {"kueue.x-k8s.io/v1beta2"} == {
        item["apiVersion"] for item in objects if item["kind"] in _WITHOUT_SCHEMA - {"PodMonitor"}
    }
    (resources,) = cluster["spec"]["resourceGroups"]
    quotas = {
        flavor["name"]: {item["name"]: parse_quantity(item["nominalQuota"]) for item in flavor["resources"]}
        for flavor in resources["flavors"]
    }
    assert [item["metadata"]["name"] for item in by_kind(objects, "ResourceFlavor")] == list(quotas)
    assert all(list(quota) == resources["coveredResources"] for quota in quotas.values())
    for pod in ray_pods(objects):
        flavor = quotas["xdist-gpu" if pod.role == "worker" else "xdist-cpu"]
        count = pod.group.get("replicas", 1)
        for name, value in pod.ray["resources"]["requests"].items():
            assert count * parse_quantity(value) <= flavor[name], (pod.name, name)


def test_workers_may_go_where_their_flavor_is() -> None:
    """The flavor with GPUs has the workers' node label, and a taint that they tolerate and heads do not."""
    objects = render("kueue")
    flavor = _first(objects, "ResourceFlavor", "xdist-gpu")["spec"]
    for pod in ray_pods(objects):
        tolerated = {item["key"] for item in pod.spec.get("tolerations", [])}
        assert (pod.role == "worker") is ({taint["key"] for taint in flavor["nodeTaints"]} <= tolerated)
        if pod.role == "worker":
            assert flavor["nodeLabels"] == pod.spec["nodeSelector"]


def test_gcs_fault_tolerance_is_for_the_standing_cluster(tmp_path: Path) -> None:
    """The component names Redis and its secret in the RayCluster, and leaves jobs alone."""
    objects = render_with(tmp_path, "gpu", ["gcs-fault-tolerance"])
    (standing,) = by_kind(objects, "RayCluster")
    options = standing["spec"]["gcsFaultToleranceOptions"]
    assert {"secretKeyRef": {"name": "xdist-redis", "key": "password"}} == options["redisPassword"]["valueFrom"]
    assert [] == crd_problems(standing, load_schema("RayCluster"))
    assert [] == cluster_problems("xdist-cluster", standing["spec"])
    assert not any("gcsFaultToleranceOptions" in job["spec"]["rayClusterSpec"] for job in by_kind(objects, "RayJob"))
    kubernetes_validate.validate(_first(objects, "NetworkPolicy", "to-redis"), _KUBERNETES[-1], strict=True)


def test_the_monitor_finds_every_ray_pod(tmp_path: Path) -> None:
    """The PodMonitor selects all Ray pods and a port that they have. Its CRD is not at hand: no schema is checked."""
    objects = render_with(tmp_path, "cpu", ["monitoring"])
    (monitor,) = by_kind(objects, "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for pod in ray_pods(objects):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()
        assert {"name": endpoint["port"], "containerPort": 8080} in pod.ray["ports"]
    kubernetes_validate.validate(_first(objects, "NetworkPolicy", "to-metrics"), _KUBERNETES[-1], strict=True)


def test_an_overlay_of_a_users_own(tmp_path: Path) -> None:
    """Settings and image, changed above one of our overlays, reach the standing cluster and all jobs."""
    image = "registry.example/xdist@sha256:" + 64 * "0"
    data = {"XDIST_RUN": "second", "AWS_ENDPOINT_URL": "http://s3.storage.svc:8333"}
    patch = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "xdist-settings"}, "data": data}
    more = {
        "images": [{"name": "xdist-train", "newName": "registry.example/xdist", "digest": image.split("@")[1]}],
        "patches": [{"patch": yaml.safe_dump(patch)}],
    }
    objects = render_with(tmp_path, "gpu", [], **more)
    assert {image} == {item["image"] for pod in ray_pods(objects) for item in containers(pod.spec)}
    assert settings(objects) == settings(render("gpu")) | data


def test_nothing_in_the_folder_is_forgotten() -> None:
    """Every YAML file is named by a kustomization beside it."""
    for path in K8S.rglob("*.yaml"):
        beside = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
        assert path.name == "kustomization.yaml" or path.name in beside["resources"], path


@everywhere
def test_settings_reach_every_pod(overlay: str) -> None:
    """Driver and workers read the same settings, and the storage's keys where there are any."""
    for pod in ray_pods(render(overlay)):
        assert [
            {"configMapRef": {"name": "xdist-settings"}},
            {"secretRef": {"name": "xdist-s3", "optional": True}},
        ] == pod.ray["envFrom"]
        assert pod.environment["GLOO_SOCKET_IFNAME"] == pod.environment["NCCL_SOCKET_IFNAME"] == "eth0"
        assert pod.environment["RAY_USAGE_STATS_ENABLED"] == "0"
