"""Damaged bundles are rejected: every changed byte is found, its file named, nothing published."""

import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from registry.bundle.importing import import_bundle, verify_bundle
from registry.bundle.manifest import MANIFEST, SIGNATURE, BundleError
from registry.bundle.minisign import SecretKey, SignatureError
from registry.models.library import Library
from tests.registry.bundles import KEY, new_library, quiet, snapshot, write
from tests.support.hub import digests


def positions(path: Path, count: int, chance: random.Random) -> list[int]:
    """Offsets at which to change a byte: ends of the file, block boundaries, and random ones."""
    size = path.stat().st_size
    edges = {0, 1, 156, 511, 512, 1023, 1024, size - 1025, size - 1024, size - 513, size - 1}
    return sorted({at for at in edges if 0 <= at < size} | {chance.randrange(size) for _ in range(count)})


def flip(file: BinaryIO, at: int, mask: int) -> None:
    """XOR one byte; a second call restores it."""
    file.seek(at)
    byte = file.read(1)[0]
    file.seek(at)
    file.write(bytes([byte ^ mask]))
    file.flush()


def test_any_changed_byte_of_a_folder_is_rejected(origin: Library, tmp_path: Path) -> None:
    """In volumes (headers and padding included), manifest and signature; the error names the file."""
    chance = random.Random(7)
    bundle = tmp_path / "bundle"
    write(origin, bundle, "one", volume=700_000)
    there = new_library(tmp_path / "there")
    for path in sorted(bundle.iterdir()):
        small = path.name in (MANIFEST, SIGNATURE)
        with path.open("r+b") as file:
            for at in positions(path, 40 if small else 6, chance):
                mask = 1 << chance.randrange(8)
                flip(file, at, mask)
                with pytest.raises((BundleError, SignatureError)) as rejection:
                    import_bundle(there, bundle, KEY.public, quiet)
                named = MANIFEST if small else path.name
                assert named in str(rejection.value), f"byte {at} of {path.name}"
                assert there.names() == [], f"byte {at} of {path.name}"
                if not small:
                    with pytest.raises(BundleError, match=path.name):
                        verify_bundle(bundle, KEY.public, quiet)
                flip(file, at, mask)
    import_bundle(there, bundle, KEY.public, quiet)
    assert snapshot(there)["one"] == snapshot(origin)["one"]


def test_any_changed_byte_of_a_file_is_rejected(origin: Library, tmp_path: Path) -> None:
    """In a bundle of one file, the outer headers and padding included."""
    chance = random.Random(8)
    bundle = tmp_path / "bundle.tar"
    write(origin, bundle, "one", volume=700_000)
    size = bundle.stat().st_size
    tail = range(size - 4096, size, 61)  # manifest, signature and the end
    with tarfile.open(bundle) as outer:
        heads = [member.offset + at for member in outer for at in (0, 50, 100, 124, 136, 148, 156, 257, 345, 511)]
    there = new_library(tmp_path / "there")
    with bundle.open("r+b") as file:
        for at in sorted({*positions(bundle, 20, chance), *tail, *heads}):
            mask = 1 << chance.randrange(8)
            flip(file, at, mask)
            with pytest.raises((BundleError, SignatureError), match=r"bundle\.tar"):
                import_bundle(there, bundle, KEY.public, quiet)
            assert there.names() == [], f"byte {at}"
            flip(file, at, mask)
    verify_bundle(bundle, KEY.public, quiet)


def test_every_changed_volume_is_named(origin: Library, tmp_path: Path) -> None:
    """Blobs of the good volumes are stored already and not stored again."""
    bundle, there = tmp_path / "bundle", new_library(tmp_path / "there")
    made = write(origin, bundle)
    shutil.copytree(bundle, tmp_path / "good")
    for name in ("volume-0002.tar", "volume-0005.tar"):
        with (bundle / name).open("r+b") as file:
            flip(file, 5000, 4)
    with pytest.raises(BundleError, match=r"volume-0002\.tar \(its sha256 is .*\), volume-0005\.tar"):
        import_bundle(there, bundle, KEY.public, quiet)
    assert there.names() == []
    put = import_bundle(there, tmp_path / "good", KEY.public, quiet)[1]
    assert 0 < put < sum(made.blobs().values())
    assert snapshot(there) == snapshot(origin)


