"""`registry check`: is what the catalogue names in the store, and whole? Can the clock be right? Asks no network."""

import datetime
from collections.abc import Iterator

from kit.config.catalogue import Entry
from kit.tools.check_result import Finding
from kit.units import human_bytes
from registry.models.library import Library, RevisionUnknown
from registry.store.interface import StoreError

# Before this was written nothing can have been set up: a clock that says so was reset, to 1970 or so.
NOT_BEFORE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
# Two machines' clocks, one of which published what the other reads.
TOLERANCE = datetime.timedelta(minutes=5)
SET_CLOCK = (
    "Set the clock (sudo timedatectl set-time '2026-12-31 12:00:00'), or let a time server of your network do it."
)


def findings(library: Library, now: datetime.datetime) -> Iterator[Finding]:
    """The clock, then every model of the catalogue."""
    try:
        library.store.check()
        newest = max((datetime.datetime.fromisoformat(name.updated) for name in library.names()), default=NOT_BEFORE)
    except StoreError as error:
        yield Finding("problem", "store", str(error), "Start minio; its log says what is wrong.")
        return
    yield clock(now, newest)
    for entry in library.catalogue:
        try:
            yield _model(library, entry)
        except StoreError as error:
            yield Finding("problem", f"model {entry.name}", str(error), "Start minio; its log says what is wrong.")


def clock(now: datetime.datetime, newest: datetime.datetime) -> Finding:
    """Whether `now` can be, when the last model was published at `newest`. Presigned URLs and certificates need it."""
    shown = now.strftime("%Y-%m-%d %H:%M UTC")
    if not NOT_BEFORE <= now < NOT_AFTER:
        return Finding("problem", "clock", f"it is {shown} here, which cannot be", SET_CLOCK)
    if now + TOLERANCE < newest:
        last = newest.strftime("%Y-%m-%d %H:%M UTC")
        detail = f"it is {shown} here, but a model was published at {last}"
        return Finding("problem", "clock", detail, SET_CLOCK)
    return Finding("ok", "clock", shown)


def _model(library: Library, entry: Entry) -> Finding:
    """Whether the model is published as the catalogue says, and all its blobs are there in their sizes."""
    subject, mend = f"model {entry.name}", f"Run scripts/offline-setup.sh {entry.name} with internet."
    pointer = library.name(entry.name)
    if pointer is None or pointer.repo != entry.hf_repo or entry.revision not in (pointer.revision, pointer.commit):
        has = "nothing" if pointer is None else f"{pointer.repo} at {pointer.revision}"
        detail = f"the catalogue says {entry.hf_repo} at {entry.revision}, the registry has {has}"
        return Finding("warning" if entry.optional else "problem", subject, detail, mend)
    try:
        manifest = library.manifest(pointer.repo, pointer.commit)
    except RevisionUnknown:
        return Finding("problem", subject, "its manifest is gone from the store", mend)
    absent = [file.path for file in manifest.files if library.store.blob_size(file.sha256) != file.size]
    if absent:
        return Finding("problem", subject, f"not in the store: {', '.join(absent)}", mend)
    files = f"{len(manifest.files)} files, {human_bytes(manifest.size)}"
    return Finding("ok", subject, f"{pointer.repo} at {pointer.commit[:12]}, {files} in the registry")
