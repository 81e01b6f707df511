#!/bin/sh
# Runs a command again while it fails, at most RETRIES times (2), RETRY_WAIT_S seconds (60) after it ended.
#
#   cluster/retry.sh python jobs/pipeline.py run configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first
#
# Exit status 2 is a bad config or input, which another try would find again, so it ends at once, as 0 does. So does a
# signal: who stopped the job wants it stopped.
set -u

retries=${RETRIES:-2}
pause=${RETRY_WAIT_S:-60}
try=0
pid=
stopped=
# The command is sent on what this script is sent, so that it ends as it would by itself.
stop() {
    stopped=1
    [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null
}
trap stop TERM INT

run() {
    "$@" &
    pid=$!
    [ -z "$stopped" ] || kill -TERM "$pid" 2>/dev/null # the signal came before the pid was known
    wait "$pid"
    status=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal ends `wait` before the command has ended
        wait "$pid"
        status=$?
    done
    pid=
    [ -z "$stopped" ] || exit 143
}

while :; do
    run "$@"
    if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$try" -ge "$retries" ]; then
        exit "$status"
    fi
    try=$((try + 1))
    echo "retry.sh: exit status $status; try $try of $retries in $pause s" >&2
    run sleep "$pause"
done
