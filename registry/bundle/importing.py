"""Reading a bundle into a library, and checking one without a library. Both read every byte, once."""

import hashlib
from pathlib import Path

from registry.bundle.manifest import Bundle, BundleError
from registry.bundle.minisign import PublicKey
from registry.bundle.reader import BundleReader, OnBytes
from registry.models.library import BlobsMissing, Library
from registry.store.interface import DigestMismatch
from registry.store.lease import CHANGES, lease

# Blobs may be deleted with another model while a bundle is read: then it is read once more.
TRIES = 2


def verify_bundle(path: Path, key: PublicKey, on_bytes: OnBytes) -> Bundle:
    """Check signature, volumes and contents. Raises BundleError, which names every volume that is wrong, and others.

    The others: SignatureError.
    """
    reader = BundleReader(path, key)
    wrong = []
    for content in reader.contents(on_bytes):
        hasher = hashlib.sha256()
        for chunk in content.chunks:
            hasher.update(chunk)
        if hasher.hexdigest() != content.digest:
            wrong.append(content.digest)
    _refuse(reader, wrong)
    return reader.bundle


def import_bundle(library: Library, path: Path, key: PublicKey, on_bytes: OnBytes) -> tuple[Bundle, int]:
    """Put the blobs that are missing into the store, then publish the models. Gives the bundle, and the bytes put.

    Names appear only after every byte of the bundle was read and found right. What was put before an interruption is
    not put again. Raises BundleError, SignatureError, StoreError.
    """
    put = 0
    with lease(library.store, CHANGES, "import") as renew:

        def on_read(volume: str, count: int) -> None:
            renew()
            on_bytes(volume, count)

        for _ in range(TRIES):
            reader = BundleReader(path, key)
            put += _put(library, reader, on_read)
            try:
                _publish(library, reader.bundle)
            except BlobsMissing as error:
                missing = error  # deleted with another model since we found them there: put those
            else:
                return reader.bundle, put
    raise missing


def _put(library: Library, reader: BundleReader, on_bytes: OnBytes) -> int:
    """Put what is missing; gives how many bytes that was. Raises BundleError unless the whole bundle is right."""
    store, blobs = library.store, reader.bundle.blobs()
    absent = {digest: size for digest, size in blobs.items() if store.blob_size(digest) != size}
    library.quota.check(f"the bundle {reader.place.where}", sum(absent.values()))
    wrong = []
    for content in reader.contents(on_bytes):
        if content.digest in absent:
            try:
                store.put_blob(content.digest, content.size, content.chunks)
            except DigestMismatch:
                wrong.append(content.digest)  # go on: whoever copies again wants to know of every volume
    _refuse(reader, wrong)
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


def _refuse(reader: BundleReader, wrong: list[str]) -> None:
    if reader.damaged:
        raise reader.refusal()
    if wrong:
        files = ", ".join(reader.bundle.files_of(digest) for digest in wrong)
        raise BundleError(f"{reader.place.where} was made wrong: {files} is not what its digest says. Make it anew.")
