"""Whether all parties of the last run had the same versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmerge.deployment.doctor.finding import UNKNOWN, Finding, judged

_DOOR = "versions"


def last_run(runs: Path) -> Path | None:
    """The folder of the run that began last."""
    found = [path for path in runs.glob("*/environment.json") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def agree(run: Path | None) -> Iterator[Finding]:
    """Compare what server and nodes said they have installed when the last run began."""
    if run is None:
        yield Finding(_DOOR, UNKNOWN, "environment.json", "no run yet")
        return
    asked = f"{run.name}/environment.json"
    try:
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        yield compared(environment["versions"], environment["nodes"], asked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding(_DOOR, UNKNOWN, asked, f"can't be read: {type(error).__name__}")


def compared(server: Mapping[str, str], nodes: Mapping[str, Mapping[str, Any]], asked: str) -> Finding:
    """Judge the versions of nodes against the server's."""
    different = [
        f"node {name}: {package} {version}, the server {server[package]}"
        for name, node in sorted(nodes.items())
        for package, version in sorted(node.get("versions", {}).items())
        if package in server and server[package] != version
    ]
    told = "; ".join(different) or f"the same at the server and {len(nodes)} nodes"
    close = "install the same constraints.txt everywhere: other versions give other bits, or fail"
    return judged(_DOOR, bool(different), asked, told, close)
