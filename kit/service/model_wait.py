"""A service waiting for its model's files: for a registry that is not up, a model that is not there yet, the bytes."""

import asyncio
import threading
import time
from pathlib import Path

import structlog

from kit.config.catalogue import Entry
from kit.model_files.fetch import ModelFilesError, fetch_model
from kit.service.daemon_thread import in_daemon_thread
from kit.service.load_state import Loading

log = structlog.get_logger(__name__)

# Fetching is the first half of the progress that /health shows, loading the second. Where the registry has to mirror
# the model first, that is the first half of fetching.
FETCH_SHARE = 0.5
MIRROR_SHARE = 0.25

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 15.0
# A reason that changes with every question, since it tells how far the registry is, is logged this often.
TELL_EVERY_S = 10.0


class Fetching:
    """Fetches one model's files, however long that takes, and tells `loading` how far it is."""

    def __init__(
        self,
        entry: Entry,
        loading: Loading,
        stop: threading.Event,
        *,
        registry_url: str,
        token: str | None,
        cache: Path,
    ) -> None:
        self._entry = entry
        self._loading = loading
        self._stop = stop
        self._registry_url = registry_url
        self._token = token
        self._cache = cache
        self._mirrored = 0.0
        self._told = ""
        self._tell_at = 0.0

    async def folder(self) -> Path:
        """The folder with the verified files. Raises ModelFilesError when waiting cannot help."""
        delay = RETRY_FIRST_S
        while True:
            try:
                return await in_daemon_thread(self._fetch)
            except ModelFilesError as error:
                if not error.may_pass:
                    raise
                if error.progress is not None:
                    self._mirrored = MIRROR_SHARE * error.progress
                self._tell(error)
                self._loading.report(self._mirrored, f"waiting: {error}")
                pause = delay if error.retry_after_s is None else error.retry_after_s
            await asyncio.sleep(min(pause, RETRY_MOST_S))
            delay = min(delay * 2, RETRY_MOST_S)

    def _fetch(self) -> Path:
        return fetch_model(
            self._entry,
            registry_url=self._registry_url,
            token=self._token,
            cache=self._cache,
            report=self._report,
            stop=self._stop,
        )

    def _report(self, done: float, detail: str) -> None:
        self._loading.report(self._mirrored + done * (FETCH_SHARE - self._mirrored), detail)

    def _tell(self, error: ModelFilesError) -> None:
        reason, now = str(error), time.monotonic()
        if reason == self._told or (error.progress is not None and now < self._tell_at):
            return
        self._told = reason
        if error.progress is None:
            log.warning("model files not there yet", model=self._entry.name, reason=reason)
        else:
            self._tell_at = now + TELL_EVERY_S
            log.info("waiting for the registry", model=self._entry.name, reason=reason)