@pytest.mark.parametrize("change", ["missing", "short", "long"])
def test_missing_and_resized_volumes_are_named(origin: Library, tmp_path: Path, change: str) -> None:
    """Before any volume is read."""
    bundle = tmp_path / "bundle"
    write(origin, bundle)
    for name in ("volume-0001.tar", "volume-0003.tar"):
        path = bundle / name
        if change == "missing":
            path.unlink()
        elif change == "short":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.write_bytes(path.read_bytes() + b"\0")
    says = "has no volume-0001.tar, volume-0003.tar" if change == "missing" else r"volume-0001.tar \(\d+ bytes .*0003"
    with pytest.raises(BundleError, match=says):
        import_bundle(new_library(tmp_path / "there"), bundle, KEY.public, quiet)


def test_truncated_file_is_rejected(origin: Library, tmp_path: Path) -> None:
    """So is one with bytes after its end."""
    bundle = tmp_path / "bundle.tar"
    write(origin, bundle, "one")
    data = bundle.read_bytes()
    for changed in (data[:-1], data[:-512], data[:-2000], data[:1_500_000], data[:100], b"", data + b"\0"):
        bundle.write_bytes(changed)
        with pytest.raises(BundleError, match=r"bundle\.tar"):
            verify_bundle(bundle, KEY.public, quiet)


def test_missing_signature_and_other_key_are_rejected(origin: Library, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write(origin, bundle, "one")
    other = SecretKey.generate()
    with pytest.raises(SignatureError, match=f"is signed with key {KEY.id}, not with the given key {other.id}"):
        verify_bundle(bundle, other.public, quiet)
    (bundle / SIGNATURE).unlink()
    with pytest.raises(BundleError, match=f"has no {SIGNATURE}"):
        verify_bundle(bundle, KEY.public, quiet)


def resigned(bundle: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change a manifest and sign it again."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    change(document)
    data = json.dumps(document).encode()
    (bundle / MANIFEST).write_bytes(data)
    (bundle / SIGNATURE).write_bytes(KEY.sign(data, "x"))


def deep(document: dict[str, object], *path: str | int) -> dict[str, object]:
    found: object = document
    for step in path:
        found = found[step]  # type: ignore[index]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "version", 2),
        ((), "format", "tarball"),
        ((), "extra", 1),
        (("volumes", 0), "name", "../../volume-0001.tar"),
        (("volumes", 0), "name", "volume-0002.tar"),
        (("volumes", 0, "pieces", 0), "at", 10**9),
        (("volumes", 0, "pieces", 0), "start", 1),
        (("volumes", 0, "pieces", 0), "sha256", "0" * 64),
        (("volumes", 0, "pieces", 0), "length", -1),
        (("models", 0, "pointer"), "name", "../x"),
        (("models", 0, "pointer"), "name", "two"),
        (("models", 0, "pointer"), "repo", "other/repo"),
        (("models", 0, "manifest", "files", 0), "path", "../../etc/passwd"),
        (("models", 0, "manifest", "files", 0), "sha256", "../../../etc/passwd"),
        (("models", 0, "manifest", "files", 0), "size", 17),
    ],
)
def test_invalid_manifest_is_rejected(
    origin: Library, tmp_path: Path, path: tuple[str | int, ...], key: str, value: object
) -> None:
    """Although signed: no path traversal, and nothing is published."""
    bundle = tmp_path / "bundle"
    write(origin, bundle)
    resigned(bundle, lambda document: deep(document, *path).update({key: value}))
    there = new_library(tmp_path / "there")
    with pytest.raises(BundleError, match="manifest"):
        import_bundle(there, bundle, KEY.public, quiet)
    assert there.names() == []
    assert digests(there.store) == set()


def test_signed_bundle_with_wrong_content_is_rejected(origin: Library, tmp_path: Path) -> None:
    """The volumes match the manifest, but a file in them does not match its digest."""
    bundle = tmp_path / "bundle"
    made = write(origin, bundle, "one", volume=1 << 30)
    (volume,) = made.volumes
    with (bundle / volume.name).open("r+b") as file:
        flip(file, volume.pieces[-1].at, 1)
    digest = subprocess.run(["sha256sum", bundle / volume.name], capture_output=True, text=True).stdout.split()[0]
    resigned(bundle, lambda document: deep(document, "volumes", 0).update({"sha256": digest}))
    for check in (lambda: verify_bundle(bundle, KEY.public, quiet),
                  lambda: import_bundle(new_library(tmp_path / "there"), bundle, KEY.public, quiet)):  # fmt: skip
        with pytest.raises(BundleError, match="is invalid: digest mismatch"):
            check()
