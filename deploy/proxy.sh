#!/bin/sh
# The proxy, in the foreground, with all that it writes below the state folder. `proxy.sh reload` makes the one
# that runs read its configuration, certificates and list of revoked ones again.
. "$(dirname -- "$0")/place.sh"
if [ "${1:-}" = reload ]; then exec kill -HUP "$(cat "$STATE/proxy/proxy.pid")"; fi
mkdir -p "$STATE/proxy"
user=""
# Started by root (in a container, say), its workers would become nobody, who can't reach the folder above.
if [ "$(id -u)" = 0 ]; then user=" user root;"; fi
exec nginx -e stderr -p "$STATE/proxy/" -c "$HERE/nginx.conf" -g "daemon off;$user"
