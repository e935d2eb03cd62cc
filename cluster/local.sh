#!/usr/bin/env bash
# What for:  a Ray cluster of one machine that takes jobs, to try `ray job submit` before a real cluster.
# Start:     cluster/local.sh start      (needs the jobs extra: pip install "patchcert[jobs]")
# Submit:    eval "$(cluster/local.sh variables)"       (how to log in; the token itself is never shown)
#            ray job submit -- python "$PWD/jobs/pipeline.py" column4-digits --work "$PWD/patchcert-work"
# Stop:      cluster/local.sh stop       (ends this cluster only)
# Left running it costs about 1 GiB of memory and no money. Everything listens on loopback only, and every call needs
# the token of this run, which lies in a folder that only you can read.
set -euo pipefail
umask 077

port=${PATCHCERT_RAY_PORT:-6399}
dashboard=${PATCHCERT_DASHBOARD_PORT:-8265}
fail() {
  echo "$1" >&2
  exit 2
}

# True for a folder (or file, "f") that is no link, is ours, and is closed to everybody else.
is_private() {
  [ -n "$(find "$1" -prune -type "$2" -user "$(id -u)" ! -perm /077 2>/dev/null)" ]
}

# Below a folder of our own, never at a guessable name where everybody may write.
base=${XDG_RUNTIME_DIR:-}
is_private "$base" d || base=${XDG_STATE_HOME:-$HOME/.local/state}
folder=${PATCHCERT_RAY_FOLDER:-$base/patchcert-ray}
[[ $folder == /* ]] || folder=$PWD/$folder
token="$folder/token" state="$folder/state"

check_folder() {
  is_private "$folder" d || fail "$folder has to be a folder of yours that nobody else may enter, no link, and is not.
  Look at it (ls -ld $folder), then remove it or name another: PATCHCERT_RAY_FOLDER=FOLDER $0 $1"
}

# Reads "group temporary-folder" of the cluster that was started here; false when there is none.
read_state() {
  [ -e "$state" ] || [ -L "$state" ] || return 1
  is_private "$state" f || fail "$state is not a private file of yours; nothing was ended. Remove it after a look."
  group="" temporary=""
  { read -r group && read -r temporary; } <"$state" || true
  [[ $group =~ ^[1-9][0-9]*$ && $temporary =~ ^/.*/patchcert-ray\.[A-Za-z0-9]{6}$ ]] ||
    fail "$state does not hold what this script writes; nothing was ended. Remove it after a look."
}

# True while a process of our group works in our temporary folder. A number alone may belong to another process by now.
runs() {
  # Wide: a terminal's width in COLUMNS would cut the arguments off before the folder.
  ps -A -ww -o pgid= -o uid= -o args= | awk -v group="$group" -v user="$(id -u)" -v folder="$temporary" \
    '$1 == group && $2 == user && index($0, folder) { found = 1 } END { exit !found }'
}

end_cluster() {
  if runs; then
    kill -TERM -- "-$group" 2>/dev/null || true
    for _ in $(seq 40); do
      runs || break
      sleep 0.25
    done
    # What is left of the group was started by the process that was ours a moment ago.
    kill -KILL -- "-$group" 2>/dev/null || true
  fi
  rm -f -- "$state" "$token"
  if is_private "$temporary" d; then rm -rf -- "$temporary"; fi
}

case "${1:-}" in
  start)
    mkdir -p -- "$folder"
    check_folder start
    if read_state; then
      if runs; then fail "already running; stop it with: $0 stop"; fi
      end_cluster
    fi
    # Ray opens its own folder to everybody; the one around it stays closed.
    temporary=$(mktemp -d "$(cd "${RAY_TMPDIR:-/tmp}" && pwd -P)/patchcert-ray.XXXXXX")
    rm -f -- "$token"
    python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token"
    # The agent's usual port may belong to another Ray of this machine; without an agent no job starts.
    agent=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    unset RAY_AUTH_TOKEN RAY_ADDRESS
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
    # The only way to keep all of Ray on the loopback address: it is meant for machines whose firewall asks.
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
    # In a session of its own, so that stopping it reaches all its processes and no other Ray of this machine.
    setsid ray start --head --block --node-ip-address 127.0.0.1 --port "$port" \
      --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port "$agent" \
      --temp-dir "$temporary/ray" >"$folder/log" 2>&1 </dev/null &
    group=$!
    printf '%s\n%s\n' "$group" "$temporary" >"$state"
    for _ in $(seq 120); do
      # The server answers before its agent can start jobs: only a job that was taken shows that both are there.
      if ray job submit --address "http://127.0.0.1:$dashboard" --no-wait -- true >/dev/null 2>&1; then
        echo "ready. To submit:  eval \"\$($0 variables)\"; ray job submit -- python \"\$PWD/jobs/train.py\" RECIPE"
        exit 0
      fi
      kill -0 "$group" 2>/dev/null || break
      sleep 0.5
    done
    end_cluster
    echo "Ray did not start; see $folder/log" >&2
    exit 1
    ;;
  variables)
    check_folder variables
    read_state || fail "not running; start it with: $0 start"
    # Where the token lies, not what it is: this may end up in a log or in a shell's history.
    printf 'unset RAY_AUTH_TOKEN; export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q RAY_API_SERVER_ADDRESS=%q\n' \
      "$token" "http://127.0.0.1:$dashboard"
    ;;
  stop)
    [ -e "$folder" ] || [ -L "$folder" ] || { echo "not running"; exit 0; }
    check_folder stop
    read_state || { echo "not running"; exit 0; }
    if runs; then word=stopped; else word="not running"; fi
    end_cluster
    echo "$word"
    ;;
  *)
    echo "usage: $0 start|variables|stop" >&2
    exit 2
    ;;
esac
