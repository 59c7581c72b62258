"""What every node of a cluster must be able to do before a run begins: use the storage, and hold the data set.

Runs in a worker process of each node, with the credentials of that node. Knows no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import StoreError, XdistError
from cluster.store import open_store
from dataloading.dataset import open_dataset
from dataloading.loading.cache import require_room
from dataloading.loading.node_cache import cache_root
from xdist_train.config import Config

__all__ = ["NodeCheck"]

_RETRY_S = 10.0
"""A store that is away as a run begins is more likely a wrong address than a passing fault."""


@dataclass(frozen=True)
class NodeCheck:
    """What is tried; called on a node, it says what is wrong there."""

    storage_uri: str
    data_uri: str
    cache_dir: str
    cache_limit_gib: float
    pixel_side: float

    @classmethod
    def of(cls, config: Config) -> NodeCheck:
        """The check of a run."""
        loader = config.loader
        return cls(config.storage.uri, config.data.uri, loader.cache_dir, loader.cache_limit_gib, loader.pixel_side)

    def __call__(self) -> str:
        """Why this node cannot take part; empty if it can."""
        try:
            open_store(self.storage_uri, _RETRY_S).try_out()
            place = cache_root(self.cache_dir)
            require_room(open_dataset(self.data_uri), place, self.cache_limit_gib, self.pixel_side)
        except XdistError as error:
            return str(error)
        return ""

    def require(self, answers: dict[str, str]) -> None:
        """Pass if no node has a reason.

        Raises:
            StoreError: the first node that has, by name.
        """
        for node, reason in answers.items():
            if reason:
                raise StoreError(f"node {node} cannot take part in the run: {reason}")
