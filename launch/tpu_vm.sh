#!/usr/bin/env bash
# Runs on TPU VMs, from one chip to a pod: the same command on every host.
#
# usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- ARGUMENTS]
#
#   create    create the TPU VM; with --queued request it and wait for it
#   install   copy this checkout to all workers and install it
#   run       start main on all workers, detached from ssh
#   resume    all of the above as needed, then watch: restart main from the workdir
#             after a preemption, exit codes 75 and 76, and lost workers
#   status    show the state of the TPU VM, and of main on each worker
#   logs      show the log of main on one worker (--worker, --lines, --follow)
#   stop      save and stop main (exit code 75), on all workers
#   delete    delete the TPU VM; from then on it costs nothing
#
# Everything after -- goes to `python -m mae_jax.main` unchanged.
#
#   --name=NAME            name of the TPU VM, and of the request for it
#   --zone=ZONE            for example us-central2-b
#   --project=PROJECT      by default gcloud's
#   --type=TYPE            for create, run, resume: v4-32, v5litepod-256, v6e-64 ...
#   --version=VERSION      runtime; by default the one for the type
#   --spot                 cheaper, and may be preempted at any time
#   --queued               a queued resource: waits for capacity
#   --wait=MINUTES         limit of this wait; by default until Ctrl-C
#   --network=, --subnetwork=, --service-account=, --labels=   as for gcloud
#   --internal-ip, --iap   route of ssh, if not by an external address
#   --hosts=N              for a type that this script does not know
#   --git=URL --ref=REF    install from there instead of copying this checkout
#   --retries=20           for resume: restarts in a row; an hour of running resets
#                          the count
#   --worker=0 --lines=100 --follow     for logs
#   --stop-seconds=180     for stop: seconds until main is killed
#   --flags=FILE           more flags, one name=value a line; the command line wins
#   --dry-run              print the calls, and call nothing
#
# For ssh to several workers, gcloud needs its key in the agent:
#   ssh-add ~/.ssh/google_compute_engine
#
# Exit codes: 0 done; 1 a mistake, or main's own 1; 75 saved and stopped; others
# are gcloud's. A failure lists what still exists, and prints the next command.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
CHECKOUT=$(dirname "$HERE")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

ORIGINAL=("$@")
NAME='' ZONE='' PROJECT='' TYPE='' VERSION='' SPOT='' QUEUED='' WAIT=''
NETWORK='' SUBNETWORK='' ACCOUNT='' LABELS='' INTERNAL='' IAP='' HOSTS=''
GIT='' REF='' RETRIES=20 WORKER=0 LINES_SHOWN=100 FOLLOW='' STOP_SECONDS=180

parse_flags() {
  local each value
  for each in ${FLAGS[@]+"${FLAGS[@]}"}; do
    value=${each#*=}
    case $each in
      --name=*) NAME=$value ;;
      --zone=*) ZONE=$value ;;
      --project=*) PROJECT=$value ;;
      --type=*) TYPE=$value ;;
      --version=*) VERSION=$value ;;
      --spot) SPOT=1 ;;
      --queued) QUEUED=1 ;;
      --wait=*) WAIT=$value ;;
      --network=*) NETWORK=$value ;;
      --subnetwork=*) SUBNETWORK=$value ;;
      --service-account=*) ACCOUNT=$value ;;
      --labels=*) LABELS=$value ;;
      --internal-ip) INTERNAL=1 ;;
      --iap) IAP=1 ;;
      --hosts=*) HOSTS=$value ;;
      --git=*) GIT=$value ;;
      --ref=*) REF=$value ;;
      --retries=*) RETRIES=$value ;;
      --worker=*) WORKER=$value ;;
      --lines=*) LINES_SHOWN=$value ;;
      --follow) FOLLOW=1 ;;
      --stop-seconds=*) STOP_SECONDS=$value ;;
      --dry-run) DRY_RUN=1 ;;
      *) die "$each is not a flag of $COMMAND, or lacks =VALUE:" \
        "see $0 --help; flags of main go after --" ;;
    esac
  done
}

