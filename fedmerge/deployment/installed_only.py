"""Flower's app commands, which run the installed fedmerge and nothing that a bundle brings along.

Flower 1.41 runs whatever app a bundle (FAB) names, and puts the bundle's folder first on `sys.path`: whoever
can start a run on the SuperLink can run code of his own at the server and at every site. It can check
signatures of bundles, but only those that its own Hub gave; a bundle started with `flwr run .` has none. So a
party's SuperExec finds commands of its own on its PATH, in `apps/` of the party's folder, and each is this
module. A site's is `fedmerge.client_process`. At the server, where a bundle brings the run's configuration,
it is refused before anything of it is unpacked, unless it holds TOML, README and LICENSE only and names
fedmerge's own apps. Other kinds of tasks (agents, models, connectors) are refused altogether.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import sys
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from fedmerge.errors import ConfigError

APPS = {"serverapp": "fedmerge.server_app:app", "clientapp": "fedmerge.client_app:app"}
CLIENT, SERVER = "flwr-clientapp", "flwr-serverapp"
COMMANDS = (CLIENT, SERVER)
REFUSED_COMMANDS = ("flwr-agentapp", "flwr-model", "flwr-connector", "flwr-simulation")
_HARMLESS = {".toml", ".md"}
_NAMES = {"LICENSE", ".info/CONTENT"}
_LARGEST_FILE = 1 << 20
_MOST_FILES = 1000
_SET_NAME = 15  # PR_SET_NAME of <linux/prctl.h>
_RUN, _COMMAND = "flwr.superlink.runtime.run_serverapp", "flwr.superlink.cli.flwr_serverapp"
"""Flower's modules that this leans on: where a bundle is unpacked, and the command."""


def check_bundle(content: bytes) -> None:
    """Refuse a bundle that brings code, or that names other apps than fedmerge's.

    Args:
        content: the bytes of the FAB.

    Raises:
        ConfigError: what is wrong with it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            entries = bundle.infolist()
            _check_files(entries)
            table = tomllib.loads(bundle.read("pyproject.toml").decode("utf-8"))
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"the bundle can't be read: {type(error).__name__}") from None
    _check_apps(table)


def _check_files(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > _MOST_FILES or any(entry.file_size > _LARGEST_FILE for entry in entries):
        raise ConfigError(f"the bundle has over {_MOST_FILES} files, or one over {_LARGEST_FILE} bytes")
    names = [entry.filename for entry in entries if not entry.is_dir()]
    brought = [name for name in names if name not in _NAMES and PurePosixPath(name).suffix not in _HARMLESS]
    if brought:
        raise ConfigError(
            f"the bundle brings {brought[0]!r}: expected configuration only (.toml, .md, LICENSE)"
        )
    if len(set(names)) < len(names):
        raise ConfigError("the bundle has two files of one name")


def _check_apps(table: dict[str, Any]) -> None:
    components: Any = table
    for key in ("tool", "flwr", "app", "components"):
        components = components.get(key) if isinstance(components, dict) else None
    if components != APPS:
        raise ConfigError(f"the bundle names the apps {components!r}: expected {APPS!r}")


def guarded(install: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's `install_from_fab`, behind `check_bundle`."""

    def checked(fab_file: bytes, *arguments: Any, **options: Any) -> Any:
        check_bundle(fab_file)
        return install(fab_file, *arguments, **options)

    return checked


def main(arguments: list[str]) -> int:
    """Run one of Flower's app commands, its first argument.

    Returns:
        The exit status of a command that is refused; Flower's own exit otherwise.
    """
    command = arguments[0] if arguments else ""
    if command not in COMMANDS:
        sys.stderr.write(f"fedmerge: {command!r} is not run here, only {' and '.join(COMMANDS)}\n")
        return 2
    sys.argv = arguments
    _show_as(command)
    (_client if command == CLIENT else _server)()
    return 0


def _show_as(command: str) -> None:
    """Be shown under the command's name by `ps` and `top`, not as one python3 among others; on Linux."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SET_NAME, command.encode())


def _client() -> None:
    from fedmerge.client_process import main as serve  # noqa: PLC0415 (only what is run is imported)

    serve()


def _server() -> None:
    # By name: the packages re-export functions of the same names as these modules.
    module = importlib.import_module(_RUN)
    module.install_from_fab = guarded(module.install_from_fab)  # type: ignore[attr-defined]
    importlib.import_module(_COMMAND).flwr_serverapp()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
