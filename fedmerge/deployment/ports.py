"""Whether the ports that a federation wants on this machine are free."""

from __future__ import annotations

import socket

from fedmerge.deployment.federation import Federation, uses_of
from fedmerge.errors import ConfigError


def refuse_ports_in_use(federation: Federation) -> None:
    """Bind each port of a federation on one machine, and let go of it again.

    Raises:
        ConfigError: one is taken; the message names it and whose it was to be.
    """
    for owner, values in uses_of(federation).items():
        for what, port in values.items():
            if isinstance(port, int) and not is_free(port):
                raise ConfigError(f"{owner} {what} = {port}: the port is in use on this machine")


def is_free(port: int) -> bool:
    """Whether the loopback interface's port can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
