"""Whether a tracker's package is installed, found out without importing it."""

from __future__ import annotations

from importlib.util import find_spec

from fedmerge.errors import ConfigError


def check_installed(tracker: str, package: str) -> None:
    """Refuse a tracker whose package is missing, with the command that installs it.

    Args:
        tracker: its name, which is that of its extra too.
        package: that it imports.

    Raises:
        ConfigError: the package is not installed.

    Example:
        >>> check_installed("tensorboard", "no_such_package")
        Traceback (most recent call last):
        ...
        fedmerge.errors.ConfigError: run.trackers: 'tensorboard' needs a package that is not installed here; \
pip install 'fedmerge[tensorboard]'
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"run.trackers: {tracker!r} needs a package that is not installed here; "
            f"pip install 'fedmerge[{tracker}]'"
        )
