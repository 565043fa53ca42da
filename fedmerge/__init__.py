"""Federated learning by weight merging: silos fine-tune adapters, a server merges their deltas by a rule.

>>> import fedmerge, torch
>>> deltas = [{"head.weight": torch.tensor([1.0])}, {"head.weight": torch.tensor([4.0])}]
>>> fedmerge.merge(deltas, weights=[200, 100], rule="fedavg()").adapter.tensors["head.weight"]
tensor([2.])

Names are loaded when they are first used: `import fedmerge` itself loads neither torch nor Flower.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from fedmerge.errors import (
    AdapterMismatch,
    CheckpointError,
    ConfigError,
    FedMergeError,
    RoundFailed,
    RuleError,
    WireError,
)

if TYPE_CHECKING:
    from fedmerge import rules
    from fedmerge.adapters import geometry
    from fedmerge.adapters.adapter import Adapter, Lora
    from fedmerge.adapters.merge import Merged, merge
    from fedmerge.adapters.soup import Soup, greedy_soup
    from fedmerge.adapters.streaming import merge_stream
    from fedmerge.rules import parse_rule
    from fedmerge.server.strategy import MergeStrategy
    from fedmerge.wire.files import load_adapter, save_adapter

    __version__: str

__all__ = [
    "Adapter",
    "AdapterMismatch",
    "CheckpointError",
    "ConfigError",
    "FedMergeError",
    "Lora",
    "MergeStrategy",
    "Merged",
    "RoundFailed",
    "RuleError",
    "Soup",
    "WireError",
    "__version__",
    "geometry",
    "greedy_soup",
    "load_adapter",
    "merge",
    "merge_stream",
    "parse_rule",
    "rules",
    "save_adapter",
]

_HOMES = {
    "Adapter": "fedmerge.adapters.adapter",
    "Lora": "fedmerge.adapters.adapter",
    "MergeStrategy": "fedmerge.server.strategy",
    "Merged": "fedmerge.adapters.merge",
    "Soup": "fedmerge.adapters.soup",
    "greedy_soup": "fedmerge.adapters.soup",
    "load_adapter": "fedmerge.wire.files",
    "merge": "fedmerge.adapters.merge",
    "merge_stream": "fedmerge.adapters.streaming",
    "parse_rule": "fedmerge.rules",
    "save_adapter": "fedmerge.wire.files",
}
_MODULES = {"geometry": "fedmerge.adapters.geometry", "rules": "fedmerge.rules"}


def __getattr__(name: str) -> object:
    if name == "__version__":
        found: object = _version()
    elif name in _MODULES:
        found = import_module(_MODULES[name])
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'fedmerge' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    try:
        return metadata.version("fedmerge")
    except metadata.PackageNotFoundError:
        return "0+source"
