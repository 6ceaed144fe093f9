"""Background jobs, downloads and verifications: at most one per model, each in its own thread.

A download's request is stored in `jobs/<name>.json` until it is done, so that a restarted registry resumes it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ValidationError

from kit.config.hub_names import BadName
from kit.errors import ApiError
from kit.net.retry import Cancelled, TransientError, check_stop
from kit.units import utc_now
from registry.download.partial_model import PartialModel
from registry.download.progress import Progress
from registry.hub.client import HubError
from registry.models.manifest import LeftOut
from registry.safety.policy import Refused
from registry.store.interface import DocumentBroken, Store, StoreError

log = structlog.get_logger(__name__)

Status = Literal["queued", "downloading", "verifying", "ready", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"ready", "failed", "cancelled"})
NEVER = float("-inf")
STOP_TIMEOUT_S = 5.0
SLOT_POLL_S = 0.5

# Failures that are not bugs: reported by their message, without a traceback.
_EXPECTED = (BadName, HubError, Refused, TransientError, StoreError)


class JobConflict(ApiError):
    """Another job is running on this model."""

    status = 409
    type = "invalid_request_error"
    code = "job_running"


class Job:
    """A job on one model. `request`: the request to compare with later ones, and to resume after a restart."""

    def __init__(self, name: str, active: Status, request: dict[str, Any] | None) -> None:
        self.name = name
        self.request = request
        self.progress = Progress()
        self.stop = threading.Event()
        self.status: Status = "queued"
        self.error: str | None = None
        self.digests: Callable[[], set[str]] = set
        self.partial_model: PartialModel | None = None
        self.left_out: tuple[LeftOut, ...] = ()
        self.ended = threading.Event()
        # Monotonic times.
        self.started_at = time.monotonic()
        self.ended_at = NEVER
        self.verified_at: str | None = None
        self._active = active
        self.is_cancelled = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Mark the job as running. Raises Cancelled if it was cancelled while queued."""
        check_stop(self.stop)
        self.status = self._active
        self.started_at = time.monotonic()

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Exclude cancellation while the model is published. Raises Cancelled if it was cancelled before."""
        with self._lock:
            if self.is_cancelled:
                raise Cancelled
            yield

    def cancel(self) -> None:
        """Cancel the job; nothing is published after this returns."""
        with self._lock:
            self.is_cancelled = True
        self.stop.set()

    def finish(self, status: Status, error: str | None = None) -> None:
        """Record the end of the job."""
        self.error = error
        self.ended_at = time.monotonic()
        if status == "ready" and self._active == "verifying":
            self.verified_at = utc_now("seconds")
        self.status = status
        self.ended.set()


class Jobs:
    """The jobs of this process."""

    def __init__(self, store: Store, *, at_once: int) -> None:
        self._store = store
        self._slots = threading.BoundedSemaphore(at_once)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._closing = False

    def start(self, job: Job, work: Callable[[Job], None]) -> Job:
        """Run `work` for `job` in the background, or return a running job with the same request.

        Raises JobConflict if a different job is running on this model, StoreError.
        """
        with self._lock:
            other = self._jobs.get(job.name)
            if other is not None and not other.ended.is_set():
                if other.request == job.request:
                    return other
                raise JobConflict(
                    f"{job.name} is {other.status} with other options. Wait until it ends, or cancel it with "
                    f"DELETE /models/{job.name}."
                )
            if job.request is not None:
                self._store.put_document(_key(job.name), {"status": "queued", "request": job.request})
            self._jobs[job.name] = job
        # A daemon thread: a stream that hangs must not block the exit of the process.
        threading.Thread(target=self._run, args=(job, work), name=f"job-{job.name}", daemon=True).start()
        return job

    def get(self, name: str) -> Job | None:
        """The last job on this model in this process, or None."""
        return self._jobs.get(name)

    def all(self) -> list[Job]:
        """The last job of each model."""
        return list(self._jobs.values())

    def was_interrupted(self, name: str) -> bool:
        """Whether a download was interrupted by a restart and is not resumed yet. Raises StoreError."""
        with contextlib.suppress(DocumentBroken, ValidationError):
            document = self._store.get_document(_key(name)) if self.get(name) is None else None
            return document is not None and _StoredJob.model_validate(document).status == "queued"
        return False

    def remove(self, name: str) -> Job | None:
        """Cancel and remove the job on this model and its document. Returns it, or None."""
        with self._lock:
            job = self._jobs.pop(name, None)
            if job is not None:
                job.cancel()
            self._store.delete_document(_key(name))
        return job

    def store_digests(self, job: Job) -> None:
        """Store the digests of a running download, which other processes then do not delete."""
        with self._lock:
            if self._jobs.get(job.name) is job:
                document = {"status": "queued", "request": job.request, "digests": sorted(job.digests())}
                self._store.put_document(_key(job.name), document)

    def digests(self) -> set[str]:
        """The digests used by running jobs."""
        return {digest for job in self.all() if not job.ended.is_set() for digest in job.digests()}

    def unfinished(self) -> list[tuple[str, dict[str, Any]]]:
        """The interrupted downloads: name and request. Raises StoreError.

        Failed downloads, and documents that cannot be parsed, are added as failed jobs.
        """
        found = []
        for key in self._store.list_documents("jobs/"):
            name = key.removeprefix("jobs/").removesuffix(".json")
            try:
                stored = _StoredJob.model_validate(self._store.get_document(key))
            except DocumentBroken as error:
                self.add_failed(name, None, str(error))
            except ValidationError:
                self.add_failed(name, None, invalid_document(name))
            else:
                if stored.status == "queued":
                    found.append((name, stored.request))
                else:
                    self.add_failed(name, stored.request, stored.error)
        return found

    def add_failed(self, name: str, request: dict[str, Any] | None, error: str | None) -> None:
        """Add a failed job of an earlier process, unless this process has a job on the same model."""
        job = Job(name, "downloading", request)
        job.finish("failed", error)
        job.ended_at = NEVER  # a restarted registry may retry at once
        with self._lock:
            self._jobs.setdefault(name, job)

    def close(self) -> None:
        """Stop all jobs, which stay stored for the next start; wait briefly for their threads."""
        self._closing = True
        running = [job for job in self.all() if not job.ended.is_set()]
        for job in running:
            job.stop.set()
        for job in running:
            job.ended.wait(STOP_TIMEOUT_S)

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            with self._slot(job):
                job.begin()
                log.info("job started", model=job.name, status=job.status, **_log_fields(job))
                work(job)
        except Cancelled:
            self._end(job, "cancelled", None)
        except _EXPECTED as error:
            self._end(job, "failed", str(error))
        except Exception as error:
            log.error("bug in a job", model=job.name, exc_info=error)
            self._end(job, "failed", f"Internal error ({type(error).__name__}). See the registry's log.")
        else:
            self._end(job, "ready", None)

    @contextlib.contextmanager
    def _slot(self, job: Job) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            log.info("job queued", model=job.name, **_log_fields(job))
            while not self._slots.acquire(timeout=SLOT_POLL_S):
                check_stop(job.stop)
        try:
            yield
        finally:
            self._slots.release()

    def _end(self, job: Job, status: Status, error: str | None) -> None:
        if self._closing and status != "ready":
            job.finish("cancelled")  # its request stays in the store for the next start
            return
        if job.is_cancelled:
            status, error = "cancelled", None
        elif job.request is not None:
            try:
                if status == "ready":
                    self._store.delete_document(_key(job.name))
                else:
                    document = {"status": status, "request": job.request, "error": error}
                    self._store.put_document(_key(job.name), document)
            except StoreError as failure:
                log.warning("end of job not stored", model=job.name, reason=str(failure))
        (log.warning if status == "failed" else log.info)(
            "job ended",
            model=job.name,
            status=status,
            seconds=round(time.monotonic() - job.started_at, 1),
            progress=job.progress.summary(),
            **({"error": error} if error else {}),
        )
        job.finish(status, error)


def _log_fields(job: Job) -> dict[str, Any]:
    request = job.request or {}
    return {key: request[key] for key in ("repo", "revision") if key in request}


class _StoredJob(BaseModel):
    """The document `jobs/<name>.json`."""

    status: Status
    request: dict[str, Any]
    error: str | None = None
    digests: tuple[str, ...] = ()


def unfinished_digests(store: Store) -> set[str]:
    """The digests used by unfinished downloads of all processes. Raises StoreError.

    Documents that cannot be parsed are skipped, as their downloads cannot be resumed.
    """
    found: set[str] = set()
    for key in store.list_documents("jobs/"):
        with contextlib.suppress(DocumentBroken, ValidationError):
            stored = _StoredJob.model_validate(store.get_document(key))
            if stored.status == "queued":
                found.update(stored.digests)
    return found


def invalid_document(name: str) -> str:
    """The error for a stored job that cannot be parsed."""
    return f"{_key(name)} is not a valid job. Start the download again, or DELETE /models/{name}."


def _key(name: str) -> str:
    return f"jobs/{name}.json"
