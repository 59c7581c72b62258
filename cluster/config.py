"""The config gate: layers of values in, one frozen, checked dataclass out.

The only file that imports omegaconf. It knows no section: a schema is a frozen dataclass of
frozen dataclasses whose `__post_init__` raises ValueError with a text that starts with the dotted key.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cluster.errors import InputError

__all__ = [
    "Layer",
    "convert_values",
    "digest",
    "dump_yaml",
    "leaf_keys",
    "load_config",
    "nearest_key",
    "parse_layer",
    "parse_overrides",
    "parse_written",
    "read_layer",
    "to_dict",
]

Schema = TypeVar("Schema")

_DEEPEST_WRITTEN = 16  # levels that a written configuration may have; ours has 3


@dataclass(frozen=True)
class Layer:
    """Values from one place; a later layer wins. `source` is named in errors."""

    source: str
    values: Mapping[str, Any]


def read_layer(path: Path, source: str | None = None) -> Layer:
    """The values of a YAML file.

    Raises:
        InputError: the file is missing, not YAML, or not a mapping.
    """
    source = source or f"file {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    return parse_layer(data, source)


def parse_layer(data: bytes, source: str) -> Layer:
    """The values of YAML text.

    Raises:
        InputError: not YAML, or not a mapping.
    """
    try:
        loaded = OmegaConf.load(io.StringIO(data.decode()))
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"{source}: not a readable YAML file ({_one_line(error)}).") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{source}: must hold `section: {{key: value}}`, not a list.")
    return Layer(source, cast(dict[str, Any], OmegaConf.to_container(loaded)))


def parse_written(data: bytes, source: str) -> Layer:
    """The values of a configuration that `dump_yaml` wrote, from a place where anybody may have changed it.

    Raises:
        InputError: as `parse_layer`, or it has what is never written. Interpolations would put this machine's
            environment into values, and aliases a large structure into a few lines.
    """
    try:
        unwritten = _unwritten(data.decode())
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not a readable YAML file ({_one_line(error)}).") from None
    if unwritten:
        raise InputError(
            f"{source}: holds {unwritten}, which this program never writes into a configuration. Copy the folder again "
            "from where it was made."
        )
    return parse_layer(data, source)


def _unwritten(text: str) -> str:
    """What of a YAML text is not from `dump_yaml`; empty if it may all be."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST_WRITTEN:
            return f"values nested more than {_DEEPEST_WRITTEN} deep"
        if isinstance(event, yaml.AliasEvent):
            return f"the alias *{event.anchor}"
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            return f"the interpolation {event.value[:80]!r}"
    return ""


def parse_overrides(arguments: Sequence[str]) -> list[Layer]:
    """One layer for each `dotted.key=value` of the command line, values read as YAML.

    Raises:
        InputError: an argument without `=` or with an unreadable value.
    """
    return [_parse_override(argument) for argument in arguments]


def _parse_override(argument: str) -> Layer:
    key, equals, _ = argument.partition("=")
    if not equals or not key:
        raise InputError(f"command line: {argument!r} is not of the form key=value, e.g. train.epochs=5.")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([argument]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"command line: the value of {argument!r} cannot be read ({_one_line(error)}).") from None
    return Layer("command line", cast(dict[str, Any], values))


def load_config(schema: type[Schema], layers: Sequence[Layer]) -> Schema:
    """Defaults of the schema under the layers, in order, checked.

    Raises:
        InputError: unknown key (with the nearest right name), wrong type, or impossible value,
            naming the layer that it came from.
    """
    config = OmegaConf.structured(schema)
    known = set(leaf_keys(schema))
    for layer in layers:
        _refuse_unknown_keys(layer, known)
        config = _merge(schema, config, layer)
    try:
        return cast(Schema, OmegaConf.to_object(config))
    except (ValueError, OmegaConfBaseException) as error:
        text = _one_line(error)
        raise InputError(f"{_origin_of(text, layers)}: {text}") from None