# Prints the hosts of a type. v2, v3, v4 and v5p count cores, 8 a host. v5e and v6e
# count chips, up to 8 on one host and 4 on each of several.
hosts_of() { # type
  local count=${1##*-}
  case $1 in
    v[234]-[1-9]*[0-9] | v[234]-8 | v5p-8 | v5p-[1-9]*[0-9])
      printf '%s' "$(((count + 7) / 8))"
      ;;
    v5litepod-[148] | v6e-[148]) printf 1 ;;
    v5litepod-[1-9]*[0-9] | v6e-[1-9]*[0-9]) printf '%s' "$((count / 4))" ;;
  esac
}

version_of() { # type
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# Checks all flags before the first call: mistakes should not cost pod time.
check_flags() {
  [ -n "$NAME" ] || die "--name is missing: choose a name for the TPU VM"
  check_name --name "$NAME" 61
  [ -n "$ZONE" ] || die "--zone is missing, for example --zone=us-central2-b"
  printf '%s' "$ZONE" | grep -Eq '^[a-z]+-[a-z]+[0-9]+-[a-z]$' ||
    die "--zone=$ZONE is not a zone: write, for example, --zone=us-central2-b"
  [ -z "$PROJECT" ] || check_word --project "$PROJECT"
  [ -z "$VERSION" ] || check_word --version "$VERSION"
  [ -z "$NETWORK" ] || check_word --network "$NETWORK"
  [ -z "$SUBNETWORK" ] || check_word --subnetwork "$SUBNETWORK"
  [ -z "$ACCOUNT" ] || check_word --service-account "$ACCOUNT"
  [ -z "$WAIT" ] || check_number --wait "$WAIT"
  [ -z "$GIT" ] || check_word --git "$GIT"
  [ -z "$REF" ] || check_word --ref "$REF"
  [ -z "$REF" ] || [ -n "$GIT" ] || die "--ref=$REF needs --git=URL"
  [ -z "$INTERNAL$IAP" ] || [ "$INTERNAL$IAP" = 1 ] ||
    die "--internal-ip and --iap exclude each other: choose one"
  check_number --retries "$RETRIES"
  check_number --lines "$LINES_SHOWN"
  check_number --stop-seconds "$STOP_SECONDS"
  [ "$WORKER" = 0 ] || check_number --worker "$WORKER"
  [ -z "$TYPE" ] || check_word --type "$TYPE"
  [ -z "$HOSTS" ] || check_number --hosts "$HOSTS"
  [ -n "$HOSTS" ] || HOSTS=$(hosts_of "$TYPE")
  [ -n "$VERSION" ] || VERSION=$(version_of "$TYPE")
  case $COMMAND in
    create | run | resume)
      [ -n "$TYPE" ] || die "--type is missing, for example --type=v4-32"
      [ -n "$HOSTS" ] ||
        die "--type=$TYPE is not known: give its number of hosts, --hosts=N"
      ;;
  esac
  case $COMMAND in
    run | resume)
      if [ -n "$GIT" ]; then check_main ''; else check_main "$CHECKOUT"; fi
      [ "$HOSTS" = 1 ] || check_bucket "$TYPE has $HOSTS hosts"
      [ "$COMMAND" = run ] || check_bucket "a new TPU VM has new disks"
      ;;
    *) [ "${#MAIN[@]}" -eq 0 ] || die "$COMMAND runs nothing: leave out --" ;;
  esac
  case $COMMAND in
    install | resume)
      [ -n "$GIT" ] || git -C "$CHECKOUT" rev-parse >/dev/null 2>&1 ||
        die "$CHECKOUT is not a git checkout, so it cannot be copied: use --git=URL"
      ;;
  esac
  need_program gcloud "see https://cloud.google.com/sdk/docs/install"
}

