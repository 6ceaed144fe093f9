#!/usr/bin/env bash
# Compiles requirements/*.txt from pyproject.toml: exact versions with hashes, one file per container, all of them
# agreeing with the one environment that quickstart and the tests use. Needs uv (pip install uv).
#
#   scripts/lock.sh            keep versions that are locked already, add what is new
#   scripts/lock.sh --upgrade  move everything that pyproject.toml leaves open
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compile() { # $1 the extra, then more options of uv
  local extra=$1
  shift
  uv pip compile pyproject.toml --extra "$extra" --output-file "requirements/$extra.txt" --quiet \
    --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --no-emit-package torch --no-emit-package gpu-cluster --custom-compile-command scripts/lock.sh "$@"
}

compile test "$@"
for extra in gateway registry embedding transcription llm-transformers quickstart; do
  compile "$extra" --constraint requirements/test.txt
done
