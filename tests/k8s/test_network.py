"""Who may talk to whom, by the policies that are rendered: Ray's ports run code for whoever reaches them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s.manifests import NAMESPACE, OVERLAYS, by_kind, ray_pods, render
from tests.k8s.network import Address, Endpoint, allowed

# GCS, dashboard and jobs, client, agent, metrics, and some of those that are drawn at random (workers, gloo, NCCL).
_PORTS = (6379, 8265, 10001, 52365, 8080, 10002, 43210)
_OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
_STRANGER = Endpoint({"app": "stranger"}, NAMESPACE)
_CLIENT = Endpoint({"xdist.io/ray-client": "true"}, NAMESPACE)

everywhere = pytest.mark.parametrize("overlay", OVERLAYS)


def _policies(overlay: str) -> list[dict[str, Any]]:
    return by_kind(render(overlay), "NetworkPolicy")


def _pods(overlay: str) -> dict[str, Endpoint]:
    return {pod.name: Endpoint(pod.labels, NAMESPACE) for pod in ray_pods(render(overlay))}


def _open_ports(overlay: str, source: Any, target: Any) -> list[int]:
    return [port for port in _PORTS if allowed(_policies(overlay), source, target, port)]


@everywhere
def test_nothing_is_allowed_that_is_not_named(overlay: str) -> None:
    """One policy selects every pod of the namespace, both ways, and allows nothing; every policy names its ways."""
    policies = _policies(overlay)
    deny = [item["spec"] for item in policies if item["spec"]["podSelector"] == {}]
    assert [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}] == deny
    for item in policies:
        assert {way.lower() for way in item["spec"]["policyTypes"]} >= set(item["spec"]) & {"ingress", "egress"}


@everywhere
def test_pods_of_one_cluster_reach_each_other_at_every_port(overlay: str) -> None:
    """Head and workers of a cluster talk at all of Ray's ports, gloo's and NCCL's."""
    pods = _pods(overlay)
    for owner in {name.split("/")[0] for name in pods}:
        mine = [pod for name, pod in pods.items() if name.startswith(f"{owner}/")]
        assert len(mine) == 2
        assert all(_open_ports(overlay, source, target) == list(_PORTS) for source in mine for target in mine)


@everywhere
def test_pods_of_another_cluster_reach_nothing(overlay: str) -> None:
    """A job's pods are shut to the pods of any other job."""
    pods = _pods(overlay)
    for source in pods:
        for target in pods:
            if source.split("/")[0] != target.split("/")[0]:
                assert [] == _open_ports(overlay, pods[source], pods[target]), (source, target)


@everywhere
@pytest.mark.parametrize(
    "source",
    [
        _STRANGER,
        Endpoint({"ray.io/is-ray-node": "yes", "xdist.io/part": "train"}, "another"),
        Endpoint({"xdist.io/ray-client": "true"}, "another"),
        Endpoint(_OPERATOR, "another"),
        Endpoint({"app": "stranger"}, "kuberay-operator"),
        Address("10.0.0.9"),
    ],
    ids=["stranger", "ray-elsewhere", "client-elsewhere", "operator-elsewhere", "operators-neighbour", "outside"],
)
def test_nobody_else_reaches_ray(overlay: str, source: Any) -> None:
    """Pods without the label, pods of other namespaces and addresses outside reach no port of no Ray pod."""
    for name, target in _pods(overlay).items():
        assert [] == _open_ports(overlay, source, target), name


@everywhere
@pytest.mark.parametrize("source", [_CLIENT, Endpoint(_OPERATOR, "kuberay-operator")], ids=["client", "operator"])
def test_jobs_are_submitted_at_one_port_of_the_head(overlay: str, source: Endpoint) -> None:
    """The operator and labelled clients reach the dashboard's port of heads, and nothing else."""
    for name, target in _pods(overlay).items():
        assert ([8265] if name.endswith("/head") else []) == _open_ports(overlay, source, target), name


@everywhere
def test_ray_pods_reach_storage_and_names_only(overlay: str) -> None:
    """Out of the cluster lead DNS and 443 alone; the node's metadata service, which has the node's role, is shut."""
    policies = _policies(overlay)
    dns = Endpoint({"k8s-app": "kube-dns"}, "kube-system")
    store = Endpoint({"xdist.io/object-store": "true"}, "storage")
    for name, pod in _pods(overlay).items():
        assert allowed(policies, pod, dns, 53, "UDP"), name
        assert allowed(policies, pod, dns, 53), name
        assert allowed(policies, pod, store, 8333), name
        assert allowed(policies, pod, Address("52.216.0.1"), 443), name
        assert allowed(policies, pod, Address("2600:1f00::1"), 443), name
        for address, port in [
            ("52.216.0.1", 80),
            ("52.216.0.1", 22),
            ("169.254.169.254", 80),
            ("169.254.169.254", 443),
        ]:
            assert not allowed(policies, pod, Address(address), port), (name, address, port)
        assert not allowed(policies, pod, Endpoint({"app": "database"}, "another"), 443), name
        assert not allowed(policies, pod, _STRANGER, 443), name


@everywhere
def test_only_heads_reach_the_kubernetes_api_server(overlay: str) -> None:
    """The API server's own port is open to the pod in which the autoscaler runs."""
    for name, pod in _pods(overlay).items():
        assert name.endswith("/head") is allowed(_policies(overlay), pod, Address("10.0.0.1"), 6443), name


def test_a_hole_is_seen() -> None:
    """The reading of policies is not blind: without the rule that denies, a stranger may reach out."""
    policies = [item for item in _policies("gpu") if item["metadata"]["name"] != "default-deny"]
    assert allowed(policies, _STRANGER, Address("52.216.0.1"), 22)
    assert not allowed(_policies("gpu"), _STRANGER, Address("52.216.0.1"), 22)