# Calls gcloud. Only its alpha track supports ssh through IAP, and networks of
# queued resources.
gcloud_tpus() { # group and verb, then arguments
  local track=(gcloud)
  case "$1 $2" in
    'tpu-vm ssh' | 'tpu-vm scp') [ -z "$IAP" ] || track+=(alpha) ;;
    'queued-resources create')
      [ -z "$NETWORK$SUBNETWORK" ] || track+=(alpha)
      ;;
  esac
  local place=("--zone=$ZONE")
  [ -z "$PROJECT" ] || place+=("--project=$PROJECT")
  call "${track[@]}" compute tpus "$@" "${place[@]}" --quiet
}

# Sets the flags of ssh. Without the timeouts, ssh to a preempted machine would
# never return.
way() { # ssh or scp
  WAY=("--$1-flag=-oConnectTimeout=30" "--$1-flag=-oServerAliveInterval=30")
  [ -z "$INTERNAL" ] || WAY+=(--internal-ip)
  [ -z "$IAP" ] || WAY+=(--tunnel-through-iap)
}

on_workers() { # which command
  way ssh
  gcloud_tpus tpu-vm ssh "$NAME" "--worker=$1" "--command=$2" "${WAY[@]}"
}

again() { # command: prints it with the flags of this call, for the user to copy
  local words=("$0" "$1") each
  for each in ${ORIGINAL[@]+"${ORIGINAL[@]:1}"}; do
    [ "$each" != -- ] || case $1 in
      run | resume) ;;
      *) break ;;
    esac
    [ "$each" = --dry-run ] || words+=("$each")
  done
  quote "${words[@]}"
}

# Starts a step, and notes what its failure leaves behind.
begin() { # what, standing, command that continues
  STEP=$1 STANDING=$2 RESUME=$(again "$3")
  CLEAN_UP=$(again delete)
  say "$1"
}

finish() {
  STEP='' STANDING='' RESUME='' CLEAN_UP=''
}

costs() {
  printf '%s' "the TPU VM $NAME in $ZONE, which costs money until deleted"
}

node_state() {
  gcloud_tpus tpu-vm describe "$NAME" '--format=value(state)'
}

queue_state() {
  gcloud_tpus queued-resources describe "$NAME" '--format=value(state.state)'
}

# Prints READY, PREEMPTED ..., ABSENT, or UNKNOWN if gcloud fails: then nothing may
# be created or deleted.
look() { # node_state or queue_state
  local answer errors
  errors=$(mktemp)
  if answer=$("$1" 2>"$errors"); then
    printf '%s' "${answer:-UNKNOWN}"
  elif grep -Eqi 'NOT_FOUND|not found' "$errors"; then
    printf ABSENT
  else
    say "$(tail -n 1 "$errors")"
    printf UNKNOWN
  fi
  rm -f "$errors"
}

creation_flags() {
  CREATION=("--accelerator-type=$TYPE")
  if [ -n "$QUEUED" ]; then
    CREATION+=("--node-id=$NAME" "--runtime-version=$VERSION")
  else
    CREATION+=("--version=$VERSION")
  fi
  [ -z "$SPOT" ] || CREATION+=(--spot)
  [ -z "$NETWORK" ] || CREATION+=("--network=$NETWORK")
  [ -z "$SUBNETWORK" ] || CREATION+=("--subnetwork=$SUBNETWORK")
  [ -z "$ACCOUNT" ] || CREATION+=("--service-account=$ACCOUNT")
  [ -z "$LABELS" ] || CREATION+=("--labels=$LABELS")
}

create() {
  creation_flags
  begin "create the TPU VM $NAME ($TYPE, $HOSTS host(s))" \
    "maybe part of $NAME: see $(again status)" create
  if [ -n "$QUEUED" ]; then
    create_queued
  elif ! gcloud_tpus tpu-vm create "$NAME" "${CREATION[@]}"; then
    # It may exist already, complete.
    [ "$(look node_state)" = READY ] || exit 1
    say "$NAME exists already"
  fi
  finish
}

