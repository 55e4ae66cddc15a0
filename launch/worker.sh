#!/usr/bin/env bash
# Runs on each TPU VM worker, called by launch/tpu_vm.sh. Not for users.
#
# usage: worker.sh install | idle | run ARGUMENTS OF MAIN | status | stop SECONDS
#
# All files are below ~/mae_jax: src (the checkout), venv, and run with
#   lock     held by the supervisor and by main while they are alive
#   log      the output of main, from all runs
#   pid code the process, and the exit code of main
#   stopped  created by `stop`: a watching script must not restart main
set -euo pipefail

BASE=$(cd "$(dirname "$0")/../.." && pwd)
SRC=$BASE/src VENV=$BASE/venv RUN=$BASE/run
mkdir -p "$RUN"

die() {
  printf '%s: %s\n' "$(hostname)" "$*" >&2
  exit "${CODE:-1}"
}

alive() {
  ! (flock -n 8) 8>>"$RUN/lock"
}

idle() {
  ! alive || CODE=3 die "a run is alive (process $(cat "$RUN/pid")):" \
    "stop it first"
}

# The images of TPU VMs have Python 3.10, without venv. uv installs another Python
# without root or apt, which is busy on a new VM.
make_venv() {
  local python
  for python in python3.13 python3.12 python3; do
    if "$python" -c 'import sys, ensurepip, venv
sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
      "$python" -m venv "$VENV"
      return
    fi
  done
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --python 3.12 --seed "$VENV"
}

install() {
  local wanted
  idle
  wanted=$(cat "$SRC/setup.py" "$SRC/constraints.txt" | cksum)
  # Installs again only if a dependency changed. The mark is written last.
  if [ "$(cat "$VENV/installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$VENV"
    make_venv
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$SRC/constraints.txt" --editable "${SRC}[train,tpu,gcs]"
    printf '%s\n' "$wanted" >"$VENV/installed"
  fi
  echo "$(hostname): installed"
}

# Runs main without a terminal, and records its exit code.
supervise() {
  local code=0 child
  trap : TERM INT # main handles them
  cd "$SRC"
  export PYTHONUNBUFFERED=1 # the log is read while main runs
  "$VENV/bin/python" -m mae_jax.main "$@" &
  child=$!
  echo "$child" >"$RUN/pid"
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not main
    code=0
    wait "$child" || code=$?
  done
  echo "--- main exited with code $code, $(date -u +%FT%TZ)"
  echo "$code" >"$RUN/code.new"
  mv "$RUN/code.new" "$RUN/code"
}

run() {
  [ -f "$VENV/installed" ] || CODE=4 die "not installed: install first"
  exec 9>>"$RUN/lock"
  flock -n 9 || idle
  rm -f "$RUN/code" "$RUN/stopped" "$RUN/pid"
  echo "--- started $(date -u +%FT%TZ): $*" >>"$RUN/log"
  # nohup: main does not handle a SIGHUP that is ignored. It inherits the lock.
  nohup setsid bash "$SRC/launch/worker.sh" supervise "$@" \
    </dev/null >>"$RUN/log" 2>&1 &
  echo "$(hostname): started, log in $RUN/log"
}

status() {
  local state
  if alive; then
    state=running
  elif [ ! -f "$VENV/installed" ]; then
    state=empty
  elif [ -f "$RUN/code" ]; then
    state="exited $(cat "$RUN/code")"
    [ ! -f "$RUN/stopped" ] || state="stopped $(cat "$RUN/code")"
  elif [ -f "$RUN/log" ]; then
    state=lost # no exit code was recorded: the machine was restarted
  else
    state=installed
  fi
  echo "worker-status $(hostname) $state"
}

stop() {
  local waited=0
  touch "$RUN/stopped"
  if alive; then
    kill -TERM "$(cat "$RUN/pid")" 2>/dev/null || true
    while alive && [ "$waited" -lt "$(($1 * 5))" ]; do
      sleep 0.2
      waited=$((waited + 1))
    done
    if alive; then
      echo "$(hostname): still alive after $1 s: killed"
      kill -KILL "$(cat "$RUN/pid")" 2>/dev/null || true
      while alive; do sleep 0.2; done
    fi
  fi
  status
}

case ${1:-} in
  install | idle | run | supervise | status | stop) "$@" ;;
  *) die "${1:-nothing} is not a command of worker.sh" ;;
esac
