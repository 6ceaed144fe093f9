"""`registry check`: models of the catalogue complete in the store, clock plausible. Needs no internet."""

import datetime
from collections.abc import Iterator

from kit.config.catalogue import Entry
from kit.tools.check_result import Finding
from kit.units import human_bytes
from registry.models.library import Library, RevisionUnknown
from registry.store.interface import StoreError

# An earlier clock has been reset, to 1970 for example.
NOT_BEFORE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
# Clock skew between the machine that published a model and this one.
MAX_CLOCK_SKEW = datetime.timedelta(minutes=5)
SET_CLOCK = "Set the clock (sudo timedatectl set-time '2026-12-31 12:00:00'), or use a time server in your network."


def findings(library: Library, now: datetime.datetime) -> Iterator[Finding]:
    """Check the clock, then every model of the catalogue."""
    try:
        library.store.check()
        newest = max((datetime.datetime.fromisoformat(name.updated) for name in library.names()), default=NOT_BEFORE)
    except StoreError as error:
        yield Finding("problem", "store", str(error), "Start minio, and see its log.")
        return
    yield clock(now, newest)
    for entry in library.catalogue:
        try:
            yield _model(library, entry)
        except StoreError as error:
            yield Finding("problem", f"model {entry.name}", str(error), "Start minio, and see its log.")


def clock(now: datetime.datetime, newest: datetime.datetime) -> Finding:
    """Check that `now` is plausible and after `newest`, the last publication. Presigned URLs depend on the clock."""
    shown = now.strftime("%Y-%m-%d %H:%M UTC")
    if not NOT_BEFORE <= now < NOT_AFTER:
        return Finding("problem", "clock", f"the clock says {shown}, which cannot be", SET_CLOCK)
    if now + MAX_CLOCK_SKEW < newest:
        last = newest.strftime("%Y-%m-%d %H:%M UTC")
        detail = f"the clock says {shown}, but a model was published at {last}"
        return Finding("problem", "clock", detail, SET_CLOCK)
    return Finding("ok", "clock", shown)


def _model(library: Library, entry: Entry) -> Finding:
    """Check that the model is published at the catalogue's revision and that every blob exists in its size."""
    subject, fix = f"model {entry.name}", f"Run scripts/offline-setup.sh {entry.name} with internet."
    pointer = library.name(entry.name)
    if pointer is None or pointer.repo != entry.hf_repo or entry.revision not in (pointer.revision, pointer.commit):
        has = "nothing" if pointer is None else f"{pointer.repo} at {pointer.revision}"
        detail = f"the catalogue says {entry.hf_repo} at {entry.revision}, the registry has {has}"
        return Finding("warning" if entry.optional else "problem", subject, detail, fix)
    try:
        manifest = library.manifest(pointer.repo, pointer.commit)
    except RevisionUnknown:
        return Finding("problem", subject, "its manifest is missing in the store", fix)
    missing = [file.path for file in manifest.files if library.store.blob_size(file.sha256) != file.size]
    if missing:
        return Finding("problem", subject, f"not in the store: {', '.join(missing)}", fix)
    files = f"{len(manifest.files)} files, {human_bytes(manifest.size)}"
    return Finding("ok", subject, f"{pointer.repo} at {pointer.commit[:12]}, {files} in the registry")
