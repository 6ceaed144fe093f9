#!/bin/bash
# Start Chat UI once the gateway lists models. Chat UI reads the list only once, at its start: without a list it would
# respond with errors until a restart, and later models would be missing. So wait until two successive lists are equal.
#
# Runs in Chat UI's image, with the environment written by python -m chatui.
set -euo pipefail

pause_s="${MODELS_PAUSE_S:-3}"
# dotenv-expand, which the image runs after this, turns \$ into $.
key="${OPENAI_API_KEY:-none}"
key="${key//\\\$/\$}"
url="${OPENAI_BASE_URL:?python -m chatui did not write OPENAI_BASE_URL}"

list_models() {
  # Pass the key on standard input: every process can read a command line.
  printf 'header = "Authorization: Bearer %s"\n' "$key" |
    curl --silent --show-error --fail --max-time 10 --config - "${url%/}/models" 2>&1
}

before="" reported=""
while true; do
  if listed="$(list_models)" && [[ "$listed" == *'"cluster"'* ]]; then
    [[ "$listed" == "$before" ]] && break
    before="$listed" why="the list of models is still growing"
  else
    before="" why="the gateway lists no models yet (${listed:0:200})"
  fi
  if [[ "$why" != "$reported" ]]; then
    echo "Chat UI waits: $why"
    reported="$why"
  fi
  sleep "$pause_s"
done

echo "Chat UI starts"
exec /bin/bash "${CHAT_UI_ENTRYPOINT:-/app/entrypoint.sh}"
