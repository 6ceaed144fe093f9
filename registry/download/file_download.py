"""Download of one file into the store: resumed, verified in flight, retried while the store is unavailable."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator

import structlog

from kit.hub import file_download
from kit.hub.listing import RemoteFile, git_blob_sha1
from kit.net.ranged_file import RangedFile
from kit.net.retry import Attempts, Cancelled, RetryPolicy, check_stop
from registry.download.progress import Progress
from registry.hub.client import HubError
from registry.models.manifest import FileEntry, entry_of
from registry.store.interface import DigestMismatch, Store, StoreDown
from registry.store.part_size import MIN_PART

log = structlog.get_logger(__name__)

# A damaged file is fetched once more: a broken proxy on the way is more common than a broken source.
MAX_DAMAGED = 2
POLL_S = 0.2


class DamagedFile(Exception):
    """The content did not have the digest that the source promised, each time; the message names both."""


class BandwidthLimit:
    """Delays receivers to at most `bytes_per_second` (None: no limit). Safe for many threads."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int, stop: threading.Event) -> None:
        """Account for `count` received bytes: wait until the limit permits them. Raises Cancelled."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            seconds = self._free_at - now
        if stop.wait(seconds):
            raise Cancelled


class DownloadLimits(file_download.DownloadLimits):
    """Shared by all downloads: connections, memory, bandwidth, and a lock per blob."""

    def __init__(self, *, parts: int, bytes_per_second: float | None, retries: RetryPolicy) -> None:
        """At most `parts` parts are in flight at once, buffered in at most `parts` times MIN_PART bytes."""
        super().__init__(parts, MIN_PART)
        self.bandwidth = BandwidthLimit(bytes_per_second)
        self.retries = retries
        self._locked: set[str] = set()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def exclusive(self, digest: str, stop: threading.Event) -> Iterator[None]:
        """Hold the lock of a blob, so that only one download fetches it. Raises Cancelled."""
        with self._changed:
            while not self._changed.wait_for(lambda: digest not in self._locked, POLL_S):
                check_stop(stop)
            self._locked.add(digest)
        try:
            yield
        finally:
            with self._changed:
                self._locked.discard(digest)
                self._changed.notify_all()


class FileDownload:
    """The download of `file` from `remote` into `store`."""

    def __init__(
        self, file: RemoteFile, remote: RangedFile, store: Store, limits: DownloadLimits, progress: Progress,
        stop: threading.Event, on_digest: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`on_digest` gets a sha256 that the source did not list, before the blob is stored."""
        self._file = file
        self._store = store
        self._limits = limits
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._stop = stop
        self._on_digest = on_digest
        self._resumed_at = 0
        self._download = file_download.FileDownload(remote, file.size, limits, stop, on_received=self._on_received)

    def run(self) -> FileEntry:
        """Fetch the file, verified by every digest that the source listed.

        Raises DamagedFile, HubError, TransientError, StoreError, Cancelled.
        """
        damaged, attempts = 0, Attempts(self._limits.retries, self._stop)
        try:
            while True:
                check_stop(self._stop)
                before = self._resumed_at
                try:
                    entry = self._fetch()
                except DigestMismatch as error:
                    damaged += 1
                    self._set_done(0)
                    if damaged == MAX_DAMAGED:
                        raise DamagedFile(f"{damaged} times ({error})") from error
                except StoreDown as error:
                    log.info("waiting for the store", file=self._file.path, reason=str(error))
                    attempts.backoff(error, progress=self._resumed_at > before)
                else:
                    self._progress.file_done()
                    return entry
        except BaseException:
            self._set_done(0)
            raise

    def _fetch(self) -> FileEntry:
        file, sha256 = self._file, self._file.sha256
        if sha256 is None:
            sha256 = self._fetch_small()
        else:
            with self._limits.exclusive(sha256, self._stop):
                if self._store.blob_size(sha256) == file.size:
                    self._set_done(file.size, fetched=False)
                elif file.size <= MIN_PART:
                    self._fetch_small()
                else:
                    self._fetch_large(sha256)
        return entry_of(file.path, file.size, sha256, file.git_sha1 or "", lfs=file.is_lfs)

    def _fetch_large(self, sha256: str) -> None:
        with self._store.upload(sha256, self._file.size, self._stop) as upload:
            self._resumed_at = upload.done
            self._set_done(upload.done, fetched=False)
            self._download.run(upload, upload.part_size)

    def _fetch_small(self) -> str:
        """Fetch a file of at most one part, and return its sha256."""
        file = self._file
        if file.size > MIN_PART:
            raise HubError(f"{file.path} has {file.size} bytes and no sha256; the Hub lists one for large files.")
        self._set_done(0)
        with contextlib.closing(self._download.parts(0, MIN_PART)) as parts:
            part = next(parts, None)  # None: the file is empty
            content = part.view if part else memoryview(b"")
            try:
                self._check_git_sha1(content)
                sha256 = file.sha256 or hashlib.sha256(content).hexdigest()
                if file.sha256 is None:
                    self._on_digest(sha256)
                self._store.put_blob(sha256, file.size, [content])
            finally:
                if part:
                    part.release()
        return sha256

    def _check_git_sha1(self, content: memoryview) -> None:
        if self._file.git_sha1 is not None:
            hasher = git_blob_sha1(self._file.size)
            hasher.update(content)
            if hasher.hexdigest() != self._file.git_sha1:
                raise DigestMismatch(f"expected git id {self._file.git_sha1}, got {hasher.hexdigest()}")

    def _set_done(self, done: int, *, fetched: bool = True) -> None:
        with self._lock:
            change, self._done = done - self._done, done
        self._progress.advance(change, fetched=fetched)

    def _on_received(self, count: int) -> None:
        with self._lock:
            self._done += count
        self._progress.advance(count)
        self._limits.bandwidth.wait(count, self._stop)
