"""Rules for every tracked file: names, machine paths, registry hosts, pinned requirements."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Put together here, so that this file does not hold what it looks for.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("index", "crates", "io"),
        ("rubygems", "org"),
        ("anaconda", "org"),
    )
)
# Caches below an image's root are no machine's.
MACHINE_PATHS = re.compile(r"(?<![\w.$}/-])/(?:work|root)/(?!\.cache\b|\.npm\b)[\w.-]")


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks or would track, as paths below the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(ROOT / name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def text_of(path: Path) -> str:
    """The file's text; empty for a binary file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "helper", "manager", "common", "misc"])
def test_modules_are_named_for_what_they_hold(name: str) -> None:
    """These names hold anything, and soon do."""
    assert named([path for path in tracked("*.py") if path.stem == name or name in path.parts]) == []


def test_no_paths_of_one_machine() -> None:
    """What only exists where it was written breaks everywhere else."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert wrong == []


def test_no_package_registry_is_named() -> None:
    """Whoever installs decides where packages come from; PyTorch's own index of CPU builds is no such registry."""
    wrong = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        for host in REGISTRY_HOSTS
        if re.search(rf"(?<![\w-]){re.escape(host)}(?![\w-])", text_of(path))
    ]
    assert wrong == []


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS or [None], ids=lambda path: path.name if path else "none yet")
def test_requirements_are_pinned_with_hashes(lock: Path | None) -> None:
    """Each requirement is one exact version with the digests of its files."""
    if lock is None:
        pytest.skip("requirements/ holds no lock yet")
    lines = re.sub(r"\\\n\s*", " ", text_of(lock)).splitlines()
    requirements = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", "-"))]
    assert requirements
    pinned = re.compile(r"[\w.\[\]-]+==[^\s;]+(?: ; .+?)? .*--hash=sha256:[0-9a-f]{64}")
    assert [line for line in requirements if not pinned.match(line)] == []
