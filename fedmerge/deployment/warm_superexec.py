"""A site's SuperExec, whose ClientApps are forks of a process that has loaded torch, transformers and PEFT.

    python -P -m fedmerge.deployment.warm_superexec /etc/fedmerge/site.toml flower-superexec <its flags>

Flower starts a process for each message, and most of what one costs are imports. The process that is forked
holds imports and nothing else, no rows, no keys, no base, so that a message still begins with nothing that an
earlier one left. It is Python's own fork server, and stays loaded as long as the service runs. In site.toml,
`preload = false` does without: each message then loads what it takes.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedmerge import logs
from fedmerge.client_app import go_offline
from fedmerge.deployment.installed_only import CLIENT
from fedmerge.deployment.warm_client import LOADED, ready, serve
from fedmerge.errors import ConfigError
from fedmerge.silo.site import read_site

COMMAND = "flower-superexec"
_EXECUTOR, _COMMAND = "flwr.supercore.superexec.executor.subprocess_executor", "flwr.supercore.cli"
"""Flower's modules that this leans on: where a task's process is started, and the command."""

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run Flower's SuperExec.

    Args:
        arguments: a site's file, "flower-superexec", and its flags.
    """
    if len(arguments) < 2 or arguments[1] != COMMAND:
        sys.stderr.write(f"fedmerge: {arguments}: expected a site.toml, {COMMAND}, and its flags\n")
        return 2
    warm_up(Path(arguments[0]))
    sys.argv = arguments[1:]
    importlib.import_module(_COMMAND).flower_superexec()
    return 0


def warm_up(path: Path) -> None:
    """Load what ClientApps take, and have Flower's SuperExec fork them, unless the site wants none of it.

    It returns when all is loaded: Flower gives a task that was taken 30 seconds for its first sign of life.
    """
    try:
        site = read_site(path)
    except ConfigError as error:  # each message is answered with a code of it
        logger.warning("nothing is loaded beforehand: %s", error)
        return
    logs.configure(f"silo {site.silo}")
    if not site.preload:
        return
    if not site.network:
        go_offline()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for a GPU otherwise opens it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    began = time.monotonic()
    if forked(context, ready):
        vars(importlib.import_module(_EXECUTOR))["subprocess"] = SimpleNamespace(
            Popen=Starter(context), DEVNULL=subprocess.DEVNULL
        )
        logger.info("what ClientApps take was loaded in %.1f s", time.monotonic() - began)


class Starter:
    """In the place of `subprocess.Popen` where Flower starts tasks: a ClientApp is forked.

    Args:
        context: with the fork server.
    """

    def __init__(self, context: ForkServerContext) -> None:
        """Start nothing yet."""
        self.context = context

    def __call__(self, command: list[str], **options: Any) -> object:
        """Start a task's process; in the ordinary way where it is no ClientApp's, or can't be forked."""
        if command[0] == CLIENT and not options and (process := forked(self.context, serve, command)):
            return process
        return subprocess.Popen(command, **options)


def forked(context: ForkServerContext, work: Any, *given: object) -> object:
    """A process that does some work, started; None where there is no fork server to fork it from."""
    process = context.Process(target=work, args=given, daemon=True)  # it ends with the SuperExec
    try:
        process.start()
    except (OSError, EOFError) as error:
        logger.warning("a ClientApp starts without what was loaded: the fork server is gone (%r)", error)
        return None
    return process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
