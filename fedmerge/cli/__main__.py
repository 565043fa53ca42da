"""`python -m fedmerge.cli`, where scripts are not on the path."""

from __future__ import annotations

from fedmerge.cli import main

main()
