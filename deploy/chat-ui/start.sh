#!/bin/bash
# Starts Chat UI once the gateway lists models. Chat UI reads the list once, when it starts, and for good: without a list
# it would answer errors until it is restarted, and a model that comes a second later would stay away. So this waits
# until the list is there and the same twice in a row.
#
# Runs inside Chat UI's image with the environment that python -m chatui has written.
set -euo pipefail

pause_s="${MODELS_PAUSE_S:-3}"
# dotenv-expand, which the image runs after this, makes a plain $ of \$.
key="${OPENAI_API_KEY:-none}"
key="${key//\\\$/\$}"
url="${OPENAI_BASE_URL:?python -m chatui has written no OPENAI_BASE_URL}"

list_models() {
  # The key goes in on standard input: a command line can be read by every process.
  printf 'header = "Authorization: Bearer %s"\n' "$key" |
    curl --silent --show-error --fail --max-time 10 --config - "${url%/}/models" 2>&1
}

before="" told=""
while true; do
  if listed="$(list_models)" && [[ "$listed" == *'"cluster"'* ]]; then
    [[ "$listed" == "$before" ]] && break
    before="$listed" why="the list of models is still growing"
  else
    before="" why="the gateway lists no models yet (${listed:0:200})"
  fi
  if [[ "$why" != "$told" ]]; then
    echo "Chat UI waits: $why"
    told="$why"
  fi
  sleep "$pause_s"
done

echo "Chat UI starts"
exec /bin/bash "${CHAT_UI_ENTRYPOINT:-/app/entrypoint.sh}"
