"""What KubeRay's operator refuses although its CRDs allow it (v1.7: controllers/ray/utils/validation.go)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

__all__ = ["cluster_problems", "job_problems"]

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# 63 for a label, less what KubeRay appends for services (up to 10) and for a job's cluster (6).
_MOST_CLUSTER_NAME, _MOST_JOB_NAME = 53, 47
_RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
_FIRST_WITH_TOKENS = (2, 52)


def cluster_problems(name: str, spec: dict[str, Any]) -> list[str]:
    """What is wrong with a RayCluster."""
    return [*_name_problems(name, _MOST_CLUSTER_NAME), *_spec_problems(spec)]


def job_problems(name: str, spec: dict[str, Any]) -> list[str]:
    """What is wrong with a RayJob that brings its own cluster."""
    found = [*_name_problems(name, _MOST_JOB_NAME), *_lifetime_problems(spec), *_submission_problems(spec)]
    if "rayClusterSpec" not in spec or "clusterSelector" in spec:
        return [*found, "a job of ours brings its own cluster, and only that"]
    return [*found, *_spec_problems(spec["rayClusterSpec"])]


def _name_problems(name: str, most: int) -> Iterator[str]:
    if not _DNS_1035.fullmatch(name):
        yield f"{name} is no DNS-1035 label"
    if len(name) > most:
        yield f"{name} is longer than {most} characters"


def _spec_problems(spec: dict[str, Any]) -> Iterator[str]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        params = group.get("rayStartParams", {})
        if "labels" in params:
            yield "rayStartParams.labels: KubeRay wants the group's `labels`"
        if _RESOURCE_PARAMS & set(params) and group.get("resources"):
            yield "resources both in rayStartParams and in the group's `resources`"
        if not group["template"]["spec"]["containers"]:
            yield "a group without containers"
    yield from _autoscaling_problems(spec, groups)
    yield from _version_problems(spec)
    head = spec["headGroupSpec"]
    names = {item["name"] for item in head["template"]["spec"]["containers"][0].get("env", [])}
    if {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"} & names or "redis-password" in head["rayStartParams"]:
        yield "Redis is told by gcsFaultToleranceOptions alone"


def _autoscaling_problems(spec: dict[str, Any], groups: list[dict[str, Any]]) -> Iterator[str]:
    if spec.get("enableInTreeAutoscaling"):
        if any(group["template"]["spec"].get("restartPolicy", "Never") != "Never" for group in groups):
            yield "autoscaler v2 needs restartPolicy Never, or none"
        if any(group.get("suspend") for group in spec["workerGroupSpecs"]):
            yield "a worker group cannot be suspended with autoscaling"
    elif spec.get("autoscalerOptions"):
        yield "autoscalerOptions without enableInTreeAutoscaling do nothing"
    for group in spec["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas lie outside of minReplicas and maxReplicas"


def _version_problems(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0").split(".")[:2])
        if version < _FIRST_WITH_TOKENS:
            yield "authOptions.mode token needs rayVersion 2.52 or later"


def _lifetime_problems(spec: dict[str, Any]) -> Iterator[str]:
    ends = spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    if spec.get("ttlSecondsAfterFinished", 0) and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not ends:
        yield "suspend needs shutdownAfterJobFinishes"
    if rules and (ends or "ttlSecondsAfterFinished" in spec):
        yield "deletionRules exclude shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    loses_workers = any(rule["policy"] == "DeleteWorkers" for rule in rules or [])
    if loses_workers and spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
        yield "DeleteWorkers does not go with autoscaling"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec.get("backoffLimit", 0) < 0:
        yield "activeDeadlineSeconds must be above 0, backoffLimit not below"


def _submission_problems(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("submissionMode") == "HTTPMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "HTTPMode has no submitter to configure"
    runtime = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    if not isinstance(runtime, dict) or not all(isinstance(item, str) for item in runtime.get("env_vars", {}).values()):
        yield "runtimeEnvYAML must be a mapping, its env_vars strings"
