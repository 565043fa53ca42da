#!/bin/sh
# Flower's SuperLink: all its APIs on one port of the loopback interface; sites reach it through the proxy.
. "$(dirname -- "$0")/place.sh"
exec flower-superlink --host 127.0.0.1 --port {{ server.superlink_port }} \
  --ssl-ca-certfile "$HERE/ca.crt" --ssl-certfile "$HERE/superlink.pem" --ssl-keyfile "$HERE/superlink.key" \
  --enable-supernode-auth --database "$STATE/state.db" \
  --isolation process --superexec-auth-secret-file "$HERE/superexec.secret" \
  --disable-runtime-dependency-installation --log-file "$STATE/superlink.log"
