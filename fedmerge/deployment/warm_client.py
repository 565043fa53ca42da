"""A ClientApp in a fork of a process that has loaded what it takes: what runs there, and what is loaded."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from fedmerge.client_app import installed
from fedmerge.deployment.installed_only import main

LOADED = (
    "fedmerge.deployment.warm_client",
    "fedmerge.client_process",
    "fedmerge.client_app",
    "fedmerge.station",
    "fedmerge.silo.credentials",
    "fedmerge.silo.departures",
    "fedmerge.silo.worker",
)
"""Modules that a message needs: Flower's client, torch, and with the last one transformers and PEFT."""

PACKAGES = ("fedmerge", "flwr", "torch", "transformers", "peft")
_VERSIONS = installed(PACKAGES)  # of what is loaded: this module is, too


def ready(told: Connection) -> None:
    """Tell the fork server's process id, and what speaks against forking ClientApps from it, if anything."""
    missing = [
        name for name in LOADED if name not in sys.modules
    ]  # Python passes over what can't be imported
    problem = f"{missing[0]} could not be imported" if missing else "a GPU was opened" * holds_a_gpu()
    told.send((os.getppid(), problem))


def serve(command: list[str]) -> None:
    """Serve one message, as the command `flwr-clientapp` does that this is with its arguments."""
    if installed(PACKAGES) != _VERSIONS:  # upgraded meanwhile
        os.execvp(command[0], command)  # found on the PATH, as Flower finds it
    sys.exit(main(command))


def holds_a_gpu(descriptors: Path = Path("/proc/self/fd")) -> bool:
    """Whether this process has opened a GPU: CUDA works in no fork of one that has."""
    with suppress(OSError):
        return any(str(path.readlink()).startswith("/dev/nvidia") for path in _links(descriptors))
    return False


def _links(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_symlink()]
