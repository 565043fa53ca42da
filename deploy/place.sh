# Sourced by the commands beside it: where this folder and its state lie, and an environment in which nothing
# is fetched at run time and nothing is told to anybody.
set -eu
umask 0077
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
STATE={{ party.state }}
PATH={{ party.bin }}:$PATH:/usr/sbin
FLWR_HOME=$STATE/flwr
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
# What is on this machine is reached without any web proxy that the environment names.
NO_PROXY=127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}
no_proxy=$NO_PROXY
HF_HOME=${HF_HOME:-$STATE/huggingface}
export PATH HF_HOME FLWR_HOME FLWR_TELEMETRY_ENABLED FLWR_DISABLE_UPDATE_CHECK NO_PROXY no_proxy
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION
mkdir -p "$STATE" "$FLWR_HOME"
