"""The Dockerfiles, read and linted: what is true of all of them, and what they share with the rest of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.version import __version__
from tests.test_source_tree import tracked

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = [path for path in tracked("*/Dockerfile", "*/Dockerfile.*") if path.suffix != ".dockerignore"]
# Images of other people that stand in for theirs are held to the linter only.
OURS = [path for path in DOCKERFILES if "tests" not in path.relative_to(ROOT).parts]
LOCK = ROOT / "scripts" / "lock.sh"

# What the linter says that is not so here.
UNWANTED_RULES = {
    "DL3008": "a base image's own packages move with its security fixes",
    "DL3042": "pip's cache is a cache mount, not in the image",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint is not installed: scripts/test.sh installs it, it is in requirements/test.txt"
    ignored = [f"--ignore={rule}" for rule in UNWANTED_RULES]
    done = subprocess.run([hadolint, "--no-color", *ignored, dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("dockerfile", OURS, ids=name)
def test_bases_can_be_replaced(dockerfile: Path) -> None:
    """Every image that a build begins from is a build argument, or a stage of the same file."""
    text = dockerfile.read_text()
    assert "# syntax" not in text  # it would be pulled, past all arguments
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)) | {"scratch"}
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - stages
    assert bases
    assert [base for base in bases if not re.fullmatch(r"\$\{[A-Z_]+\}", base)] == []


@pytest.mark.parametrize("dockerfile", OURS, ids=name)
def test_nothing_is_run_by_root_or_through_a_shell(dockerfile: Path) -> None:
    last = dockerfile.read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "[a-z.]+"\]$', last, re.MULTILINE)
    assert re.search(r'CMD \["python", "-m", "kit\.tools\.healthcheck"\]$', last, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL ", last, re.MULTILINE)


@pytest.mark.parametrize("dockerfile", OURS, ids=name)
def test_the_label_says_the_projects_version(dockerfile: Path) -> None:
    found = re.findall(r"^ARG VERSION=(.*)$", dockerfile.read_text(), re.MULTILINE)
    assert found in ([], [__version__])


def test_the_vllm_image_is_the_version_that_was_locked_for() -> None:
    """The image, the list of what it holds, and the version in the comment of that list move together."""
    dockerfile = ROOT / "services" / "llm" / "Dockerfile"
    (version,) = re.findall(r"^vllm=(\S+)$", LOCK.read_text(), re.MULTILINE)
    (held,) = re.findall(r"^vllm==(\S+)$", (ROOT / "services/llm/vllm-image.txt").read_text(), re.MULTILINE)
    (tag,) = re.findall(r"^ARG VLLM_IMAGE=vllm/vllm-openai:v(\S+)$", dockerfile.read_text(), re.MULTILINE)
    assert version == held == tag


def test_only_what_the_vllm_image_lacks_is_installed_there() -> None:
    held = packages(ROOT / "services" / "llm" / "vllm-image.txt")
    added = packages(ROOT / "requirements" / "llm-vllm.txt")
    assert added
    assert held & added == set()
    # Were torch in there, a download of several GB would replace what the image was built around.
    assert {"torch", "vllm", "fastapi"} <= held


def packages(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.MULTILINE))
