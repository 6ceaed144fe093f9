"""Progress of a service's model: written by the loading thread, read by `/health` and every route."""

import threading
import time
from dataclasses import dataclass
from typing import Literal

from kit.errors import ApiError, ModelLoading

Status = Literal["loading", "healthy", "failed"]


@dataclass(frozen=True)
class Snapshot:
    """Snapshot of a load. `progress` is 0 to 1 over fetching and loading together."""

    status: Status
    progress: float
    detail: str


class Loading:
    """State of one load. Thread-safe; no method blocks for long."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._now = Snapshot("loading", 0.0, "starting")
        self._began = time.monotonic()

    def report(self, progress: float, detail: str) -> None:
        """Record the progress. Ignored after the load has ended."""
        with self._lock:
            if self._now.status == "loading":
                # In this order of arguments NaN counts as 0.
                self._now = Snapshot("loading", round(min(max(0.0, progress), 1.0), 4), detail)

    def finish(self) -> None:
        """Mark the model as ready. Ignored after a failure."""
        with self._lock:
            if self._now.status == "loading":
                self._now = Snapshot("healthy", 1.0, "")

    def fail(self, reason: str) -> None:
        """Mark the model as failed, for good; `reason` says why and what to do."""
        with self._lock:
            self._now = Snapshot("failed", self._now.progress, reason)

    @property
    def now(self) -> Snapshot:
        """The current snapshot."""
        with self._lock:
            return self._now

    def refusal(self) -> ApiError | None:
        """Return the error for a request that needs the model, or None if it is ready."""
        now = self.now
        if now.status == "healthy":
            return None
        if now.status == "failed":
            return ApiError(
                f"{self._model} is not available: {now.detail}",
                status=503,
                type="service_unavailable",
                code="model_failed",
                headers={"Retry-After": "30"},
            )
        percent = int(now.progress * 100)
        return ModelLoading(
            f"{self._model} is loading ({percent} %): {now.detail.rstrip('.')}.", retry_after=self._estimate_s(now)
        )

    def _estimate_s(self, now: Snapshot) -> float:
        """Estimate the seconds left at the rate so far, between 1 and 60."""
        elapsed = time.monotonic() - self._began
        return min(max(elapsed / now.progress - elapsed, 1.0), 60.0) if now.progress > 0 else 5.0
