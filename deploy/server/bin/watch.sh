#!/bin/sh
# Keep a run going: submit it, and again when it was lost; serve /metrics and /health.
# watch.sh [RUN.toml] [OPTION]...; without a word: run.toml of this folder.
. "$(dirname -- "$0")/place.sh"
[ "$#" -gt 0 ] || set -- "$HERE/run.toml"
exec fedmerge deploy watch "$HERE" "$@"