create_queued() {
  if ! gcloud_tpus queued-resources create "$NAME" "${CREATION[@]}"; then
    case $(look queue_state) in
      ABSENT | UNKNOWN) exit 1 ;;
      *) say "$NAME was requested already" ;;
    esac
  fi
  local how_long="until Ctrl-C"
  [ -z "$WAIT" ] || how_long="at most $WAIT minutes"
  begin "wait for $NAME, $how_long" \
    "the request $NAME in $ZONE, which becomes machines that cost money" create
  if [ -n "$DRY_RUN" ]; then
    # shellcheck disable=SC2016 # the shell that runs it expands it
    printf 'until [ "$(%s)" = ACTIVE ]; do sleep 30; done\n' "$(queue_state)"
  else
    wait_for_queue
  fi
}

wait_for_queue() {
  local state last='' polls=0 silent=0
  while :; do
    state=$(look queue_state)
    [ "$state" = "$last" ] || say "  $(date +%H:%M:%S) $state"
    last=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        say "the request failed: $state. For the reason run" \
          "gcloud compute tpus queued-resources describe $NAME --zone=$ZONE"
        RESUME="$(again delete) && $(again create)"
        exit 1
        ;;
      ABSENT) say "the request no longer exists" && exit 1 ;;
      UNKNOWN)
        silent=$((silent + 1))
        [ "$silent" -lt 10 ] || exit 1
        ;;
      *) silent=0 ;;
    esac
    pause 30
    polls=$((polls + 1))
    [ -z "$WAIT" ] || [ "$polls" -lt "$((WAIT * 2))" ] ||
      { say "still $state after --wait=$WAIT minutes" && exit 1; }
  done
}

delete() {
  begin "delete $NAME" "maybe all of $NAME: see $(again status)" delete
  if [ -n "$QUEUED" ]; then
    gcloud_tpus queued-resources delete "$NAME" --force
  elif ! gcloud_tpus tpu-vm delete "$NAME"; then
    # A queued resource is deleted with its request, not on its own.
    case $(look queue_state) in
      ABSENT | UNKNOWN) exit 1 ;;
      *) gcloud_tpus queued-resources delete "$NAME" --force ;;
    esac
  fi
  finish
}

# Commands for workers that have no script yet. They replace the sources as a
# whole, and never while main runs.
IDLE='if [ -e mae_jax/src/launch/worker.sh ]; then
bash mae_jax/src/launch/worker.sh idle; fi'
EXCHANGE='rm -rf mae_jax/src && mv mae_jax/src.new mae_jax/src &&
bash mae_jax/src/launch/worker.sh install'

pack() { # archive: tracked and untracked files, without ignored ones
  (
    cd "$CHECKOUT"
    git ls-files -z -co --exclude-standard | while IFS= read -r -d '' each; do
      [ ! -e "$each" ] || printf '%s\0' "$each"
    done | tar --null -T - -czf "$1"
  )
}

install() {
  local archive
  begin "install on the workers of $NAME" "$(costs)" install
  if [ -n "$GIT" ]; then
    on_workers all "set -e
$IDLE
rm -rf mae_jax/src.new && mkdir -p mae_jax
git clone --quiet $(quote "$GIT") mae_jax/src.new
git -C mae_jax/src.new checkout --quiet $(quote "${REF:-HEAD}")
$EXCHANGE"
  else
    archive=${TMPDIR:-/tmp}/mae_jax-$NAME.tar.gz
    if [ -n "$DRY_RUN" ]; then
      printf '(cd %s && git ls-files -z -co --exclude-standard |' \
        "$(quote "$CHECKOUT")"
      printf ' tar --null -T - -czf %s)\n' "$(quote "$archive")"
    else
      pack "$archive"
    fi
    way scp
    gcloud_tpus tpu-vm scp "$archive" "$NAME:mae_jax.tar.gz" --worker=all \
      "${WAY[@]}"
    on_workers all "set -e
$IDLE
rm -rf mae_jax/src.new && mkdir -p mae_jax/src.new
tar -xzf mae_jax.tar.gz -C mae_jax/src.new
$EXCHANGE"
    call rm -f "$archive"
  fi
  finish
}

