"""What `cache` prints: the data sets of this node's cache, their size, or those that were removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from cluster.terminal import printable
from dataloading.loading.node_cache import CachedSet, clear_cache, list_cache

__all__ = ["CACHE_ACTIONS", "cache_lines"]

CACHE_ACTIONS: dict[str, Callable[[Path], list[CachedSet]]] = {
    "list": list_cache,
    "size": list_cache,
    "clear": clear_cache,
}


def cache_lines(action: str, root: Path, *, as_json: bool = False) -> Iterator[str]:
    """Do it, and tell, as text or as one JSON object."""
    sets = CACHE_ACTIONS[action](root)
    total = sum(cached.num_bytes for cached in sets)
    if as_json:
        yield json.dumps({"cache": str(root), "bytes": total, "datasets": [_to_json(cached) for cached in sets]})
        return
    if action != "size":
        yield from (_line(cached) for cached in sets)
    what = "removed" if action == "clear" else "held"
    yield f"{root}: {len(sets)} data sets {what}, {total / 2**20:,.1f} MiB."


def _to_json(cached: CachedSet) -> dict[str, object]:
    return {
        "fingerprint": cached.folder.name,
        "uri": cached.source,
        "bytes": cached.num_bytes,
        "used_s": cached.used_s,
        "in_use": cached.in_use,
    }


def _line(cached: CachedSet) -> str:
    used = datetime.fromtimestamp(cached.used_s).strftime("%Y-%m-%d %H:%M")
    state = "in use" if cached.in_use else f"last used {used}"
    return f"{cached.folder.name[:12]}  {cached.num_bytes / 2**20:10,.1f} MiB  {state}  {printable(cached.source)}"
