#!/usr/bin/env bash
# Run one program and restart it when a Python file of it or of kit/ changes; for development. Ctrl-C stops it. Settings
# come from the environment.
#
#   SERVICES=llm=http://localhost:8000 scripts/reload.sh gateway
#   STORE=file:./store PORT=8090 scripts/reload.sh registry
#   MODEL=minilm PORT=8002 REGISTRY_URL=http://localhost:8090 scripts/reload.sh services.embedding
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/say.sh
. scripts/say.sh

program=${1:---help}
case $program in -h | --help)
  usage
  exit
  ;;
esac
program=${program%/} program=${program//\//.} folder=${program//.//}
[[ -f $folder/__main__.py ]] || stop 2 "There is no program '$program'." \
  "Programs: gateway, registry, services.llm, services.embedding, services.transcription"

pid='' changed_at=$(mktemp)
trap 'rm -f "$changed_at"; [[ -z $pid ]] || kill "$pid" 2>/dev/null || true' EXIT
while :; do
  touch "$changed_at"
  .venv/bin/python -m "$program" &
  pid=$!
  until [[ -n $(find "$folder" kit -name '*.py' -newer "$changed_at" -print -quit) ]]; do
    if [[ -n $pid ]] && ! kill -0 "$pid" 2>/dev/null; then
      wait "$pid" && status=0 || status=$?
      pid=''
      step "$program exited with $status: waiting for a change"
    fi
    sleep 0.5
  done
  step "changed: restarting $program"
  if [[ -n $pid ]]; then
    kill "$pid" 2>/dev/null || true
    wait "$pid" || true
  fi
done
