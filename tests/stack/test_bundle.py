"""`offline-setup.sh --bundle` and `bundle.sh import`: models and images transferred to an empty machine."""

from pathlib import Path

import pytest

from tests.stack.hub import Hub
from tests.stack.stack import Stack
from tests.support.programs.docker import docker

MODEL = "minilm"
# Nothing is built on it, and nothing else loads it.
IMAGE = "gpu-cluster/edge:0.1.0"


@pytest.fixture(scope="module")
def bundle(clean: Stack, internet: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle exported with internet; then volumes, one image and the internet are removed."""
    folder = tmp_path_factory.mktemp("disk") / "cluster"
    internet.start()
    printed = clean.run(f"./scripts/offline-setup.sh --bundle {folder} {MODEL}", timeout=1800).stdout
    assert f"Carry {folder} to the other machine" in printed
    clean.remove()
    internet.stop()
    docker("rmi", IMAGE)
    return folder


def test_changed_byte_is_rejected(clean: Stack, bundle: Path) -> None:
    """By the registry's image, without a network; nothing is loaded."""
    volume = bundle / "volume-0001.tar"
    with volume.open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)
        file.seek(5_000_000)
        file.write(bytes([byte[0] ^ 1]))
    done = clean.run(f"./scripts/bundle.sh import {bundle} --key bundle.pub", check=False)
    assert done.returncode == 1
    assert "volume-0001.tar" in done.stderr
    assert not docker("images", "-q", IMAGE)
    with volume.open("r+b") as file:
        file.seek(5_000_000)
        file.write(byte)


def test_bundle_is_imported(clean: Stack, bundle: Path) -> None:
    """The missing image is loaded, the model is served; a second import does nothing."""
    clean.run(f"./scripts/bundle.sh import {bundle} --key bundle.pub")
    assert docker("images", "-q", IMAGE)
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8090/models/minilm').read().decode())"
    assert '"status":"ready"' in clean.inside("registry", program)
    again = clean.run(f"./scripts/bundle.sh import {bundle} --key bundle.pub").stdout
    assert "no image is missing" in again
    assert "0 B new" in again
