"""Damaged blobs are found and repaired from the model's source or from a bundle."""

from pathlib import Path

import pytest

from registry.bundle.reader import BundleReader
from registry.models.library import Library
from registry.models.manifest import FileEntry, Manifest
from registry.store.interface import Store
from registry.upkeep.scrub import bytes_to_read, find_damage, models_to_read, repair_from_bundle
from tests.registry.bundles import KEY, new_library, quiet, snapshot, write
from tests.registry.conftest import REPO, WEIGHTS, Run, Source
from tests.support import plain_http
from tests.support.hub import serving_registry, wait_for_job


def file_of(library: Library, name: str, path: str) -> FileEntry:
    pointer = library.name(name)
    assert pointer is not None
    file = library.manifest(pointer.repo, pointer.commit).file(path)
    assert file is not None
    return file


def flip_bit(store: Store, file: FileEntry) -> None:
    """Flip one bit of a stored blob."""
    path = store.local_path(file.sha256)
    assert path is not None
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def damage_of(library: Library) -> list[str]:
    return [str(damage) for damage in find_damage(library.store, models_to_read(library, []), quiet)]


def test_damaged_and_missing_blobs_are_found(origin: Library) -> None:
    """A blob that two models share is reported once."""
    assert damage_of(origin) == []
    flip_bit(origin.store, file_of(origin, "two", WEIGHTS))
    origin.store.delete_blob(file_of(origin, "one", "tokenizer.json").sha256)
    assert damage_of(origin) == [
        "tokenizer.json of one (missing)",
        "model.safetensors of two (digest mismatch)",
    ]
    models = models_to_read(origin, [])
    assert bytes_to_read(models) < sum(manifest.size for manifest in models.values())


def test_repair_from_a_bundle(origin: Library, tmp_path: Path) -> None:
    """Returns the damages of files that the bundle does not have."""
    write(origin, tmp_path / "one", "one", volume=1 << 30)
    before = snapshot(origin)
    for name in ("one", "two"):
        flip_bit(origin.store, file_of(origin, name, WEIGHTS))
    found = list(find_damage(origin.store, models_to_read(origin, []), quiet))
    left = repair_from_bundle(origin.store, found, BundleReader(tmp_path / "one", KEY.public), quiet)
    assert [damage.model for damage in left] == ["two"]
    assert snapshot(origin)["one"] == before["one"]


@pytest.fixture
def mirrored(source: Source, tmp_path: Path) -> Library:
    """A library that mirrored the source's model."""
    with serving_registry(tmp_path / "there", hf_endpoint=source.url) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        assert wait_for_job(url, "small")["status"] == "ready"
    return new_library(tmp_path / "there")


def test_verify_command_repairs_from_the_source(
    mirrored: Library,
    source: Source,
    tmp_path: Path,
    registry: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`verify` names the damaged file and exits with 1; `--repair` downloads it again, at its commit."""
    monkeypatch.setenv("HF_ENDPOINT", source.url)
    before = snapshot(mirrored)
    flip_bit(mirrored.store, file_of(mirrored, "small", WEIGHTS))
    done = registry("verify", "small", store=tmp_path / "there")
    assert done.returncode == 1
    assert "damaged: model.safetensors of small (digest mismatch)" in done.stdout
    assert "--repair" in done.stdout
    repaired = registry("verify", "--all", "--repair", store=tmp_path / "there")
    assert repaired.returncode == 0, repaired.stdout
    assert "repaired: model.safetensors of small" in repaired.stdout
    assert snapshot(mirrored) == before
    done = registry("verify", "--all", store=tmp_path / "there")
    assert (done.returncode, done.stdout.split(maxsplit=1)[1]) == (0, "verified\n")


def test_source_with_different_bytes_is_rejected(
    mirrored: Library,
    source: Source,
    tmp_path: Path,
    registry: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit 1; the file can still be repaired from a bundle."""
    write(mirrored, tmp_path / "bundle")
    monkeypatch.setenv("HF_ENDPOINT", source.url)
    source.switches.corrupt.add(WEIGHTS)
    flip_bit(mirrored.store, file_of(mirrored, "small", WEIGHTS))
    done = registry("verify", "--all", "--repair", store=tmp_path / "there")
    assert done.returncode == 1
    assert "not repaired: model.safetensors of small (digest mismatch): the source has different" in done.stdout
    done = registry(
        "verify", "small", "--from", str(tmp_path / "bundle"), "--key", KEY.public.text, store=tmp_path / "there"
    )
    assert (done.returncode, "repaired: model.safetensors of small" in done.stdout) == (0, True), done.stdout


def test_model_imported_from_a_folder_must_be_imported_again(origin: Library, registry: Run) -> None:
    flip_bit(origin.store, file_of(origin, "one", WEIGHTS))
    place = Path(origin.store.where.removeprefix("file:"))
    done = registry("verify", "one", "--repair", store=place)
    assert done.returncode == 1
    assert "was imported from the folder repo-one. Import it again" in done.stdout


def test_gc_command_with_dry_run(published: Manifest, origin: Library, registry: Run) -> None:
    """A dry run removes nothing."""
    origin.store.put_blob("2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae", 3, [b"foo"])
    place = Path(origin.store.where.removeprefix("file:"))
    done = registry("gc", "--dry-run", store=place)
    assert (
        done.returncode,
        "would remove 0 blobs, 0 B; 1 more may still be in use" in done.stdout,
    ) == (0, True)


@pytest.mark.parametrize("arguments", [["verify"], ["verify", "--all", "x"], ["verify", "./x"], ["verify", "x.tar"]])
def test_wrong_arguments(registry: Run, tmp_path: Path, arguments: list[str]) -> None:
    done = registry(*arguments, store=tmp_path)
    assert (done.returncode, "NAME ..., --all, or BUNDLE --key" in done.stderr) == (2, True)
