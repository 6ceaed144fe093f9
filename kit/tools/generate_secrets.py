"""Generate the cluster's shared secrets: `python -m kit.tools.generate_secrets FOLDER NAME...`.

Each name becomes a file with a random value; existing files are kept. Run as root with the group of the services, which
get read access. Standard library only.
"""

import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

BYTES = 24
READABLE_BY_GROUP = 0o440


def generate(folder: Path, names: Iterable[str]) -> list[str]:
    """Write the missing files atomically; return their names. Raises OSError."""
    created = []
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
        created.append(name)
    return created


def main() -> None:
    """Generate the secrets named on the command line; prints their names, never their values."""
    if len(sys.argv) < 3:
        sys.stderr.write("usage: python -m kit.tools.generate_secrets FOLDER NAME...\n")
        raise SystemExit(2)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    try:
        created = generate(folder, names)
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}. The folder must be writable by uid {os.getuid()}.\n")
        raise SystemExit(1) from None
    sys.stderr.write(f"secrets: created {', '.join(created)}\n" if created else "secrets: all exist\n")


if __name__ == "__main__":
    main()
