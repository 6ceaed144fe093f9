"""scripts/bundle.sh between two machines, with a fake Docker that runs the real registry."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from registry.download.folder_import import import_folder
from tests.registry.bundles import new_library, snapshot
from tests.scripts.conftest import ROOT, Host
from tests.scripts.test_offline_setup import mirror_calls
from tests.support.hub import small_repo

SCRIPT = "bundle.sh"
IMAGES = {"gpu-cluster/registry:1": "sha256:" + "1" * 64, "gpu-cluster/llm:1": "sha256:" + "2" * 64}
MORE_PROGRAMS = ("cmp", "mkdir", "sha256sum", "stat", "tar")


def machine(folder: Path, images: dict[str, str]) -> Host:
    """A machine whose Docker has `images`."""
    (folder / "machine").mkdir(parents=True)
    (folder / "machine" / "images.json").write_text(json.dumps(images))
    (folder / "bin").mkdir()
    host = Host(folder)
    host.environment["REAL_PATH"] = os.environ["PATH"]
    host.program("docker", f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/scripts/bundle_docker.py"} "$@"\n')
    return host


@pytest.fixture
def origin(host: Host, tmp_path: Path) -> Host:
    """The exporting machine: two images, a model, keys."""
    made = machine(tmp_path / "origin", IMAGES)
    give_programs(host, made)
    import_folder(
        new_library(made.home / "store"),
        small_repo(tmp_path / "repo"),
        name="small",
        repo="test/small",
        revision="main",
    )
    code, said = made.run(SCRIPT, "keygen", str(tmp_path / "keys" / "site"))
    assert code == 0, said
    assert f"{tmp_path}/keys/site.pub  public key" in said
    return made


@pytest.fixture
def there(host: Host, tmp_path: Path) -> Host:
    """The importing machine, without images."""
    made = machine(tmp_path / "there", {})
    give_programs(host, made)
    return made


def give_programs(source: Host, target: Host) -> None:
    """Add the programs that every host has besides bash and docker."""
    for program in (source.home / "bin").iterdir():
        if program.is_symlink() and source is not target:
            (target.home / "bin" / program.name).symlink_to(program.readlink())
    for name in (*MORE_PROGRAMS, "openssl"):
        found = shutil.which(name)
        assert found is not None, f"this machine has no {name}"
        (target.home / "bin" / name).symlink_to(found)


def export(origin: Host, tmp_path: Path, *arguments: str) -> str:
    key = str(tmp_path / "keys" / "site.key")
    code, said = origin.run(SCRIPT, "export", str(tmp_path / "disk"), "--sign-with", key, *arguments)
    assert code == 0, said
    return said


def test_bundle_is_imported_on_an_empty_machine(origin: Host, there: Host, tmp_path: Path) -> None:
    """Models and images, verified by openssl while no image is loaded; a second import loads nothing."""
    said = export(origin, tmp_path, "--volume-size=150000B")
    disk, public = tmp_path / "disk", str(tmp_path / "keys" / "site.pub")
    assert f"Carry {disk} to the other machine" in said
    assert "   scripts/bundle.sh import DIR --key site.pub" in said
    assert sorted(path.name for path in disk.iterdir())[:3] == [
        "manifest.json",
        "manifest.json.minisig",
        "volume-0001.tar",
    ]
    assert not (disk / ".images").exists()
    code, said = there.run(SCRIPT, "import", str(disk), "--key", public)
    assert code == 0, said
    assert "the signature of manifest.json is valid" in said
    assert json.loads((there.home / "machine" / "images.json").read_text()) == IMAGES
    assert snapshot(new_library(there.home / "store")) == snapshot(new_library(origin.home / "store"))
    assert said.endswith("   scripts/doctor.sh\n   docker compose -f docker-compose.gpu-cluster.yml up -d\n")
    code, said = there.run(SCRIPT, "import", str(disk), "--key", public)
    assert (code, "no image is missing" in said, "0 B new" in said) == (0, True, True), said
    assert len([call for call in there.calls if call.startswith("load ")]) == 1


@pytest.mark.parametrize("image", ["with our image", "by hand"])
@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.minisig", "volume-0002.tar"])
def test_changed_byte_is_rejected(origin: Host, there: Host, tmp_path: Path, name: str, image: str) -> None:
    """Exit 1 with the file's name; neither image nor model is imported."""
    export(origin, tmp_path, "--volume-size", "1MB")
    if image == "with our image":
        (there.home / "machine" / "images.json").write_text(json.dumps({"gpu-cluster/registry:1": "sha256:other"}))
    changed = tmp_path / "disk" / name
    data = bytearray(changed.read_bytes())
    data[150] ^= 1
    changed.write_bytes(data)
    for command in ("verify", "import"):
        code, said = there.run(SCRIPT, command, str(tmp_path / "disk"), "--key", str(tmp_path / "keys" / "site.pub"))
        assert code == 1, said
        assert (name if name.startswith("volume") else "manifest.json") in said
    assert not [call for call in there.calls if call.startswith("load ")]
    assert not (there.home / "store").exists()


