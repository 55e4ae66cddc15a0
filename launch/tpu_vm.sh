#!/usr/bin/env bash
# TPU VMs, from one chip to a pod: the same command on every host.
#
# usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- ARGUMENTS]
#
#   create    make the TPU VM; with --queued ask for it and wait until it is there
#   install   copy this checkout to all workers and make their environments
#   run       start main on all workers, detached: a lost ssh does not matter
#   resume    all of the above as needed, then watch: after a preemption, exit
#             codes 75 and 76 and lost workers it starts again, from the workdir
#   status    of the TPU VM, and of main on each worker
#   logs      what main said on one worker (--worker, --lines, --follow)
#   stop      ask main to save and leave (exit code 75), on all workers
#   delete    give the TPU VM back; from then on it costs nothing
#
# All that is said after -- goes to `python -m mae_jax.main`, word by word.
#
#   --name=NAME            of the TPU VM, and of the request for it
#   --zone=ZONE            for example us-central2-b
#   --project=PROJECT      if not gcloud's own
#   --type=TYPE            create, run, resume: v4-32, v5litepod-256, v6e-64 ...
#   --version=VERSION      runtime; by default the one for the type
#   --spot                 cheaper, and may be taken away at any time
#   --queued               a queued resource: waits until there is room
#   --wait=MINUTES         for how long; by default until Ctrl-C
#   --network=, --subnetwork=, --service-account=, --labels=   as gcloud has them
#   --internal-ip, --iap   how ssh gets there, if not by an external address
#   --hosts=N              if the type is one that this script does not know
#   --git=URL --ref=REF    install from there instead of copying this checkout
#   --retries=20           resume: new starts in a row; an hour of running and
#                          the count begins anew
#   --worker=0 --lines=100 --follow     logs
#   --stop-seconds=180     stop: after so long a worker's main is killed
#   --flags=FILE           more flags, name=value a line; the command line wins
#   --dry-run              print what would be called, and call nothing
#
# For ssh to several workers gcloud asks that its key be added beforehand:
#   ssh-add ~/.ssh/google_compute_engine
#
# Exit codes: 0 done; 1 a mistake, or main's own 1; 75 stopped and saved; others
# are gcloud's. A failure says what is still there and how to go on.
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
        "see $0 --help; what is for main stands after --" ;;
    esac
  done
}

# Hosts of a type: v2, v3, v4 and v5p count cores, 8 a host; v5e and v6e chips,
# up to 8 on one host and 4 on each of several.
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

# All of it before the first call: a mistake should not cost a minute of a pod.
check_flags() {
  [ -n "$NAME" ] || die "--name is missing: how is the TPU VM to be called?"
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
    die "--internal-ip and --iap are two ways: choose one"
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
        die "--type=$TYPE is not known: say how many hosts it has, --hosts=N"
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
        die "$CHECKOUT is no git checkout that could be copied: use --git=URL"
      ;;
  esac
  need_program gcloud "see https://cloud.google.com/sdk/docs/install"
}

# gcloud's own words. Only its alpha track has ssh through IAP, and networks of
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

# How ssh goes there, and that it gives up on a machine that was taken away:
# without, a look at one would never end.
way() { # ssh or scp
  WAY=("--$1-flag=-oConnectTimeout=30" "--$1-flag=-oServerAliveInterval=30")
  [ -z "$INTERNAL" ] || WAY+=(--internal-ip)
  [ -z "$IAP" ] || WAY+=(--tunnel-through-iap)
}

on_workers() { # which command
  way ssh
  gcloud_tpus tpu-vm ssh "$NAME" "--worker=$1" "--command=$2" "${WAY[@]}"
}

again() { # command: this one with the flags it was given, for the user to copy
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

# A step, and what its failure leaves behind.
begin() { # what, standing, command to go on with
  STEP=$1 STANDING=$2 GO_ON=$(again "$3")
  CLEAN_UP=$(again delete)
  say "$1"
}

finish() {
  STEP='' STANDING='' GO_ON='' CLEAN_UP=''
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

# READY, PREEMPTED ..., ABSENT, or UNKNOWN if gcloud cannot tell: then nothing
# may be made or deleted.
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
    "maybe a part of $NAME: see $(again status)" create
  if [ -n "$QUEUED" ]; then
    create_queued
  elif ! gcloud_tpus tpu-vm create "$NAME" "${CREATION[@]}"; then
    # It may be there from before, whole.
    [ "$(look node_state)" = READY ] || exit 1
    say "$NAME is there already"
  fi
  finish
}

create_queued() {
  if ! gcloud_tpus queued-resources create "$NAME" "${CREATION[@]}"; then
    case $(look queue_state) in
      ABSENT | UNKNOWN) exit 1 ;;
      *) say "$NAME was asked for already" ;;
    esac
  fi
  local how_long="for as long as it takes, or until Ctrl-C"
  [ -z "$WAIT" ] || how_long="at most $WAIT minutes"
  begin "wait until $NAME is there, $how_long" "the request $NAME in $ZONE, which turns into machines that cost money" \
    create
  if [ -n "$DRY_RUN" ]; then
    # shellcheck disable=SC2016 # it is for the shell that is given it
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
        say "the request came to nothing: $state. Its reasons:" \
          "gcloud compute tpus queued-resources describe $NAME --zone=$ZONE"
        GO_ON="$(again delete) && $(again create)"
        exit 1
        ;;
      ABSENT) say "the request is gone" && exit 1 ;;
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
  begin "delete $NAME" "maybe all of it: see $(again status)" delete
  if [ -n "$QUEUED" ]; then
    gcloud_tpus queued-resources delete "$NAME" --force
  elif ! gcloud_tpus tpu-vm delete "$NAME"; then
    # What was asked for goes with its request, and not by itself.
    case $(look queue_state) in
      ABSENT | UNKNOWN) exit 1 ;;
      *) gcloud_tpus queued-resources delete "$NAME" --force ;;
    esac
  fi
  finish
}

