#!/usr/bin/env bash
# Runs pods on Kubernetes, with TPUs of GKE or GPUs, from launch/jobset.yaml.
#
# usage: launch/jobset.sh render | apply --name=NAME --image=IMAGE
#          --accelerator=TYPE --topology=AxB | --hosts=N --gpus=N [FLAGS]
#          -- ARGUMENTS OF MAIN
#        launch/jobset.sh status | logs | stop | resume | delete --name=NAME
#
#   render    print the JobSet
#   apply     create it in the cluster
#   status    show the JobSet and its pods
#   logs      show the log of main in one pod (--worker, --lines, --follow)
#   stop      suspend: main saves, the pods end, and the JobSet stays
#   resume    resume a stopped JobSet, from the workdir
#   delete    delete the JobSet and its pods
#
# Everything after -- goes to `python -m mae_jax.main` unchanged.
#
#   --name=NAME            name of the JobSet
#   --image=IMAGE          see launch/Dockerfile
#   --accelerator=, --topology=   TPUs: GKE's node labels, for example
#                          tpu-v5-lite-podslice and 4x8; they give the number of hosts
#   --chips=4              TPU chips on each host
#   --hosts=N --gpus=N     GPUs: number of pods, and of GPUs in each
#   --gpu-type=            GKE's label, for example nvidia-h100-80gb
#   --spot                 nodes that may be preempted at any time
#   --service-account=     a Kubernetes account that may write to the bucket
#   --restarts=50          restarts of all pods together; preemptions count
#   --namespace=, --context=      as for kubectl
#   --worker=0 --lines=100 --follow     for logs
#   --flags=FILE           more flags, one name=value a line; the command line wins
#   --dry-run              print the calls, and call nothing
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

ORIGINAL=("$@")
NAME='' IMAGE='' ACCELERATOR='' TOPOLOGY='' CHIPS=4 HOSTS='' GPUS='' GPU_TYPE=''
SPOT='' SERVICE_ACCOUNT='' RESTARTS=50 WORKER=0 LINES_SHOWN=100 FOLLOW=''
PLACE=() GRACE=''

parse_flags() {
  local each value
  for each in ${FLAGS[@]+"${FLAGS[@]}"}; do
    value=${each#*=}
    case $each in
      --name=*) NAME=$value ;;
      --image=*) IMAGE=$value ;;
      --accelerator=*) ACCELERATOR=$value ;;
      --topology=*) TOPOLOGY=$value ;;
      --chips=*) CHIPS=$value ;;
      --hosts=*) HOSTS=$value ;;
      --gpus=*) GPUS=$value ;;
      --gpu-type=*) GPU_TYPE=$value ;;
      --spot) SPOT=1 ;;
      --service-account=*) SERVICE_ACCOUNT=$value ;;
      --restarts=*) RESTARTS=$value ;;
      --namespace=* | --context=*)
        check_word "${each%%=*}" "$value"
        PLACE+=("$each")
        ;;
      --worker=*) WORKER=$value ;;
      --lines=*) LINES_SHOWN=$value ;;
      --follow) FOLLOW=1 ;;
      --dry-run) DRY_RUN=1 ;;
      *) die "$each is not a flag of $COMMAND, or lacks =VALUE:" \
        "see $0 --help; flags of main go after --" ;;
    esac
  done
}

check_flags() {
  [ -n "$NAME" ] || die "--name is missing: choose a name for the JobSet"
  # Pods are named NAME-workers-0-99-abcde, with at most 63 letters.
  check_name --name "$NAME" 40
  check_number --lines "$LINES_SHOWN"
  [ "$WORKER" = 0 ] || check_number --worker "$WORKER"
  case $COMMAND in
    render | apply) check_jobset ;;
    *) [ "${#MAIN[@]}" -eq 0 ] || die "$COMMAND runs nothing: leave out --" ;;
  esac
  [ "$COMMAND" = render ] ||
    need_program kubectl "see https://kubernetes.io/docs/tasks/tools"
}

check_jobset() {
  local each stop
  [ -n "$IMAGE" ] || die "--image is missing: see launch/Dockerfile"
  check_word --image "$IMAGE"
  check_number --restarts "$RESTARTS"
  [ -z "$SERVICE_ACCOUNT" ] ||
    check_name --service-account "$SERVICE_ACCOUNT" 63
  if [ -n "$ACCELERATOR$TOPOLOGY" ]; then
    check_tpus
  else
    [ -n "$GPUS" ] || die "name TPUs, --accelerator=tpu-v5-lite-podslice" \
      "--topology=4x8, or GPUs, --hosts=2 --gpus=8"
    check_number --gpus "$GPUS"
    check_number --hosts "${HOSTS:=1}"
    [ -z "$GPU_TYPE" ] || check_name --gpu-type "$GPU_TYPE" 63
  fi
  # The image may have configs that this checkout does not have.
  check_main ''
  check_bucket "the disk of a pod does not persist"
  for each in "${MAIN[@]}"; do
    case $each in
      *$'\n'*) die "$(quote "$each") has a line break, which is not supported" ;;
    esac
  done
  stop=$(shutdown_timeout)
  # shellcheck disable=SC2034 # for the template
  GRACE=$((stop + 60))
}

