#!/bin/sh
# Make Flower forget the key of a silo: its node is refused from now on. unregister.sh SILO
. "$(dirname -- "$0")/place.sh"
FLWR_HOME=$HERE/flwr
silo=${1:?the name of a silo}
if [ ! -s "$HERE/nodes/$silo.id" ]; then
  echo "$silo is not registered: there is no $HERE/nodes/$silo.id" >&2
  exit 1
fi
flwr supernode unregister "$(cat "$HERE/nodes/$silo.id")" {{ federation.name }} --format json
rm "$HERE/nodes/$silo.id"
