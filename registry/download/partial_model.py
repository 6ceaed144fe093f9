"""What a running download can give already to those who wait for its model: its commit and files, one by one."""

import threading
from collections.abc import Callable, Collection

from registry.download.arrival import Arrival
from registry.models.manifest import FileEntry, Manifest


class UnderWay:
    """Told by the threads that fetch, asked by routes. Safe for many threads."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        """What the download will publish, once it can be told."""
        self.on_wanted: Callable[[str], None] = _nothing
        """Called with the path of a file that somebody waits for."""
        self._lock = threading.Lock()
        self._draft: Manifest | None = None
        self._known: dict[str, FileEntry] = {}
        self._awaited: set[str] = set()
        self._here: set[str] = set()
        self._arrivals: dict[str, Arrival] = {}

    def begins(self, draft: Manifest, awaited: Collection[str]) -> None:
        """Everything is to be brought, once more perhaps. `draft` has the files whose digests the source gave.

        `awaited` are the paths that must be here before anything is told: those that had no sha256, and those that are
        looked at. Nobody hears of a model that may yet be refused for what is in it.
        """
        with self._lock:
            self._draft = draft
            self._known = {file.path: file for file in draft.files}
            self._awaited = set(awaited)
            self._here.clear()
            self._arrivals.clear()
            self._tell()

    def comes(self, path: str, arrival: Arrival) -> None:
        """A file is on its way; again, perhaps."""
        with self._lock:
            self._arrivals[path] = arrival

    def is_brought(self, file: FileEntry, *, alone: bool) -> None:
        """A file is in the store, proved, and looked at; not `alone`: it needs another repository beside this one."""
        with self._lock:
            self._known[file.path] = file
            self._here.add(file.path)
            self._arrivals.pop(file.path, None)
            if alone:
                self._awaited.discard(file.path)
            self._tell()

    def has(self, path: str) -> bool:
        """Whether a file can be had from the store."""
        return path in self._here

    def arrival(self, path: str) -> Arrival | None:
        """A file that is on its way now."""
        found = self._arrivals.get(path)
        return None if found is None or found.is_broken else found

    def _tell(self) -> None:
        if self._draft is not None and not self._awaited and self.manifest is None:
            files = tuple(self._known[path] for path in sorted(self._known))
            self.manifest = self._draft.model_copy(update={"files": files})


def _nothing(_path: str) -> None:
    """Nobody is there to hear it."""
