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
pids=
stop() {
    trap - EXIT INT TERM
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap stop EXIT
trap 'exit 0' INT TERM

ray start --head --block --port "$port" --dashboard-port "$dashboard" --dashboard-host 127.0.0.1 \
    --dashboard-agent-listen-port "$agent" --num-cpus "$cpus" --object-store-memory 500000000 --disable-usage-stats &
pids=$!
until ray status --address "127.0.0.1:$port" >/dev/null 2>&1; do
    kill -0 "$pids" 2>/dev/null || { echo "local.sh: the head did not start" >&2; exit 1; }
    sleep 1
done
for node in $(seq 1 "$nodes"); do
    ray start --block --address "127.0.0.1:$port" --num-cpus "$cpus" --object-store-memory 300000000 \
        --dashboard-agent-listen-port $((agent + node)) &
    pids="$pids $!"
done
echo "local.sh: Ray at 127.0.0.1:$port, jobs and dashboard at http://127.0.0.1:$dashboard; Ctrl-C to stop"
wait
