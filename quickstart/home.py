"""The folder that `--home` names: made, and its disk measured. Standard library only: checked before the installation.

python -m quickstart.home [OPTIONS OF THE QUICKSTART]
"""

import shutil
import sys
import tempfile
from pathlib import Path

from quickstart import install
from quickstart.options import ROOT, parse

# The models, their copy in the service's cache where hard links are not possible, and the unpacked packages.
NEEDED_GB = 2.5
ELSEWHERE = "keep the state elsewhere: scripts/quickstart.sh --home DIR"


class HomeError(Exception):
    """The state cannot be kept where it was asked for; the message says why and what to do."""


def make_home(home: Path) -> None:
    """Make `home` unless it is there, and see that it can be written to. Raises HomeError."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        # Of a file in the folder's place, mkdir says only that it exists.
        reason = "it is not a folder" if isinstance(error, FileExistsError) else (error.strerror or str(error)).lower()
        raise HomeError(f"No state can be kept in {home} ({reason}). To {ELSEWHERE}") from None


def check_disk(home: Path) -> None:
    """Raises HomeError when the disk of `home` will not hold the models, and the packages where they go there too."""
    if (home / "models.yaml").exists():
        return
    what, needed_gb = "models", NEEDED_GB
    if not install.VENV.exists() and home.stat().st_dev == ROOT.stat().st_dev:
        what, needed_gb = "packages and models", NEEDED_GB + install.NEEDED_GB
    free_gb = shutil.disk_usage(home).free / 1e9
    if free_gb < needed_gb:
        raise HomeError(
            f"{home} has {free_gb:.1f} GB free and the {what} need {needed_gb} GB. Free some, or {ELSEWHERE}"
        )


def main() -> None:
    """Check the command line and, for a start, its folder; exits with 1 and a message when that will not do."""
    options = parse()
    if options.stop:
        return
    try:
        make_home(options.home)
        check_disk(options.home)
    except HomeError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
