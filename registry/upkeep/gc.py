"""Clearing up a store: what no model reaches and nobody is about to use.

A blob is garbage when no manifest reaches it, no unfinished job counts on it (its digests stand in `jobs/`), and it is
older than a URL that a client may hold. A blob that is being put into the store now is younger than that. An upload
that was left unfinished is garbage after a day, unless an unfinished job will go on with it.
"""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import structlog

from kit.units import human_bytes
from registry.download.jobs import kept_digests
from registry.models.library import Library
from registry.store.deletion_intents import announced
from registry.store.interface import Blob
from registry.store.lease import CHANGES, lease

log = structlog.get_logger(__name__)

# What is looked at again, right before it is deleted, together; the store's lock is held meanwhile.
AT_ONCE = 50
SPARE_UPLOADS_S = 24 * 3600.0


class Cleared(NamedTuple):
    """What was removed, or would be."""

    blobs: int
    size_bytes: int
    spared: int
    """Blobs that no model reaches, and that are too young."""
    uploads: int
    """Uploads that were left unfinished."""

    def told(self, *, dry_run: bool) -> str:
        """In words."""
        uploads = f", {self.uploads} unfinished uploads" if self.uploads else ""
        what = f"{self.blobs} blobs, {human_bytes(self.size_bytes)}{uploads}"
        young = f"; {self.spared} more may still be in use, and are looked at again another time" if self.spared else ""
        return f"{'would remove' if dry_run else 'removed'} {what}{young}"


def clear_up(
    library: Library, *, spare_s: float, running: Callable[[], set[str]], dry_run: bool,
    spare_uploads_s: float = SPARE_UPLOADS_S,
) -> Cleared:  # fmt: skip
    """Remove garbage that is older than `spare_s` seconds, or only look. `running`: what jobs of this process count on.

    `spare_uploads_s` is the same for unfinished uploads, from when they were last written to or, on S3, begun.
    Raises LeaseTaken when somebody else is at it, StoreError.
    """
    with lease(library.store, CHANGES, "gc") as renew:
        roots = _roots(library, running)
        garbage = [blob for blob in library.store.blobs() if blob.digest not in roots]
        old = [blob for blob in garbage if blob.age_s > spare_s]
        removed: list[Blob] = []
        rest = iter(old)
        while some := list(islice(rest, AT_ONCE)):
            renew()
            removed += some if dry_run else _remove(library, some, running)
        uploads = _drop_uploads(library, running, spare_uploads_s, dry_run=dry_run)
    cleared = Cleared(len(removed), sum(blob.size for blob in removed), len(garbage) - len(old), uploads)
    log.info("cleared up", dry_run=dry_run, **cleared._asdict())
    return cleared


def _roots(library: Library, running: Callable[[], set[str]]) -> set[str]:
    """What is not garbage. Jobs first: one that ends meanwhile has published what it counted on."""
    return _counted_on(library, running) | library.reached()


def _counted_on(library: Library, running: Callable[[], set[str]]) -> set[str]:
    return running() | kept_digests(library.store)


def _drop_uploads(library: Library, running: Callable[[], set[str]], spare_s: float, *, dry_run: bool) -> int:
    wanted = _counted_on(library, running)
    left = [upload for upload in library.store.unfinished() if upload.age_s > spare_s and upload.digest not in wanted]
    if not dry_run:
        for upload in left:
            library.store.drop_unfinished(upload)
    return len(left)


def _remove(library: Library, blobs: list[Blob], running: Callable[[], set[str]]) -> list[Blob]:
    """Remove those of `blobs` that are garbage still, while nothing is published or deleted."""
    removed = []
    with library.store.exclusive(), announced(library.store, [blob.digest for blob in blobs]) as good:
        roots = _roots(library, running)
        for blob in blobs:
            if blob.digest not in roots and good():
                library.store.delete_blob(blob.digest)
                removed.append(blob)
    return removed
