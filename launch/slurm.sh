#!/usr/bin/env bash
# Runs on GPUs under Slurm: one job that resumes after each time limit.
#
# usage: launch/slurm.sh submit --nodes=N --gpus=N [FLAGS] -- ARGUMENTS OF MAIN
#        launch/slurm.sh status | logs | stop --job=ID [FLAGS]
#
#   submit    submit launch/slurm.sbatch, from this checkout
#   status    show the state of the job
#   logs      show the log of the job (--lines, --follow)
#   stop      save and stop; do not requeue
#
# Everything after -- goes to `python -m mae_jax.main` unchanged. The workdir must
# be on a file system that all nodes see, or in gs://.
#
#   --name=mae             name of the job
#   --nodes=1 --gpus=8     number of nodes, and of GPUs on each
#   --time=24:00:00        time limit, after which the job is requeued
#   --save-before=300      seconds before the limit at which main saves and stops
#   --partition=, --account=, --qos=, --constraint=, --mem=   as for sbatch
#   --cpus=8               cores for each GPU: they decode the images
#   --venv=.venv           the environment with '.[cuda13]' (NVIDIA driver 580 or
#                          newer) or '.[cuda12]' (525 or newer)
#   --logs=logs            a directory that all nodes see
#   --retries=5            restarts in a row after exit codes other than 75
#   --job=ID               for status, logs and stop
#   --lines=100 --follow   for logs
#   --flags=FILE           more flags, one name=value a line; the command line wins
#   --dry-run              print the calls and the script, and call nothing
#
# Each GPU has one process. JAX takes the process numbers from Slurm, and gives each
# process the GPU with its number on the node.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
CHECKOUT=$(dirname "$HERE")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

ORIGINAL=("$@")
NAME=mae NODES=1 GPUS=8 TIME=24:00:00 SAVE_BEFORE=300 CPUS=8 VENV=.venv
LOGS=logs RETRIES=5 JOB='' LINES_SHOWN=100 FOLLOW='' EXTRA=()

parse_flags() {
  local each value
  for each in ${FLAGS[@]+"${FLAGS[@]}"}; do
    value=${each#*=}
    case $each in
      --name=*) NAME=$value ;;
      --nodes=*) NODES=$value ;;
      --gpus=*) GPUS=$value ;;
      --time=*) TIME=$value ;;
      --save-before=*) SAVE_BEFORE=$value ;;
      --partition=* | --account=* | --qos=* | --constraint=* | --mem=*)
        check_word "${each%%=*}" "$value"
        EXTRA+=("$each")
        ;;
      --cpus=*) CPUS=$value ;;
      --venv=*) VENV=$value ;;
      --logs=*) LOGS=$value ;;
      --retries=*) RETRIES=$value ;;
      --job=*) JOB=$value ;;
      --lines=*) LINES_SHOWN=$value ;;
      --follow) FOLLOW=1 ;;
      --dry-run) DRY_RUN=1 ;;
      *) die "$each is not a flag of $COMMAND, or lacks =VALUE:" \
        "see $0 --help; flags of main go after --" ;;
    esac
  done
}

# Slurm's minutes, minutes:seconds, hours:minutes:seconds, days-hours[:m[:s]].
seconds_of() { # time
  printf '%s\n' "$1" | awk '
    !/^([0-9]+-[0-9]+(:[0-9]+)?(:[0-9]+)?|[0-9]+(:[0-9]+)?(:[0-9]+)?)$/ { exit 1 }
    {
      days = 0; rest = $0
      if (split($0, two, "-") == 2) { days = two[1]; rest = two[2] }
      n = split(rest, p, ":")
      if (days || index($0, "-")) s = p[1] * 3600 + p[2] * 60 + p[3]
      else if (n == 1) s = p[1] * 60
      else if (n == 2) s = p[1] * 60 + p[2]
      else s = p[1] * 3600 + p[2] * 60 + p[3]
      print days * 86400 + s
    }'
}

