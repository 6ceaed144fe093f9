"""Mirror a model of the catalogue when it is first requested.

The download is an ordinary job, started once. After a failure there is a pause before the next attempt, so that a wrong
token does not lead to a request to the Hub for every request here.
"""

import math
import time
from collections.abc import Callable

import structlog

from kit.config.catalogue import Catalogue, Entry
from kit.config.hub_names import is_commit_prefix
from kit.errors import ApiError, ModelLoading
from kit.units import human_seconds
from registry.download.jobs import Job, JobConflict
from registry.download.mirror import DownloadRequest, Mirror
from registry.download.partial_model import PartialModel
from registry.models.library import HEAD, MAIN

log = structlog.get_logger(__name__)

RETRY_AFTER_FAILURE_S = 300.0
RETRY_AFTER_S = 5.0
# A job that ended this recently may have published the model after the library was searched.
JUST_PUBLISHED_S = 1.0
# Bounds for the wait in Retry-After, which is estimated from the download speed.
MIN_FILE_WAIT_S, MAX_FILE_WAIT_S, UNKNOWN_FILE_WAIT_S = 5.0, 300.0, 30.0


class MirrorPending(ModelLoading):
    """A model that is being downloaded. `matches_catalogue`: with the options of the catalogue."""

    def __init__(self, message: str, job: Job | None, *, matches_catalogue: bool) -> None:
        super().__init__(message, retry_after=RETRY_AFTER_S)
        self.job = job
        self.is_available: Callable[[], bool] = lambda: False
        """Whether the request can be served before the job ends."""
        self._matches_catalogue = matches_catalogue

    @property
    def partial_model(self) -> PartialModel | None:
        """The files that can be served now; None while the manifest is not known."""
        partial = self.job.partial_model if self.job and self._matches_catalogue else None
        return None if partial is None or partial.manifest is None else partial

    def for_file(self, path: str) -> "MirrorPending":
        """Make this the error for a file that is not verified yet.

        It becomes a 429, since huggingface_hub retries the GET of a file on 408 and 429 only. It does so five times and
        waits for as long as Retry-After says.
        """
        partial = self.partial_model
        self.is_available = lambda: partial is not None and partial.has_file(path)
        self.status = 429
        left = self.job.progress.as_json()["eta_seconds"] if self.job else None
        wait = UNKNOWN_FILE_WAIT_S if left is None else min(max(left, MIN_FILE_WAIT_S), MAX_FILE_WAIT_S)
        self.headers["Retry-After"] = str(math.ceil(wait))
        return self


class OnDemand:
    """Starts downloads of missing models. Thread-safe."""

    def __init__(self, mirror: Mirror, catalogue: Catalogue, *, enabled: bool) -> None:
        self._mirror = mirror
        self._catalogue = catalogue
        self._enabled = enabled

    def request(self, id: str, revision: str) -> ApiError | None:
        """Start a download, or find the running one; return the 503 to respond with, or None for an unknown model.

        `main` stands for the catalogue's revision, because a mirrored commit becomes the repository's `main` here. A
        commit is accepted only if the download in progress may publish it. Raises StoreError.
        """
        entry = self._catalogue.find(id) if self._enabled else None
        if entry is None:
            return None
        job = self._mirror.jobs.get(entry.name)
        if revision not in (entry.revision, MAIN, HEAD) and not self._may_publish(revision, entry, job):
            return None
        if job is not None and job.status == "failed":
            left = job.ended_at + RETRY_AFTER_FAILURE_S - time.monotonic()
            if left > 0:
                return _failed(entry, job, left)
        if job is not None and job.status == "ready" and time.monotonic() - job.ended_at < JUST_PUBLISHED_S:
            return _pending(entry, job)
        try:
            if job is None or job.ended.is_set():
                log.info("mirroring on first use", model=entry.name, repo=entry.hf_repo, revision=entry.revision)
            job = self._mirror.download(entry.name, DownloadRequest())
        except JobConflict as conflict:
            other = self._mirror.jobs.get(entry.name)
            return MirrorPending(conflict.message, other, matches_catalogue=False)
        return _pending(entry, job)

    def _may_publish(self, revision: str, entry: Entry, job: Job | None) -> bool:
        """Whether `revision` may be the commit of a download that is running, has failed, or was interrupted."""
        if not is_commit_prefix(revision):
            return False
        if entry.revision.startswith(revision):
            return True
        if job is None:
            return self._mirror.jobs.was_interrupted(entry.name)
        manifest = job.partial_model.manifest if job.partial_model else None
        if manifest is None:
            return job.status not in ("ready", "cancelled")
        return manifest.commit.startswith(revision)


def _pending(entry: Entry, job: Job) -> ApiError:
    progress = "queued" if job.status == "queued" else job.progress.summary() or "listing its files"
    error = MirrorPending(f"{entry.name} is being mirrored: {progress}", job, matches_catalogue=True)
    error.headers["X-Mirror-Progress"] = f"{job.progress.share:.4f}"
    return error


def _failed(entry: Entry, job: Job, left: float) -> ApiError:
    reason = (job.error or "unknown reason").rstrip(".")
    return ApiError(
        # The same text each time: clients that poll log only what is new.
        f"{entry.name} could not be mirrored: {reason}. The next attempt is made after "
        f"{human_seconds(RETRY_AFTER_FAILURE_S)}, or at once by POST /models/{entry.name}/download.",
        status=503,
        type="service_unavailable",
        code="model_failed",
        headers={"Retry-After": str(math.ceil(left))},
    )