worker() { # arguments of worker.sh
  printf 'bash mae_jax/src/launch/worker.sh %s' "$(quote "$@")"
}

run() {
  begin "start main on the workers of $NAME" \
    "$(costs); main may have started on some workers, and waits there" run
  # Workers that have started would refuse a second start.
  RESUME="$(again stop) && $RESUME"
  on_workers all "$(worker run "${MAIN[@]}")"
  finish
  [ -n "$DRY_RUN" ] || say "started; see $(again logs)"
}

stop() {
  begin "stop main on the workers of $NAME" "$(costs)" stop
  on_workers all "$(worker stop "$STOP_SECONDS")"
  finish
}

logs() {
  local tail=(tail -n "$LINES_SHOWN")
  [ -z "$FOLLOW" ] || tail+=(-F)
  begin "show the log of worker $WORKER" "$(costs)" logs
  on_workers "$WORKER" "$(quote "${tail[@]}") mae_jax/run/log"
  finish
}

status() {
  begin "query $NAME" '' status
  if [ -n "$QUEUED" ]; then queue_state; else node_state; fi
  STANDING=$(costs)
  on_workers all "$(worker status)"
  finish
}

# -- resume: polls the state, takes one action, and repeats.

# Combines the states of the workers into one word or exit code. 1 comes first,
# since the peers of a worker with a mistake exit with 76; then any other code,
# then 75, then 0.
judge() { # output of status
  printf '%s\n' "$1" | awk -v hosts="$HOSTS" '
    $1 == "worker-status" { n++; count[$3]++; if (NF > 3) code[$4]++ }
    END {
      if (n < hosts) print "unknown"
      else if (count["running"] == n) print "running"
      else if (count["running"]) print "mixed"
      else if (count["empty"]) print "empty"
      else if (count["stopped"]) print "stopped"
      else if (1 in code) print 1
      else if (count["lost"] || count["installed"]) print "lost"
      else {
        worst = 0
        for (each in code)
          if (each != 0 && (worst == 0 || worst == 75)) worst = each
        print worst
      }
    }'
}

# Works on workers without a script, too.
STATUS="if [ -e mae_jax/src/launch/worker.sh ]; then
bash mae_jax/src/launch/worker.sh status
else echo worker-status none empty; fi"

ask_workers() {
  judge "$(on_workers all "$STATUS" 2>/dev/null || true)"
}

# Prints the state of the TPU VM, or of the request for it.
look_at_both() {
  local state
  state=$(look node_state)
  if [ "$state" = ABSENT ] && [ -n "$QUEUED" ]; then
    state=$(look queue_state)
    [ "$state" != ACTIVE ] || state=CREATING
  fi
  printf '%s' "$state"
}

STARTS=0 POLLS=0 SILENT=0 MIXED=0 PARTIAL=''

# Counts a restart, up to --retries, and waits twice as long each time.
count_start() { # why
  # 120 polls are an hour. A run of that length resets the count.
  [ "$POLLS" -lt 120 ] || STARTS=0
  POLLS=0
  STARTS=$((STARTS + 1))
  if [ "$STARTS" -gt "$RETRIES" ]; then
    say "$1, after --retries=$RETRIES restarts in a row"
    exit 1
  fi
  local seconds=$((15 << (STARTS < 6 ? STARTS : 6)))
  [ "$seconds" -le 600 ] || seconds=600
  say "$1: restart $STARTS of at most $RETRIES, in $seconds s"
  pause "$seconds"
}

count_silence() {
  SILENT=$((SILENT + 1))
  say "  no answer from $NAME ($SILENT of 10)"
  [ "$SILENT" -lt 10 ] || exit 1
}

