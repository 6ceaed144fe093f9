"""Work on models that takes its time: downloads and verifications. At most one per model; each in a thread of its own.

A download's request is kept in the store (`jobs/<name>.json`) until it is done: after a restart it goes on, without the
blobs that are there already.
"""

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ValidationError

from kit.config.hub_names import BadName
from kit.errors import ApiError
from kit.net.retry import Cancelled, TransientError, check_stop
from registry.download.partial_model import PartialModel
from registry.download.progress import Progress
from registry.hub.client import HubError
from registry.safety.policy import Refused
from registry.store.interface import DocumentBroken, Store, StoreError

log = structlog.get_logger(__name__)

Status = Literal["queued", "downloading", "verifying", "ready", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"ready", "failed", "cancelled"})
LONG_AGO = float("-inf")
END_WAIT_S = 5.0
TURN_POLL_S = 0.5

# What may go wrong without being a bug: the message is for the user, the trace is of no use to anybody.
_EXPECTED = (BadName, HubError, Refused, TransientError, StoreError)


class JobConflict(ApiError):
    """Another job is at work on this model."""

    status = 409
    type = "invalid_request_error"
    code = "job_running"


class Job:
    """One piece of work on one model. `request` tells what was asked, to compare and to go on after a restart."""

    def __init__(self, name: str, active: Status, request: dict[str, Any] | None) -> None:
        self.name = name
        self.request = request
        self.progress = Progress()
        self.stop = threading.Event()
        self.status: Status = "queued"
        self.error: str | None = None
        self.digests: Callable[[], set[str]] = set
        self.partial_model: PartialModel | None = None
        self.ended = threading.Event()
        # Monotonic times.
        self.began_at = time.monotonic()
        self.ended_at = LONG_AGO
        self.verified_at: datetime.datetime | None = None
        self._active = active
        self._cancelled = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """It is its turn. Raises Cancelled when it was cancelled while it waited."""
        check_stop(self.stop)
        self.status = self._active
        self.began_at = time.monotonic()

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """The moment in which the job's model appears: a cancellation comes before it, or waits. Raises Cancelled."""
        with self._lock:
            if self._cancelled:
                raise Cancelled
            yield

    def cancel(self) -> None:
        """On return nothing will be published any more that is not published already."""
        with self._lock:
            self._cancelled = True
        self.stop.set()

    @property
    def was_cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self._cancelled

    def finish(self, status: Status, error: str | None = None) -> None:
        """It has ended."""
        self.error = error
        self.ended_at = time.monotonic()
        if status == "ready" and self._active == "verifying":
            self.verified_at = datetime.datetime.now(datetime.UTC)
        self.status = status
        self.ended.set()


Work = Callable[[Job], None]


