#!/usr/bin/env bash
# A Ray cluster of several nodes on one machine: a head that runs drivers only, and workers.
#
#   configs/cluster/two_nodes.sh [WORKERS=2] [CPUS_PER_WORKER=1]     in one terminal; Ctrl-C ends it
#
# When all nodes are up it prints the variables that clients need (in another terminal), for instance for
#   ray job submit --working-dir . -- python -m training.run --config configs/quickstart.yaml \
#       --run-dir "$PWD/runs/cluster" core.mappo.num_env_runners=1
# Token authentication is on unless RAY_AUTH_MODE=disabled is set. Other clusters on the machine are left alone: own
# ports, own folder, and only processes started here are ended.
set -euo pipefail
workers=${1:-2} cpus=${2:-1}
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset RAY_ADDRESS
if [ "$RAY_AUTH_MODE" = token ] && [ -z "${RAY_AUTH_TOKEN:-}" ]; then
  ray get-auth-token --generate > /dev/null  # into ~/.ray, where clients of the same user find it
fi
folder=$(mktemp -d "${TMPDIR:-/tmp}/algospace-ray.XXXXXX")
nodes=()
free_ports() {  # $1 ports that nobody listens on
  python3 -c 'import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
[s.bind(("127.0.0.1", 0)) for s in held]
print(*(s.getsockname()[1] for s in held))' "$1"
}
finish() {
  trap - EXIT INT TERM
  for node in "${nodes[@]}"; do kill "$node" 2> /dev/null || true; done
  wait
  rm -rf "$folder"
}
trap finish EXIT INT TERM
read -r port dashboard client <<< "$(free_ports 3)"
first=20000
start_node() {  # arguments of `ray start`, with worker ports, a cache of tables and a folder of its own: nodes that
  # share one unpack a job's package over each other's, under the feet of the job
  read -r listen grpc env metrics <<< "$(free_ports 4)"
  ALGOSPACE_CACHE="$folder/cache-$first" ray start --block --temp-dir="$folder/$first" --node-ip-address=127.0.0.1 \
    --min-worker-port=$first --max-worker-port=$((first + 999)) --dashboard-agent-listen-port="$listen" \
    --dashboard-agent-grpc-port="$grpc" --runtime-env-agent-port="$env" --metrics-export-port="$metrics" \
    --object-store-memory=$((256 << 20)) --disable-usage-stats "$@" > "$folder/$first.log" 2>&1 &
  nodes+=($!)
  first=$((first + 1000))
}
start_node --head --port="$port" --num-cpus=0 --include-dashboard=true --dashboard-host=127.0.0.1 \
  --dashboard-port="$dashboard" --ray-client-server-port="$client"
wait_for_node() {  # $1 its place in nodes; ends the script if it did not come up
  local log="$folder/$((20000 + 1000 * $1)).log"
  for _ in $(seq 240); do
    grep -qs "Ray runtime started" "$log" && return
    kill -0 "${nodes[$1]}" 2> /dev/null || break
    sleep 0.5
  done
  echo "error: node $1 did not start: $(grep -v '^ *$' "$log" | tail -n 1)" >&2
  exit 1
}
wait_for_node 0
for _ in $(seq "$workers"); do start_node --address="127.0.0.1:$port" --num-cpus="$cpus"; done
for place in $(seq "$workers"); do wait_for_node "$place"; done
echo "export RAY_ADDRESS=127.0.0.1:$port RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard RAY_AUTH_MODE=$RAY_AUTH_MODE"
echo "nodes: ${nodes[*]}"
wait
