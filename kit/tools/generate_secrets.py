"""Makes the secrets that the cluster's parts share, once: `python -m kit.tools.generate_secrets FOLDER NAME...`.

Standard library only. Each name becomes a file with a random value; a file that is there is left as it is, so a volume
keeps its secrets for as long as it lives. Run it as root with the group of the services: they read, only root writes.
"""

import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

BYTES = 24
READABLE_BY_GROUP = 0o440


def generate(folder: Path, names: Iterable[str]) -> list[str]:
    """Write the missing ones of `names` into `folder`; returns those. Each appears whole or not at all.

    Raises OSError when the folder cannot be written.
    """
    made = []
    for name in names:
        path = folder / name
        if path.exists():
            continue
        part = folder / f".{name}.part"
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE_BY_GROUP), "w") as file:
            os.fchmod(file.fileno(), READABLE_BY_GROUP)
            file.write(secrets.token_hex(BYTES))
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        made.append(name)
    return made


def main() -> None:
    """Make the secrets of the command line; says which were new, never their values."""
    if len(sys.argv) < 3:
        sys.stderr.write("usage: python -m kit.tools.generate_secrets FOLDER NAME...\n")
        raise SystemExit(2)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    try:
        made = generate(folder, names)
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}. The folder must be writable by uid {os.getuid()}.\n")
        raise SystemExit(1) from None
    sys.stderr.write(f"secrets: {', '.join(made)} made\n" if made else "secrets: all there\n")


if __name__ == "__main__":
    main()
