#!/usr/bin/env bash
# Installs what the benches compare with, each into an environment of its own under .cluster/bench, outside git.
#
#   bench/peers.sh                 all of them; what is there already stays
#   bench/peers.sh smg litellm     only these
#
# A peer that cannot be installed is reported; the reason is in .cluster/bench/NAME.log, and the benches leave it out.
# nginx and wrk come from the system (Debian: apt-get install nginx-light wrk).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

declare -A packages=(
  [vllm-router]='vllm-router==0.1.17'
  [sglang-router]='sglang-router==0.3.2'
  [smg]='smg==1.13.0'
  [litellm]='litellm[proxy]==1.108.3'
  # With the newest versions beside it that it still runs with.
  [infinity]='infinity-emb[torch,optimum,server]==0.0.77 torch==2.13.0 optimum[onnxruntime]==1.24.0 transformers<4.49
    click<8.2 numpy<2 pandas<3 pyarrow<22'
  [faster-whisper-server]='faster-whisper-server==0.0.3'
)
python=${PYTHON:-.venv/bin/python}
folder=.cluster/bench
mkdir -p "$folder"
[[ -x $python ]] || python=python3
(($#)) || set -- vllm-router sglang-router smg litellm infinity faster-whisper-server

missing=0
for name in "$@"; do
  package=${packages[$name]:?there is no peer of this name}
  if [[ -e $folder/$name/installed && $(<"$folder/$name/installed") == "$package" ]]; then
    echo "$name: $package is there"
    continue
  fi
  rm -rf "${folder:?}/$name"
  read -rd '' -a wanted <<<"$package" || true # ends at the end of the text, not at a delimiter
  if { "$python" -m venv "$folder/$name" && "$folder/$name/bin/pip" install --quiet "${wanted[@]}"; } \
    >"$folder/$name.log" 2>&1; then
    echo "$package" >"$folder/$name/installed"
    echo "$name: $package installed"
  else
    missing=1
    echo "$name: $package could not be installed: $(tail -n 1 "$folder/$name.log")" >&2
  fi
done
for program in nginx wrk gcc; do
  command -v "$program" >/dev/null || { echo "$program is missing: apt-get install $program" >&2; missing=1; }
done
exit "$missing"
