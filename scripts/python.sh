# shellcheck shell=bash
# Sourced by the other scripts: find_python prints a Python that the locked packages support.

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  if [[ -n ${PYTHON:-} ]]; then
    local found="not found"
    command -v "$PYTHON" >/dev/null && found=$("$PYTHON" --version 2>&1 | head -n 1 || true)
    printf 'PYTHON=%s is not supported: %s\n' "$PYTHON" "$found" >&2
  fi
  cat >&2 <<'MESSAGE'
No supported Python was found: 3.11, 3.12 or 3.13 with its venv module is needed.
  Debian, Ubuntu:  sudo apt-get install python3.11 python3.11-venv
  macOS:           brew install python@3.11
  elsewhere:       uv python install 3.11
Then run this again, or point to one:  export PYTHON=/path/to/python3.11
MESSAGE
  return 1
}
