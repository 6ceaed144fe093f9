"""Garbage collection of the store.

A blob is garbage if no manifest and no unfinished job (`jobs/`) references it and it is older than a presigned URL's
lifetime; that also protects blobs that are being written. An unfinished upload is garbage after a day, unless an
unfinished job references it.
"""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import structlog

from kit.units import human_bytes
from registry.download.jobs import unfinished_digests
from registry.models.library import Library
from registry.store.deletion_intents import announce_deletion
from registry.store.interface import Blob
from registry.store.lease import CHANGES, lease

log = structlog.get_logger(__name__)

# Blobs checked again and deleted under one lock of the store.
BATCH_BLOBS = 50
MIN_UPLOAD_AGE_S = 24 * 3600.0


class GcResult(NamedTuple):
    """Result of a garbage collection, or of its dry run."""

    blobs: int
    size_bytes: int
    spared: int
    """Unreferenced blobs that are too young to remove."""
    uploads: int
    """Unfinished uploads."""

    def describe(self, *, dry_run: bool) -> str:
        """Return the result as text."""
        uploads = f", {self.uploads} unfinished uploads" if self.uploads else ""
        removed = f"{self.blobs} blobs, {human_bytes(self.size_bytes)}{uploads}"
        young = f"; {self.spared} more may still be in use and were kept" if self.spared else ""
        return f"{'would remove' if dry_run else 'removed'} {removed}{young}"


def collect_garbage(
    library: Library, *, min_age_s: float, running: Callable[[], set[str]], dry_run: bool,
    min_upload_age_s: float = MIN_UPLOAD_AGE_S,
) -> GcResult:  # fmt: skip
    """Remove garbage older than `min_age_s`. `running` returns the digests that jobs of this process reference.

    `min_upload_age_s` applies to unfinished uploads: since the last write or, on S3, since the last part.
    Raises LeaseTaken while another process changes the store, StoreError.
    """
    with lease(library.store, CHANGES, "gc") as renew:
        roots = _roots(library, running)
        garbage = [blob for blob in library.store.blobs() if blob.digest not in roots]
        old = [blob for blob in garbage if blob.age_s > min_age_s]
        removed: list[Blob] = []
        remaining = iter(old)
        while batch := list(islice(remaining, BATCH_BLOBS)):
            renew()
            removed += batch if dry_run else _remove(library, batch, running)
        uploads = _drop_uploads(library, running, min_upload_age_s, dry_run=dry_run)
    result = GcResult(len(removed), sum(blob.size for blob in removed), len(garbage) - len(old), uploads)
    log.info("garbage collected", dry_run=dry_run, **result._asdict())
    return result


def _roots(library: Library, running: Callable[[], set[str]]) -> set[str]:
    """Return the referenced digests. Jobs are read first: a job that ends meanwhile has published its blobs."""
    return _referenced_by_jobs(library, running) | library.reachable_digests()


def _referenced_by_jobs(library: Library, running: Callable[[], set[str]]) -> set[str]:
    return running() | unfinished_digests(library.store)


def _drop_uploads(library: Library, running: Callable[[], set[str]], min_age_s: float, *, dry_run: bool) -> int:
    in_use = _referenced_by_jobs(library, running)
    stale = [
        upload for upload in library.store.unfinished() if upload.age_s > min_age_s and upload.digest not in in_use
    ]
    if dry_run:
        return len(stale)
    dropped = 0
    for upload in stale:
        # A download may have resumed it meanwhile: it is dropped, and on S3 its object deleted, as a blob is.
        with library.store.exclusive(), announce_deletion(library.store, [upload.digest]) as good:
            if upload.digest not in _referenced_by_jobs(library, running) and good():
                library.store.drop_unfinished(upload)
                dropped += 1
    return dropped


def _remove(library: Library, blobs: list[Blob], running: Callable[[], set[str]]) -> list[Blob]:
    """Remove those of `blobs` that are still garbage; the store's lock excludes publishing and deleting."""
    removed = []
    with library.store.exclusive(), announce_deletion(library.store, [blob.digest for blob in blobs]) as good:
        roots = _roots(library, running)
        for blob in blobs:
            if blob.digest not in roots and good():
                library.store.delete_blob(blob.digest)
                removed.append(blob)
    return removed
