"""`flwr-clientapp` as a site should run it: nothing of the bundle that the server sent is executed.

Flower unpacks a bundle (FAB) for each message, puts its folder first on `sys.path` and imports the ClientApp
that the bundle names: Python in it would run with all rights of the node. Ours carries none, but a server may
send another. A SuperExec starts what it finds as `flwr-clientapp` on its PATH; a script of that name in the
site's folder, ``exec python -P -m fedmerge.client_process "$@"``, is this. It takes Flower's arguments and
does what Flower does, but the ClientApp is always the installed fedmerge's, a bundle with code in it is
refused, nothing is installed for it, and a node without a site of its own serves nobody.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

from flwr.clientapp.client_app import LoadClientAppError
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp as flower

DATA = (".toml", ".md", ".yaml", ".yml", ".json", ".jsonl", "LICENSE", ".info/CONTENT")
"""How names of files end that a bundle may hold."""


def main() -> None:
    """Serve one message: the place of the command `flwr-clientapp`."""
    guard()
    flwr_clientapp()


def guard() -> None:
    """Put our steps in the place of Flower's: unpacking a bundle, installing for it, loading a ClientApp."""
    vars(flower).update(
        install_from_fab=_look, install_app_dependencies=_install, get_load_client_app_fn=_installed
    )


def refuse_code(bundle: bytes) -> None:
    """Look through a bundle.

    Raises:
        LoadClientAppError: it is no zip file, or holds anything but data. The server is told that the
            ClientApp could not be loaded, and no more.
    """
    try:
        names = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    except zipfile.BadZipFile:
        raise LoadClientAppError("the bundle is no zip file") from None
    strange = [name for name in names if not name.endswith((*DATA, "/"))]
    if strange:
        raise LoadClientAppError(f"the bundle holds {strange[0]!r}: expected configuration alone")


def _look(bundle: bytes, *_given: Any, **_named: Any) -> None:
    refuse_code(bundle)  # and unpack nothing: the run's config has come already


def _install(*_given: Any, **_named: Any) -> None:
    raise LoadClientAppError(
        "nothing is installed for a bundle: start without --allow-runtime-dependency-..."
    )


def _installed(*_given: Any, **_named: Any) -> Callable[[str, str, str], Any]:
    def load(*_bundle: str) -> Any:
        from fedmerge import client_app  # noqa: PLC0415  once Flower has a message that an error can answer

        client_app.serve_sites_only()
        return client_app.app

    return load


if __name__ == "__main__":
    main()
