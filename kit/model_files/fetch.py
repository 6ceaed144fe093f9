"""Model files from the registry into a local folder: verified, resumable, shared between services.

`registry_source` asks the registry, `cache` holds the folders; this module has the order of steps.
"""

import errno
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import structlog

from kit.config.catalogue import Entry
from kit.model_files.cache import ModelCache, VerifiedFolder
from kit.model_files.file_download import CONNECTIONS, PART, Download, DownloadLimits
from kit.model_files.registry_source import Listing, ModelFilesError, NotThereYet, RegistrySource, RemoteFile
from kit.net.retry import Cancelled, Stop, TransientError, check_stop

__all__ = ["ModelFilesError", "fetch_model"]

log = structlog.get_logger(__name__)

Report = Callable[[float, str], None]

# So many files come at once.
FILES = 4

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def fetch_model(
    entry: Entry, *, registry_url: str, token: str | None, cache: Path, report: Report, stop: threading.Event
) -> Path:
    """Return a local folder that holds exactly the verified files of `entry`.

    Blocks for as long as that takes. Every file's digest is checked when it arrives; a file that was verified before is
    not read again while its size and time stay the same. The folder's name is the commit, so a revision that moves gets
    a new folder. `report` is told the share done (0..1) and what is going on; `stop` ends the fetch within a moment.
    When the registry is down, or has to mirror the model first, a complete folder from before is used. Several
    processes may ask for one model at once: one fetches, the others wait. Raises ModelFilesError.
    """
    try:
        with RegistrySource(registry_url, token) as source:
            fetch = _Fetch(entry, source, ModelCache(cache, entry.hf_repo), report, stop)
            try:
                return fetch.run()
            finally:
                fetch.close()
    except Cancelled as error:
        raise ModelFilesError(
            "Stopped before all files were there; what was fetched is kept.", may_pass=True
        ) from error
    except TransientError as error:
        raise ModelFilesError(f"{error} What was fetched is kept.", may_pass=True) from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise ModelFilesError(
                f"The disk of {cache} is full ({error.strerror}). Free some space or set MODEL_CACHE.",
                may_pass=False,
            ) from error
        raise ModelFilesError(
            f"The model cache {cache} cannot be used: {error.strerror or error} ({error.filename}). Set MODEL_CACHE.",
            may_pass=False,
        ) from error


class _Fetch:
    """One call of `fetch_model`."""

    def __init__(
        self, entry: Entry, source: RegistrySource, cache: ModelCache, report: Report, stop: threading.Event
    ) -> None:
        self._entry = entry
        self._source = source
        self._cache = cache
        self._report = report
        self._stop = Stop(stop)
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._big: set[RemoteFile] = set()
        self._lanes = DownloadLimits()

    def run(self) -> Path:
        """Return the folder."""
        check_stop(self._stop)
        self._report(0.0, f"asking the registry at {self._source.url}")
        try:
            listing = self._source.listing(self._entry)
        except (TransientError, NotThereYet) as error:
            return self._without_registry(error)
        self._total = listing.size
        folder = self._cache.complete(listing, self._stop)
        if folder is None:
            with self._cache.locked(self._report_waiting, self._stop):
                # Another process may have finished it while this one waited.
                folder = self._cache.complete(listing, self._stop) or self._fill(listing)
        self._cache.note_revision(self._entry.revision, listing.commit)
        self._report(1.0, "files verified")
        return folder

    def close(self) -> None:
        """End the threads; none of them has work any more."""
        self._lanes.close()

    def _without_registry(self, error: TransientError | NotThereYet) -> Path:
        folder = self._cache.last_complete(self._entry.revision, self._stop)
        if folder is None and isinstance(error, NotThereYet):
            raise error
        if folder is None:
            raise ModelFilesError(
                f"{error} {self._entry.name} is not in {self._cache.home} yet. Start the registry or set REGISTRY_URL.",
                may_pass=True,
            ) from error
        log.warning("not in the registry now, using the model files from before", reason=str(error), folder=str(folder))
        self._report(1.0, "files from before")
        return folder

    def _report_waiting(self) -> None:
        self._report(0.0, f"waiting for another process that is fetching {self._entry.name}")

    def _fill(self, listing: Listing) -> Path:
        part = self._cache.part(listing)
        # What is already right in the folder of this commit (a damaged one, then) need not come again.
        present = VerifiedFolder(part.folder.with_name(listing.commit))
        missing = []
        for file in listing.files:
            if present.has(file, self._stop) or part.has(file, self._stop):
                self._done += file.size
            else:
                missing.append(file)
        self._check_room(part.folder, missing)
        self._big = {file for file in missing if file.size > PART}
        # The largest first: what comes last, with nothing beside it, is small.
        missing.sort(key=lambda file: file.size, reverse=True)
        self._fetch_all(listing, missing, part)
        return self._cache.publish(listing, part)

    def _fetch_all(self, listing: Listing, files: list[RemoteFile], part: VerifiedFolder) -> None:
        """Fetch the files, several at once. The first failure ends the others, and is raised."""
        first: BaseException | None = None
        with ThreadPoolExecutor(FILES, thread_name_prefix="fetch-file") as pool:
            for future in as_completed([pool.submit(self._fetch_file, listing, file, part) for file in files]):
                if future.exception() is not None:
                    first = first or future.exception()
                    self._stop.set()
        if first is not None:
            raise first

    def _check_room(self, folder: Path, missing: list[RemoteFile]) -> None:
        needed = 0
        for file in missing:
            path = folder / file.path
            needed += max(file.size - (path.stat().st_size if path.is_file() else 0), 0)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ModelFilesError(
                f"The disk of {folder.parent} is full: {self._entry.name} needs {_human(needed)} more, {_human(free)} "
                "are free. Free some space or set MODEL_CACHE to another folder.",
                may_pass=False,
            )

    def _fetch_file(self, listing: Listing, file: RemoteFile, part: VerifiedFolder) -> None:
        path = part.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            continued = path.is_file() and path.stat().st_size > 0
            if self._download(listing, file, path):
                with self._lock:
                    part.remember(file)
                    self._big.discard(file)
                return
            if not continued:
                break
            # What was there from before may be what is wrong: once more, from the first byte.
        raise ModelFilesError(
            f"{file.path} of {self._entry.hf_repo} arrived damaged from {self._source.url}: expected {file.digest}. "
            f"Check it there: POST {self._source.url}/models/{self._entry.name}/verify.",
            may_pass=False,
        )

    def _download(self, listing: Listing, file: RemoteFile, path: Path) -> bool:
        remote = self._source.file(self._entry, listing, file)
        download = Download(
            file, remote, path, lanes=self._lanes, stop=self._stop, few=self._few_left,
            on_bytes=lambda count, done: self._advance(file, count, done),
        )  # fmt: skip
        if download.run():
            return True
        with self._lock:
            self._done -= download.done
        return False

    def _few_left(self) -> bool:
        return min(len(self._big), FILES) <= CONNECTIONS // 2

    def _advance(self, file: RemoteFile, count: int, done: int) -> None:
        percent = 100 * done // file.size if file.size else 100
        with self._lock:
            self._done += count
            share = self._done / self._total if self._total else 1.0
            self._report(min(share, 1.0), f"fetching {file.path} {min(percent, 100)} % of {_human(file.size)}")


def _human(count: int) -> str:
    """`count` bytes as people read them: 269 MB."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count} B"
