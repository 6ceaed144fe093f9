"""Build-time check of a base image's packages against our requirements."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "deploy" / "images" / "check_requirements.py"


def check(folder: Path, *requirements: str, **packages: tuple[str, tuple[str, ...]]) -> tuple[int, str]:
    """Run it where exactly `packages` (name: version, what it requires) are installed, beside the real ones."""
    for name, (version, requires) in packages.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        info.joinpath("METADATA").write_text("\n".join(lines + [f"Requires-Dist: {one}" for one in requires]))
    project = folder / "pyproject.toml"
    project.write_text(f"[project.optional-dependencies]\nservice = {list(requirements)!r}\n")
    done = subprocess.run(
        [sys.executable, CHECK, project, "service"],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_satisfied_requirements_pass(tmp_path: Path) -> None:
    code, said = check(tmp_path, "aa>=1", "bb", aa=("1.5", ("bb<3",)), bb=("2.0", ()))
    assert (code, said) == (0, "The image meets all requirements of service.\n")


@pytest.mark.parametrize(
    ("requirements", "packages", "line"),
    [
        (["aa>=2"], {"aa": ("1.5", ())}, "aa 1.5 is installed; service needs aa>=2."),
        (["zz-not-there>=2"], {}, "zz-not-there is not installed; service needs zz-not-there>=2."),
        (["aa"], {"aa": ("1", ("bb>=3",)), "bb": ("2", ())}, "bb 2 is installed; aa needs bb>=3."),
        (["aa"], {"aa": ("1", ("zz-not-there",))}, "zz-not-there is not installed; aa needs zz-not-there."),
        (
            ["aa[extra]"],
            {"aa": ("1", ('zz-not-there; extra == "extra"',))},
            'zz-not-there is not installed; aa needs zz-not-there; extra == "extra".',
        ),
    ],
)
def test_unsatisfied_requirement_fails_the_build(
    tmp_path: Path, requirements: list[str], packages: dict[str, tuple[str, tuple[str, ...]]], line: str
) -> None:
    code, said = check(tmp_path, *requirements, **packages)
    assert code == 1
    assert said.splitlines()[0] == line
    assert "scripts/lock.sh" in said


def test_irrelevant_requirements_are_ignored(tmp_path: Path) -> None:
    """Markers of other systems, unused extras, cycles, packages outside the closure."""
    code, said = check(
        tmp_path,
        'zz-not-there; sys_platform == "win32"',
        "aa",
        aa=("1", ("bb", 'zz-not-there; extra == "extra"')),
        bb=("1", ("aa",)),
        other=("1", ("zz-not-there",)),
    )
    assert code == 0, said
