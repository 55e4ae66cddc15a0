# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts use these variables
# Functions that the launch scripts share. They run on a laptop, where bash may be
# 3.2 (macOS): no associative arrays, no mapfile, no ${x@Q}, and "${a[@]}" of an
# empty array only as ${a[@]+"${a[@]}"}.

DRY_RUN=${DRY_RUN:-}
# The current step, for the message of a failure. Empty: nothing to report.
STEP=''
STANDING='' # what a failure leaves behind, and whether it costs money
RESUME=''   # the command that continues from there
CLEAN_UP='' # the command that removes it

say() { printf '%s\n' "$*" >&2; }

# Reports a mistake of the user before anything is called. Exit code 1, as main.
die() {
  say "error: $*"
  STEP=''
  exit 1
}

# Quotes words for any POSIX shell: the remote shell may not be bash.
quote() {
  local word apostrophe="'" quoted="'\\''" first=1
  for word in "$@"; do
    [ -n "$first" ] || printf ' '
    first=''
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*)
        printf "'%s'" "${word//$apostrophe/$quoted}"
        ;;
      *) printf '%s' "$word" ;;
    esac
  done
}

# Runs a command. With --dry-run, prints it as shell code instead.
call() {
  if [ -n "$DRY_RUN" ]; then
    quote "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Reports an unfinished step after a failure or Ctrl-C.
on_exit() {
  local code=$?
  [ "$code" -ne 0 ] && [ -n "$STEP" ] || return 0
  say ''
  say "failed: $STEP (exit code $code)"
  [ -z "$STANDING" ] || say "still there: $STANDING"
  [ -z "$RESUME" ] || say "to continue: $RESUME"
  [ -z "$CLEAN_UP" ] || say "to clean up: $CLEAN_UP"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits between two polls; tests shorten it.
pause() {
  [ -n "$DRY_RUN" ] || sleep "${LAUNCH_SLEEP:-$1}"
}

# Names must be labels as in RFC 1123, for shells and clusters alike.
check_name() { # flag value longest
  printf '%s' "$2" | grep -Eq '^[a-z]([-a-z0-9]*[a-z0-9])?$' &&
    [ "${#2}" -le "$3" ] ||
    die "$1=$2: lower-case letters, digits and -, a letter first," \
      "at most $3 characters"
}

check_number() { # flag value
  case $2 in
    '' | *[!0-9]* | 0 | 0?*) die "$1=$2 is not a number above 0" ;;
  esac
}

# Checks other values for blanks and quotes: zones, images, hosts.
check_word() { # flag value
  case $2 in
    '' | *[!A-Za-z0-9_.:/@+-]* | -*)
      die "$1=$2: letters, digits and _.:/@+- only, and not - first"
      ;;
  esac
}

need_program() {
  [ -n "$DRY_RUN" ] || command -v "$1" >/dev/null 2>&1 ||
    die "$1 is not installed here: $2"
}

# Reads NAME=VALUE lines of a file as flags, before the others. They are words,
# never code: nothing in the file is executed.
FLAGS=()
read_flags_file() { # path
  local line
  [ -r "$1" ] || die "--flags=$1 cannot be read"
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '' | '#'*) ;;
      *' '* | *"'"* | *'"'*)
        die "$1: '$line': one name=value a line, without quotes or blanks"
        ;;
      *) FLAGS+=("--$line") ;;
    esac
  done <"$1"
}

# Splits "flags -- arguments of main" into FLAGS and MAIN. Files come first.
MAIN=()
FLAGS_FILE=''
split_arguments() {
  local each
  for each in "$@"; do
    case $each in
      --) break ;;
      --flags=*) FLAGS_FILE=${each#*=} && read_flags_file "$FLAGS_FILE" ;;
    esac
  done
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift && MAIN=("$@") && return ;;
      --flags=*) ;;
      *) FLAGS+=("$1") ;;
    esac
    shift
  done
}

# Prints the value of a flag of main, the last one if repeated; or nothing.
main_flag() { # name
  local each value='' next=''
  for each in ${MAIN[@]+"${MAIN[@]}"}; do
    if [ -n "$next" ]; then
      value=$each next=''
      continue
    fi
    case $each in
      --"$1"=* | -"$1"=*) value=${each#*=} ;;
      --"$1" | -"$1") next=1 ;;
    esac
  done
  printf '%s' "$value"
}

# Checks what every run needs, before machines cost money.
check_main() { # checkout, or nothing if the recipe is elsewhere
  local config each name
  [ "${#MAIN[@]}" -gt 0 ] ||
    die "nothing to run: write -- --config=configs/vit_l.py --workdir=..."
  config=$(main_flag config)
  [ -n "$config" ] ||
    die "--config is missing after --: for example -- --config=configs/vit_l.py"
  [ -n "$(main_flag workdir)" ] ||
    die "--workdir is missing after --: name a directory for checkpoints"
  for each in "${MAIN[@]}"; do
    case $each in
      --coordinator | --num_processes | --process_id | --coordinator=* | \
        --num_processes=* | --process_id=*)
        die "$each is set for each process by this launcher: leave it out"
        ;;
    esac
  done
  name=${config%%:*}
  [ -z "$1" ] || [ -e "$1/$name" ] || [ -e "$name" ] ||
    [ -e "$1/configs/$name.py" ] ||
    die "--config=$config: there is no $name in $1"
}

check_bucket() { # why
  case $(main_flag workdir) in
    gs://?*) ;;
    *) die "--workdir=$(main_flag workdir) is not a bucket, but $1:" \
      "write --workdir=gs://BUCKET/DIRECTORY" ;;
  esac
}

# Prints how long main may take to save after SIGTERM, in whole seconds.
shutdown_timeout() {
  local value
  value=$(main_flag config.train.shutdown_timeout)
  value=${value:-120}
  case $value in
    *[!0-9.]* | .* | *.*.*)
      die "--config.train.shutdown_timeout=$value is not a number of seconds"
      ;;
  esac
  printf '%s' "$((${value%%.*} + 1))"
}

# Prints the comment at the head of a script, which is its help.
show_help() { # file
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$1"
}
