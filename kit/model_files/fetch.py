"""Model files from the registry in a local folder: verified, resumable, shared between processes."""

import errno
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from kit.config.catalogue import Entry
from kit.config.hub_names import BadName, chosen
from kit.hub.client import HubClient
from kit.hub.file_download import CHUNK, SPAN, DownloadLimits, FileDownload
from kit.hub.file_queue import FileQueue
from kit.hub.listing import Listing, RemoteFile
from kit.model_files.cache import ModelCache, VerifiedFolder
from kit.model_files.local_file import DigestMismatch, LocalFile
from kit.model_files.registry_source import ModelFilesError, NotMirrored, RegistryClient
from kit.net.retry import RETRY_POLICY, Cancelled, ChildStop, RetryPolicy, TransientError, check_stop
from kit.units import human_bytes

__all__ = ["ModelFilesError", "fetch_model"]

log = structlog.get_logger(__name__)

Report = Callable[[float, str], None]

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class FetchTuning:
    """Parallelism, sizes in bytes and retries of a fetch."""

    files: int = 4
    parts: int = 6
    part: int = 8 << 20
    span: int = SPAN
    chunk: int = CHUNK
    retries: RetryPolicy = RETRY_POLICY


def fetch_model(
    entry: Entry,
    *,
    registry_url: str,
    token: str | None,
    cache: Path,
    report: Report,
    stop: threading.Event,
    tuning: FetchTuning = FetchTuning(),  # frozen
) -> Path:
    """Return a local folder with exactly the verified files of `entry`; blocks until they are there.

    The folder's name is the commit, so a revision that moves gets a new folder. Digests are checked in flight; files
    verified before are not read again while their size and time stay the same. `report` gets the progress (0 to 1) and
    what is going on. If the registry is down or has to mirror the model first, a complete folder from before is used.
    Of several processes that fetch one model, one does and the others wait. Raises ModelFilesError.
    """
    try:
        with RegistryClient(registry_url, token, model=entry.name, retries=tuning.retries) as registry:
            return _Fetch(entry, registry, ModelCache(cache, entry.hf_repo), report, stop, tuning).run()
    except Cancelled as error:
        raise ModelFilesError(
            "Stopped before all files were fetched; finished parts are kept.", is_transient=True
        ) from error
    except TransientError as error:
        raise ModelFilesError(f"{error} Finished parts are kept.", is_transient=True) from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise ModelFilesError(
                f"The disk of {cache} is full ({error.strerror}). Free some space or set MODEL_CACHE.",
                is_transient=False,
            ) from error
        raise ModelFilesError(
            f"The model cache {cache} cannot be used: {error.strerror or error} ({error.filename}). Set MODEL_CACHE.",
            is_transient=False,
        ) from error


