"""Command line of a program configured by its environment: `--help` and nothing else."""

import os
import sys
from collections.abc import Sequence

HELP = """usage: python -m {program}

Serves until SIGINT or SIGTERM. There are no arguments: each setting is an environment variable with its field's name in
capitals (PORT=8000). {folder}/settings.py documents them; kit/web/app.py and kit/service/service.py document those
that programs share. README.md has examples; .env.example lists the variables of the compose files.
"""


def refuse_arguments(program: str, arguments: Sequence[str] | None = None) -> None:
    """Exit with 0 after `--help`, with 64 (EX_USAGE) after any other argument; return if there is none.

    `program` is the module's name for `python -m`; `arguments` defaults to sys.argv.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        return
    if given[0] in ("--help", "-h"):
        sys.stdout.write(HELP.format(program=program, folder=program.replace(".", "/")))
        raise SystemExit(0)
    sys.stderr.write(
        f"python -m {program}: unexpected argument {given[0][:100]!r}: settings come from the environment. "
        f"See python -m {program} --help\n"
    )
    raise SystemExit(os.EX_USAGE)
