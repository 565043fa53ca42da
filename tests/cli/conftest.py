from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from fedmerge.cli.app import app


@pytest.fixture
def fedmerge() -> Callable[..., Result]:
    """The command line in this process: `fedmerge("rules", "ties")`."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
