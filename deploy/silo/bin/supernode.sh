#!/bin/sh
# Flower's SuperNode: asks the server for work, through the proxy on this machine, or another that FEDMERGE_LINK
# names (host:port).
. "$(dirname -- "$0")/place.sh"
exec flower-supernode --superlink "${FEDMERGE_LINK:-127.0.0.1:{{ silo.proxy_port }}}" --root-certificates "$HERE/ca.crt" \
  --auth-supernode-private-key "$HERE/node.key" \
  --isolation process --superexec-auth-secret-file "$HERE/superexec.secret" \
  --host 127.0.0.1 --port {{ silo.runtime_port }} \
  --ssl-ca-certfile "$HERE/ca.crt" --ssl-certfile "$HERE/runtime.pem" --ssl-keyfile "$HERE/runtime.key" \
  --node-config "site='$HERE/site.toml'"