class _Fetch:
    """One call of `fetch_model`."""

    def __init__(
        self,
        entry: Entry,
        registry: HubClient,
        cache: ModelCache,
        report: Report,
        stop: threading.Event,
        tuning: FetchTuning,
    ) -> None:
        self._entry = entry
        self._registry = registry
        self._cache = cache
        self._report = report
        self._stop = ChildStop(stop)
        self._tuning = tuning
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._large: set[RemoteFile] = set()

    def run(self) -> Path:
        """Return the folder."""
        check_stop(self._stop)
        self._report(0.0, f"contacting the registry at {self._registry.endpoint}")
        try:
            listing = self._listing()
        except (TransientError, NotMirrored) as error:
            return self._offline(error)
        self._total = listing.size
        folder = self._cache.complete(listing, self._stop)
        if folder is None:
            waiting = f"waiting for another process that is fetching {self._entry.name}"
            with self._cache.locked(lambda: self._report(0.0, waiting), self._stop):
                # Another process may have completed it while this one waited.
                folder = self._cache.complete(listing, self._stop) or self._fill(listing)
        self._cache.record_revision(self._entry.revision, listing.commit)
        self._report(1.0, "files verified")
        return folder

    def _listing(self) -> Listing:
        entry = self._entry
        listing = self._registry.listing(entry.hf_repo, entry.revision, self._stop)
        paths = set(chosen((file.path for file in listing.files), entry.allow_patterns, entry.ignore_patterns))
        if not paths:
            raise ModelFilesError(
                f"No file of {entry.hf_repo} matches allow_patterns and ignore_patterns of {entry.name}.",
                is_transient=False,
            )
        try:
            return listing.select(paths)
        except BadName as error:
            raise ModelFilesError(f"{entry.name}: {error}", is_transient=False) from error

    def _offline(self, error: TransientError | NotMirrored) -> Path:
        folder = self._cache.last_complete(self._entry.revision, self._stop)
        if folder is None and isinstance(error, NotMirrored):
            raise error
        if folder is None:
            raise ModelFilesError(
                f"{error} {self._entry.name} is not in {self._cache.home} yet. Start the registry or set REGISTRY_URL.",
                is_transient=True,
            ) from error
        log.warning("registry unavailable, using cached model files", reason=str(error), folder=str(folder))
        self._report(1.0, "files from before")
        return folder

    def _fill(self, listing: Listing) -> Path:
        part = self._cache.part(listing)
        # Intact files of a damaged folder of this commit are not fetched again.
        present = VerifiedFolder(part.folder.with_name(listing.commit))
        missing = []
        for file in listing.files:
            if present.has(file, self._stop) or part.has(file, self._stop):
                self._done += file.size
            else:
                missing.append(file)
        self._check_space(part.folder, missing)
        self._large = {file for file in missing if file.size > self._tuning.part}
        # Largest first: the last file, with nothing in parallel, should be small.
        missing.sort(key=lambda file: file.size, reverse=True)
        with closing(DownloadLimits(self._tuning.parts, self._tuning.part)) as limits:
            fetch = partial(self._fetch_file, listing, part, limits)
            FileQueue(missing, fetch, self._stop, parallel=self._tuning.files, abort=self._registry.abort).run()
        return self._cache.publish(listing, part)

    def _check_space(self, folder: Path, missing: list[RemoteFile]) -> None:
        needed = 0
        for file in missing:
            path = folder / file.path
            needed += max(file.size - (path.stat().st_size if path.is_file() else 0), 0)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ModelFilesError(
                f"The disk of {folder.parent} is full: {self._entry.name} needs {human_bytes(needed)} more, "
                f"{human_bytes(free)} are free. Free some space or set MODEL_CACHE to another folder.",
                is_transient=False,
            )

    def _fetch_file(self, listing: Listing, part: VerifiedFolder, limits: DownloadLimits, file: RemoteFile) -> None:
        tuning, path = self._tuning, part.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        remote = self._registry.file(self._entry.hf_repo, listing.commit, file.path)
        download = FileDownload(remote, file.size, limits, self._stop, span=tuning.span, chunk=tuning.chunk)
        try:
            self._download(download, file, path)
        except DigestMismatch as error:
            raise ModelFilesError(
                f"{file.path} of {self._entry.hf_repo} arrived damaged from {self._registry.endpoint}: {error}. "
                f"Check it there: POST {self._registry.endpoint}/models/{self._entry.name}/verify.",
                is_transient=False,
            ) from error
        with self._lock:
            part.remember(file)
            self._large.discard(file)

    def _download(self, download: FileDownload, file: RemoteFile, path: Path) -> None:
        """Fetch what the file at `path` lacks. Raises DigestMismatch."""
        with LocalFile(path, file, self._stop, partial(self._advance, file)) as local:
            is_resumed = local.done > 0
            try:
                download.run(local, self._tuning.part, in_parts=self._has_idle_connections)
                return
            except DigestMismatch:
                with self._lock:
                    self._done -= local.done
                if not is_resumed:
                    raise
        # The bytes from before may be the wrong ones: fetch the whole file.
        self._download(download, file, path)

    def _has_idle_connections(self, left: int) -> bool:
        """Return whether a file that lacks `left` bytes should be fetched in parallel parts."""
        tuning = self._tuning
        return left > tuning.part and min(len(self._large), tuning.files) <= tuning.parts // 2

    def _advance(self, file: RemoteFile, count: int, done: int) -> None:
        percent = 100 * done // file.size if file.size else 100
        with self._lock:
            self._done += count
            share = self._done / self._total if self._total else 1.0
            self._report(min(share, 1.0), f"fetching {file.path} {min(percent, 100)} % of {human_bytes(file.size)}")
