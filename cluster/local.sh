#!/bin/sh
# A cluster of several Ray nodes on this machine, with token authentication: what a real one does, without one.
#
#   export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="$(openssl rand -hex 32)"
#   cluster/local.sh 2                      # a head and two workers; Ctrl-C takes them down
#
# and in another shell with the same two variables:
#
#   ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
#       python jobs/pipeline.py run configs/quickstart.yaml --run-dir "$PWD/runs/job"
#
# RAY_PORT, DASHBOARD_PORT, AGENT_PORT and CPUS_PER_NODE change the defaults.
set -eu

nodes=${1:-2}
port=${RAY_PORT:-6379}
dashboard=${DASHBOARD_PORT:-8265}
agent=${AGENT_PORT:-52400}
cpus=${CPUS_PER_NODE:-1}
bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin

if [ "${RAY_AUTH_MODE:-}" != token ] || [ -z "${RAY_AUTH_TOKEN:-}" ]; then
    echo 'local.sh: first: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="$(openssl rand -hex 32)"' >&2
    exit 2
fi

export PATH="$bin:$PATH" RAY_TRAIN_V2_ENABLED=1 RAY_USAGE_STATS_ENABLED=0
folder=$(mktemp -d)  # a temporary folder a node, as if each were a machine of its own
pids=
stop() {
    trap - EXIT INT TERM
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 0' INT TERM

# Starts a node and waits until it is up: nodes that join at the same moment can miss each other.
node() {
    name=$1
    shift
    log=$folder/$name.log
    : >"$log"
    ray start --block --num-cpus "$cpus" --object-store-memory 300000000 --temp-dir "$folder/$name" "$@" \
        >>"$log" 2>&1 &
    pids="$pids $!"
    until grep -q "Ray runtime started" "$log"; do
        if ! kill -0 "$!" 2>/dev/null; then
            tail -n 3 "$log" >&2
            echo "local.sh: $name did not start" >&2
            exit 1
        fi
        sleep 1
    done
}

node head --head --port "$port" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
    --dashboard-agent-listen-port "$agent" --disable-usage-stats
for number in $(seq 1 "$nodes"); do
    node "worker$number" --address "127.0.0.1:$port" --dashboard-agent-listen-port $((agent + number))
done
echo "local.sh: Ray at 127.0.0.1:$port, jobs and dashboard at http://127.0.0.1:$dashboard; Ctrl-C to stop"
wait
