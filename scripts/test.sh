#!/usr/bin/env bash
# Run lint, types and tests, then the tests with real engines and a real S3 server; --stack: the tests on a Docker engine.
# Installs its requirements into .venv; the first run fetches about 2 GB of packages and models.
#
#   scripts/test.sh              everything that needs no Docker
#   scripts/test.sh --fast       lint, types and the fast tests
#   scripts/test.sh --stack      build the images, run the compose files; about 15 minutes and 20 GB of disk
#   scripts/test.sh --front-ends Open WebUI in a real browser against a quickstart; needs Chromium and ffmpeg; 10 minutes
#   scripts/test.sh -k gateway   further arguments go to pytest
#   scripts/test.sh --help       this text
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/python.sh
. scripts/python.sh
# shellcheck source=scripts/say.sh
. scripts/say.sh

what=all
case ${1:-} in
  --help | -h)
    usage
    exit
    ;;
  --fast | --stack | --front-ends)
    what=${1#--}
    shift
    ;;
esac

require() { # require PACKAGES PROGRAM...: exit unless the programs are there, which are in these packages of Debian
  local packages=$1 program
  for program in "${@:2}"; do
    command -v "$program" >/dev/null || {
      printf 'These tests need %s. Debian, Ubuntu: sudo apt-get install %s\n' "$program" "$packages" >&2
      exit 2
    }
  done
}

python=$(find_python)
"$python" -m quickstart.install requirements/test.txt
export PATH="$PWD/.venv/bin:$PATH"

if [[ $what == stack ]]; then
  require "docker.io jq iproute2" docker jq ip
  step "tests on a Docker engine"
  exec pytest -m stack -rs "$@" tests/stack
fi
if [[ $what == front-ends ]]; then
  require "chromium ffmpeg" chromium ffmpeg
  step "tests of front ends in a browser"
  exec pytest -m front_ends -rs "$@" tests/front_ends
fi
step "lint"
ruff check .
ruff format --check .
step "types"
mypy
step "tests"
pytest -n 2 -m "not stack and not engines and not vllm and not cluster and not front_ends" "$@"
if [[ $what == all ]]; then
  # One at a time: each real engine takes all cores.
  step "tests with real engines"
  pytest -m "not stack and (engines or vllm)" -rs "$@"
  step "tests of the running cluster"
  pytest -m "not stack and cluster" -rs "$@"
fi
