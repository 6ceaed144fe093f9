#!/usr/bin/env bash
# Everything that needs no Docker: lint, types, tests, then the tests with real engines and a real S3 server.
# Installs what it needs into .venv; the first run fetches about 1 GB of packages and models.
#
#   scripts/test.sh              all of it
#   scripts/test.sh --fast       lint, types and the fast tests
#   scripts/test.sh -k gateway   what follows goes to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/python.sh
. scripts/python.sh

fast=no
if [[ ${1:-} == --fast ]]; then
  fast=yes
  shift
fi

python=$(find_python)
"$python" -m quickstart.install requirements/test.txt
export PATH="$PWD/.venv/bin:$PATH"

step() { printf '\n== %s\n' "$*"; }

step "lint"
ruff check .
ruff format --check .
step "types"
mypy
step "tests"
pytest -n 2 -m "not stack and not engines and not vllm and not cluster" "$@"
if [[ $fast == no ]]; then
  # One at a time: each real engine takes all cores.
  step "tests with real engines"
  pytest -m "not stack and (engines or vllm)" -rs "$@"
  step "tests of the running cluster"
  pytest -m "not stack and cluster" -rs "$@"
fi
