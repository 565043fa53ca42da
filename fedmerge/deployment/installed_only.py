"""Flower's app commands, which run the installed fedmerge and nothing that a bundle brings along.

Flower 1.41 runs whatever app a bundle (FAB) names, and puts the bundle's folder first on `sys.path`: whoever
can start a run on the SuperLink can run code of his own at every site. It can check signatures of bundles,
but only those that its own Hub gave; a bundle started with `flwr run .` has none. So a party that runs
fedmerge starts its apps by this module: a SuperExec finds `flwr-clientapp` on its PATH, where a folder of the
party's own comes first.

A bundle is refused before anything of it is written or imported, unless it holds TOML, README and LICENSE
only and names fedmerge's own apps. Other kinds of tasks (agents, models, connectors) are refused altogether.
"""

from __future__ import annotations

import importlib
import io
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from fedmerge.errors import ConfigError

APPS = {"serverapp": "fedmerge.server_app:app", "clientapp": "fedmerge.client_app:app"}
COMMANDS = {"flwr-clientapp": "clientapp", "flwr-serverapp": "serverapp"}
REFUSED_COMMANDS = ("flwr-agentapp", "flwr-model", "flwr-connector", "flwr-simulation")
_HARMLESS = {".toml", ".md"}
_NAMES = {"LICENSE", ".info/CONTENT"}
_FLOWER = {
    "clientapp": (
        "flwr.supernode.runtime.run_clientapp",
        "flwr.clientapp.client_app:LoadClientAppError",
        "flwr.supernode.cli.flwr_clientapp:flwr_clientapp",
    ),
    "serverapp": (
        "flwr.superlink.runtime.run_serverapp",
        "flwr.serverapp.server_app:LoadServerAppError",
        "flwr.superlink.cli.flwr_serverapp:flwr_serverapp",
    ),
}
"""Flower's own names that this leans on: where a bundle is unpacked, the error it answers, the command."""

_LARGEST_FILE = 1 << 20
_MOST_FILES = 1000


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


def guarded(install: Callable[..., Any], refusal: type[Exception]) -> Callable[..., Any]:
    """Flower's `install_from_fab`, behind `check_bundle`.

    Args:
        install: the function that unpacks a bundle.
        refusal: the error that Flower answers without its sentence; the sentence stands in this party's log.
    """

    def checked(fab_file: bytes, *arguments: Any, **options: Any) -> Any:
        try:
            check_bundle(fab_file)
        except ConfigError as error:
            raise refusal(f"refused: {error}") from None
        return install(fab_file, *arguments, **options)

    return checked


def main(arguments: list[str]) -> int:
    """Run one of Flower's app commands, its first argument, with the bundle checked.

    Returns:
        The exit status of a command that is refused; Flower's own exit otherwise.
    """
    command = arguments[0] if arguments else ""
    if command not in COMMANDS:
        sys.stderr.write(f"fedmerge: {command!r} is not run here, only {', '.join(COMMANDS)}\n")
        return 2
    sys.argv = arguments
    _start(COMMANDS[command])
    return 0


def _start(component: str) -> None:
    where, error, command = _FLOWER[component]
    # By name: the packages re-export functions of the same names as these modules.
    module = importlib.import_module(where)
    module.install_from_fab = guarded(module.install_from_fab, _named(error))  # type: ignore[attr-defined]
    _named(command)()


def _named(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