def convert_values(schema: type, layer: Layer) -> dict[str, Any]:
    """The layer's values by dotted key, as plain values of the schema's types (1 is 1.0 where a float belongs).

    Only types are checked here; what a section checks as a whole is `load_config`'s.

    Raises:
        InputError: unknown key or wrong type.
    """
    known = set(leaf_keys(schema))
    _refuse_unknown_keys(layer, known)
    merged = _merge(schema, OmegaConf.structured(schema), layer)
    try:
        return {key: _plain(OmegaConf.select(merged, key)) for key in _given_keys(layer.values, known)}
    except OmegaConfBaseException as error:
        raise InputError(_type_error(layer, error)) from None


def to_dict(config: object) -> dict[str, Any]:
    """A resolved config as nested plain values (tuples become lists)."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(cast(Any, config)))))


def dump_yaml(config: object) -> str:
    """A resolved config, or nested plain values, as YAML text that `read_layer` takes back."""
    return OmegaConf.to_yaml(OmegaConf.create(config if isinstance(config, dict) else to_dict(config)))


def digest(values: object) -> str:
    """sha256 of the canonical JSON of plain values: equal values, equal digest."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def leaf_keys(schema: type) -> list[str]:
    """Dotted keys of all values of a schema."""
    return list(_leaf_keys(schema, ""))


def _merge(schema: type, config: Any, layer: Layer) -> Any:
    try:
        return OmegaConf.merge(config, OmegaConf.create(_as_words(schema, layer.values)))
    except OmegaConfBaseException as error:
        raise InputError(_type_error(layer, error)) from None


def _as_words(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The words yes and no, which YAML reads as truth, back where a key takes them."""
    hints = get_type_hints(schema)
    found = dict(values)
    for name, value in values.items():
        hint = hints.get(name)
        if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found[name] = _as_words(hint, value)
        elif isinstance(value, bool) and "yes" in get_args(hint):
            found[name] = "yes" if value else "no"
    return found


def _plain(value: Any) -> Any:
    """Lists for what OmegaConf holds as list or tuple."""
    if not OmegaConf.is_config(value):
        return value
    return json.loads(json.dumps(OmegaConf.to_container(value, resolve=True)))


def _leaf_keys(schema: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(schema)
    for field in dataclasses.fields(cast(Any, schema)):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _leaf_keys(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _given_keys(values: Mapping[str, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in known:
            yield from _given_keys(value, known, f"{key}.")
        else:
            yield key


def _refuse_unknown_keys(layer: Layer, known: set[str]) -> None:
    sections = {key.rpartition(".")[0] for key in known} - {""}
    for key in _given_keys(layer.values, known):
        if key in sections:
            raise InputError(f"{layer.source}: {key!r} is a section; set one of its keys: {_keys_of(key, known)}.")
        if key not in known:
            raise InputError(f"{layer.source}: unknown key {key!r}.{nearest_key(key, known)}")


def _keys_of(section: str, known: Collection[str]) -> str:
    return ", ".join(sorted(key for key in known if key.startswith(f"{section}.")))


def nearest_key(key: str, known: Collection[str]) -> str:
    """What follows "unknown key": the nearest right name, or what there is."""
    by_leaf = [name for name in sorted(known) if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    if close or by_leaf:
        return f" Did you mean {(close or by_leaf)[0]!r}?"
    section = key.partition(".")[0]
    inside = _keys_of(section, known)
    if inside:
        return f" Section {section!r} has: {inside}."
    return f" Sections are: {', '.join(sorted({name.partition('.')[0] for name in known}))}."


def _type_error(layer: Layer, error: OmegaConfBaseException) -> str:
    lines = str(error).splitlines()
    key = next((line.split(":", 1)[1].strip() for line in lines if "full_key:" in line), "")
    key = key or next(_given_keys(layer.values, set()), "")
    return f"{layer.source}: {key}: {lines[0]}"


def _origin_of(message: str, layers: Sequence[Layer]) -> str:
    """The last layer that set the key with which a check's message starts."""
    key = message.split(" ", 1)[0].rstrip(":,")
    for layer in reversed(layers):
        if key in set(_given_keys(layer.values, {key})):
            return layer.source
    return "configuration"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
