"""Import and verification of bundles; both read every byte once."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.config.hub_names import BadName
from registry.bundle.manifest import Bundle, BundleError
from registry.bundle.minisign import PublicKey
from registry.bundle.reader import BundleReader, OnBytes
from registry.models.library import BlobsMissing, Library, RevisionUnknown
from registry.models.manifest import Manifest, Name
from registry.safety.policy import STRICT, Inspection, Policy, Refused
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


def import_bundle(
    library: Library, path: Path, key: PublicKey, on_bytes: OnBytes, policy: Policy = STRICT, *,
    allow_older: bool = False,
) -> tuple[Bundle, int]:  # fmt: skip
    """Store the missing blobs, then publish the models; return the bundle and the bytes stored.

    Models are published only after the whole bundle is verified and every file inspected. Blobs stored before an
    interruption are not stored again. `allow_older` permits a bundle that replaces a model by an older commit.
    Raises BundleError, SignatureError, StoreError.
    """
    stored = 0
    with lease(library.store, CHANGES, "import") as renew:

        def on_read(volume: str, count: int) -> None:
            renew()
            on_bytes(volume, count)

        for _ in range(MAX_PASSES):
            reader = BundleReader(path, key)
            if not allow_older:
                _refuse_older(library, reader)
            stored += _store_blobs(library, reader, on_read)
            _inspect(library, reader, policy, renew)
            try:
                _publish(library, reader.bundle, renew)
                return reader.bundle, stored
            except BlobsMissing as error:
                missing = error  # deleted with another model since we checked
    raise missing


def _refuse_older(library: Library, reader: BundleReader) -> None:
    """Refuse a bundle that moves a name or a ref to a commit published before the present one. Raises BundleError.

    The times of publication are signed, as far as they come from bundles.
    """
    older = []
    for model in reader.bundle.models:
        pointer, created = model.pointer, model.manifest.created
        newer = [manifest for manifest in _replaced(library, pointer) if manifest.created > created]
        if newer:
            older.append(
                f"{pointer.name} at {pointer.commit[:12]} of {created}, in the store at {newer[0].commit[:12]} of "
                f"{newer[0].created}"
            )
    if older:
        raise BundleError(
            f"{reader.source.where} has older models than the store ({'; '.join(older)}). Import a newer bundle, or "
            "accept this one with --allow-older."
        )


def _replaced(library: Library, pointer: Name) -> Iterator[Manifest]:
    """Yield the other commits that the name, and the refs of its repository, point at now."""
    refs = library.refs(pointer.repo)
    moved = library.refs_to_move(pointer.repo, pointer.revision, pointer.commit)
    commits = {(pointer.repo, refs[ref]) for ref in moved if ref in refs}
    if present := library.name(pointer.name):
        commits.add((present.repo, present.commit))
    for repo, commit in sorted(commits - {(pointer.repo, pointer.commit)}):
        with contextlib.suppress(RevisionUnknown):
            yield library.manifest(repo, commit)


def _inspect(library: Library, reader: BundleReader, policy: Policy, renew: Callable[[], None]) -> None:
    """Apply the policy to every model, and renew the lease. Raises BundleError naming the refused ones."""
    errors: list[Refused | BadName] = []
    for model in reader.bundle.models:
        manifest = model.manifest
        paths, left_out = (file.path for file in manifest.files), (each.path for each in manifest.left_out)
        try:
            inspection = Inspection(library.store, manifest.repo, policy, paths, left_out)
            for file in manifest.files:
                renew()
                inspection.scan(file)
        except (Refused, BadName) as error:
            errors.append(error)
    if errors:
        refused = {digest for error in errors if isinstance(error, Refused) for digest in error.digests}
        library.delete_unreachable(refused, spare=set)
        raise BundleError(f"{reader.source.where} is refused: {' '.join(map(str, errors))}")


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


def _publish(library: Library, bundle: Bundle, renew: Callable[[], None]) -> None:
    for model in bundle.models:
        renew()
        pointer, manifest = model.pointer, model.manifest
        library.publish(
            name=pointer.name,
            repo=pointer.repo,
            revision=pointer.revision,
            commit=pointer.commit,
            files=manifest.files,
            source=manifest.source,
            card=manifest.card,
            left_out=manifest.left_out,
            created=manifest.created,
        )


def _raise_if_damaged(reader: BundleReader, mismatched: list[str]) -> None:
    if reader.damaged:
        raise reader.damage_error()
    if mismatched:
        files = ", ".join(reader.bundle.describe_content(digest) for digest in mismatched)
        raise BundleError(f"{reader.source.where} is invalid: digest mismatch of {files}. Export it again.")
