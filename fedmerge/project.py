"""Where the project's own files lie: the configuration reference and the recipes.

In a wheel they are data inside the package, in a clone they stand at the top of the tree.
"""

from __future__ import annotations

from pathlib import Path

from fedmerge.errors import ConfigError, nearest

_PACKAGE = Path(__file__).parent


def root() -> Path:
    """The folder that holds `pyproject.toml`, `strategies/`, `simulations/`, README and LICENSE."""
    packaged = _PACKAGE / "_project"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def recipes(kind: str) -> dict[str, Path]:
    """The packaged recipes of a kind, `"simulations"` or `"strategies"`, by name."""
    return {path.stem: path for path in sorted((root() / kind).glob("*.toml"))}


def find_recipe(kind: str, given: str) -> Path:
    """A recipe by path, or by the name of a packaged one.

    Raises:
        ConfigError: neither a file nor a name that there is.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    packaged = recipes(kind)
    if given in packaged:
        return packaged[given]
    if path.suffix == ".toml" and path.stem in packaged and path.parent.name in ("", kind):
        return packaged[path.stem]
    raise ConfigError(f"no file {given!r}, and no packaged recipe of that name: {nearest(given, packaged)}")
