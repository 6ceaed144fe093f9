"""One model from the source into the store: list, choose, fetch with digests in flight, publish when all are right."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from pydantic import BaseModel, ConfigDict

from kit.config.hub_names import BadName, repo_folder
from kit.hub.client import HubClient
from kit.hub.file_queue import FileQueue
from kit.hub.listing import Listing, RemoteFile
from kit.net.retry import TransientError, retry
from kit.units import human_bytes
from registry.download.file_download import DamagedFile, DownloadLimits, FileFetch
from registry.download.partial_model import PartialModel
from registry.download.progress import Progress
from registry.hub.client import HubError
from registry.hub.file_selection import select_files
from registry.models.library import MAIN, BlobsMissing, Library
from registry.models.manifest import FileEntry, Manifest, Source, entry_of
from registry.models.model_card import CARD
from registry.safety.policy import Policy, Refused, ScanResult, needs_scan, scan
from registry.safety.remote_code import CODE_PATTERNS
from registry.store.interface import StoreDown, StoreError
from registry.store.part_size import MIN_PART
from registry.units import utc_now

log = structlog.get_logger(__name__)

T = TypeVar("T")
Publishing = Callable[[], AbstractContextManager[None]]

PUBLISH_TRIES = 3
TELL_EVERY_S = 10.0


class MirrorRequest(BaseModel):
    """What to mirror."""

    model_config = ConfigDict(frozen=True)

    name: str
    repo: str
    revision: str
    allow_patterns: tuple[str, ...] | None = None
    ignore_patterns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DownloadedFile:
    """A file that is here, and what was found in it."""

    entry: FileEntry
    found: ScanResult


class Transfer:
    """Mirrors one model. `digests` are the blobs that it counts on and that nobody may delete while it runs.

    `partial_model` holds what can be served before it is published.
    `stop` ends it; a failure of one file sets it too, to end the others.
    """

    def __init__(
        self, hub: HubClient, library: Library, wanted: MirrorRequest, progress: Progress, stop: threading.Event,
        lanes: DownloadLimits,
        policy: Policy, *, parallel: int,
    ) -> None:  # fmt: skip
        """`parallel`: how many files at once."""
        self.digests: set[str] = set()
        self.partial_model = PartialModel()
        self._hub = hub
        self._library = library
        self._wanted = wanted
        self._progress = progress
        self._stop = stop
        self._lanes = lanes
        self._policy = policy
        self._parallel = parallel

    def run(self, publishing: Publishing, on_chosen: Callable[[], None] = lambda: None) -> Manifest:
        """Fetch and publish; `publishing` is entered for the moment in which the model appears, and may raise instead.

        `on_chosen` is called once, when `digests` are known and nothing was looked for or fetched yet.
        Raises HubError, Refused, TransientError, StoreError, BadName, Cancelled; nothing is published then.
        """
        wanted = self._wanted
        listing = self._hub.listing(wanted.repo, wanted.revision, self._stop)
        paths = set(select_files([file.path for file in listing.files], wanted.allow_patterns, wanted.ignore_patterns))
        files = [file for file in listing.files if file.path in paths]
        if not files:
            raise BadName(f"No file of {wanted.repo} is left after allow_patterns and ignore_patterns.")
        self.digests.update(file.sha256 for file in files if file.sha256)
        self._when_store_is_up(on_chosen)
        with contextlib.ExitStack() as stack:
            self._when_store_is_up(lambda: stack.enter_context(self._room(files)))
            return self._bring(listing, files, publishing)

    def _bring(self, listing: Listing, files: list[RemoteFile], publishing: Publishing) -> Manifest:
        wanted = self._wanted
        total = human_bytes(sum(file.size for file in files))
        log.info(
            "files chosen", model=wanted.name, repo=wanted.repo, commit=listing.commit, files=len(files), size=total
        )
        for _ in range(PUBLISH_TRIES):
            self._progress.expect(len(files), sum(file.size for file in files))
            brought = self._fetch_all(listing, files)
            for repo in sorted({repo for each in brought for repo in each.found.code_repos}):
                self._bring_code(repo, publishing)
            try:
                return self._when_store_is_up(partial(self._publish, listing.commit, brought, publishing))
            except BlobsMissing as error:
                # Deleted with another model between our look and now: fetch those again.
                missing = error
        raise missing

    def _publish(self, commit: str, brought: list[DownloadedFile], publishing: Publishing) -> Manifest:
        wanted = self._wanted
        with publishing():
            return self._library.publish(
                name=wanted.name, repo=wanted.repo, revision=wanted.revision, commit=commit,
                files=[each.entry for each in brought], source=self._source(),
                card=next((each.found.card for each in brought if each.entry.path == CARD), None),
            )  # fmt: skip

    def _source(self) -> Source:
        return Source(kind="hub", place=self._hub.endpoint)

    def _when_store_is_up(self, step: Callable[[], T]) -> T:
        """Run an idempotent step, with retries while the store is unavailable."""

        def before_retry(error: Exception) -> None:
            log.info("waiting for the store", model=self._wanted.name, reason=str(error))

        return retry(step, self._lanes.retries, self._stop, on=StoreDown, before_retry=before_retry)

    def _look_at(self, entry: FileEntry) -> ScanResult:
        try:
            return scan(self._library.store, self._wanted.repo, entry, self._policy)
        except Refused as refused:
            if refused.digest is not None:
                self.digests.discard(refused.digest)
                self._library.drop_unreached({refused.digest}, spare=set)
            raise

    def _bring_code(self, repo: str, publishing: Publishing) -> None:
        """Mirror the code of another repository, under a name of its own, before the model that needs it."""
        wanted = MirrorRequest(name=repo_folder(repo), repo=repo, revision=MAIN, allow_patterns=CODE_PATTERNS)
        log.info("mirroring the code that a model loads", model=self._wanted.name, repo=repo)
        # Of code that takes code elsewhere nobody has heard yet: it is refused, and told.
        policy = dataclasses.replace(self._policy, remote_code=False)
        code = Transfer(
            self._hub, self._library, wanted, Progress(), self._stop, self._lanes, policy, parallel=self._parallel
        )
        code.digests = self.digests
        code.run(publishing)

    def _room(self, files: list[RemoteFile]) -> AbstractContextManager[None]:
        store = self._library.store
        absent = [file for file in files if file.sha256 is None or store.blob_size(file.sha256) != file.size]
        blobs = {file.sha256 or f"{self._wanted.name}/{file.path}": file.size for file in absent}
        begun = sum(upload.size for upload in store.unfinished() if upload.digest in blobs)
        return self._library.room.promised(self._wanted.name, blobs, begun=begun)

    def _fetch_all(self, listing: Listing, files: list[RemoteFile]) -> list[DownloadedFile]:
        """Fetch the files, several at once. The first failure ends the others.

        First those without which nobody may hear of the model, then the small ones, then the largest.
        """

        def bring(file: RemoteFile) -> DownloadedFile:
            entry = self._fetch(listing, file)
            brought = DownloadedFile(entry, self._when_store_is_up(partial(self._look_at, entry)))
            self.partial_model.add(entry, needs_code=bool(brought.found.code_repos))
            return brought

        def tell(done: int) -> None:
            progress, count = self._progress.summary(), f"{done} of {len(files)}"
            log.info("downloading", model=self._wanted.name, progress=progress, files=count)

        awaited = {file.path for file in files if file.sha256 is None or needs_scan(file.path, self._policy)}
        in_turn = sorted(files, key=lambda file: (file.path not in awaited, file.size > MIN_PART, -file.size))
        queue = FileQueue(in_turn, bring, self._stop, parallel=self._parallel, max_parallel=self._lanes.connections)
        self.partial_model.prioritize = queue.prioritize
        self.partial_model.start(self._draft(listing.commit, files), awaited)
        return queue.run(tell, every_s=TELL_EVERY_S)

    def _draft(self, commit: str, files: list[RemoteFile]) -> Manifest:
        known = tuple(
            entry_of(file.path, file.size, file.sha256, file.git_sha1 or "", lfs=file.is_lfs)
            for file in files
            if file.sha256 is not None
        )
        return Manifest(repo=self._wanted.repo, commit=commit, files=known, source=self._source(), created=utc_now())

    def _fetch(self, listing: Listing, file: RemoteFile) -> FileEntry:
        """One file. What goes wrong is told with its name."""
        wanted, store = self._wanted, self._library.store
        source = self._hub.file(wanted.repo, listing.commit, file.path)
        fetch = FileFetch(file, source, store, self._lanes, self._progress, self._stop, self.digests.add)
        name = f"{file.path} of {wanted.repo}"
        try:
            return fetch.run()
        except DamagedFile as error:
            raise HubError(
                f"{name} arrived damaged from {self._hub.endpoint} {error}. Nothing was published. "
                "Try again later, or another HF_ENDPOINT."
            ) from error
        except TransientError as error:
            raise TransientError(f"{name}: {error} Ask for the download again: it goes on where it was.") from error
        except StoreError as error:
            raise type(error)(f"{name} could not be stored: {error}") from error
