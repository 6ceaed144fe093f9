"""Static checks of the Dockerfiles: lint, replaceable bases, unprivileged final stages, agreement with the locks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kit.version import __version__
from tests.test_source_tree import tracked

ROOT = Path(__file__).resolve().parents[2]
# Those under tests/ build stand-ins for third-party images; they are only linted.
DOCKERFILES = [path for path in tracked("*/Dockerfile", "*/Dockerfile.*") if path.suffix != ".dockerignore"]
LOCK = ROOT / "scripts" / "lock.sh"
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
# (base, name, instructions) of each stage
STAGE = re.compile(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", re.MULTILINE | re.DOTALL)
STAGES: list[tuple[str, str, str]] = STAGE.findall(TEXT)
TARGETS = ("gateway", "registry", "edge", "embedding", "transcription", "llm-cuda", "llm-cpu")

IGNORED_RULES = {
    "DL3008": "packages of the base image follow its security fixes",
    "DL3042": "pip's cache is a cache mount, not in the image",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def instructions(stage: str) -> str:
    """Return the instructions of a stage after those that it inherits."""
    bases = {name: (base, text) for base, name, text in STAGES}
    base, text = bases[stage]
    return (instructions(base) if base in bases else "") + text


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_hadolint_reports_nothing(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint is not installed: scripts/test.sh installs it, it is in requirements/test.txt"
    ignored = [f"--ignore={rule}" for rule in IGNORED_RULES]
    done = subprocess.run([hadolint, "--no-color", *ignored, dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_base_images_are_build_arguments() -> None:
    assert "# syntax" not in TEXT  # it would be pulled, whatever the build arguments
    assert TEXT.count("\nFROM ") == len(STAGES)
    bases = {base for base, _, _ in STAGES} - {name for _, name, _ in STAGES} - {"scratch"}
    assert bases == {"${PYTHON_IMAGE}", "${VLLM_IMAGE}"}


def test_compose_builds_every_target() -> None:
    services = yaml.safe_load((ROOT / "deploy/compose/services.yml").read_text())["services"]
    assert {service["build"]["target"] for service in services.values() if "build" in service} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_unprivileged_and_without_a_shell(target: str) -> None:
    text = instructions(target)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.search(r'^ENTRYPOINT \["python", "-m", "[a-z.]+"\]$', text, re.MULTILINE)
    assert re.search(r'CMD \["python", "-m", "kit\.tools\.healthcheck"\]$', text, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL ", text, re.MULTILINE)


def test_version_argument_defaults_to_the_projects_version() -> None:
    assert set(re.findall(r"^ARG VERSION=(.*)$", TEXT, re.MULTILINE)) == {__version__}


def test_vllm_image_lock_and_package_list_have_one_version() -> None:
    (version,) = re.findall(r"^vllm=(\S+)$", LOCK.read_text(), re.MULTILINE)
    (held,) = re.findall(r"^vllm==(\S+)$", (ROOT / "services/llm/vllm-image.txt").read_text(), re.MULTILINE)
    (tag,) = re.findall(r"^ARG VLLM_IMAGE=vllm/vllm-openai:v(\S+)$", TEXT, re.MULTILINE)
    assert version == held == tag


def test_vllm_lock_has_only_packages_that_the_image_lacks() -> None:
    held = packages(ROOT / "services" / "llm" / "vllm-image.txt")
    added = packages(ROOT / "requirements" / "llm-vllm.txt")
    assert added
    assert held & added == set()
    # Installing torch would download several GB and replace the build that vLLM was compiled for.
    assert {"torch", "vllm", "fastapi"} <= held


def packages(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.MULTILINE))
