"""One model from the source into the store: list, choose, fetch with digests in flight, publish when all are right."""

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial

import structlog
from pydantic import BaseModel, ConfigDict

from kit.hub_names import BadName
from kit.resume import check_stop, resumed
from registry.choose import choose_files
from registry.hub import Hub, HubError, Listing, SourceFile
from registry.library import BlobsMissing, Library
from registry.manifest import FileEntry, Manifest, Source, entry_of, git_blob_sha1
from registry.progress import Progress
from registry.progress_bar import human_bytes
from registry.store import DigestMismatch

log = structlog.get_logger(__name__)

# A file whose bytes are wrong is fetched once more: a broken proxy on the way is commoner than a broken source.
FETCHES = 2
# Files that come without a sha256 are small ones, kept in git. More than this would have been in LFS.
MAX_WITHOUT_SHA256 = 256 << 20
IN_MEMORY = 8 << 20
CHUNK = 1 << 20
PUBLISH_TRIES = 3
TELL_EVERY_S = 10.0


class Wanted(BaseModel):
    """What to mirror."""

    model_config = ConfigDict(frozen=True)

    name: str
    repo: str
    revision: str
    allow_patterns: tuple[str, ...] | None = None
    ignore_patterns: tuple[str, ...] | None = None


class Transfer:
    """Mirrors one model. `digests` are the blobs that it counts on and that nobody may delete while it runs.

    `stop` ends it; a failure of one file sets it too, to end the others.
    """

    def __init__(
        self, hub: Hub, library: Library, wanted: Wanted, progress: Progress, stop: threading.Event, *, parallel: int
    ) -> None:
        self.digests: set[str] = set()
        self._hub = hub
        self._library = library
        self._wanted = wanted
        self._progress = progress
        self._stop = stop
        self._parallel = parallel

    def run(
        self, publishing: Callable[[], AbstractContextManager[None]], on_chosen: Callable[[], None] = lambda: None
    ) -> Manifest:
        """Fetch and publish; `publishing` is entered for the moment in which the model appears, and may raise instead.

        `on_chosen` is called once, when `digests` are known and nothing was looked for or fetched yet.
        Raises HubError, Broken, StoreError, BadName, Stopped; nothing is published then.
        """
        wanted = self._wanted
        listing = self._hub.listing(wanted.repo, wanted.revision, self._stop)
        paths = set(choose_files([file.path for file in listing.files], wanted.allow_patterns, wanted.ignore_patterns))
        files = [file for file in listing.files if file.path in paths]
        if not files:
            raise BadName(f"No file of {wanted.repo} is left after allow_patterns and ignore_patterns.")
        self.digests.update(file.sha256 for file in files if file.sha256)
        on_chosen()
        self._check_room(files)
        total = human_bytes(sum(file.size for file in files))
        log.info(
            "files chosen", model=wanted.name, repo=wanted.repo, commit=listing.commit, files=len(files), size=total
        )
        for _ in range(PUBLISH_TRIES):
            self._progress.expect(len(files), sum(file.size for file in files))
            entries = self._fetch_all(listing, files)
            try:
                with publishing():
                    return self._library.publish(
                        name=wanted.name,
                        repo=wanted.repo,
                        revision=wanted.revision,
                        commit=listing.commit,
                        files=entries,
                        source=Source(kind="hub", place=self._hub.endpoint),
                    )
            except BlobsMissing as error:
                # Deleted with another model between our look and now: fetch those again.
                missing = error
        raise missing

    def _check_room(self, files: list[SourceFile]) -> None:
        self._library.check_room(self._wanted.name, sum(file.size for file in files if not self._is_here(file)))

    def _is_here(self, file: SourceFile) -> bool:
        return file.sha256 is not None and self._library.store.blob_size(file.sha256) == file.size

    def _fetch_all(self, listing: Listing, files: list[SourceFile]) -> list[FileEntry]:
        """Fetch the files, several at once, the largest first. The first failure ends the others."""
        largest_first = sorted(files, key=lambda file: -file.size)
        first: Exception | None = None
        entries = []
        with ThreadPoolExecutor(self._parallel, thread_name_prefix=f"fetch-{self._wanted.name}") as pool:
            pending = {pool.submit(self._fetch, listing, file) for file in largest_first}
            tell_at = time.monotonic() + TELL_EVERY_S
            while pending:
                timeout = max(tell_at - time.monotonic(), 0.0)
                ended, pending = wait(pending, timeout=timeout, return_when=FIRST_COMPLETED)
                for future in ended:
                    try:
                        entries.append(future.result())
                    except Exception as error:  # noqa: BLE001  # raised below, when the other threads have ended
                        first = first or error
                        self._stop.set()
                if pending and first is None and time.monotonic() >= tell_at:
                    tell_at = time.monotonic() + TELL_EVERY_S
                    left = f"{len(files) - len(pending)} of {len(files)}"
                    log.info("downloading", model=self._wanted.name, progress=self._progress.told(), files=left)
        if first is not None:
            raise first
        return entries

    def _fetch(self, listing: Listing, file: SourceFile) -> FileEntry:
        check_stop(self._stop)
        for attempt in range(1, FETCHES + 1):
            content = _Content(file, self._stream(listing, file), self._progress)
            try:
                entry = self._keep(file, content)
            except DigestMismatch as error:
                self._progress.advance(-content.count)
                if attempt == FETCHES:
                    raise HubError(
                        f"{file.path} of {self._wanted.repo} arrived damaged from {self._hub.endpoint} {FETCHES} times "
                        f"({error}). Nothing was published. Try again later, or another HF_ENDPOINT."
                    ) from error
            except BaseException:
                self._progress.advance(-content.count)
                raise
            else:
                self._progress.file_done()
                return entry
        raise AssertionError("unreachable")

    def _stream(self, listing: Listing, file: SourceFile) -> Iterator[bytes]:
        read = partial(self._hub.read, self._wanted.repo, listing.commit, file.path)
        return resumed(read, start=0, size=file.size, stop=self._stop)

    def _keep(self, file: SourceFile, content: "_Content") -> FileEntry:
        """Put the content into the store, proved by every digest that the source gave."""
        store = self._library.store
        if file.sha256 is None:
            return self._keep_small(file, content)
        if self._is_here(file):
            self._progress.advance(file.size, fetched=False)
            return entry_of(file.path, file.size, file.sha256, file.git_sha1 or "", lfs=file.lfs)
        store.put_blob(file.sha256, file.size, content)
        if content.count == 0 and file.size:  # another file of this model has the same content and was faster
            self._progress.advance(file.size, fetched=False)
        elif file.git_sha1 is not None and content.git_sha1.hexdigest() != file.git_sha1:
            raise DigestMismatch(f"expected git id {file.git_sha1}, got {content.git_sha1.hexdigest()}")
        return entry_of(file.path, file.size, file.sha256, file.git_sha1 or "", lfs=file.lfs)

    def _keep_small(self, file: SourceFile, content: "_Content") -> FileEntry:
        if file.size > MAX_WITHOUT_SHA256:
            raise HubError(f"{file.path} of {self._wanted.repo} has {file.size} bytes and no sha256, which is refused.")
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool:
            sha256 = hashlib.sha256()
            for chunk in content:
                sha256.update(chunk)
                spool.write(chunk)
            got = content.git_sha1.hexdigest()
            if content.count != file.size or got != file.git_sha1:
                raise DigestMismatch(
                    f"expected git id {file.git_sha1} of {file.size} bytes, got {got} of {content.count}"
                )
            digest = sha256.hexdigest()
            self.digests.add(digest)
            spool.seek(0)
            self._library.store.put_blob(digest, file.size, iter(lambda: spool.read(CHUNK), b""))
        return entry_of(file.path, file.size, digest, got, lfs=False)


class _Content(Iterable[bytes]):
    """A stream that counts what passes, for the progress, and hashes it as git does."""

    def __init__(self, file: SourceFile, chunks: Iterator[bytes], progress: Progress) -> None:
        self.count = 0
        self.git_sha1 = git_blob_sha1(file.size)
        self._hashes_git = file.git_sha1 is not None
        self._chunks = chunks
        self._progress = progress

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if self._hashes_git:
                self.git_sha1.update(chunk)
            self.count += len(chunk)
            self._progress.advance(len(chunk))
            yield chunk
