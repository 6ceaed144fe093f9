"""`python check_requirements.py pyproject.toml EXTRA`: whether what is installed meets the requirements of one extra.

Run while an image is built on somebody else's: what it has is their choice, and a package of the wrong version would
only show in the middle of a request. Looks at the extra's requirements and at what those require in turn, and leaves
alone what else is there.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def main() -> None:
    """Print what is wrong and exit 1, or say that all is well."""
    project, extra = sys.argv[1:]
    declared = tomllib.loads(Path(project).read_text(encoding="utf-8"))["project"]["optional-dependencies"][extra]
    found = list(problems(declared, extra))
    if found:
        sys.stderr.write("".join(f"{line}\n" for line in found))
        sys.stderr.write(
            f"The base image does not hold what {extra} needs. Build with the image whose version scripts/lock.sh\n"
            "names, or set the version of yours there and run it.\n"
        )
        raise SystemExit(1)
    sys.stdout.write(f"The image meets all requirements of {extra}.\n")


def problems(requirements: Iterable[str], wanted_by: str) -> Iterator[str]:
    """One line per requirement, direct or indirect, that what is installed does not meet."""
    seen: set[str] = set()
    waiting = [(Requirement(one), "", wanted_by) for one in requirements]
    while waiting:
        requirement, extra, parent = waiting.pop()
        key = f"{requirement} {extra}"
        if key in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add(key)
        try:
            installed = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed; {parent} needs {requirement}."
            continue
        if not requirement.specifier.contains(installed.version, prereleases=True):
            yield f"{requirement.name} {installed.version} is installed; {parent} needs {requirement}."
        waiting += [
            (Requirement(one), each, requirement.name)
            for one in installed.requires or []
            for each in ("", *requirement.extras)
        ]


if __name__ == "__main__":
    main()
