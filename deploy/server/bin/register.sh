#!/bin/sh
# Tell Flower the public keys of the silos that it does not know yet. Flower knows nodes by numbers only: they
# are kept beside the keys, for unregister.sh. With names of silos: those only.
. "$(dirname -- "$0")/place.sh"
FLWR_HOME=$HERE/flwr
if [ $# = 0 ]; then
  for key in "$HERE"/nodes/*.pub; do set -- "$@" "$(basename "$key" .pub)"; done
fi
for silo in "$@"; do
  if [ -s "$HERE/nodes/$silo.id" ]; then continue; fi
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    answer=$(flwr supernode register "$HERE/nodes/$silo.pub" {{ federation.name }} --name "$silo" --format json) || true
    case $answer in
      *"SuperLink is unavailable"*) sleep 3 ;;  # it may have been started just now
      *) break ;;
    esac
  done
  id=$(printf '%s' "$answer" | sed -n 's/.*"node-id": *"\{0,1\}\([0-9][0-9]*\).*/\1/p')
  if [ -z "$id" ]; then
    echo "$silo was not registered: $answer" >&2
    exit 1
  fi
  printf '%s\n' "$id" >"$HERE/nodes/$silo.id"
  echo "$silo is registered as node $id"
done
