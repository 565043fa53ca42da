#!/bin/sh
# The runs and the nodes, as Flower sees them.
. "$(dirname -- "$0")/place.sh"
FLWR_HOME=$HERE/flwr
COLUMNS=${COLUMNS:-160}  # Flower cuts its tables to the width, also where no terminal is
export COLUMNS
flwr list {{ federation.name }}
flwr supernode list {{ federation.name }}
for id in "$HERE"/nodes/*.id; do
  if [ -s "$id" ]; then echo "node $(cat "$id") is $(basename "$id" .id)"; fi
done
