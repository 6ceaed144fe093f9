"""Mirroring on first use: a model of the catalogue that is asked for and not here is downloaded, and the asker told.

The download is the ordinary job, begun once. One that failed is not begun again on every question: a wrong token must
not knock at the Hub for ever.
"""

import math
import time

import structlog

from kit.catalogue import Catalogue, Entry
from kit.errors import ApiError, ModelLoading
from registry.jobs import Job, JobConflict
from registry.library import MAIN
from registry.mirror import DownloadRequest, Mirror
from registry.progress import human_seconds

log = structlog.get_logger(__name__)

# How long after a failure the next try is, in seconds, and after how long the asker should ask again.
PAUSE_S = 300.0
ASK_AGAIN_S = 5.0


class OnTheWay(ModelLoading):
    """A model that is being downloaded; `job` ends when it is here, or will not come."""

    job: Job | None = None


class OnDemand:
    """Begins downloads for those who ask for what is missing. Safe to use from many threads."""

    def __init__(self, mirror: Mirror, catalogue: Catalogue, *, enabled: bool) -> None:
        self._mirror = mirror
        self._catalogue = catalogue
        self._enabled = enabled

    def not_yet(self, id: str, revision: str) -> ApiError | None:
        """The 503 for a model that is on its way now, or None when it is not one to be mirrored. Raises StoreError.

        `main` stands for the catalogue's revision: a mirrored commit becomes the repository's `main` here.
        """
        entry = self._catalogue.find(id) if self._enabled else None
        if entry is None or revision not in (entry.revision, MAIN):
            return None
        job = self._mirror.jobs.get(entry.name)
        if job is not None and job.status == "failed":
            left = job.ended_at + PAUSE_S - time.monotonic()
            if left > 0:
                return _failed(entry, job, left)
        try:
            if job is None or job.ended.is_set():
                log.info("mirroring on first use", model=entry.name, repo=entry.hf_repo, revision=entry.revision)
            job = self._mirror.download(entry.name, DownloadRequest())
        except JobConflict as conflict:
            busy = OnTheWay(conflict.message, retry_after=ASK_AGAIN_S)
            busy.job = self._mirror.jobs.get(entry.name)
            return _with_message_header(busy)
        return _under_way(entry, job)


def _under_way(entry: Entry, job: Job) -> ApiError:
    how_far = "waiting for its turn" if job.status == "queued" else job.progress.told() or "listing its files"
    error = OnTheWay(f"{entry.name} is being mirrored: {how_far}", retry_after=ASK_AGAIN_S)
    error.job = job
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
