#!/bin/sh
# Keep a run going: submit it, and again when it was lost; serve /metrics and /health: watch.sh RUN.toml
. "$(dirname -- "$0")/place.sh"
exec fedmerge deploy watch "$HERE" "$@"
