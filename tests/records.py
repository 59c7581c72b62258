"""What every `run.json` and `search.json` has, for tests that write the rest."""

from __future__ import annotations

from typing import Any

__all__ = ["RECORD"]

RECORD: dict[str, Any] = {"status": "finished", "heartbeat": 1.0, "attempts": [{"workers": 1}], "complete": []}
