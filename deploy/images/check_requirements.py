"""`python check_requirements.py pyproject.toml EXTRA`: check installed packages against the requirements of an extra.

Run while building on a third-party base image, so that a wrong version fails the build and not a request later. Checks
the requirements of the extra and, transitively, theirs; ignores other packages.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def main() -> None:
    """Print the unmet requirements and exit with 1, or confirm that all are met."""
    project, extra = sys.argv[1:]
    declared = tomllib.loads(Path(project).read_text(encoding="utf-8"))["project"]["optional-dependencies"][extra]
    found = list(problems(declared, extra))
    if found:
        sys.stderr.write("".join(f"{line}\n" for line in found))
        sys.stderr.write(
            f"The base image does not meet the requirements of {extra}. Build with the image version that\n"
            "scripts/lock.sh names, or set your version there and run it.\n"
        )
        raise SystemExit(1)
    sys.stdout.write(f"The image meets all requirements of {extra}.\n")


def problems(requirements: Iterable[str], required_by: str) -> Iterator[str]:
    """Yield a line per unmet requirement, direct or transitive."""
    seen: set[str] = set()
    pending = [(Requirement(one), "", required_by) for one in requirements]
    while pending:
        requirement, extra, parent = pending.pop()
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
        pending += [
            (Requirement(one), each, requirement.name)
            for one in installed.requires or []
            for each in ("", *requirement.extras)
        ]


if __name__ == "__main__":
    main()
