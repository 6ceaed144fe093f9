"""How far a service is with its model. Written by the loading thread, read by `/health` and by every route."""

import threading
import time
from dataclasses import dataclass
from typing import Literal

from kit.errors import ApiError, ModelLoading

Status = Literal["loading", "healthy", "failed"]


@dataclass(frozen=True)
class Snapshot:
    """One moment of a load. `progress` runs from 0 to 1 over fetching and loading together."""

    status: Status
    progress: float
    detail: str


class Loading:
    """The state of one load. All methods may be called from any thread and never block for long."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._now = Snapshot("loading", 0.0, "starting")
        self._began = time.monotonic()

    def report(self, progress: float, detail: str) -> None:
        """Say how far the load is. Ignored once it has ended."""
        with self._lock:
            if self._now.status == "loading":
                # In this order of arguments a progress that is not a number counts as 0.
                self._now = Snapshot("loading", round(min(max(0.0, progress), 1.0), 4), detail)

    def finish(self) -> None:
        """The model answers from now on. Ignored when it has failed in the meantime."""
        with self._lock:
            if self._now.status == "loading":
                self._now = Snapshot("healthy", 1.0, "")

    def fail(self, reason: str) -> None:
        """The model will not come, or has died; `reason` says why and what to do. This is final."""
        with self._lock:
            self._now = Snapshot("failed", self._now.progress, reason)

    @property
    def now(self) -> Snapshot:
        """The present state."""
        with self._lock:
            return self._now

    def refusal(self) -> ApiError | None:
        """The error for a request that needs the model, or None when it is there."""
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
            f"{self._model} is loading ({percent} %): {now.detail.rstrip('.')}.", retry_after=self._guess_s(now)
        )

    def _guess_s(self, now: Snapshot) -> float:
        """Seconds left if it goes on at the pace so far, between 1 and 60."""
        elapsed = time.monotonic() - self._began
        return min(max(elapsed / now.progress - elapsed, 1.0), 60.0) if now.progress > 0 else 5.0
