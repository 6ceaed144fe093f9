"""A blob of a store as a seekable file."""

import errno
import io

from registry.store.interface import Store, StoreError


class BlobFile(io.RawIOBase):
    """A blob as a seekable file; each read is a range request to the store."""

    def __init__(self, store: Store, digest: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._digest = digest
        self._size = size
        self._position = 0
        self.failure: StoreError | None = None
        """The error of a failed read."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the position."""
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise OSError(errno.EINVAL, "negative position")
        self._position = at
        return at

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]  # what BufferedReader gives
        """Read into `buffer`."""
        end, done = min(self._position + len(buffer), self._size), 0
        try:
            for chunk in self._store.read_blob(self._digest, self._position, end) if end > self._position else ():
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
        except StoreError as error:
            self.failure = error
            raise
        self._position += done
        return done
