"""Bundles from one store to another: whole or not at all, gone on with, and readable by anybody's tools."""

import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.bundle.export import Export, plan_bundle
from registry.bundle.importing import import_bundle, verify_bundle
from registry.bundle.manifest import MANIFEST, BundleError, parse, to_json
from registry.bundle.minisign import SecretKey
from registry.bundle.target import open_target
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.interface import Store
from tests.registry.bundles import KEY, VOLUME, new_library, quiet, snapshot, write
from tests.support.hub import digests, random_bytes, small_repo


@pytest.fixture(params=["bundle", "bundle.tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a bundle goes: a folder, and one file."""
    return tmp_path / "carried" / str(request.param)


def test_from_one_store_to_another(origin: Library, place: Path, library: Library) -> None:
    """Names, commits, refs and bytes arrive, into a folder and into a bucket; the second time nothing is written."""
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


def test_only_what_is_missing_is_written(origin: Library, place: Path, tmp_path: Path) -> None:
    """A store that has one of the models takes the blobs of the other."""
    write(origin, place)
    there = new_library(tmp_path / "there")
    folder = small_repo(tmp_path / "again", seed="a")
    import_folder(there, folder, name="one", repo="test/one", revision="main")
    put = import_bundle(there, place, KEY.public, quiet)[1]
    assert put == 3_000_000 + len('{"model_type": "bert", "seed": "b"}')


def test_a_selection(origin: Library, place: Path, tmp_path: Path) -> None:
    """Only the models named, in a single volume where there is room; an unknown name lists what there is."""
    bundle = write(origin, place, "two", volume=1 << 30)
    assert len(bundle.volumes) == 1
    there = new_library(tmp_path / "there")
    import_bundle(there, place, KEY.public, quiet)
    assert [name.name for name in there.names()] == ["two"]
    with pytest.raises(BundleError, match=r"Not in the store: three\. In the store: one, two\."):
        plan_bundle(origin, ["two", "three"], [], VOLUME)


def test_ordinary_tools_can_read_it(origin: Library, tmp_path: Path) -> None:
    """`tar` unpacks every volume, `cat` joins the parts, `sha256sum` finds each file right under its name."""
    bundle = write(origin, tmp_path / "bundle")
    lines = "".join(f"{volume.sha256}  {volume.name}\n" for volume in bundle.volumes)
    subprocess.run(["sha256sum", "--check", "--quiet"], input=lines, text=True, cwd=tmp_path / "bundle", check=True)
    out = tmp_path / "out"
    out.mkdir()
    for volume in bundle.volumes:
        subprocess.run(["tar", "-xf", str(tmp_path / "bundle" / volume.name), "-C", str(out)], check=True)
    for digest in bundle.blobs():
        joined = f"cat blobs/sha256/{digest}* | sha256sum"
        told = subprocess.run(["sh", "-c", joined], cwd=out, capture_output=True, text=True, check=True).stdout
        assert told.split()[0] == digest
    counted = subprocess.run(
        ["grep", "-c", '^{"name": "volume-', MANIFEST], cwd=tmp_path / "bundle", capture_output=True
    )
    assert int(counted.stdout) == len(bundle.volumes)


def test_archives_of_images_travel_along(origin: Library, tmp_path: Path) -> None:
    """They lie in front, so that `tar` finds them without reading the models; they are not put into the store."""
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


class Cut(Exception):
    """The power went."""


def cutting(store: Store, after: int) -> Callable[..., Iterator[bytes]]:
    """`read_blob` of a store that breaks after so many bytes."""
    whole, left = store.read_blob, after

    def read_blob(digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        nonlocal left
        for chunk in whole(digest, start, end):
            left -= len(chunk)
            if left < 0:
                raise Cut
            yield chunk

    return read_blob


@pytest.mark.parametrize("after", [0, 1_100_000, 2_300_000, 4_000_000, 5_990_000])
def test_an_export_goes_on(
    origin: Library, place: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cut off is no bundle, and says so; run again it writes the volumes that are missing, and no other."""
    monkeypatch.setattr(origin.store, "read_blob", cutting(origin.store, after))
    with pytest.raises(Cut):
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
    # It is complete now: asked for again, nothing is written.
    assert Export(plan_bundle(origin, [], [], VOLUME), place, origin.store, {}).run(KEY, quiet) == bundle


def test_a_place_that_is_taken(origin: Library, place: Path) -> None:
    """By another bundle, by the same one under another key, by an unfinished one of something else."""
    write(origin, place, "one")
    with pytest.raises(BundleError, match="is a bundle of something else already"):
        write(origin, place)
    with pytest.raises(BundleError, match=r"is signed with key .* Choose another place"):
        Export(plan_bundle(origin, ["one"], [], VOLUME), place, origin.store, {}).run(SecretKey.generate(), quiet)


def test_what_is_damaged_in_the_store_gets_into_no_bundle(origin: Library, place: Path) -> None:
    """It is named, with what mends it; also when it is gone."""
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
    with pytest.raises(BundleError, match=r"model\.safetensors of two is damaged or gone"):
        plan_bundle(origin, [], [], VOLUME)


def test_a_full_disk(origin: Library, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before a byte is written."""
    monkeypatch.setattr("registry.bundle.export.free_bytes", lambda _path: 1_000_000)
    with pytest.raises(BundleError, match=r"has no room: 6\.0 MB are needed, 1\.0 MB are free"):
        write(origin, place)


def test_the_manifest_survives_its_json(origin: Library) -> None:
    """And what cannot be written says so."""
    planned = plan_bundle(origin, [], [], VOLUME)
    assert parse(to_json(planned), "x") == planned
    with pytest.raises(BundleError, match="cannot be written"):
        open_target(Path("/proc/nothing/bundle"))
