#!/bin/sh
# Starts a ServerApp for every run: fedmerge's, which reads server.toml.
. "$(dirname -- "$0")/place.sh"
FEDMERGE_SERVER=${FEDMERGE_SERVER:-$HERE/server.toml}
export FEDMERGE_SERVER
# Task commands are looked for on the PATH: those of apps/ run no code that a bundle brings.
PATH=$HERE/apps:$PATH
cd "$STATE"
exec flower-superexec --runtime-api-address 127.0.0.1:{{ server.superlink_port }} \
  --root-certificates "$HERE/ca.crt" --superexec-auth-secret-file "$HERE/superexec.secret"
