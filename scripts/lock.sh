#!/usr/bin/env bash
# Compiles requirements/*.txt from pyproject.toml: exact versions with hashes, one file per container, all of them
# agreeing with the one environment that quickstart and the tests use. Needs uv (pip install uv).
#
#   scripts/lock.sh            keep versions that are locked already, add what is new
#   scripts/lock.sh --upgrade  move everything that pyproject.toml leaves open
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The vLLM that services/llm stands on, and the day after its release: its image holds what was there then.
vllm=0.32.0
vllm_released=2026-10-19
vllm_image=services/llm/vllm-image.txt

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

compile() { # $1 the lock, $2 the extra, then more options of uv
  local lock=$1 extra=$2
  shift 2
  uv pip compile pyproject.toml --extra "$extra" --output-file "requirements/$lock.txt" --quiet \
    --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --no-emit-package gpu-cluster --custom-compile-command scripts/lock.sh "$@"
}

names() { # the packages of the requirements on stdin
  sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p'
}

compile test test --no-emit-package torch "$@"
for extra in gateway registry embedding transcription llm-transformers quickstart; do
  compile "$extra" "$extra" --no-emit-package torch --constraint requirements/test.txt
done

# With CUDA. --no-config: torch with the libraries of CUDA that it names itself, which pyproject.toml leaves out.
compile embedding-cuda embedding --no-config --constraint requirements/test.txt \
  --no-emit-package openvino --no-emit-package openvino-telemetry "$@"
compile transcription-cuda transcription-cuda --constraint requirements/test.txt "$@"

# What the vLLM image holds: the packages that vLLM asked for on its day, on that image's Python and system.
{
  cat <<COMMENT
# The packages that the image vllm/vllm-openai:v$vllm holds: what vllm==$vllm resolved to on $vllm_released with Python 3.12.
# Made by scripts/lock.sh. requirements/llm-vllm.txt leaves these out, and deploy/Dockerfile checks that they do.
COMMENT
  uv pip compile - --python-version 3.12 --python-platform x86_64-manylinux_2_28 --exclude-newer "$vllm_released" \
    --no-config --no-emit-index-url --no-annotate --no-header --quiet <<<"vllm==$vllm"
} >"$temporary/image.txt"
mv "$temporary/image.txt" "$vllm_image"

# Only what the image lacks: its packages bind the versions and are left out; the rest is locked as everywhere else.
mapfile -t held < <(names <"$vllm_image")
grep -vE "^($(IFS='|'; echo "${held[*]//./\\.}"))==" requirements/test.txt | grep -E '^[A-Za-z0-9]' | sed 's/ *\\$//' \
  >"$temporary/others.txt"
compile llm-vllm llm-vllm --constraint "$vllm_image" --constraint "$temporary/others.txt" \
  "${held[@]/#/--no-emit-package=}" "$@"
