"""Download of one model into the store: list, select, fetch, scan, and publish when every file is verified."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import structlog
from pydantic import BaseModel, ConfigDict

from kit.config.hub_names import BadName, repo_folder
from kit.hub.client import HubClient
from kit.hub.file_queue import FileQueue
from kit.hub.listing import Listing, RemoteFile
from kit.net.retry import TransientError, retry
from kit.units import human_bytes, utc_now
from registry.download.file_download import DamagedFile, DownloadLimits, FileDownload
from registry.download.partial_model import PartialModel
from registry.download.progress import Progress
from registry.hub.client import HubError
from registry.hub.file_selection import files_left_out
from registry.models.library import MAIN, BlobsMissing, Library
from registry.models.manifest import FileEntry, LeftOut, Manifest, Source, entry_of, summary
from registry.models.model_card import CARD
from registry.safety.policy import Inspection, Policy, Refused, ScanResult
from registry.safety.remote_code import CODE_PATTERNS
from registry.store.interface import StoreDown, StoreError
from registry.store.part_size import MIN_PART

log = structlog.get_logger(__name__)

T = TypeVar("T")
Publishing = Callable[[], AbstractContextManager[None]]

MAX_PUBLISH_ATTEMPTS = 3
LOG_PROGRESS_EVERY_S = 10.0


class MirrorRequest(BaseModel):
    """A model to mirror."""

    model_config = ConfigDict(frozen=True)

    name: str
    repo: str
    revision: str
    allow_patterns: tuple[str, ...] | None = None
    ignore_patterns: tuple[str, ...] | None = None


# A verified file in the store, and the result of its scan.
Scanned = tuple[FileEntry, ScanResult]


class ModelDownload:
    """Mirrors one model. `stop` cancels it; the failure of one file sets it too, to end the others."""

    def __init__(
        self, hub: HubClient, library: Library, request: MirrorRequest, progress: Progress, stop: threading.Event,
        limits: DownloadLimits, policy: Policy, *, parallel: int,
    ) -> None:  # fmt: skip
        """`parallel`: how many files at once."""
        self.digests: set[str] = set()
        """The blobs of this download, which must not be deleted while it runs."""
        self.partial_model = PartialModel()
        """The files that can be served before the model is published."""
        self.left_out: tuple[LeftOut, ...] = ()
        """The files of the source that are not mirrored."""
        self._hub = hub
        self._source = Source(kind="hub", place=hub.endpoint)
        self._library = library
        self._request = request
        self._progress = progress
        self._stop = stop
        self._limits = limits
        self._policy = policy
        self._parallel = parallel

    def run(self, publishing: Publishing, on_selected: Callable[[], None] = lambda: None) -> Manifest:
        """Fetch and publish the model.

        `publishing` is entered while the model is published, and may raise instead. `on_selected` is called once, when
        `digests` are known and before anything is fetched. Raises HubError, Refused, TransientError, StoreError,
        BadName, Cancelled; then nothing is published.
        """
        request = self._request
        listing = self._hub.listing(request.repo, request.revision, self._stop)
        paths = [file.path for file in listing.files]
        reasons = files_left_out(paths, request.allow_patterns, request.ignore_patterns)
        try:
            listing = listing.select(set(paths).difference(reasons))
        except BadName as error:
            raise BadName(f"{error} Leave it out with ignore_patterns.") from error
        files = listing.files
        if not files:
            raise BadName(f"No file of {request.repo} is left after allow_patterns and ignore_patterns.")
        self._inspection = Inspection(
            self._library.store, request.repo, self._policy, (file.path for file in files), left_out=reasons
        )
        self.left_out = tuple(LeftOut.of(path, reason) for path, reason in reasons.items())
        if reasons:
            log.info("files left out", model=request.name, files=summary(self.left_out))
        if listing.repo not in (None, request.repo):
            log.info("renamed at its source", model=request.name, repo=request.repo, source_repo=listing.repo)
            self._source = self._source.model_copy(update={"repo": listing.repo})
        self.digests.update(file.sha256 for file in files if file.sha256)
        self._retry_store(on_selected)
        with contextlib.ExitStack() as stack:
            self._retry_store(lambda: stack.enter_context(self._reserved_space(files)))
            return self._fetch_and_publish(listing, publishing)

    def _fetch_and_publish(self, listing: Listing, publishing: Publishing) -> Manifest:
        request, files, size = self._request, listing.files, listing.size
        log.info(
            "files chosen", model=request.name, repo=request.repo, commit=listing.commit, files=len(files),
            size=human_bytes(size),
        )  # fmt: skip
        for _ in range(MAX_PUBLISH_ATTEMPTS):
            self._progress.expect(len(files), size)
            downloaded = self._fetch_all(listing)
            for repo in sorted({repo for _, found in downloaded for repo in found.code_repos}):
                self._mirror_code(repo, publishing)
            try:
                return self._retry_store(partial(self._publish, listing.commit, downloaded, publishing))
            except BlobsMissing as error:
                # Deleted with another model after this one was found complete: fetch them again.
                missing = error
        raise missing

    def _publish(self, commit: str, downloaded: list[Scanned], publishing: Publishing) -> Manifest:
        request = self._request
        with publishing():
            return self._library.publish(
                name=request.name, repo=request.repo, revision=request.revision, commit=commit,
                files=[entry for entry, _ in downloaded], source=self._source,
                card=next((found.card for entry, found in downloaded if entry.path == CARD), None),
                left_out=self.left_out,
            )  # fmt: skip

    def _retry_store(self, step: Callable[[], T]) -> T:
        """Run an idempotent step, with retries while the store is unavailable."""

        def before_retry(error: Exception) -> None:
            log.info("waiting for the store", model=self._request.name, reason=str(error))

        return retry(step, self._limits.retries, self._stop, on=StoreDown, before_retry=before_retry)

    def _mirror_code(self, repo: str, publishing: Publishing) -> None:
        """Mirror the code of another repository, under a name of its own, before the model that needs it."""
        request = MirrorRequest(name=repo_folder(repo), repo=repo, revision=MAIN, allow_patterns=CODE_PATTERNS)
        log.info("mirroring the code that a model loads", model=self._request.name, repo=repo)
        policy = self._policy.without_remote_code()
        code = ModelDownload(
            self._hub, self._library, request, Progress(), self._stop, self._limits, policy, parallel=self._parallel
        )
        code.digests = self.digests
        code.run(publishing)

    def _reserved_space(self, files: Sequence[RemoteFile]) -> AbstractContextManager[None]:
        store = self._library.store
        absent = [file for file in files if file.sha256 is None or store.blob_size(file.sha256) != file.size]
        blobs = {file.sha256 or f"{self._request.name}/{file.path}": file.size for file in absent}
        begun = sum(upload.size for upload in store.unfinished() if upload.digest in blobs)
        return self._library.quota.reserve(self._request.name, blobs, begun=begun)

    def _fetch_all(self, listing: Listing) -> list[Scanned]:
        """Fetch the files, several at once: first those that the manifest requires, then the small, then the largest.

        The first failure ends the others.
        """
        files = listing.files

        def fetch(file: RemoteFile) -> Scanned:
            entry = self._fetch(listing, file)
            found = self._retry_store(partial(self._inspection.scan, entry))
            self.partial_model.add(entry, needs_code=bool(found.code_repos))
            return entry, found

        def report(done: int) -> None:
            progress, count = self._progress.summary(), f"{done} of {len(files)}"
            log.info("downloading", model=self._request.name, progress=progress, files=count)

        required = {file.path for file in files if file.sha256 is None or self._policy.needs_scan(file.path)}
        ordered = sorted(files, key=lambda file: (file.path not in required, file.size > MIN_PART, -file.size))
        queue = FileQueue(
            ordered, fetch, self._stop,
            parallel=self._parallel, max_parallel=self._limits.connections, abort=self._hub.abort,
        )  # fmt: skip
        self.partial_model.prioritize = queue.prioritize
        known = tuple(
            entry_of(file.path, file.size, file.sha256, file.git_sha1 or "", lfs=file.is_lfs)
            for file in files
            if file.sha256 is not None
        )
        draft = Manifest(
            repo=self._request.repo, commit=listing.commit, files=known, source=self._source, created=utc_now()
        )
        self.partial_model.start(draft, required)
        try:
            return queue.run(report, every_s=LOG_PROGRESS_EVERY_S)
        except Refused as refused:
            self.digests -= refused.digests
            self._library.delete_unreachable(set(refused.digests), spare=set)
            raise

    def _fetch(self, listing: Listing, file: RemoteFile) -> FileEntry:
        """Fetch one file; errors name it."""
        repo, store = self._request.repo, self._library.store
        remote = self._hub.file(repo, listing.commit, file.path)
        download = FileDownload(file, remote, store, self._limits, self._progress, self._stop, self.digests.add)
        name = f"{file.path} of {repo}"
        try:
            return download.run()
        except DamagedFile as error:
            raise HubError(
                f"{name} arrived damaged from {self._hub.endpoint} {error}. Nothing was published. "
                "Try again later, or another HF_ENDPOINT."
            ) from error
        except TransientError as error:
            raise TransientError(f"{name}: {error} Request the download again: it will resume.") from error
        except StoreError as error:
            raise type(error)(f"{name} could not be stored: {error}") from error
