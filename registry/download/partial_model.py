"""The part of a model that can be served before its download is complete: its manifest and its verified files."""

import threading
from collections.abc import Callable, Collection

from registry.models.manifest import FileEntry, Manifest


class PartialModel:
    """Filled by download threads, read by routes. Thread-safe."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        """The manifest to be published; None until every file that needs inspection has passed it."""
        self.prioritize: Callable[[str], None] = lambda _path: None
        """Move a file, given by its path, to the front of the download queue."""
        self._lock = threading.Lock()
        self._draft: Manifest | None = None
        self._files: dict[str, FileEntry] = {}
        self._missing: set[str] = set()
        self._verified: set[str] = set()

    def start(self, draft: Manifest, required: Collection[str]) -> None:
        """Begin, or begin again, with no file verified. `draft` lists the files whose digests the source has sent.

        `required`: paths of files that must be verified before the manifest is visible, because they came without a
        sha256 or need inspection: a model that may still be refused is not announced.
        """
        with self._lock:
            self._draft = draft
            self._files = {file.path: file for file in draft.files}
            self._missing = set(required)
            self._verified.clear()
            self._complete_manifest()

    def add(self, file: FileEntry, *, needs_code: bool) -> None:
        """Record a file that is stored, verified and inspected. `needs_code`: it loads code from another repository,
        which is mirrored after all files, so the manifest stays hidden until then.
        """
        with self._lock:
            self._files[file.path] = file
            self._verified.add(file.path)
            if not needs_code:
                self._missing.discard(file.path)
            self._complete_manifest()

    def has_file(self, path: str) -> bool:
        """Whether the file is verified and in the store."""
        return path in self._verified

    def _complete_manifest(self) -> None:
        if self._draft is not None and not self._missing and self.manifest is None:
            files = tuple(self._files[path] for path in sorted(self._files))
            self.manifest = self._draft.model_copy(update={"files": files})
