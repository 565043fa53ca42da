#!/bin/sh
# What the ServerApp of a run has logged: logs.sh RUN
. "$(dirname -- "$0")/place.sh"
FLWR_HOME=$HERE/flwr
exec flwr log "${1:?the number of a run, from status.sh}" {{ federation.name }} --show
