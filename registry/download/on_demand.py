"""Mirroring on first use: a model of the catalogue that is asked for and not here is downloaded, and the asker told.

The download is the ordinary job, begun once. One that failed is not begun again on every question: a wrong token must
not knock at the Hub for ever.
"""

import math
import time
from collections.abc import Callable

import structlog

from kit.config.catalogue import Catalogue, Entry
from kit.config.hub_names import COMMIT
from kit.errors import ApiError, ModelLoading
from registry.download.jobs import Job, JobConflict
from registry.download.mirror import DownloadRequest, Mirror
from registry.download.partial_model import UnderWay
from registry.models.library import MAIN
from registry.units import human_seconds

log = structlog.get_logger(__name__)

# How long after a failure the next try is, in seconds, and after how long the asker should ask again.
PAUSE_S = 300.0
ASK_AGAIN_S = 5.0
JUST_NOW_S = 1.0


class OnTheWay(ModelLoading):
    """A model that is being downloaded.

    `job` ends when it is here, or will not come; `is_own`: it is the download that the catalogue describes. `is_there`
    tells whether what was asked for can be had before that.
    """

    def __init__(self, message: str, job: Job | None, *, is_own: bool) -> None:
        super().__init__(message, retry_after=ASK_AGAIN_S)
        self.job = job
        self.is_there: Callable[[], bool] = lambda: False
        self._is_own = is_own

    @property
    def under_way(self) -> UnderWay | None:
        """What of it can be had already; None while nothing can be told of it."""
        under_way = self.job.under_way if self.job and self._is_own else None
        return None if under_way is None or under_way.manifest is None else under_way


class OnDemand:
    """Begins downloads for those who ask for what is missing. Safe to use from many threads."""

    def __init__(self, mirror: Mirror, catalogue: Catalogue, *, enabled: bool) -> None:
        self._mirror = mirror
        self._catalogue = catalogue
        self._enabled = enabled

    def not_yet(self, id: str, revision: str) -> ApiError | None:
        """The 503 for a model that is on its way now, or None when it is not one to be mirrored. Raises StoreError.

        `main` stands for the catalogue's revision: a mirrored commit becomes the repository's `main` here. Of other
        commits only the one is known that is on its way, to those who heard of it while it was.
        """
        entry = self._catalogue.find(id) if self._enabled else None
        if entry is None:
            return None
        job = self._mirror.jobs.get(entry.name)
        if revision not in (entry.revision, MAIN) and not self._may_be(revision, entry, job):
            return None
        if job is not None and job.status == "failed":
            left = job.ended_at + PAUSE_S - time.monotonic()
            if left > 0:
                return _failed(entry, job, left)
        if job is not None and job.status == "ready" and time.monotonic() - job.ended_at < JUST_NOW_S:
            return _under_way(entry, job)  # published since the question was asked
        try:
            if job is None or job.ended.is_set():
                log.info("mirroring on first use", model=entry.name, repo=entry.hf_repo, revision=entry.revision)
            job = self._mirror.download(entry.name, DownloadRequest())
        except JobConflict as conflict:
            other = self._mirror.jobs.get(entry.name)
            return _with_message_header(OnTheWay(conflict.message, other, is_own=False))
        return _under_way(entry, job)

    def _may_be(self, revision: str, entry: Entry, job: Job | None) -> bool:
        """Whether `revision` may be the commit of the download that is under way, or has failed, or was left."""
        if not COMMIT.fullmatch(revision):
            return False
        if job is None:
            return self._mirror.jobs.was_left(entry.name)
        manifest = job.under_way.manifest if job.under_way else None
        return job.status not in ("ready", "cancelled") if manifest is None else manifest.commit == revision


def _under_way(entry: Entry, job: Job) -> ApiError:
    how_far = "waiting for its turn" if job.status == "queued" else job.progress.told() or "listing its files"
    error = OnTheWay(f"{entry.name} is being mirrored: {how_far}", job, is_own=True)
    error.headers["X-Mirror-Progress"] = f"{job.progress.share:.4f}"
    return _with_message_header(error)


def _failed(entry: Entry, job: Job, left: float) -> ApiError:
    reason = (job.error or "no reason known").rstrip(".")
    error = ApiError(
        # The same words each time: who waits logs what is new.
        f"{entry.name} could not be mirrored: {reason}. It is tried again every {human_seconds(PAUSE_S)}, and at once "
        f"by POST /models/{entry.name}/download.",
        status=503,
        type="service_unavailable",
        code="model_failed",
        headers={"Retry-After": str(math.ceil(left))},
    )
    return _with_message_header(error)


def _with_message_header(error: ApiError) -> ApiError:
    """Hub clients show this header."""
    # A header takes Latin-1 without line ends; the body has the message whole.
    error.headers["X-Error-Message"] = " ".join(error.message.encode("ascii", "replace").decode().split())
    return error
