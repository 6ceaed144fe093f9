"""A `docker` for tests of scripts: responds as a test's `responses.json` says, and records its calls.

Each response is [pattern, exit code, stdout, stderr]; the first whose pattern matches the command line is used. Other
commands succeed without output. With a list of exit codes, each call uses the next one.
"""

import json
import os
import re
import sys
from pathlib import Path


def main() -> int:
    """Handle one call."""
    home = Path(os.environ["FAKE_DOCKER"])
    line = " ".join(sys.argv[1:])
    with (home / "calls").open("a") as calls:
        calls.write(line + "\n")
    if line.startswith("run ") and " -i " in line:
        sys.stdin.read()
    for number, (pattern, code, out, err) in enumerate(json.loads((home / "responses.json").read_text())):
        if not re.search(pattern, line):
            continue
        if isinstance(code, list):
            count_file = home / f"count.{number}"
            count = int(count_file.read_text()) if count_file.exists() else 0
            count_file.write_text(str(count + 1))
            code = code[min(count, len(code) - 1)]
        sys.stdout.write(out)
        sys.stderr.write(err)
        return int(code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
