"""The templates in `deploy/`, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedmerge import project
from fedmerge.deployment.installed_only import COMMANDS, REFUSED_COMMANDS
from fedmerge.deployment.writing import COMMAND, PUBLIC, File


def folder() -> Path:
    """Where the templates lie."""
    return project.root() / "deploy"


def render(name: str, values: Mapping[str, Any]) -> str:
    """One template, such as "server/bin/superlink.sh", filled in; a value that is missing is an error."""
    return _environment().get_template(name).render(values)


def rendered(party: str, values: Mapping[str, Any]) -> dict[str, File]:
    """All files that a party gets from templates ("server" or "silo"), by their place in its folder."""
    names = [path.relative_to(folder()).as_posix() for path in sorted((folder() / party).rglob("*"))]
    places = {name: name.removeprefix(f"{party}/") for name in names if (folder() / name).is_file()}
    places |= {"place.sh": "bin/place.sh", "proxy.sh": "bin/proxy.sh"}
    apps = {f"apps/{command}": render("app.sh", values) for command in (*COMMANDS, *REFUSED_COMMANDS)}
    texts = {place: render(name, values) for name, place in places.items()} | apps
    return {place: _file(place, text) for place, text in texts.items()}


def _file(place: str, text: str) -> File:
    sourced = place == "bin/place.sh"
    return File(text.encode(), COMMAND if place.startswith(("bin/", "apps/")) and not sourced else PUBLIC)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder()),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # no HTML: every value was checked, or is quoted by a filter
    )
    environment.filters |= {"toml": _toml, "address": _address}
    return environment


def _toml(value: object) -> str:
    r"""A value as TOML writes it.

    Example:
        >>> _toml('a "b"'), _toml(["x"]), _toml(False)
        ('"a \\"b\\""', '["x"]', 'false')
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()


def _address(host: str) -> str:
    """A host as it stands before a port.

    Example:
        >>> _address("fed.example.org"), _address("2001:db8::1")
        ('fed.example.org', '[2001:db8::1]')
    """
    return f"[{host}]" if ":" in host else host
