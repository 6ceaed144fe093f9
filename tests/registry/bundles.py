"""Helpers for tests of bundles."""

import hashlib
from pathlib import Path

from kit.config.catalogue import Catalogue
from registry.bundle.export import Export, plan_bundle
from registry.bundle.manifest import Archive, Bundle, Image
from registry.bundle.minisign import SecretKey
from registry.models.library import Library
from registry.store.file_store import FileStore

VOLUME = 1 << 20
KEY = SecretKey.generate()


def quiet(_label: str, _count: int) -> None:
    """Ignore the progress."""


def new_library(folder: Path) -> Library:
    return Library(FileStore(folder), Catalogue([]))


def write(library: Library, path: Path, *names: str, volume: int = VOLUME, archives: tuple[Path, ...] = ()) -> Bundle:
    """Export to `path`."""
    planned = plan_bundle(library, names, [archive_of(file) for file in archives], volume)
    files = {archive_of(file).sha256: file for file in archives}
    return Export(planned, path, library.store, files).run(KEY, quiet)


def archive_of(file: Path) -> Archive:
    data = file.read_bytes()
    image = Image(name="gpu-cluster/registry:1", id="sha256:" + "1" * 64)
    return Archive(name="images.tar", size=len(data), sha256=hashlib.sha256(data).hexdigest(), images=(image,))


def snapshot(library: Library) -> dict[str, dict[str, bytes]]:
    """Every file of every model, read back."""
    return {
        name.name: {
            file.path: b"".join(library.store.read_blob(file.sha256))
            for file in library.manifest(name.repo, name.commit).files
        }
        for name in library.names()
    }
