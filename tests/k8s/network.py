"""What NetworkPolicies let through, by the rules of the API (networking.k8s.io/v1): a pod that any policy selects for a
direction may have only what some policy of that direction allows.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Address", "Endpoint", "allowed"]


@dataclass(frozen=True)
class Endpoint:
    """A pod as policies see it."""

    labels: dict[str, str]
    namespace: str

    @property
    def namespace_labels(self) -> dict[str, str]:
        """The one label that every namespace has."""
        return {"kubernetes.io/metadata.name": self.namespace}


@dataclass(frozen=True)
class Address:
    """Something outside of the cluster."""

    ip: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = ""


def allowed(policies: Sequence[dict[str, Any]], source: Any, target: Any, port: int, protocol: str = "TCP") -> bool:
    """Whether the source may open a connection to this port of the target."""
    out = _direction(policies, "Egress", source, target, port, protocol)
    return out and _direction(policies, "Ingress", target, source, port, protocol)


def _direction(policies: Sequence[dict[str, Any]], way: str, pod: Any, peer: Any, port: int, protocol: str) -> bool:
    if isinstance(pod, Address):
        return True
    mine = [
        item["spec"]
        for item in policies
        if item["metadata"]["namespace"] == pod.namespace
        and way in item["spec"]["policyTypes"]
        and _selects(item["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in mine for rule in spec.get(way.lower(), [])]
    side = "from" if way == "Ingress" else "to"
    return not mine or any(_matches(rule, side, pod.namespace, peer, port, protocol) for rule in rules)


def _matches(rule: dict[str, Any], side: str, namespace: str, peer: Any, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports and not any(item.get("protocol", "TCP") == protocol and item["port"] == port for item in ports):
        return False
    return side not in rule or any(_is_peer(item, namespace, peer) for item in rule[side])


def _is_peer(item: dict[str, Any], namespace: str, peer: Any) -> bool:
    if "ipBlock" in item:
        return isinstance(peer, Address) and any(_inside(peer.ip, item["ipBlock"]))
    if isinstance(peer, Address):
        return False
    if "namespaceSelector" in item:
        near = _selects(item["namespaceSelector"], peer.namespace_labels)
    else:
        near = peer.namespace == namespace
    return near and _selects(item.get("podSelector", {}), peer.labels)


def _inside(ip: str, block: dict[str, Any]) -> Iterator[bool]:
    address = ipaddress.ip_address(ip)
    inside = address in ipaddress.ip_network(block["cidr"])
    yield inside and not any(address in ipaddress.ip_network(part) for part in block.get("except", []))


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(item["operator"] == "In" for item in expressions), "only `In` is known here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(item["key"]) in item["values"] for item in expressions
    )