@pytest.mark.parametrize("image", ["with our image", "by hand"])
@pytest.mark.parametrize("changed", ["images", "manifest and images"])
def test_images_that_change_after_the_verification_are_not_loaded(
    origin: Host, there: Host, tmp_path: Path, image: str, changed: str
) -> None:
    """X17: a disk that gives other bytes when it is read again. The fake Docker, or `sha256sum`, changes them."""
    export(origin, tmp_path)
    if image == "with our image":
        (there.home / "machine" / "images.json").write_text(json.dumps({"gpu-cluster/registry:1": "sha256:other"}))
    before = (there.home / "machine" / "images.json").read_text()
    disk, program = tmp_path / "disk", "docker" if image == "with our image" else "sha256sum"
    after = "verify /bundle" if image == "with our image" else "--check --quiet"
    real = there.home / "bin" / f"real-{program}"
    (there.home / "bin" / program).rename(real)
    change = f"{sys.executable} {ROOT / 'tests/scripts/change_disk.py'} {disk} {changed.split()[0]}"
    there.program(
        program, f'#!{shutil.which("bash")}\n{real} "$@"; code=$?\n[[ "$*" != *"{after}"* ]] || {change}\nexit $code\n'
    )
    code, said = there.run(SCRIPT, "import", str(disk), "--key", str(tmp_path / "keys" / "site.pub"))
    assert (code, "the images are not those that were verified" in said) == (1, True), said
    assert (there.home / "machine" / "images.json").read_text() == before


def test_older_bundle_is_refused(origin: Host, there: Host, tmp_path: Path) -> None:
    """X10: unless --allow-older says so."""
    export(origin, tmp_path, "--skip-images")
    library = new_library(there.home / "store")
    import_folder(library, small_repo(tmp_path / "b", seed="b"), name="small", repo="test/small", revision="main")
    (there.home / "machine" / "images.json").write_text(json.dumps(IMAGES))
    arguments = ("import", str(tmp_path / "disk"), "--key", str(tmp_path / "keys" / "site.pub"))
    code, said = there.run(SCRIPT, *arguments)
    assert (code, "has older models than the store (small at" in said) == (1, True), said
    code, said = there.run(SCRIPT, *arguments, "--allow-older")
    assert code == 0, said


def test_signature_of_another_key_is_rejected(origin: Host, there: Host, tmp_path: Path) -> None:
    export(origin, tmp_path)
    assert origin.run(SCRIPT, "keygen", str(tmp_path / "other"))[0] == 0
    code, said = there.run(SCRIPT, "verify", str(tmp_path / "disk"), "--key", str(tmp_path / "other.pub"))
    assert (code, "is invalid, or made with another key" in said) == (1, True), said
    code, said = there.run(SCRIPT, "verify", str(tmp_path / "disk"), "--key", str(tmp_path / "keys" / "site.key"))
    assert (code, "is not a public key" in said) == (2, True), said


def test_missing_verifier_is_reported(origin: Host, there: Host, tmp_path: Path) -> None:
    """Neither our image nor openssl nor minisign."""
    export(origin, tmp_path)
    (there.home / "bin" / "openssl").unlink()
    code, said = there.run(SCRIPT, "import", str(tmp_path / "disk"), "--key", str(tmp_path / "keys" / "site.pub"))
    assert (code, "Install one of them" in said) == (69, True), said


def test_resumed_export_reuses_saved_images(origin: Host, tmp_path: Path) -> None:
    """`docker save` is not repeated for the same images; --skip-images exports models only."""
    saved = tmp_path / "disk" / ".images"
    saved.mkdir(parents=True)
    (saved / "images.txt").write_text("".join(f"{name} {digest}\n" for name, digest in IMAGES.items()))
    (saved / "images.tar").write_text("as it was")
    assert "the images are saved already" in export(origin, tmp_path)
    assert not [call for call in origin.calls if call.startswith("save")]
    origin.run(
        SCRIPT, "export", str(tmp_path / "models"), "--sign-with", str(tmp_path / "keys" / "site.key"), "--skip-images"
    )
    assert '"archives": []' in (tmp_path / "models" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "scripts/bundle.sh keygen, export, verify or import; not ''."),
        (["exprot", "x"], "not 'exprot'"),
        (["export"], "needs the folder of the bundle"),
        (["keygen"], "needs a NAME"),
        (["import", "x"], "needs --key NAME.pub"),
        (["verify", "x", "--key"], "--key needs a value."),
        (["export", "x", "--fast"], "There is no option --fast."),
        (["export", "{tmp}/x", "--sign-with", "none.key"], "The key none.key cannot be read."),
    ],
)
def test_wrong_arguments_exit_2(there: Host, tmp_path: Path, arguments: list[str], says: str) -> None:
    code, said = there.run(SCRIPT, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert (code, says in said) == (2, True), said


def test_folder_without_a_manifest_is_rejected(there: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = there.run(SCRIPT, "verify", str(tmp_path / "empty"), "--key", "x" * 56)
    assert (code, "is not a complete bundle" in said) == (1, True), said


def test_help_needs_no_docker(there: Host) -> None:
    (there.home / "bin" / "docker").unlink()
    for arguments in (["--help"], ["export", "--help"]):
        code, said = there.run(SCRIPT, *arguments)
        assert (code, "--volume-size SIZE" in said) == (0, True)


def test_offline_setup_exports_a_bundle_at_the_end(host: Host, tmp_path: Path) -> None:
    """With `--bundle DIR`; wrong use is reported before anything is done."""
    give_programs(host, host)
    code, said = host.run("offline-setup.sh", "--bundle")
    assert (code, "--bundle needs the folder" in said, mirror_calls(host)) == (2, True, [])
    (tmp_path / "site.key").write_text("a key")
    code, said = host.run(
        "offline-setup.sh", "--skip-images", f"--bundle={tmp_path / 'disk'}", "--sign-with", str(tmp_path / "site.key"),
        "qwen",
    )  # fmt: skip
    assert code == 0, said
    (exported,) = [call for call in host.calls if " export " in call]
    assert f"--volume {tmp_path / 'disk'}:/bundle registry export --output /bundle --sign-with - qwen" in exported
    assert (tmp_path / "disk").is_dir()
