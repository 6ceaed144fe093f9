# shellcheck shell=bash
# shellcheck disable=SC2034  # variables set here are used by the scripts that source it
# Sourced by scripts that people run: progress, warnings and errors.

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' plain=$'\e[0m'
else
  bold='' red='' green='' yellow='' plain=''
fi

step() { printf '%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '   %s\n' "$*"; }
warn() { printf '%s!! %s%s\n' "$yellow" "$*" "$plain" >&2; }
# stop CODE MESSAGE [FIX]
stop() {
  printf '%sxx %s%s\n' "$red" "$2" "$plain" >&2
  [[ -z ${3:-} ]] || printf '   %s\n' "$3" >&2
  exit "$1"
}

# Print the comment at the top of the script, for --help; run in the root of the repository.
usage() { sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//p;}' "scripts/${0##*/}"; }
