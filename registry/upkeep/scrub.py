"""Bit rot: every byte of models read again, and what is damaged fetched anew from where it came, or a bundle."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from registry.bundle.reader import BundleReader
from registry.models.library import Library
from registry.models.manifest import FileEntry, Manifest
from registry.store.interface import Bytes, DigestMismatch, Store, StoreError, read_digest

# What is read, and a count of bytes.
OnBytes = Callable[[str, int], None]
# repo, commit, file -> its bytes. Raises what a hub raises.
Fetch = Callable[[str, str, FileEntry], Iterator[Bytes]]


@dataclass(frozen=True)
class Damage:
    """A blob that is not what its name says, or is gone."""

    model: str
    manifest: Manifest
    file: FileEntry
    gone: bool

    def __str__(self) -> str:
        return f"{self.file.path} of {self.model} ({'gone' if self.gone else 'its bytes changed'})"


def models_to_read(library: Library, names: Iterable[str]) -> dict[str, Manifest]:
    """The models of these names (none named: all), each with its manifest. Raises BadName."""
    return {pointer.name: library.manifest(pointer.repo, pointer.commit) for pointer in library.named(names)}


def bytes_to_read(models: dict[str, Manifest]) -> int:
    """How many bytes `find_damage` reads: a blob that several models share is read once."""
    return sum({file.sha256: file.size for manifest in models.values() for file in manifest.files}.values())


def find_damage(store: Store, models: dict[str, Manifest], on_bytes: OnBytes) -> Iterator[Damage]:
    """Read every blob of the models and yield those that are wrong. Raises StoreError when the store cannot be read."""
    seen: set[str] = set()
    for name, manifest in models.items():
        for file in manifest.files:
            if file.sha256 in seen:
                continue
            seen.add(file.sha256)
            if store.blob_size(file.sha256) is None:
                on_bytes(name, file.size)
                yield Damage(name, manifest, file, gone=True)
            elif read_digest(store, file.sha256, partial(on_bytes, name)) != file.sha256:
                yield Damage(name, manifest, file, gone=False)


def repair(store: Store, damage: Damage, chunks: Iterator[Bytes]) -> None:
    """Put the right bytes in the place of wrong ones. Raises DigestMismatch and what `chunks` raise.

    The damaged blob is removed first: nobody can use it, and a store takes no blob that it has.
    """
    digest = damage.file.sha256
    with store.exclusive():
        store.delete_blob(digest)
    store.put_blob(digest, damage.file.size, chunks)


def repair_from_source(store: Store, damage: Damage, fetch: Fetch) -> None:
    """Fetch the file at the model's commit once more. Raises StoreError, and what `fetch` raises."""
    manifest = damage.manifest
    if manifest.source.kind != "hub":
        raise StoreError(
            f"{damage}: the model was imported from the folder {manifest.source.place}. Import it again, or repair it "
            "with --from BUNDLE."
        )
    try:
        repair(store, damage, fetch(manifest.repo, manifest.commit, damage.file))
    except DigestMismatch as error:
        raise StoreError(f"{damage}: the source gives other bytes ({error}). Repair it with --from BUNDLE.") from error


def repair_from_bundle(
    store: Store, damages: Iterable[Damage], reader: BundleReader, on_bytes: OnBytes
) -> list[Damage]:
    """Take what the bundle has of what is wrong; gives what is wrong still. Raises BundleError, StoreError.

    A bundle that is damaged itself helps as far as it is right.
    """
    wrong = {damage.file.sha256: damage for damage in damages}
    for content in reader.contents(on_bytes):
        damage = wrong.get(content.digest)
        if damage is None:
            continue
        try:
            repair(store, damage, content.chunks)
        except DigestMismatch:
            continue
        del wrong[content.digest]
    return list(wrong.values())
