"""A site's SuperExec, whose ClientApps are forks of a process that has loaded torch, transformers and PEFT.

    python -P -m fedmerge.deployment.warm_superexec /etc/fedmerge/site.toml flower-superexec <its flags>

Flower starts a process for each message, and most of what one costs are imports. The process that is forked
holds imports and nothing else, no rows, no keys, no base, so that a message still begins with nothing that an
earlier one left. It is Python's own fork server, and stays loaded as long as the service runs. In site.toml,
`preload = false` does without: each message then loads what it takes. So does a message for which the loaded
process is not right, or not there.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedmerge import logs
from fedmerge.client_app import go_offline
from fedmerge.deployment.installed_only import CLIENT
from fedmerge.deployment.warm_client import LOADED, ready, serve
from fedmerge.errors import ConfigError
from fedmerge.silo.site import Site, read_site

COMMAND = "flower-superexec"
_EXECUTOR, _COMMAND = "flwr.supercore.superexec.executor.subprocess_executor", "flwr.supercore.cli"
"""Flower's modules that this leans on: where a task's process is started, and the command."""

_LOADING_SECONDS = 600.0

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run Flower's SuperExec.

    Args:
        arguments: a site's file, "flower-superexec", and its flags.
    """
    if len(arguments) < 2 or arguments[1] != COMMAND:
        sys.stderr.write(f"fedmerge: {arguments}: expected a site.toml, {COMMAND}, and its flags\n")
        return 2
    # A fork would run this file again, as it is on the disk by then, before it does anything.
    vars(sys.modules["__main__"]).update(__spec__=None, __file__=None)
    warm_up(Path(arguments[0]))
    sys.argv = arguments[1:]
    importlib.import_module(_COMMAND).flower_superexec()
    return 0


def warm_up(path: Path) -> None:
    """Load what ClientApps take, and have Flower's SuperExec fork them, unless the site wants none of it.

    It returns when all is loaded: Flower gives a task that was taken 30 seconds for its first sign of life.
    """
    site = _site(path)
    if site is None or not site.preload:
        return
    logs.configure(f"silo {site.silo}")
    if not site.network:
        go_offline()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for a GPU otherwise opens it
    starter = Starter(path, site)
    if starter.load():
        replaced = SimpleNamespace(Popen=starter, DEVNULL=subprocess.DEVNULL)
        vars(importlib.import_module(_EXECUTOR))["subprocess"] = replaced


class Starter:
    """In the place of `subprocess.Popen` where Flower starts tasks: a ClientApp is forked.

    Args:
        path: of the site's file.
        site: what it said when the fork server was started.
    """

    def __init__(self, path: Path, site: Site) -> None:
        """Load nothing yet."""
        self.path, self.site = path, site
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(LOADED))
        self.server = 0  # its process id; 0 while none is loaded

    def __call__(self, command: list[str], **options: Any) -> object:
        """Start a task's process; in the ordinary way where it is no ClientApp's, or can't be forked."""
        if command[0] == CLIENT and not options and self._fits():
            try:
                return self._forked(serve, command)
            except (OSError, EOFError):
                self._load_again()
        return subprocess.Popen(command, **options)

    def load(self) -> bool:
        """Start the fork server, and wait until it has loaded everything.

        Returns:
            Whether ClientApps can be forked from it.
        """
        began, (ours, theirs) = time.monotonic(), self.context.Pipe(duplex=False)
        try:
            process = self._forked(ready, theirs)
            theirs.close()
            server, problem = ours.recv() if ours.poll(_LOADING_SECONDS) else (0, "it takes too long")
            process.join(_LOADING_SECONDS)
        except (OSError, EOFError) as error:
            server, problem = 0, f"it ended: {error!r}"
        finally:
            ours.close()
        if problem:
            logger.warning("each message loads what it takes: of a process that had, %s", problem)
            return False
        self.server = server
        logger.info("what ClientApps take was loaded in %.1f s", time.monotonic() - began)
        return True

    def _fits(self) -> bool:
        """Whether a fork is what the site's file asks for now, and there is a process to fork it from."""
        site = _site(self.path)
        if site is not None and (site.preload, site.network) != (True, self.site.network):
            return False  # libraries have read already whether they may use the network
        if self.server and _ended(self.server):
            self._load_again()
        return self.server != 0

    def _load_again(self) -> None:
        """Start the fork server again; messages do not wait for it."""
        logger.warning("the process that ClientApps are forked from is gone: it is started again")
        self.server = 0
        threading.Thread(target=self.load, daemon=True).start()

    def _forked(self, work: Any, *given: object) -> BaseProcess:
        process = self.context.Process(target=work, args=given, daemon=True)  # it ends with the SuperExec
        process.start()
        return process


def _site(path: Path) -> Site | None:
    """What the site's file says; None where it can't be used: each message is answered with a code of it."""
    try:
        return read_site(path)
    except (ConfigError, OSError) as error:
        logger.warning("%s", error)
        return None


def _ended(child: int) -> bool:
    """Whether a child of this process has ended; its status stays for whoever waits for it."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