check_flags() {
  local limit stop
  check_name --name "$NAME" 61
  check_number --nodes "$NODES"
  check_number --gpus "$GPUS"
  check_number --cpus "$CPUS"
  check_number --retries "$RETRIES"
  check_number --lines "$LINES_SHOWN"
  check_number --save-before "$SAVE_BEFORE"
  check_word --logs "$LOGS"
  check_word --venv "$VENV"
  case $LOGS in /*) ;; *) LOGS=$CHECKOUT/$LOGS ;; esac
  if [ "$COMMAND" != submit ]; then
    [ -n "$JOB" ] || die "--job is missing: the number that submit printed"
    check_number --job "$JOB"
    [ "${#MAIN[@]}" -eq 0 ] || die "$COMMAND runs nothing: leave out --"
    return
  fi
  check_main "$CHECKOUT"
  limit=$(seconds_of "$TIME") ||
    die "--time=$TIME is not a time of Slurm: write, for example, 24:00:00"
  stop=$(shutdown_timeout)
  [ "$SAVE_BEFORE" -gt "$((stop + 60))" ] ||
    die "--save-before=$SAVE_BEFORE is too short: main may take $stop s to" \
      "save, and Slurm a minute to signal it; use at least $((stop + 61))"
  [ "$limit" -gt "$((SAVE_BEFORE + 600))" ] ||
    die "--time=$TIME leaves less than ten minutes before the" \
      "--save-before=$SAVE_BEFORE s: use a longer time"
  case $VENV in /*) ;; *) VENV=$CHECKOUT/$VENV ;; esac
  [ -n "$DRY_RUN" ] || [ -x "$VENV/bin/python" ] ||
    die "--venv=$VENV has no bin/python: create it first, see the README"
  need_program sbatch "log in to a node of the cluster"
}

submit() {
  local job
  STEP="submit the job" RESUME=$(quote "$0" "${ORIGINAL[@]}")
  call mkdir -p "$LOGS"
  # %x, %j: name and number of the job. A requeued job appends to its log.
  set -- sbatch --parsable "--job-name=$NAME" "--nodes=$NODES" \
    "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS" "--cpus-per-task=$CPUS" \
    "--time=$TIME" "--signal=TERM@$SAVE_BEFORE" --requeue --open-mode=append \
    "--output=$LOGS/%x-%j.log" "--chdir=$CHECKOUT" \
    ${EXTRA[@]+"${EXTRA[@]}"} "$HERE/slurm.sbatch" \
    "$VENV/bin/python" "$LOGS" "$RETRIES" "${MAIN[@]}"
  if [ -n "$DRY_RUN" ]; then
    call "$@"
    say ''
    cat "$HERE/slurm.sbatch" >&2
    return
  fi
  job=$("$@")
  STEP=''
  job=${job%%;*} # a cluster's name may follow
  printf '%s\n' "$job"
  say "job $job: $LOGS/$NAME-$job.log"
  say "to follow: $(quote "$0" logs "--job=$job" "--logs=$LOGS" --follow)"
  say "to stop: $(quote "$0" stop "--job=$job" "--logs=$LOGS")"
}

status() {
  STEP="query job $JOB" RESUME=$(quote "$0" "${ORIGINAL[@]}")
  call squeue "--jobs=$JOB" "--format=%i %j %T %M %l %D %R"
  STEP=''
}

logs() {
  local tail=(tail -n "$LINES_SHOWN") each
  [ -z "$FOLLOW" ] || tail+=(-F)
  for each in "$LOGS"/*-"$JOB".log; do
    if [ ! -e "$each" ] && [ -n "$DRY_RUN" ]; then
      printf '%s %s/*-%s.log\n' "$(quote "${tail[@]}")" "$(quote "$LOGS")" "$JOB"
      return
    fi
    [ -e "$each" ] ||
      die "no log of job $JOB in --logs=$LOGS: has it started?"
    call "${tail[@]}" "$each"
  done
}

# Signals the steps of the job. Its script continues, and sees the file.
stop() {
  STEP="stop job $JOB" RESUME=$(quote "$0" "${ORIGINAL[@]}")
  CLEAN_UP="scancel $JOB"
  call mkdir -p "$LOGS"
  call touch "$LOGS/$JOB.stop"
  call scancel --signal=TERM "$JOB"
  STEP=''
  say "the job saves and ends; if it is still queued, remove it: scancel $JOB"
}

COMMAND=${1:-}
case $COMMAND in
  '' | -h | --help | help) show_help "$0" && exit 0 ;;
  submit | status | logs | stop) shift ;;
  *) die "$COMMAND is not a command: submit, status, logs or stop;" \
    "see $0 --help" ;;
esac
case ${1:-} in -h | --help) show_help "$0" && exit 0 ;; esac
split_arguments "$@"
parse_flags
check_flags
"$COMMAND"
