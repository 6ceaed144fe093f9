#!/usr/bin/env bash
# Compile requirements/*.txt from pyproject.toml: exact versions with hashes, one file per container, with the same
# versions as the environment of quickstart and tests. Needs uv (pip install uv).
#
#   scripts/lock.sh            keep locked versions, add new packages
#   scripts/lock.sh --upgrade  upgrade everything that pyproject.toml does not pin
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The vLLM version of services/llm, and the day after its release, which decides the versions in its image.
vllm=0.32.0
vllm_released=2026-10-19
vllm_image=services/llm/vllm-image.txt

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

compile() { # compile LOCK EXTRA [UV_OPTION...]
  local lock=$1 extra=$2
  shift 2
  uv pip compile pyproject.toml --extra "$extra" --output-file "requirements/$lock.txt" --quiet \
    --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --no-emit-package gpu-cluster --custom-compile-command scripts/lock.sh "$@"
}

names() { # print the names of the packages in the requirements on stdin
  sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p'
}

compile test test --no-emit-package torch "$@"
for extra in gateway registry embedding transcription llm-transformers quickstart; do
  compile "$extra" "$extra" --no-emit-package torch --constraint requirements/test.txt
done

# CUDA builds. --no-config: torch with its CUDA libraries, which pyproject.toml excludes.
compile embedding-cuda embedding --no-config --constraint requirements/test.txt \
  --no-emit-package openvino --no-emit-package openvino-telemetry "$@"
compile transcription-cuda transcription-cuda --constraint requirements/test.txt "$@"

# The packages in vLLM's image: resolved as of its release, for the image's Python and system.
{
  cat <<COMMENT
# The packages in the image vllm/vllm-openai:v$vllm: vllm==$vllm resolved as of $vllm_released with Python 3.12.
# Written by scripts/lock.sh. requirements/llm-vllm.txt excludes these; deploy/Dockerfile checks their versions.
COMMENT
  uv pip compile - --python-version 3.12 --python-platform x86_64-manylinux_2_28 --exclude-newer "$vllm_released" \
    --no-config --no-emit-index-url --no-annotate --no-header --quiet <<<"vllm==$vllm"
} >"$temporary/image.txt"
mv "$temporary/image.txt" "$vllm_image"

# Only packages that the image does not have: its own are constraints and excluded, others have the usual versions.
mapfile -t held < <(names <"$vllm_image")
grep -vE "^($(IFS='|'; echo "${held[*]//./\\.}"))==" requirements/test.txt | grep -E '^[A-Za-z0-9]' | sed 's/ *\\$//' \
  >"$temporary/others.txt"
compile llm-vllm llm-vllm --constraint "$vllm_image" --constraint "$temporary/others.txt" \
  "${held[@]/#/--no-emit-package=}" "$@"