check_tpus() {
  local each chips=1
  [ -z "$GPUS$GPU_TYPE$HOSTS" ] ||
    die "--accelerator and --topology describe TPUs: leave out --gpus," \
      "--gpu-type and --hosts"
  check_name --accelerator "$ACCELERATOR" 63
  printf '%s' "$TOPOLOGY" | grep -Eq '^[1-9][0-9]*(x[1-9][0-9]*){1,2}$' ||
    die "--topology=$TOPOLOGY: write, for example, 4x8 or 2x2x4"
  check_number --chips "$CHIPS"
  for each in ${TOPOLOGY//x/ }; do chips=$((chips * each)); done
  [ "$((chips % CHIPS))" -eq 0 ] ||
    die "--topology=$TOPOLOGY has $chips chips, not a multiple of" \
      "--chips=$CHIPS on a host"
  HOSTS=$((chips / CHIPS))
}

# Quotes a word for YAML.
yaml() {
  local apostrophe="'"
  printf "'%s'" "${1//$apostrophe/$apostrophe$apostrophe}"
}

wanted() { # word at the end of a line
  case $1 in
    tpu) [ -n "$TOPOLOGY" ] ;;
    gpu) [ -z "$TOPOLOGY" ] ;;
    gpu-type) [ -n "$GPU_TYPE" ] ;;
    spot) [ -n "$SPOT" ] ;;
    service-account) [ -n "$SERVICE_ACCOUNT" ] ;;
    *) die "launch/jobset.yaml: '#: $1' is not known" ;;
  esac
}

# Fills in the template line by line. No shell executes its text.
render() {
  # shellcheck disable=SC2016 # the characters themselves are meant
  local line name each items='- ${ARGS}' opens='$(' escaped='$$('
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      *' #: '*)
        wanted "${line##* #: }" || continue
        line=${line%% #: *}
        ;;
      '# '*) continue ;;
    esac
    case $line in
      *"$items")
        for each in "${MAIN[@]}"; do
          # Kubernetes would expand $( ).
          each=${each//"$opens"/"$escaped"}
          printf '%s- %s\n' "${line%%-*}" "$(yaml "$each")"
        done
        continue
        ;;
    esac
    for name in NAME IMAGE ACCELERATOR TOPOLOGY CHIPS HOSTS GPUS GPU_TYPE \
      SERVICE_ACCOUNT RESTARTS GRACE; do
      line=${line//"\${$name}"/"${!name}"}
    done
    printf '%s\n' "$line"
  done <"$HERE/jobset.yaml"
}

kubectl_in() {
  call kubectl ${PLACE[@]+"${PLACE[@]}"} "$@"
}

again() { # command
  local words=("$0" "$1" "--name=$NAME")
  quote "${words[@]}" ${PLACE[@]+"${PLACE[@]}"}
}

begin() { # what, what a failure leaves
  STEP=$1 STANDING=$2
  RESUME=$(quote "$0" "${ORIGINAL[@]}")
  CLEAN_UP=$(again delete)
}

apply() {
  local rendered
  rendered=$(render)
  begin "create the JobSet $NAME in the cluster" \
    "maybe an older JobSet of that name, which cannot be changed while it exists"
  if [ -n "$DRY_RUN" ]; then
    kubectl_in apply -f - | sed "s/\$/ <<'END_OF_JOBSET'/"
    printf '%s\nEND_OF_JOBSET\n' "$rendered"
  else
    printf '%s\n' "$rendered" | kubectl_in apply -f -
  fi
  STEP=''
  say "see $(again status), $(again logs)"
}

status() {
  begin "query $NAME" ''
  kubectl_in get jobset "$NAME" --output=wide
  kubectl_in get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" \
    --output=wide
  STEP=''
}

logs() {
  local selector=jobset.sigs.k8s.io/jobset-name=$NAME
  local follow=()
  [ -z "$FOLLOW" ] || follow=(--follow)
  begin "show the log of worker $WORKER" ''
  kubectl_in logs --container=main "--tail=$LINES_SHOWN" \
    "--selector=$selector,batch.kubernetes.io/job-completion-index=$WORKER" \
    ${follow[@]+"${follow[@]}"}
  STEP=''
}

suspend() { # true or false
  kubectl_in patch jobset "$NAME" --type=merge \
    "--patch={\"spec\":{\"suspend\":$1}}"
  STEP=''
}

stop() {
  begin "stop $NAME" "the JobSet $NAME, whose nodes cost money while pods run"
  suspend true
}

resume() {
  begin "resume $NAME" "the JobSet $NAME, stopped"
  suspend false
}

delete() {
  begin "delete $NAME" "the JobSet $NAME, whose nodes cost money while pods run"
  kubectl_in delete jobset "$NAME" --ignore-not-found
  STEP=''
}

COMMAND=${1:-}
case $COMMAND in
  '' | -h | --help | help) show_help "$0" && exit 0 ;;
  render | apply | status | logs | stop | resume | delete) shift ;;
  *) die "$COMMAND is not a command: render, apply, status, logs, stop, resume" \
    "or delete; see $0 --help" ;;
esac
case ${1:-} in -h | --help) show_help "$0" && exit 0 ;; esac
split_arguments "$@"
parse_flags
check_flags
"$COMMAND"
