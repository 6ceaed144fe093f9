"""Export and import of bundles: complete or not at all, resumable, readable with standard tools."""

import subprocess
import tarfile
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue
from registry.bundle.export import Export, plan_bundle
from registry.bundle.importing import import_bundle, verify_bundle
from registry.bundle.manifest import MANIFEST, BundleError, parse, to_json
from registry.bundle.minisign import SecretKey
from registry.bundle.target import open_target
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from registry.store.interface import Document, Store
from tests.registry.bundles import KEY, VOLUME, new_library, quiet, snapshot, write
from tests.support.hub import digests, random_bytes, small_repo


@pytest.fixture(params=["bundle", "bundle.tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Path of a bundle: a folder, and one file."""
    return tmp_path / "carried" / str(request.param)


def test_import_restores_models_exactly(origin: Library, place: Path, library: Library) -> None:
    """Names, commits, refs and bytes, in a folder and in a bucket; a second import stores nothing."""
    bundle = write(origin, place)
    assert len(bundle.volumes) > 4
    assert verify_bundle(place, KEY.public, quiet) == bundle
    _, put = import_bundle(library, place, KEY.public, quiet)
    assert put == sum(bundle.blobs().values())
    assert snapshot(library) == snapshot(origin)
    for name in origin.names():
        there = library.name(name.name)
        assert there is not None
        assert (there.repo, there.revision, there.commit) == (name.repo, name.revision, name.commit)
        assert library.refs(name.repo) == origin.refs(name.repo)
    assert import_bundle(library, place, KEY.public, quiet)[1] == 0


def test_import_stores_only_missing_blobs(origin: Library, place: Path, tmp_path: Path) -> None:
    write(origin, place)
    there = new_library(tmp_path / "there")
    folder = small_repo(tmp_path / "again", seed="a")
    import_folder(there, folder, name="one", repo="test/one", revision="main")
    put = import_bundle(there, place, KEY.public, quiet)[1]
    assert put == 3_000_000 + len('{"model_type": "bert", "seed": "b"}')


def test_export_of_selected_models(origin: Library, place: Path, tmp_path: Path) -> None:
    """An unknown name lists the known ones."""
    bundle = write(origin, place, "two", volume=1 << 30)
    assert len(bundle.volumes) == 1
    there = new_library(tmp_path / "there")
    import_bundle(there, place, KEY.public, quiet)
    assert [name.name for name in there.names()] == ["two"]
    with pytest.raises(BundleError, match=r"Not in the store: three\. In the store: one, two\."):
        plan_bundle(origin, ["two", "three"], [], VOLUME)


def test_bundle_can_be_read_with_standard_tools(origin: Library, tmp_path: Path) -> None:
    """`tar` unpacks every volume, `cat` joins the parts, `sha256sum` verifies each file."""
    bundle = write(origin, tmp_path / "bundle")
    lines = "".join(f"{volume.sha256}  {volume.name}\n" for volume in bundle.volumes)
    subprocess.run(["sha256sum", "--check", "--quiet"], input=lines, text=True, cwd=tmp_path / "bundle", check=True)
    out = tmp_path / "out"
    out.mkdir()
    for volume in bundle.volumes:
        subprocess.run(["tar", "-xf", str(tmp_path / "bundle" / volume.name), "-C", str(out)], check=True)
    for digest in bundle.blobs():
        joined = f"cat blobs/sha256/{digest}* | sha256sum"
        printed = subprocess.run(["sh", "-c", joined], cwd=out, capture_output=True, text=True, check=True).stdout
        assert printed.split()[0] == digest
    counted = subprocess.run(
        ["grep", "-c", '^{"name": "volume-', MANIFEST], cwd=tmp_path / "bundle", capture_output=True
    )
    assert int(counted.stdout) == len(bundle.volumes)


def test_image_archives_are_exported_but_not_stored(origin: Library, tmp_path: Path) -> None:
    """They are in front, so that `tar` finds them without reading the models."""
    saved = tmp_path / "images.tar"
    saved.write_bytes(random_bytes("images", 1_500_000))
    bundle = write(origin, tmp_path / "bundle", archives=(saved,))
    members = [piece.member for volume in bundle.volumes for piece in volume.pieces]
    assert members[:2] == ["images.tar.part0001", "images.tar.part0002"]
    got = b""
    for number in (1, 2):
        with tarfile.open(tmp_path / "bundle" / f"volume-000{number}.tar") as volume:
            part = volume.extractfile(f"images.tar.part000{number}")
            assert part is not None
            got += part.read()
    assert got == saved.read_bytes()
    there = new_library(tmp_path / "there")
    import_bundle(there, tmp_path / "bundle", KEY.public, quiet)
    assert bundle.archives[0].sha256 not in digests(there.store)
    assert snapshot(there) == snapshot(origin)


class PowerFailure(Exception):
    """Simulated crash during an export."""


def failing_after(store: Store, after: int) -> Callable[..., Iterator[bytes]]:
    """Return a `read_blob` that fails after `after` bytes."""
    original, left = store.read_blob, after

    def read_blob(digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        nonlocal left
        for chunk in original(digest, start, end):
            left -= len(chunk)
            if left < 0:
                raise PowerFailure
            yield chunk

    return read_blob


@pytest.mark.parametrize("after", [0, 1_100_000, 2_300_000, 4_000_000, 5_990_000])
def test_interrupted_export_resumes(
    origin: Library, place: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unfinished bundle is rejected; the second export writes only the missing volumes."""
    monkeypatch.setattr(origin.store, "read_blob", failing_after(origin.store, after))
    with pytest.raises(PowerFailure):
        write(origin, place)
    monkeypatch.undo()
    with pytest.raises(BundleError, match="not finished"):
        verify_bundle(place, KEY.public, quiet)
    work = Export(plan_bundle(origin, [], [], VOLUME), place, origin.store, {})
    left = work.bytes_left
    assert left < 6_020_000 - after + VOLUME
    written: list[int] = []
    bundle = work.run(KEY, lambda _name, count: written.append(count))
    assert sum(written) == left
    assert verify_bundle(place, KEY.public, quiet) == bundle
    assert sorted(path.name for path in place.parent.iterdir()) == [place.name]
    # A third export writes nothing.
    assert Export(plan_bundle(origin, [], [], VOLUME), place, origin.store, {}).run(KEY, quiet) == bundle


def test_existing_bundle_is_not_overwritten(origin: Library, place: Path) -> None:
    """Neither one with other content nor one signed with another key."""
    write(origin, place, "one")
    with pytest.raises(BundleError, match="is a bundle with other content"):
        write(origin, place)
    with pytest.raises(BundleError, match=r"is signed with key .* Choose another --output"):
        Export(plan_bundle(origin, ["one"], [], VOLUME), place, origin.store, {}).run(SecretKey.generate(), quiet)


def test_damaged_or_missing_blob_stops_the_export(origin: Library, place: Path) -> None:
    """The error names the file and the command that repairs it."""
    weights = origin.manifest("test/two", "main").file("model.safetensors")
    assert weights is not None
    path = origin.store.local_path(weights.sha256)
    assert path is not None
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2_999_999)
        file.write(b"!")
    with pytest.raises(BundleError, match=r"model\.safetensors of two is damaged .* registry verify two --repair"):
        write(origin, place)
    path.unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors of two is damaged or missing"):
        plan_bundle(origin, [], [], VOLUME)


def test_full_disk_is_reported_before_writing(origin: Library, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.bundle.export.free_bytes", lambda _path: 1_000_000)
    with pytest.raises(BundleError, match=r"Not enough space .*: 6\.0 MB needed, 1\.0 MB free"):
        write(origin, place)


def test_manifest_round_trips_through_json(origin: Library) -> None:
    planned = plan_bundle(origin, [], [], VOLUME)
    assert parse(to_json(planned), "x") == planned


def test_unwritable_target_is_reported() -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        open_target(Path("/proc/nothing/bundle"))


def test_lease_is_renewed_for_every_file_inspected_and_every_model_published(
    origin: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long inspection does not lose it."""
    steps: list[str] = []

    class Recorder(FileStore):
        """Records renewals, and what each of them must precede."""

        def read_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
            steps.append(digest)
            return super().read_blob(digest, start, end)

        def put_document(self, key: str, document: Document) -> None:
            steps.append(key.partition("/")[0] if key.startswith("leases/") else key)
            super().put_document(key, document)

    monkeypatch.setattr("registry.store.lease.RENEW_S", 0.0)
    write(origin, tmp_path / "bundle")
    import_bundle(Library(Recorder(tmp_path / "there"), Catalogue([])), tmp_path / "bundle", KEY.public, quiet)
    tasks = [step for step, _ in groupby(steps) if not step.startswith("models/")]
    assert sum(step.startswith("names/") for step in tasks) == 2
    for before, after in pairwise(tasks):
        assert "leases" in (before, after)
