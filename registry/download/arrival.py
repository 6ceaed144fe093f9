"""One file on its way into the store, read by those who wait for it behind the place where it is written.

Nobody gets its last bytes before its digest is right: whoever has a file whole has the right one. Who reads never holds
up who writes, and costs no memory: what was written is read from the disk. Of a file that goes into a bucket only the
beginning can be read; a reader gets it in drops, so that its client does not take the silence for an end, and the rest
when all is there.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import structlog

from registry.download import unproved
from registry.safety.pickles import HEAD
from registry.store.interface import Store, StoreError

log = structlog.get_logger(__name__)

# Kept back until the digest is right, and what there is to send while nothing comes.
RESERVE = 64 << 10

State = Literal["arriving", "proved", "broken"]


class Cut(Exception):
    """What arrived was not the file, or no more of it comes this time."""


class Arrival:
    """One try to bring one file. Written by the thread that fetches it, read by many."""

    def __init__(self, store: Store, digest: str, size: int, *, may_stream: Callable[[bytes], bool]) -> None:
        """`may_stream` tells of a file's first HEAD bytes whether anybody may have it before it is looked at."""
        self.size = size
        self._store = store
        self._digest = digest
        self._may_go = may_stream
        self._lock = threading.Lock()
        self._state: State = "arriving"
        self._head = b""
        self._path: Path | None = None
        self._written = 0
        self._right = False
        self._given = self._first_given = False

    def goes_on(self, path: Path | None, done: int) -> None:
        """It is written to `path`, if it can be read there, which holds its first `done` bytes already."""
        if path is not None and done:
            with path.open("rb") as file:
                self._head = file.read(min(RESERVE, done))
        self._path, self._written = path, done

    def comes(self, beginning: memoryview) -> None:
        """So much of it came, all from its first byte on: a copy is kept of no more than is held back."""
        if len(self._head) < min(RESERVE, self.size):
            self._head = bytes(beginning[:RESERVE])

    def wrote(self, count: int) -> None:
        """Another `count` bytes, in order, are where it is written."""
        self._written += count

    def is_right(self) -> None:
        """All of it is written, and its digest is right: readers need not wait until the disk has it for sure."""
        self._right = True

    def ends(self, state: State) -> None:
        """It is in the store, its digest right, or this try has ended without."""
        with self._lock:
            self._state = state
            if state == "proved" and self._first_given:
                try:
                    unproved.forget(self._store, self._digest)
                except StoreError as error:  # it costs those who go on with it a new beginning, no more
                    log.warning("the note on what went out unproved stays", digest=self._digest, reason=str(error))

    @property
    def can_be_read(self) -> bool:
        """Whether it is written to where it can be read; else there is no more of it than its beginning."""
        return self._path is not None

    @property
    def is_broken(self) -> bool:
        """Whether this try has ended without."""
        return self._state == "broken"

    def may_be_gone_on_with(self) -> bool:
        """Whether the beginnings that clients hold are of this very try. To be asked before any byte goes out.

        Raises StoreError.
        """
        with self._lock:
            if self._state == "proved":
                return self._first_given or not unproved.is_noted(self._store, self._digest)
            if not self._given:
                self._first_given = unproved.note(self._store, self._digest)
                self._given = True
            return self._first_given

    def open(self) -> int | None:
        """A descriptor to read it by, for `read`; the caller closes it. None where it cannot be read as yet."""
        if self._path is None or not self._written:
            return None
        try:
            return os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None  # proved or broken a moment ago

    def end(self, at: int, *, readable: bool, reserve: bool) -> int:
        """Up to where it may be read now, from `at`; `readable`: with a descriptor, `reserve`: what is kept back too.

        Raises Cut.
        """
        if self.is_broken:
            raise Cut
        if len(self._head) < min(HEAD, self.size) or not self._may_go(self._head[:HEAD]):
            return at
        there = max(self._written if readable else 0, len(self._head))
        if self._right and there == self.size:
            return self.size
        kept = 1 if reserve else RESERVE
        return max(at, min(there if reserve else there - kept, self.size - kept))

    def read(self, descriptor: int | None, at: int, end: int) -> bytes:
        """Some of the bytes from `at` up to `end`, as `end` gave it. Raises OSError."""
        if descriptor is None or at < len(self._head):
            return self._head[at:end]
        return os.pread(descriptor, end - at, at)
