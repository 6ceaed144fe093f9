"""The command line of a program that takes its settings from the environment: `--help`, and nothing else."""

import os
import sys
from collections.abc import Sequence

HELP = """usage: python -m {program}

Serves until SIGINT or SIGTERM. It takes no arguments: settings come from the environment, each by its field's name in
capitals (PORT=8000). {folder}/settings.py lists them with what they take; kit/web/app.py and kit/service/service.py
list those that programs share. README.md has examples; .env.example has what the compose files pass on.
"""


def refuse_arguments(program: str, arguments: Sequence[str] | None = None) -> None:
    """Exit with 0 after `--help`, with 64 (EX_USAGE) and a line on stderr after anything else; return without any.

    `program` is what `python -m` takes; `arguments` are its own unless given.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        return
    if given[0] in ("--help", "-h"):
        sys.stdout.write(HELP.format(program=program, folder=program.replace(".", "/")))
        raise SystemExit(0)
    sys.stderr.write(
        f"python -m {program} takes no arguments, not {given[0][:100]!r}: settings come from the environment. "
        f"See python -m {program} --help\n"
    )
    raise SystemExit(os.EX_USAGE)
