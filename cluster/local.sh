#!/usr/bin/env bash
# What for:  a Ray cluster of one machine that takes jobs, to try `ray job submit` before a real cluster.
# Start:     cluster/local.sh start      (needs the jobs extra: pip install "patchcert[jobs]")
# Submit:    ray job submit --address http://127.0.0.1:8265 -- python "$PWD/jobs/pipeline.py" column4-digits --work "$PWD/patchcert-work"
# Stop:      cluster/local.sh stop       (ends this cluster only)
# Left running it costs about 1 GiB of memory and no money. Everything listens on loopback only.
set -euo pipefail

port=${PATCHCERT_RAY_PORT:-6399}
dashboard=${PATCHCERT_DASHBOARD_PORT:-8265}
folder=${PATCHCERT_RAY_FOLDER:-/tmp/patchcert-ray}
pidfile="$folder/pid"
# The last one is the only way to keep Ray on the loopback address: it is meant for machines whose firewall asks.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled} RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

case "${1:-}" in
  start)
    mkdir -p "$folder"
    if [ -f "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; then
      echo "already running; stop it with: $0 stop" >&2
      exit 2
    fi
    # The agent's usual port may belong to another Ray of this machine; without an agent no job starts.
    agent=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    # In a session of its own, so that stopping it reaches all its processes and no other Ray of this machine.
    setsid ray start --head --block --node-ip-address 127.0.0.1 --port "$port" \
      --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port "$agent" --temp-dir "$folder" \
      >"$folder/log" 2>&1 </dev/null &
    echo $! >"$pidfile"
    for _ in $(seq 120); do
      # The server answers before its agent can start jobs: only a job that was taken shows that both are there.
      if ray job submit --address "http://127.0.0.1:$dashboard" --no-wait -- true >/dev/null 2>&1; then
        echo "ready: ray job submit --address http://127.0.0.1:$dashboard -- python \"\$PWD/jobs/train.py\" RECIPE"
        exit 0
      fi
      kill -0 "$(cat "$pidfile")" 2>/dev/null || break
      sleep 0.5
    done
    echo "Ray did not start; see $folder/log" >&2
    exit 1
    ;;
  stop)
    [ -f "$pidfile" ] || { echo "not running"; exit 0; }
    pid=$(cat "$pidfile")
    # It ends its servers and then itself; of a signal to all of them at once each waits for the others.
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 80); do
      kill -0 "$pid" 2>/dev/null || break
      # Where nobody waits for it, what has ended stays in the list of processes.
      if grep -qs '^State:[[:space:]]*Z' "/proc/$pid/status"; then break; fi
      sleep 0.25
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
    rm -f "$pidfile"
    echo "stopped"
    ;;
  *)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