class Jobs:
    """The jobs of this registry."""

    def __init__(self, store: Store, *, at_once: int) -> None:
        self._store = store
        self._turns = threading.BoundedSemaphore(at_once)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._closing = False

    def start(self, job: Job, work: Work) -> Job:
        """Run `work` for `job` in the background, or return the running job that does the very same.

        Raises JobConflict when a different job is at work on this model, StoreError.
        """
        with self._lock:
            other = self._jobs.get(job.name)
            if other is not None and not other.ended.is_set():
                if other.request == job.request:
                    return other
                raise JobConflict(
                    f"{job.name} is {other.status} with other options. Wait for its end, or cancel it: "
                    f"DELETE /models/{job.name}."
                )
            if job.request is not None:
                self._store.put_document(_key(job.name), {"status": "queued", "request": job.request})
            self._jobs[job.name] = job
        # A daemon: a stream that hangs must not keep the process from ending.
        threading.Thread(target=self._run, args=(job, work), name=f"job-{job.name}", daemon=True).start()
        return job

    def get(self, name: str) -> Job | None:
        """The last job on this model since the start, or None."""
        return self._jobs.get(name)

    def all(self) -> list[Job]:
        """The last job of every model that had one."""
        return list(self._jobs.values())

    def was_interrupted(self, name: str) -> bool:
        """Whether an earlier run left a download of it unfinished that nobody took up yet. Raises StoreError."""
        with contextlib.suppress(DocumentBroken, ValidationError):
            document = self._store.get_document(_key(name)) if self.get(name) is None else None
            return document is not None and _Kept.model_validate(document).status == "queued"
        return False

    def forget(self, name: str) -> Job | None:
        """Cancel and drop the job on this model and what was kept of it. Returns it, or None."""
        with self._lock:
            job = self._jobs.pop(name, None)
            if job is not None:
                job.cancel()
            self._store.delete_document(_key(name))
        return job

    def store_digests(self, job: Job) -> None:
        """Let every process that shares the store know what blobs a download counts on, until it has ended."""
        with self._lock:
            if self._jobs.get(job.name) is job:
                document = {"status": "queued", "request": job.request, "digests": sorted(job.digests())}
                self._store.put_document(_key(job.name), document)

    def digests(self) -> set[str]:
        """The blobs that running jobs count on."""
        return {digest for job in self.all() if not job.ended.is_set() for digest in job.digests()}

    def unfinished(self) -> list[tuple[str, dict[str, Any]]]:
        """The models whose downloads an earlier run left unfinished, with what was asked for.

        Earlier failures come back as such, and so does what was kept in a way that cannot be read. Raises StoreError.
        """
        found = []
        for key in self._store.list_documents("jobs/"):
            name = key.removeprefix("jobs/").removesuffix(".json")
            try:
                kept = _Kept.model_validate(self._store.get_document(key))
            except DocumentBroken as error:
                self.add_failed(name, None, str(error))
            except ValidationError:
                self.add_failed(name, None, unreadable(name))
            else:
                if kept.status == "queued":
                    found.append((name, kept.request))
                else:
                    self.add_failed(name, kept.request, kept.error)
        return found

    def add_failed(self, name: str, request: dict[str, Any] | None, error: str | None) -> None:
        """Show a job of an earlier run as failed, unless this run has one on the same model."""
        job = Job(name, "downloading", request)
        job.finish("failed", error)
        job.ended_at = LONG_AGO  # a registry that was started again may try again
        with self._lock:
            self._jobs.setdefault(name, job)

    def close(self) -> None:
        """Stop all jobs, keeping what they were asked for; wait a moment for their threads."""
        self._closing = True
        running = [job for job in self.all() if not job.ended.is_set()]
        for job in running:
            job.stop.set()
        for job in running:
            job.ended.wait(END_WAIT_S)

    def _run(self, job: Job, work: Work) -> None:
        try:
            with self._turn(job):
                job.begin()
                log.info("job begins", model=job.name, status=job.status, **_what(job))
                work(job)
        except Cancelled:
            self._end(job, "cancelled", None)
        except _EXPECTED as error:
            self._end(job, "failed", str(error))
        except Exception as error:
            log.error("bug in a job", model=job.name, exc_info=error)
            self._end(job, "failed", f"Internal error ({type(error).__name__}). The registry's log has its cause.")
        else:
            self._end(job, "ready", None)

    @contextlib.contextmanager
    def _turn(self, job: Job) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            log.info("job waits for its turn", model=job.name, **_what(job))
            while not self._turns.acquire(timeout=TURN_POLL_S):
                check_stop(job.stop)
        try:
            yield
        finally:
            self._turns.release()

    def _end(self, job: Job, status: Status, error: str | None) -> None:
        if self._closing and status != "ready":
            job.finish("cancelled")  # what was asked for stays in the store, for the next start
            return
        if job.was_cancelled:
            status, error = "cancelled", None
        elif job.request is not None:
            try:
                self._keep(job, status, error)
            except StoreError as failure:
                log.warning("the end of a job could not be kept", model=job.name, reason=str(failure))
        (log.warning if status == "failed" else log.info)(
            "job ended",
            model=job.name,
            status=status,
            seconds=round(time.monotonic() - job.began_at, 1),
            progress=job.progress.summary(),
            **({"error": error} if error else {}),
        )
        job.finish(status, error)

    def _keep(self, job: Job, status: Status, error: str | None) -> None:
        if status == "ready":
            self._store.delete_document(_key(job.name))
        else:
            document = {"status": status, "request": job.request, "error": error}
            self._store.put_document(_key(job.name), document)


def _what(job: Job) -> dict[str, Any]:
    """What a person who follows the log wants to know of a job."""
    request = job.request or {}
    return {key: request[key] for key in ("repo", "revision") if key in request}


class _Kept(BaseModel):
    """What `jobs/<name>.json` holds."""

    status: Status
    request: dict[str, Any]
    error: str | None = None
    digests: tuple[str, ...] = ()


def unfinished_digests(store: Store) -> set[str]:
    """The blobs that unfinished downloads count on, those of other processes and of earlier runs included.

    A document that cannot be read counts on nothing: its download begins anew, if at all. Raises StoreError.
    """
    found: set[str] = set()
    for key in store.list_documents("jobs/"):
        with contextlib.suppress(DocumentBroken, ValidationError):
            kept = _Kept.model_validate(store.get_document(key))
            if kept.status == "queued":
                found.update(kept.digests)
    return found


def unreadable(name: str) -> str:
    """What to tell of a kept job that this registry does not understand."""
    return f"{_key(name)} is not as this registry writes it. Ask for the download again, or DELETE /models/{name}."


def _key(name: str) -> str:
    return f"jobs/{name}.json"