# What a worker does with the archive or the repository before it has a script.
# Sources are exchanged whole, and not below a main that runs.
IDLE='if [ -e mae_jax/src/launch/worker.sh ]; then
bash mae_jax/src/launch/worker.sh idle; fi'
EXCHANGE='rm -rf mae_jax/src && mv mae_jax/src.new mae_jax/src &&
bash mae_jax/src/launch/worker.sh install'

pack() { # archive: what git knows or would, as it is now on this disk
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

worker() { # words for the script of the workers
  printf 'bash mae_jax/src/launch/worker.sh %s' "$(quote "$@")"
}

run() {
  begin "start main on the workers of $NAME" \
    "$(costs); main may have started on some workers, and waits there" run
  # Those that have started would refuse a second one.
  GO_ON="$(again stop) && $GO_ON"
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
  begin "look at $NAME" '' status
  if [ -n "$QUEUED" ]; then queue_state; else node_state; fi
  STANDING=$(costs)
  on_workers all "$(worker status)"
  finish
}

# -- resume: look at the whole, do one thing about it, and again.

# What the workers say, in a word; or the exit code that counts: 1 before all,
# as whoever made the mistake leaves the others to end with 76; then any other,
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

# Where there is no script yet, it says so instead.
STATUS="if [ -e mae_jax/src/launch/worker.sh ]; then
bash mae_jax/src/launch/worker.sh status
else echo worker-status none empty; fi"

ask_workers() {
  judge "$(on_workers all "$STATUS" 2>/dev/null || true)"
}

# Which state of the TPU VM, or of the request for it, counts.
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

# One more start, after a pause that doubles; bounded.
count_start() { # why
  # 120 looks are an hour: what ran for so long was no failure in a row.
  [ "$POLLS" -lt 120 ] || STARTS=0
  POLLS=0
  STARTS=$((STARTS + 1))
  if [ "$STARTS" -gt "$RETRIES" ]; then
    say "$1, and --retries=$RETRIES new starts in a row are used up"
    exit 1
  fi
  local seconds=$((15 << (STARTS < 6 ? STARTS : 6)))
  [ "$seconds" -le 600 ] || seconds=600
  say "$1: start $STARTS of at most $RETRIES, in $seconds s"
  pause "$seconds"
}

count_silence() {
  SILENT=$((SILENT + 1))
  say "  no answer from $NAME ($SILENT of 10)"
  [ "$SILENT" -lt 10 ] || exit 1
}

# Each in a shell of its own: its failure is told and tried again. (Not as
# `if (...)`, which would have it go on after errors.)
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
    # Some workers may have started: then all are stopped before the next try.
    case " $* " in *' run '*) PARTIAL=1 ;; esac
    count_start "failed: $*"
  fi
}

# What to do about main, if the TPU VM is there.
act_on_main() { # first look, or nothing
  local main
  main=$(ask_workers)
  [ "$main" = unknown ] || SILENT=0
  [ "$main" = mixed ] || MIXED=0
  case $1/$main in
    */unknown) count_silence ;;
    */running)
      PARTIAL=''
      [ -z "$1" ] || say "main is running: no other one is started"
      ;;
    */empty) attempt install run ;;
    */mixed)
      # Those that miss a peer end by themselves, with 76, unless they hang.
      MIXED=$((MIXED + 1))
      [ -n "$PARTIAL" ] || [ "$MIXED" -ge 20 ] || return 0
      [ -n "$PARTIAL" ] || count_start "main has ended on some workers only"
      MIXED=0
      attempt stop run
      ;;
    # What ended before: whoever calls wants it to go on, or another run.
    first/*) attempt install run ;;
    */0)
      finish
      say "main has come to its end on all workers"
      say "still there: $(costs); to clean up: $(again delete)"
      exit 0
      ;;
    */1)
      STEP="main on $NAME, by a mistake or a fault: starting again won't help"
      GO_ON="see $(again logs), mend it, then $(again resume)"
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
      [ -n "$PARTIAL" ] || count_start "main ended with exit code $main"
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
    begin "watch $NAME" "$(costs); what runs on there is not watched" resume
    [ -n "$first" ] || pause 30
    POLLS=$((POLLS + 1))
    state=$(look_at_both)
    case $state in
      READY) act_on_main "$first" ;;
      UNKNOWN) count_silence ;;
      ABSENT)
        [ -n "$first" ] || count_start "$NAME is gone"
        attempt create install run
        ;;
      STOPPED) # by hand: what is on its disks may be wanted
        STEP="watch $NAME: it was stopped by hand, and is not deleted unasked"
        STANDING="the TPU VM $NAME in $ZONE, stopped, with its disks"
        GO_ON="$(again delete) && $(again resume)"
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
