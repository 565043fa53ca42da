#!/bin/sh
# Starts a ClientApp for every message: the fedmerge that is installed here, on the rows that site.toml names.
# It is Flower's SuperExec, which forks them from a process that has loaded what they take.
. "$(dirname -- "$0")/place.sh"
mkdir -p {{ log_folder }}
# Task commands are looked for on the PATH: those of apps/ run no code that a bundle brings.
PATH=$HERE/apps:$PATH
cd "$STATE"
exec "{{ party.bin }}/python3" -P -m fedmerge.deployment.warm_superexec "$HERE/site.toml" \
  flower-superexec --runtime-api-address 127.0.0.1:{{ silo.runtime_port }} \
  --root-certificates "$HERE/ca.crt" --superexec-auth-secret-file "$HERE/superexec.secret"
