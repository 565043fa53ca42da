#!/bin/sh
# Submit a run: run.sh RUN.toml [--set KEY=VALUE]... Prints its number.
. "$(dirname -- "$0")/place.sh"
exec fedmerge deploy submit "$HERE" "$@"
