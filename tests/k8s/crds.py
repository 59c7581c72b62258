"""KubeRay's own objects against the schemas of its CRDs, as the API server checks them, and unknown fields refused.

The API server drops unknown fields silently unless asked for strict validation: a typo would be a missing setting.
CEL rules (`x-kubernetes-validations`) are not evaluated.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

__all__ = ["crd_problems", "load_schema", "strict"]

_FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
_BESIDE = Path(__file__).parents[2].parent / "shared" / "schemas"


@functools.cache
def load_schema(kind: str, version: str = "v1") -> dict[str, Any]:
    """The strict schema of a kind, from `$XDIST_KUBERAY_SCHEMAS` or `../shared/schemas` beside the repository."""
    path = Path(os.environ.get("XDIST_KUBERAY_SCHEMAS") or _BESIDE) / _FILES[kind]
    if not path.is_file():
        pytest.skip(f"no CRD schema: {path} is not there; set XDIST_KUBERAY_SCHEMAS to KubeRay's config/crd/bases")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    (schema,) = [item["schema"]["openAPIV3Schema"] for item in versions if item["name"] == version]
    closed = strict(schema)
    # The CRD leaves the object's own metadata to the API server.
    closed["properties"]["metadata"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["name", "namespace"],
    }
    return closed


def strict(schema: Any) -> Any:
    """An OpenAPI v3 structural schema as a JSON schema that knows no field but those it names."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict_properties(value) if key == "properties" else strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        closed.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if schema.get("nullable") and "type" in schema:
        closed["type"] = [schema["type"], "null"]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    return closed


def _strict_properties(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: strict(value) for name, value in properties.items()}  # a field may be called `properties`


def crd_problems(item: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What the API server would refuse in a KubeRay object, each with its place."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(item)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
