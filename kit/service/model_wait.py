"""Fetching a service's model files, with retries for as long as the registry is down or mirrors the model."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from kit.model_files.fetch import ModelFilesError, Report
from kit.net.retry import RetryPolicy, retry
from kit.service.daemon_thread import in_daemon_thread
from kit.service.load_state import Loading

log = structlog.get_logger(__name__)

# Fetching is the first half of the progress in /health, loading the second. If the registry has to mirror the model
# first, that is the first half of fetching.
FETCH_SHARE = 0.5
MIRROR_SHARE = 0.25

RETRIES = RetryPolicy(max_attempts=None, initial_backoff_s=1.0, max_backoff_s=15.0)
# The mirror's progress changes with every attempt; it is logged this often.
LOG_PROGRESS_EVERY_S = 10.0


class ModelWait:
    """Fetches one model's files, however long that takes, and reports the progress to `loading`."""

    def __init__(
        self,
        model: str,
        fetch: Callable[[Report, threading.Event], Path],
        loading: Loading,
        stop: threading.Event,
        retries: RetryPolicy = RETRIES,
    ) -> None:
        self._model = model
        self._fetch = fetch
        self._loading = loading
        self._stop = stop
        self._retries = retries
        self._mirrored = 0.0
        self._logged = ""
        self._log_progress_at = 0.0

    async def folder(self) -> Path:
        """Return the folder with the verified files. Raises ModelFilesError if retries cannot help, Cancelled."""
        return await in_daemon_thread(self._fetch_with_retries)

    def _fetch_with_retries(self) -> Path:
        return retry(
            lambda: self._fetch(self._report, self._stop), self._retries, self._stop,
            on=ModelFilesError, before_retry=self._before_retry,
        )  # fmt: skip

    def _report(self, done: float, detail: str) -> None:
        self._loading.report(self._mirrored + done * (FETCH_SHARE - self._mirrored), detail)

    def _before_retry(self, error: Exception) -> None:
        if not (isinstance(error, ModelFilesError) and error.is_transient):
            raise error
        if error.progress is not None:
            self._mirrored = MIRROR_SHARE * error.progress
        self._log(error)
        self._loading.report(self._mirrored, f"waiting: {error}")

    def _log(self, error: ModelFilesError) -> None:
        reason, now = str(error), time.monotonic()
        if reason == self._logged or (error.progress is not None and now < self._log_progress_at):
            return
        self._logged = reason
        if error.progress is None:
            log.warning("model files not available yet", model=self._model, reason=reason)
        else:
            self._log_progress_at = now + LOG_PROGRESS_EVERY_S
            log.info("waiting for the registry", model=self._model, reason=reason)
