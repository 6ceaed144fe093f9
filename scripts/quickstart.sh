#!/usr/bin/env bash
# The whole cluster on this machine, as processes, with small real models: no Docker, no GPU, no account.
#
#   scripts/quickstart.sh                 start, show how to use it, follow the logs; Ctrl-C stops everything
#   scripts/quickstart.sh --smoke         start, send a chat, an embedding and a transcription, print, stop
#   scripts/quickstart.sh --help          all options
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/python.sh
. scripts/python.sh

python=$(find_python)
# Before anything is installed: wrong options, an unusable folder or disk, --help and --stop.
"$python" -m quickstart.home "$@"
case " $* " in *" --help "* | *" -h "*) exit ;; *" --stop "*) exec "$python" -m quickstart.processes.session "$@" ;; esac
"$python" -m quickstart.install requirements/quickstart.txt
exec .venv/bin/python -m quickstart "$@"
