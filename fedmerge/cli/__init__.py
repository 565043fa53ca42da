"""The `fedmerge` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point of the `fedmerge` script."""
    from fedmerge.cli.app import app

    app(prog_name="fedmerge")
