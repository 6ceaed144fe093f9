"""Import and verification of bundles; both read every byte once."""

import hashlib
from pathlib import Path

from registry.bundle.manifest import Bundle, BundleError
from registry.bundle.minisign import PublicKey
from registry.bundle.reader import BundleReader, OnBytes
from registry.models.library import BlobsMissing, Library
from registry.store.interface import DigestMismatch
from registry.store.lease import CHANGES, lease

# A second pass is needed if blobs that existed are deleted with another model meanwhile.
MAX_PASSES = 2


def verify_bundle(path: Path, key: PublicKey, on_bytes: OnBytes) -> Bundle:
    """Verify signature, volumes and contents. Raises BundleError naming every damaged volume, SignatureError."""
    reader = BundleReader(path, key)
    mismatched = []
    for content in reader.contents(on_bytes):
        hasher = hashlib.sha256()
        for chunk in content.chunks:
            hasher.update(chunk)
        if hasher.hexdigest() != content.digest:
            mismatched.append(content.digest)
    _raise_if_damaged(reader, mismatched)
    return reader.bundle


def import_bundle(library: Library, path: Path, key: PublicKey, on_bytes: OnBytes) -> tuple[Bundle, int]:
    """Store the missing blobs, then publish the models; return the bundle and the bytes stored.

    Models are published only after the whole bundle is verified. Blobs stored before an interruption are not stored
    again. Raises BundleError, SignatureError, StoreError.
    """
    stored = 0
    with lease(library.store, CHANGES, "import") as renew:

        def on_read(volume: str, count: int) -> None:
            renew()
            on_bytes(volume, count)

        for _ in range(MAX_PASSES):
            reader = BundleReader(path, key)
            stored += _store_blobs(library, reader, on_read)
            try:
                _publish(library, reader.bundle)
                return reader.bundle, stored
            except BlobsMissing as error:
                missing = error  # deleted with another model since we checked
    raise missing


def _store_blobs(library: Library, reader: BundleReader, on_bytes: OnBytes) -> int:
    """Store the missing blobs; return their bytes. Raises BundleError if any part of the bundle is damaged."""
    store, blobs = library.store, reader.bundle.blobs()
    absent = {digest: size for digest, size in blobs.items() if store.blob_size(digest) != size}
    library.quota.check(f"the bundle {reader.source.where}", sum(absent.values()))
    mismatched = []
    for content in reader.contents(on_bytes):
        if content.digest in absent:
            try:
                store.put_blob(content.digest, content.size, content.chunks)
            except DigestMismatch:
                mismatched.append(content.digest)  # continue, to report every damaged volume
    _raise_if_damaged(reader, mismatched)
    return sum(absent.values())


def _publish(library: Library, bundle: Bundle) -> None:
    for model in bundle.models:
        pointer, manifest = model.pointer, model.manifest
        library.publish(
            name=pointer.name,
            repo=pointer.repo,
            revision=pointer.revision,
            commit=pointer.commit,
            files=manifest.files,
            source=manifest.source,
            card=manifest.card,
        )


def _raise_if_damaged(reader: BundleReader, mismatched: list[str]) -> None:
    if reader.damaged:
        raise reader.damage_error()
    if mismatched:
        files = ", ".join(reader.bundle.describe_content(digest) for digest in mismatched)
        raise BundleError(f"{reader.source.where} is invalid: digest mismatch of {files}. Export it again.")
