"""Check of the folder `--home` and its disk, before the installation. Standard library only.

python -m quickstart.home [OPTIONS OF THE QUICKSTART]
"""

import shutil
import sys
import tempfile
from pathlib import Path

from quickstart import QuickstartError, install
from quickstart.options import ROOT, parse

# Models, unpacked packages, and a copy of the models in the services' cache if hard links are not possible.
NEEDED_GB = 2.5
HOME_HINT = "use another folder: scripts/quickstart.sh --home DIR"


def make_home(home: Path) -> None:
    """Create `home` and check that it is writable. Raises QuickstartError."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        # For a file in place of the folder, mkdir only reports that it exists.
        reason = "it is not a folder" if isinstance(error, FileExistsError) else (error.strerror or str(error)).lower()
        raise QuickstartError(f"Cannot store state in {home} ({reason}). Please {HOME_HINT}") from None


def check_disk(home: Path, models_gb: float = NEEDED_GB) -> None:
    """Raise QuickstartError if the disk of `home` is too small for the models, and the packages if they share it."""
    if (home / "models.yaml").exists():
        return
    what, needed_gb = "models", models_gb
    if not install.VENV.exists() and home.stat().st_dev == ROOT.stat().st_dev:
        what, needed_gb = "packages and models", models_gb + install.NEEDED_GB
    free_gb = shutil.disk_usage(home).free / 1e9
    if free_gb < needed_gb:
        raise QuickstartError(
            f"{home} has {free_gb:.1f} GB free; the {what} need {needed_gb} GB. Free some space, or {HOME_HINT}"
        )


def main() -> None:
    """Check options and, for a start, the folder. Exits with 1 and a message on an error."""
    options = parse()
    if options.stop:
        return
    try:
        make_home(options.home)
        check_disk(options.home)
    except QuickstartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
