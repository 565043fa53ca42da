#!/bin/sh
# The proxy, in the foreground, with all that it writes below the state folder.
. "$(dirname -- "$0")/place.sh"
mkdir -p "$STATE/proxy"
user=""
# Started by root (in a container, say), its workers would become nobody, who can't reach the folder above.
if [ "$(id -u)" = 0 ]; then user=" user root;"; fi
exec nginx -e stderr -p "$STATE/proxy/" -c "$HERE/nginx.conf" -g "daemon off;$user"
