"""Bit rot is found, named, and mended from where the model came or from a bundle."""

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


def rot(store: Store, file: FileEntry) -> None:
    """Change one bit of a blob where it lies."""
    path = store.local_path(file.sha256)
    assert path is not None
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def damage_of(library: Library) -> list[str]:
    return [str(damage) for damage in find_damage(library.store, models_to_read(library, []), quiet)]


def test_what_changed_and_what_is_gone_is_named(origin: Library) -> None:
    """Each file once, though two models have it; and what is right is not."""
    assert damage_of(origin) == []
    rot(origin.store, file_of(origin, "two", WEIGHTS))
    origin.store.delete_blob(file_of(origin, "one", "tokenizer.json").sha256)
    assert damage_of(origin) == [
        "tokenizer.json of one (gone)",
        "model.safetensors of two (its bytes changed)",
    ]
    models = models_to_read(origin, [])
    assert bytes_to_read(models) < sum(manifest.size for manifest in models.values())


def test_a_bundle_mends(origin: Library, tmp_path: Path) -> None:
    """What it has; what it has not is told. A volume of it that is damaged, too, makes nothing worse."""
    write(origin, tmp_path / "one", "one", volume=1 << 30)
    before = snapshot(origin)
    for name in ("one", "two"):
        rot(origin.store, file_of(origin, name, WEIGHTS))
    found = list(find_damage(origin.store, models_to_read(origin, []), quiet))
    left = repair_from_bundle(origin.store, found, BundleReader(tmp_path / "one", KEY.public), quiet)
    assert [damage.model for damage in left] == ["two"]
    assert snapshot(origin)["one"] == before["one"]


@pytest.fixture
def mirrored(source: Source, tmp_path: Path) -> Library:
    """A library that has the source's model from there."""
    with serving_registry(tmp_path / "there", hf_endpoint=source.url) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        assert wait_for_job(url, "small")["status"] == "ready"
    return new_library(tmp_path / "there")


def test_from_a_terminal(
    mirrored: Library,
    source: Source,
    tmp_path: Path,
    registry: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`verify --all` names what is wrong and exits with 1; `--repair` fetches it again, at its commit."""
    monkeypatch.setenv("HF_ENDPOINT", source.url)
    before = snapshot(mirrored)
    rot(mirrored.store, file_of(mirrored, "small", WEIGHTS))
    told = registry("verify", "small", store=tmp_path / "there")
    assert told.returncode == 1
    assert "damaged: model.safetensors of small (its bytes changed)" in told.stdout
    assert "--repair" in told.stdout
    mended = registry("verify", "--all", "--repair", store=tmp_path / "there")
    assert mended.returncode == 0, mended.stdout
    assert "repaired: model.safetensors of small" in mended.stdout
    assert snapshot(mirrored) == before
    right = registry("verify", "--all", store=tmp_path / "there")
    assert (right.returncode, right.stdout.split(maxsplit=1)[1]) == (0, "verified\n")


def test_a_source_that_is_no_better(
    mirrored: Library,
    source: Source,
    tmp_path: Path,
    registry: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives other bytes: said, exit 1, and a bundle still helps."""
    write(mirrored, tmp_path / "bundle")
    monkeypatch.setenv("HF_ENDPOINT", source.url)
    source.switches.corrupt.add(WEIGHTS)
    rot(mirrored.store, file_of(mirrored, "small", WEIGHTS))
    told = registry("verify", "--all", "--repair", store=tmp_path / "there")
    assert told.returncode == 1
    assert "not repaired: model.safetensors of small (its bytes changed): the source gives other" in told.stdout
    told = registry(
        "verify", "small", "--from", str(tmp_path / "bundle"), "--key", KEY.public.text, store=tmp_path / "there"
    )
    assert (told.returncode, "repaired: model.safetensors of small" in told.stdout) == (0, True), told.stdout


def test_a_model_from_a_folder(origin: Library, registry: Run) -> None:
    """Nobody can fetch it: import it again."""
    rot(origin.store, file_of(origin, "one", WEIGHTS))
    place = Path(origin.store.where.removeprefix("file:"))
    told = registry("verify", "one", "--repair", store=place)
    assert told.returncode == 1
    assert "was imported from the folder repo-one. Import it again" in told.stdout


def test_gc_from_a_terminal(published: Manifest, origin: Library, registry: Run) -> None:
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
    """Exit 2, and both ways to ask."""
    done = registry(*arguments, store=tmp_path)
    assert (done.returncode, "NAME ..., --all, or BUNDLE --key" in done.stderr) == (2, True)
