"""Reading a bundle into a library, and checking one without a library. Both read every byte, once."""

import hashlib
from pathlib import Path

from registry.bundle_manifest import Bundle, BundleError
from registry.bundle_reader import BundleReader, OnBytes
from registry.library import Library
from registry.minisign import PublicKey
from registry.store import DigestMismatch


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
    reader = BundleReader(path, key)
    blobs = reader.bundle.blobs()
    wrong, put = [], 0
    for content in reader.contents(on_bytes):
        if content.digest not in blobs or library.store.blob_size(content.digest) == content.size:
            continue
        try:
            library.store.put_blob(content.digest, content.size, content.chunks)
        except DigestMismatch:
            wrong.append(content.digest)  # go on: whoever copies again wants to know of every volume
        else:
            put += content.size
    _refuse(reader, wrong)
    for model in reader.bundle.models:
        pointer, manifest = model.pointer, model.manifest
        library.publish(
            name=pointer.name,
            repo=pointer.repo,
            revision=pointer.revision,
            commit=pointer.commit,
            files=manifest.files,
            source=manifest.source,
        )
    return reader.bundle, put


def _refuse(reader: BundleReader, wrong: list[str]) -> None:
    if reader.damaged:
        raise reader.refusal()
    if wrong:
        files = ", ".join(reader.bundle.files_of(digest) for digest in wrong)
        raise BundleError(f"{reader.place.where} was made wrong: {files} is not what its digest says. Make it anew.")
