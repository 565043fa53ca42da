#!/bin/sh
# Make Flower forget the key of a silo: its node is refused from now on. unregister.sh SILO
. "$(dirname -- "$0")/place.sh"
FLWR_HOME=$HERE/flwr
silo=${1:?the name of a silo}
if [ ! -s "$HERE/nodes/$silo.id" ]; then
  echo "$silo is not registered: there is no $HERE/nodes/$silo.id" >&2
  exit 1
fi
# flwr exits with 0 where the SuperLink did not answer: only what it says counts.
answer=$(flwr supernode unregister "$(cat "$HERE/nodes/$silo.id")" {{ federation.name }} --format json) || true
printf '%s\n' "$answer"
case $(printf '%s' "$answer" | tr -d ' \n') in
  *'"success":true'*) rm "$HERE/nodes/$silo.id" ;;
  *)
    echo "$silo was not unregistered, Flower still takes its key: see above, and run this again" >&2
    exit 1
    ;;
esac
