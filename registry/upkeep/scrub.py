"""Detection and repair of damaged blobs: read every byte again, repair from the source or from a bundle."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from kit.hub.client import HubClient
from registry.bundle.reader import BundleReader
from registry.models.library import Library
from registry.models.manifest import FileEntry, Manifest
from registry.store.interface import Bytes, DigestMismatch, Store, StoreError, read_digest

# Called with the model's name and a number of bytes read.
OnBytes = Callable[[str, int], None]


@dataclass(frozen=True)
class Damage:
    """A blob that is missing or does not match its digest."""

    model: str
    manifest: Manifest
    file: FileEntry
    is_missing: bool

    def __str__(self) -> str:
        return f"{self.file.path} of {self.model} ({'missing' if self.is_missing else 'digest mismatch'})"


def models_to_read(library: Library, names: Iterable[str]) -> dict[str, Manifest]:
    """Return the manifests of the models `names` (default: all). Raises BadName."""
    return {pointer.name: library.manifest(pointer.repo, pointer.commit) for pointer in library.named(names)}


def bytes_to_read(models: dict[str, Manifest]) -> int:
    """Return the bytes that `find_damage` reads; shared blobs count once."""
    return sum({file.sha256: file.size for manifest in models.values() for file in manifest.files}.values())


def find_damage(store: Store, models: dict[str, Manifest], on_bytes: OnBytes) -> Iterator[Damage]:
    """Read every blob of the models and yield the damaged ones. Raises StoreError if the store cannot be read."""
    seen: set[str] = set()
    for name, manifest in models.items():
        for file in manifest.files:
            if file.sha256 in seen:
                continue
            seen.add(file.sha256)
            if store.blob_size(file.sha256) is None:
                on_bytes(name, file.size)
                yield Damage(name, manifest, file, is_missing=True)
            elif read_digest(store, file.sha256, partial(on_bytes, name)) != file.sha256:
                yield Damage(name, manifest, file, is_missing=False)


def repair(store: Store, damage: Damage, chunks: Iterator[Bytes]) -> None:
    """Replace a damaged blob by `chunks`. Raises DigestMismatch and the errors of `chunks`.

    The damaged blob is removed first, because the store does not overwrite blobs.
    """
    digest = damage.file.sha256
    with store.exclusive():
        store.delete_blob(digest)
    store.put_blob(digest, damage.file.size, chunks)


def repair_from_source(store: Store, damage: Damage, hub: HubClient) -> None:
    """Download the file again at the model's commit. Raises StoreError and the errors of `hub`."""
    manifest = damage.manifest
    if manifest.source.kind != "hub":
        raise StoreError(
            f"{damage}: the model was imported from the folder {manifest.source.place}. Import it again, or repair it "
            "with --from BUNDLE."
        )
    file = hub.file(manifest.repo, manifest.commit, damage.file.path)
    try:
        repair(store, damage, file.chunks(0, damage.file.size, threading.Event()))
    except DigestMismatch as error:
        raise StoreError(f"{damage}: the source has different bytes ({error}). Repair with --from BUNDLE.") from error


def repair_from_bundle(
    store: Store, damages: Iterable[Damage], reader: BundleReader, on_bytes: OnBytes
) -> list[Damage]:
    """Repair what the bundle has; return the damages left. Raises BundleError, StoreError.

    A damaged bundle is used as far as its digests match.
    """
    remaining = {damage.file.sha256: damage for damage in damages}
    for content in reader.contents(on_bytes):
        damage = remaining.get(content.digest)
        if damage is None:
            continue
        try:
            repair(store, damage, content.chunks)
        except DigestMismatch:
            continue
        del remaining[content.digest]
    return list(remaining.values())
