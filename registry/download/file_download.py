"""One file from the source into the store: in parts, several at once, hashed in order on the way, taken up again."""

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator

import structlog

from kit.hub import file_download
from kit.hub.listing import RemoteFile
from kit.net.part_stream import Part, parts_in_order
from kit.net.ranged_file import RangedFile
from kit.net.retry import Attempts, RetryPolicy, check_stop
from registry.download.bandwidth import BandwidthLimit
from registry.download.progress import Progress
from registry.hub.client import HubError
from registry.models.manifest import FileEntry, entry_of, git_blob_sha1
from registry.store.interface import DigestMismatch, Store, StoreDown
from registry.store.part_size import MIN_PART

log = structlog.get_logger(__name__)

# A file whose bytes are wrong is fetched once more: a broken proxy on the way is commoner than a broken source.
FETCHES = 2
# Files that come without a sha256 are small ones, kept in git. More than this would have been in LFS.
MAX_WITHOUT_SHA256 = 256 << 20
IN_MEMORY = 8 << 20
CHUNK = 1 << 20
TURN_S = 0.2


class DamagedFile(Exception):
    """A file whose bytes were not what the source itself promised, each time; the message says how."""


class DownloadLimits(file_download.DownloadLimits):
    """Shared by all downloads: memory, connections, bandwidth, and a lock per blob."""

    def __init__(self, *, parts: int, bytes_per_second: float | None, retries: RetryPolicy) -> None:
        """At most `parts` parts of MIN_PART bytes are in flight at once; a larger part counts for several."""
        super().__init__(parts, MIN_PART)
        self.bandwidth = BandwidthLimit(bytes_per_second)
        self.retries = retries
        self._busy: set[str] = set()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def alone(self, digest: str, stop: threading.Event) -> Iterator[None]:
        """Nobody else fetches this blob meanwhile; whoever comes second waits. Raises Cancelled."""
        with self._changed:
            while not self._changed.wait_for(lambda: digest not in self._busy, TURN_S):
                check_stop(stop)
            self._busy.add(digest)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(digest)
                self._changed.notify_all()


class FileFetch:
    """Brings `file` from `source` into `store`."""

    def __init__(
        self, file: RemoteFile, source: RangedFile, store: Store, lanes: DownloadLimits, progress: Progress,
        stop: threading.Event, counts: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`counts` is told of a digest that is only known on arrival."""
        self._file = file
        self._source = source
        self._store = store
        self._lanes = lanes
        self._counted = _Counted(progress)
        self._stop = stop
        self._counts = counts

    def run(self) -> FileEntry:
        """Fetch, proved by every digest that the source gave. Raises DamagedFile and others.

        The others are HubError, TransientError, StoreError, Cancelled.
        """
        file, fetches, attempts = self._file, 0, Attempts(self._lanes.retries, self._stop)
        while True:
            check_stop(self._stop)
            before = self._counted.kept
            try:
                entry = self._once()
            except DigestMismatch as error:
                fetches += 1
                self._counted.at(0)
                if fetches == FETCHES:
                    raise DamagedFile(f"{FETCHES} times ({error})") from error
            except StoreDown as error:
                log.info("waiting for the store", file=file.path, reason=str(error))
                try:
                    attempts.backoff(error, progress=self._counted.kept > before)
                except BaseException:
                    self._counted.at(0)
                    raise
            except BaseException:
                self._counted.at(0)
                raise
            else:
                self._counted.progress.file_done()
                return entry

    def _once(self) -> FileEntry:
        file = self._file
        if file.sha256 is None:
            return self._without_sha256()
        with self._lanes.alone(file.sha256, self._stop):
            if self._store.blob_size(file.sha256) == file.size:
                self._counted.at(file.size, fetched=False)
            elif file.size <= MIN_PART:
                self._whole(file.sha256)
            else:
                self._in_parts(file.sha256)
        return entry_of(file.path, file.size, file.sha256, file.git_sha1 or "", lfs=file.is_lfs)

    def _in_parts(self, digest: str) -> None:
        with self._store.upload(digest, self._file.size, self._stop) as upload:
            self._counted.kept = upload.done
            self._counted.at(upload.done, fetched=False)
            with contextlib.closing(self._parts(upload.done, upload.part_size)) as parts:
                for part in parts:
                    upload.write(part)
                    check_stop(self._stop)
            upload.finish()

    def _whole(self, digest: str) -> None:
        self._counted.at(0)
        with contextlib.closing(self._parts(0, MIN_PART)) as parts:
            for part in parts:
                try:
                    self._check_git_sha1(part.view)
                    self._store.put_blob(digest, self._file.size, [part.view])
                finally:
                    part.release()
            if self._file.size == 0:
                self._store.put_blob(digest, 0, [])

    def _check_git_sha1(self, content: memoryview) -> None:
        if self._file.git_sha1 is not None:
            hasher = git_blob_sha1(self._file.size)
            hasher.update(content)
            if hasher.hexdigest() != self._file.git_sha1:
                raise DigestMismatch(f"expected git id {self._file.git_sha1}, got {hasher.hexdigest()}")

    def _without_sha256(self) -> FileEntry:
        """A small file, told by git's id alone: its sha256, and so its blob's name, is known when it is here."""
        file = self._file
        if file.size > MAX_WITHOUT_SHA256:
            raise HubError(f"{file.path} has {file.size} bytes and no sha256, which is refused.")
        self._counted.at(0)
        sha256, git_sha1 = hashlib.sha256(), git_blob_sha1(file.size)
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool, contextlib.closing(self._parts(0, MIN_PART)) as parts:
            for part in parts:
                try:
                    sha256.update(part.view)
                    git_sha1.update(part.view)
                    spool.write(part.view)
                finally:
                    part.release()
            if git_sha1.hexdigest() != file.git_sha1:
                raise DigestMismatch(f"expected git id {file.git_sha1}, got {git_sha1.hexdigest()}")
            digest = sha256.hexdigest()
            self._counts(digest)
            spool.seek(0)
            self._store.put_blob(digest, file.size, iter(lambda: spool.read(CHUNK), b""))
        return entry_of(file.path, file.size, digest, git_sha1.hexdigest(), lfs=False)

    def _parts(self, start: int, part_size: int) -> Generator[Part]:
        lanes = self._lanes
        return parts_in_order(
            self._fill, start, self._file.size, part_size,
            buffers=lanes.buffers, pool=lanes.pool, ahead=lanes.connections, stop=self._stop,
        )  # fmt: skip

    def _fill(self, view: memoryview, start: int, abandoned: threading.Event) -> None:
        def on_bytes(count: int) -> None:
            check_stop(abandoned)
            self._counted.advance(count)
            self._lanes.bandwidth.wait(count, self._stop)

        self._source.fill(view, start, self._stop, on_bytes)


class _Counted:
    """How much of one file is done, told to the progress of the whole. Safe for many threads."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.kept = 0
        """What the store had of it when it was last asked: growth means that things go on."""
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Another `count` bytes came."""
        with self._lock:
            self._done += count
        self.progress.advance(count)

    def at(self, done: int, *, fetched: bool = True) -> None:
        """Exactly `done` bytes are here."""
        with self._lock:
            change, self._done = done - self._done, done
        self.progress.advance(change, fetched=fetched)
