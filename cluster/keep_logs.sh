#!/bin/sh
# The sidecar of a Ray pod: copies Ray's logs to a volume that outlives the pod, every KEEP_EVERY_S seconds (30) and
# once more when the pod ends. POD_NAME is the folder's name there.
#
#   keep_logs.sh /tmp/ray /mnt/logs      # /mnt/logs/POD_NAME/session_…/…
set -u

from=$1
to=$2/${POD_NAME:?}
mkdir -p "$to"

copy() {
    for session in "$from"/session_*; do
        # A session holds sockets and packages too; its logs alone are kept. `session_latest` is a link to one.
        if [ -L "$session" ] || [ ! -d "$session/logs" ]; then continue; fi
        mkdir -p "$to/${session##*/}"
        # Ray rotates files away while they are copied, so the status says little; what cp says is the sidecar's log.
        cp --recursive --update --no-dereference --preserve=timestamps "$session/logs/." "$to/${session##*/}/" || true
    done
}

trap 'copy; exit 0' TERM INT
while :; do
    copy
    sleep "${KEEP_EVERY_S:-30}" &
    wait $!
done
