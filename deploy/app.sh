#!/bin/sh
# What Flower's SuperExec starts for a task: the fedmerge that is installed here. Flower's own command of this
# name would run whatever code a bundle brings along.
exec "{{ party.bin }}/python3" -P -m fedmerge.deployment.installed_only "$(basename -- "$0")" "$@"