# Runs functions in a subshell; a failure is reported and retried. (`if (...)` would
# disable `set -e` in it.)
attempt() { # functions
  local code
  set +e
  (
    set -e
    for each in "$@"; do "$each"; done
  )
  code=$?
  set -e
  PARTIAL=''
  case $code in 130 | 143) exit "$code" ;; esac # Ctrl-C; 255 is ssh's own
  if [ "$code" -ne 0 ]; then
    # Some workers may have started: stop all before the next attempt.
    case " $* " in *' run '*) PARTIAL=1 ;; esac
    count_start "failed: $*"
  fi
}

# Acts on the state of main, if the TPU VM exists.
act_on_main() { # "first" for the first poll, or nothing
  local main
  main=$(ask_workers)
  [ "$main" = unknown ] || SILENT=0
  [ "$main" = mixed ] || MIXED=0
  case $1/$main in
    */unknown) count_silence ;;
    */running)
      PARTIAL=''
      [ -z "$1" ] || say "main is running already"
      ;;
    */empty) attempt install run ;;
    */mixed)
      # Workers that lost a peer exit with 76 themselves, unless they hang.
      MIXED=$((MIXED + 1))
      [ -n "$PARTIAL" ] || [ "$MIXED" -ge 20 ] || return 0
      [ -n "$PARTIAL" ] || count_start "main has exited on some workers only"
      MIXED=0
      attempt stop run
      ;;
    # The run ended earlier: the user wants to resume it, or to start another.
    first/*) attempt install run ;;
    */0)
      finish
      say "main has finished on all workers"
      say "still there: $(costs); to clean up: $(again delete)"
      exit 0
      ;;
    */1)
      STEP="main on $NAME, by a mistake or a fault: a restart would not help"
      RESUME="see $(again logs), fix the cause, then $(again resume)"
      exit 1
      ;;
    */stopped)
      if [ -n "$PARTIAL" ]; then
        attempt stop run
        return
      fi
      STEP="watch $NAME: main was stopped and has saved"
      exit 75
      ;;
    */lost)
      [ -n "$PARTIAL" ] || count_start "a worker was restarted"
      attempt stop run
      ;;
    *)
      [ -n "$PARTIAL" ] || count_start "main exited with code $main"
      attempt run
      ;;
  esac
}

resume() {
  local state first=first
  if [ -n "$DRY_RUN" ]; then
    create
    install
    run
    status
    return
  fi
  while :; do
    begin "watch $NAME" "$(costs); main keeps running there, unwatched" resume
    [ -n "$first" ] || pause 30
    POLLS=$((POLLS + 1))
    state=$(look_at_both)
    case $state in
      READY) act_on_main "$first" ;;
      UNKNOWN) count_silence ;;
      ABSENT)
        [ -n "$first" ] || count_start "$NAME no longer exists"
        attempt create install run
        ;;
      STOPPED) # by hand: its disks may hold data that is needed
        STEP="watch $NAME: it was stopped by hand, so this script does not delete it"
        STANDING="the TPU VM $NAME in $ZONE, stopped, with its disks"
        RESUME="$(again delete) && $(again resume)"
        exit 1
        ;;
      PREEMPTED | TERMINATED | FAILED | SUSPENDING | SUSPENDED)
        [ -n "$first" ] || count_start "$NAME is $state"
        attempt delete create install run
        ;;
      ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING)
        attempt create install run
        ;;
      *) say "  $NAME is $state" ;;
    esac
    first=''
  done
}

COMMAND=${1:-}
case $COMMAND in
  '' | -h | --help | help) show_help "$0" && exit 0 ;;
  create | install | run | resume | status | logs | stop | delete) shift ;;
  *) die "$COMMAND is not a command: create, install, run, resume, status," \
    "logs, stop or delete; see $0 --help" ;;
esac
case ${1:-} in -h | --help) show_help "$0" && exit 0 ;; esac
split_arguments "$@"
parse_flags
check_flags
"$COMMAND"
